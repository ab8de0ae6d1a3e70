"""The documentation's pages follow from what they are about."""

import importlib
import importlib.util
import inspect
import json
import re
from pathlib import Path

import pytest
import yaml

from anomaly_bench.detector import Detector

CHECKOUT = Path(__file__).parents[1]
CONFIGS = CHECKOUT / "configs"
METHODS = sorted(
    path.stem for path in (CHECKOUT / "anomaly_bench" / "detectors").glob("*.py") if path.stem != "__init__"
)
SETTING = r"(?<![\w.@?])([a-z_][\w.]*)=(?=[^\s=])"
"""What is set in a text, such as `model.nz=100`; not what a formula says, whose = stands alone."""


@pytest.fixture(scope="module")
def pages() -> dict[str, str]:
    """Every page's Markdown."""
    made = importlib.util.spec_from_file_location("pages", CHECKOUT / "docs" / "pages.py")
    assert made is not None
    assert made.loader is not None
    module = importlib.util.module_from_spec(made)
    made.loader.exec_module(module)
    return module.pages()


def test_every_method_has_a_page_with_its_docstring_config_and_class(pages):
    for path in (CONFIGS / "model").glob("*.yaml"):
        page, text = pages[f"methods/{path.stem}.md"], path.read_text()
        assert text in page
        assert "::: anomaly_bench.detectors." in page
        if target := yaml.safe_load(text).get("_target_"):
            assert f"::: {target}\n" in page
            source = CHECKOUT / f"{target.rpartition('.')[0].replace('.', '/')}.py"
            first = source.read_text().split('"""')[1].splitlines()[0]
            assert f"# {path.stem}\n\n{first}\n" in page


@pytest.mark.parametrize("name", sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml")))
def test_every_method_says_when_to_use_it_and_what_its_traps_are(pages, name):
    page = pages[f"methods/{name}.md"]
    parts = re.search(r"\n\n## When to use it\n\n(.+?)\n\n## Traps\n\n(.+?)\n\n## ", page, re.DOTALL)
    assert parts is not None
    for text in parts.groups():
        assert len(text) >= 80
        assert "\n\n" not in text
    assert not re.search(r"(?m)^(When to use it|Traps):", page)


@pytest.fixture(scope="module")
def keys() -> dict[str, set[str]]:
    """What each group of settings has, and what a run has, under no name."""

    def of(*paths: Path) -> set[str]:
        return {key for path in paths for key in yaml.safe_load(path.read_text()) or {}}

    groups = {folder.name: of(*folder.glob("*.yaml")) for folder in CONFIGS.iterdir() if folder.is_dir()}
    return groups | {"": of(CONFIGS / "config.yaml") | set(groups)}


@pytest.mark.parametrize("name", METHODS)
def test_settings_that_a_docstring_names_are_there(keys, name):
    module = importlib.import_module(f"anomaly_bench.detectors.{name}")
    (method,) = [
        found
        for found in vars(module).values()
        if inspect.isclass(found) and issubclass(found, Detector) and found.__module__ == module.__name__
    ]
    own = set(inspect.signature(method).parameters)
    allowed = keys | {"model": own, "": keys[""] | own}
    for setting in re.findall(SETTING, f"{module.__doc__}\n{method.__doc__}"):
        # With another method on top, this one's settings are under `model.features`.
        *group, key = setting.removeprefix("model.features.").split(".")[:2]
        assert key in allowed["".join(group)], setting


def test_a_method_that_stands_on_another_says_on_what(pages):
    for name, inside in (("ocsvm_ae", "ae"), ("ssd_if", "e3outlier"), ("ensemble", "vae")):
        assert "## What is inside\n\n" in pages[f"methods/{name}.md"]
        assert f"[{inside}]({inside}.md)" in pages[f"methods/{name}.md"]
    for name in ("pretrained", "pretrained_patches", "pretrained_mahalanobis", "pretrained_ocsvm"):
        assert "\n### Traps\n" in pages[f"methods/{name}.md"].partition("## Its features\n")[2]


def test_numbers_are_those_of_the_results(pages):
    assert "None were published here yet." in pages["methods/rdp.md"]
    page = pages["methods/ganomaly.md"]
    assert "| ganomaly_mnist " in page
    assert "0.774" in page  # the mean of results/ganomaly_mnist, in its table.csv
    assert "0.781" in page  # the paper's


def test_numbers_of_several_settings_are_told_apart_and_all_there(pages):
    assert "point={nz:32}" in pages["methods/ganomaly.md"]
    rows = [
        line for line in pages["methods/e3outlier.md"].splitlines() if "| e3outlier_cifar10_jpeg " in line
    ]
    assert len(rows) == 2  # the mean of three classes, and the one class of another setting
    assert len({row.split("|")[5].strip() for row in rows}) == 2
    assert "nan" not in "".join(rows)


def test_every_section_of_the_readme_has_a_page(pages):
    readme = (CHECKOUT / "README.md").read_text(encoding="utf-8")
    everything = "\n".join(pages.values())
    for title in set(re.findall(r"(?m)^## (.+)$", readme)) - {"Licence"}:
        assert re.search(rf"(?m)^##? {title}$", everything), title


def test_a_picture_that_is_left_out_leaves_no_caption(pages):
    assert "Four epochs of" not in pages["index.md"]


def test_the_interface_from_python_is_in_the_reference(pages):
    assert "::: anomaly_bench.estimator\n" in pages["api.md"]


def test_commands_say_what_they_say_in_a_terminal(pages):
    for word in (
        "anomaly-bench score [-h]",
        "--fail-on-anomaly",
        "anomaly-bench report [-h]",
        "geotrans_cifar10",
    ):
        assert word in pages["commands.md"]


def test_the_tutorial_is_the_notebook_in_its_order(pages):
    notebook = json.loads((CHECKOUT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
    rest = pages["tutorial.md"]
    assert rest.startswith("# Tutorial\n")
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        before, found, rest = rest.partition(
            text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```\n"
        )
        assert found, text
        assert len(before.strip().splitlines()) <= 1  # a link to the notebook
    assert not rest.strip()


def test_no_page_links_to_a_file_that_is_not_there(pages):
    for path, text in pages.items():
        assert "](results/" not in text, path
        assert "](../" not in text, path
