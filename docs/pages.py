"""The pages of the documentation, made anew at every build from what they are about, so that they cannot drift.

Texts are sections of the README and of CONTRIBUTING.md, and the cells of the tutorial; a method's page has its
docstring, its config and its numbers in `results/`; the command reference is what the commands say of themselves.
"""

import ast
import contextlib
import io
import json
import re
from pathlib import Path

import pandas as pd
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

from anomaly_bench.commands import COMMANDS
from anomaly_bench.usage import headline, usage

CHECKOUT = Path(__file__).resolve().parents[1]
CONFIGS = CHECKOUT / "configs"

ROOMS = {
    "From Python": ["estimator"],
    "The interface of a method": ["detector", "rows"],
    "Data and protocols": ["data.dataset", "protocols"],
    "Training and scoring": ["training.trainer", "training.scoring", "training.control"],
    "Numbers and records": ["metrics", "record"],
}
"""Modules of the API reference, under `anomaly_bench`."""

ADVICE = ("When to use it", "Traps")
"""What the last paragraphs of a method's docstring begin with, sections of their own on its page."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """The order of the pages."""
    methods: list[str | dict[str, str]] = ["methods/index.md"]
    methods += [{name: f"methods/{name}.md"} for name in models()]
    config.nav = [
        {"Start": "index.md"},
        {"Tutorial": "tutorial.md"},
        {"Use": "use.md"},
        {"Results": "results.md"},
        {"Findings": "findings.md"},
        {"Protocols and honest evaluation": "evaluation.md"},
        {"Methods": methods},
        {"Data sets": "data.md"},
        {"Add a method or a data set": "extend.md"},
        {"Commands": "commands.md"},
        {"API": "api.md"},
    ]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add every page, also in place of a file of `docs/` that has its name."""
    for path, text in pages().items():
        if old := files.get_file_from_path(path):
            files.remove(old)
        files.append(File.generated(config, path, content=text))
    return files


def pages() -> dict[str, str]:
    """The Markdown of each page by its path."""
    readme, contributing = (sections(CHECKOUT / name) for name in ("README.md", "CONTRIBUTING.md"))
    uses = ["From Python", "What a run leaves", "Sweeps on other machines", "Shell completion"]
    parts = ["Add a method", "Stages are a generator", "Changes that can move a number", "Style"]
    found = {
        "index.md": f"# anomaly-bench\n\n{readme['']}\n## Start\n\n{readme['Start']}",
        "tutorial.md": tutorial(),
        "use.md": f"# Use\n\n{readme['Use']}\n" + "\n".join(f"## {part}\n\n{readme[part]}" for part in uses),
        "results.md": f"# Results\n\n{readme['Results']}\n## All of them\n\n{index_of_results()}"
        f"\n## Speed\n\n{readme['Speed']}",
        "findings.md": findings(),
        "evaluation.md": evaluation(readme["Honest, and as published"]),
        "methods/index.md": f"# Methods\n\n{readme['Methods']}\n{links(models())}",
        "data.md": f"# Data sets\n\n{readme['Data sets']}",
        "extend.md": "# Add a method or a data set\n\n"
        + "\n".join(f"## {part}\n\n{readme[part]}" for part in ("Add a method", "Add a data set"))
        + "".join(f"\n## {part}: in detail\n\n{contributing[part]}" for part in parts[:1])
        + "".join(f"\n## {part}\n\n{contributing[part]}" for part in parts[1:]),
        "commands.md": commands(),
        "api.md": api(),
    }
    numbers = published()
    return found | {f"methods/{name}.md": method(name, numbers) for name in models()}


# ------------------------------------------------------------------------------ texts that exist


def sections(path: Path) -> dict[str, str]:
    """The text below each `##` heading, that before the first under the empty name; no pictures nor their
    captions, and links to files are plain text.
    """
    text = unlinked(re.sub(r"!\[[^\]]*\]\([^)]*\)\n(\n\*[^*]+\*\n)?", "", path.read_text(encoding="utf-8")))
    first, *rest = re.split(r"(?m)^## ", text)
    named = {title: body for title, _, body in (part.partition("\n\n") for part in rest)}
    return {"": first.partition("\n\n")[2]} | named


def unlinked(text: str) -> str:
    """Markdown in which links to files are plain text."""
    return re.sub(r"\[([^\]]+)\]\((?!https?:|#)[^)]*\)", r"\1", text)


def tutorial() -> str:
    """The cells of the notebook, not what they give."""
    notebook = json.loads((CHECKOUT / "docs" / "tutorial.ipynb").read_text(encoding="utf-8"))
    start, *cells = notebook["cells"]
    told = "This page is the notebook [tutorial.ipynb](tutorial.ipynb), whose tables and pictures show when it runs."
    parts = [*start["source"], "\n\n", told]
    for cell in cells:
        text = "".join(cell["source"])
        parts += ["\n\n", text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```"]
    return "".join([*parts, "\n"])


def index_of_results() -> str:
    """The table of `results/README.md`."""
    text = (CHECKOUT / "results" / "README.md").read_text(encoding="utf-8")
    return re.sub(r"\[([^\]]+)\]\([^)]*\)", r"\1", text.partition("-->\n")[2])


def findings() -> str:
    """`docs/findings.md`, its links to records plain text."""
    return unlinked((CHECKOUT / "docs" / "findings.md").read_text(encoding="utf-8"))


def evaluation(text: str) -> str:
    """Who is normal, and what may look at the test set."""
    lines = [
        f"| `{path.stem}` | {headline(path)} |" for path in sorted((CONFIGS / "protocol").glob("*.yaml"))
    ]
    table = "\n".join(["| protocol | who is normal |", "| --- | --- |", *lines])
    files = "\n".join(code(path) for path in sorted((CONFIGS / "evaluation").glob("*.yaml")))
    return f"# Protocols and honest evaluation\n\n{table}\n\n## Honest, and as published\n\n{text}\n{files}"


def code(path: Path) -> str:
    """A file of `configs/` as it is."""
    name = path.relative_to(CHECKOUT).as_posix()
    return f"`{name}`\n\n```yaml\n{path.read_text(encoding='utf-8')}```\n"


def links(names: list[str]) -> str:
    """Links to the methods' pages."""
    return "Their pages: " + ", ".join(f"[{name}]({name}.md)" for name in names) + ".\n"


# ------------------------------------------------------------------------------ methods


def models() -> list[str]:
    """Names of all method configs."""
    return sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))


def method(name: str, numbers: pd.DataFrame) -> str:
    """The page of one method."""
    path = CONFIGS / "model" / f"{name}.yaml"
    module, cls = target(path).rsplit(".", 1)
    said, *further = advice(docstring(module))
    return "\n".join(
        [
            f"# {name}\n\n{said}\n",
            *further,
            *inside(path),
            f"## Settings\n\n{code(path)}",
            f"::: {module}.{cls}\n    options:\n      members: false\n      show_root_heading: false\n",
            f"## Numbers\n\n{of_method(name, numbers)}",
        ]
    )


def advice(docstring: str) -> list[str]:
    """A method's docstring without its paragraphs of `ADVICE`, then each of these as a section."""
    said, *found = re.split(rf"\n\n({'|'.join(ADVICE)}): ", docstring)
    return [said, *(f"## {title}\n\n{text}\n" for title, text in zip(found[::2], found[1::2], strict=True))]


def docstring(module: str) -> str:
    """What a module says of itself."""
    source = CHECKOUT / f"{module.replace('.', '/')}.py"
    return ast.get_docstring(ast.parse(source.read_text(encoding="utf-8"))) or ""


def target(path: Path) -> str:
    """The class that a method's config, or the one it is built on, names."""
    text = path.read_text(encoding="utf-8")
    if found := re.search(r"(?m)^_target_: (\S+)", text):
        return found[1]
    (first,) = re.findall(r"(?m)^defaults:\n  - (\w+)$", text)
    return target(path.with_name(f"{first}.yaml"))


def inside(path: Path) -> list[str]:
    """What is said of the detectors that a method's config puts inside it: links to methods, else all."""
    text = path.read_text(encoding="utf-8")
    found = []
    if names := list(dict.fromkeys(re.findall(r"(?m)^  - (\w+)@\S+$", text))):
        found.append(f"## What is inside\n\n{', '.join(f'[{name}]({name}.md)' for name in names)}\n")
    for name in re.findall(r"(?m)^  - /features@features: (\w+)$", text):
        said, *further = advice(docstring(target(CONFIGS / "features" / f"{name}.yaml").rpartition(".")[0]))
        found += [f"## Its features\n\n{said}\n", *(f"#{section}" for section in further)]
    return found


def published() -> pd.DataFrame:
    """What `results/` has of every method: means over classes where there are such, else each class."""
    tables = []
    for path in sorted((CHECKOUT / "results").glob("*/table.csv")):
        cells = (
            pd.read_csv(path, dtype={"settings": str})
            .fillna({"settings": ""})
            .assign(results=path.parent.name)
        )
        whole = cells["class"].isin(["mean", "overall"])
        alone = ~cells.groupby(["model", "evaluation", "settings"])["class"].transform(
            lambda classes: classes.isin(["mean", "overall"]).any()
        )
        tables.append(cells[whole | alone])
    return pd.concat(tables, ignore_index=True)


def of_method(name: str, numbers: pd.DataFrame) -> str:
    """Its AUROCs beside the untrained control, and the paper's where the same results have them."""
    mine = numbers[numbers["model"] == name]
    if mine.empty:
        return "None were published here yet.\n"
    columns = ["results", "data", "protocol", "evaluation", "settings", "class", "n", "epochs"]
    shown = mine[[*columns, "mean", "untrained_mean"]]
    where = zip(shown["results"].tolist(), shown["class"].tolist(), strict=True)
    papers = [printed(results, name, of_class) for results, of_class in where]
    shown = pd.DataFrame(shown).assign(paper=papers)
    shown.columns = [*shown.columns[:6], "seeds", "epochs", "AUROC", "untrained", "paper"]
    table = shown.to_markdown(index=False, floatfmt=".3f", missingval="–")
    return f"{table}\n\n`class` is the one left out, or the normal one; `mean` is over all that were run.\n"


def printed(results: str, name: str, of_class: str) -> float | None:
    """The paper's AUROC of this class of a method, where these results have it."""
    path = CHECKOUT / "results" / results / "paper.csv"
    if not path.exists():
        return None
    cells = pd.read_csv(path, dtype={"class": str})
    fitting = cells.query("model == @name and `class` == @of_class and metric == 'auroc'")
    found = {value for value in fitting["printed"].tolist() if value == value}  # not NaN
    return found.pop() if len(found) == 1 else None


# ------------------------------------------------------------------------------ references


def commands() -> str:
    """What each command says of itself."""
    blocks = []
    for name, command in COMMANDS.items():
        said = io.StringIO()
        with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
            command(["--help"])
        blocks.append(f"## anomaly-bench {name}\n\n```text\n{said.getvalue()}```\n")
    return "\n".join([f"# Commands\n\n## Runs and sweeps\n\n```text\n{usage()}\n```\n", *blocks])


def api() -> str:
    """The reference of the rooms that are used from outside."""
    parts = ["# API\n"]
    for title, modules in ROOMS.items():
        parts += [
            f"## {title}\n",
            *(f"::: anomaly_bench.{module}\n    options:\n      heading_level: 3\n" for module in modules),
        ]
    return "\n".join(parts)
