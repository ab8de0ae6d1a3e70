import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, get_method
from omegaconf import OmegaConf

CONFIGS = Path(__file__).parents[2] / "configs"
DATA = sorted(file.stem for file in (CONFIGS / "data").glob("*.yaml"))
PROTOCOLS = dict.fromkeys(("folder", "uba", "ffob"), "Folder")
TABLES = ("kddcup99", "kddcup99_rev", "thyroid", "arrhythmia", "table")
PROTOCOLS |= dict.fromkeys(TABLES, "TabularHalf")


@pytest.fixture
def composed(tmp_path):
    """Composes a small program's config that has our data and protocols: `composed("data=mnist", ...)`."""
    (tmp_path / "config.yaml").write_text(
        "defaults: [{protocol: leave_one_class_out}, {data: digits}, _self_]\n"
        f"hydra: {{searchpath: ['file://{CONFIGS}']}}\n"
        "abnormal_class: 2\nnormal_class: cat\n"
    )

    def compose_with(*overrides):
        with initialize_config_dir(str(tmp_path), version_base="1.3"):
            return compose("config", list(overrides))

    return compose_with


@pytest.mark.parametrize("name", DATA)
def test_data_configs_fit_their_loaders(composed, name, monkeypatch):
    monkeypatch.delenv("ANOMALY_BENCH_DATA", raising=False)
    sizes = [] if name in TABLES else ["data.image_size=16"]
    settings = OmegaConf.to_container(composed(f"data={name}", "data.limit=10", *sizes).data, resolve=True)
    load = get_method(settings.pop("_target_"))
    assert inspect.signature(load).bind(**settings).arguments["limit"] == 10
    assert settings["name"] == name
    assert set(settings) == set(inspect.signature(load).parameters)


@pytest.mark.parametrize("name", DATA)
def test_folders_and_tables_choose_their_protocol(composed, name):
    expected = PROTOCOLS.get(name, "LeaveOneClassOut")
    assert composed(f"data={name}").protocol._target_.endswith(f".{expected}")


def test_a_protocol_of_the_command_line_wins(composed):
    for order in (["data=uba", "protocol=one_vs_rest"], ["protocol=one_vs_rest", "data=uba"]):
        assert composed(*order).protocol._target_.endswith(".OneVsRest")


def test_protocol_configs_take_the_top_level_class(composed):
    for name, expected in (
        ("leave_one_class_out", 2),
        ("one_vs_rest", "cat"),
        ("contaminated", "cat"),
        ("tabular_half", "cat"),
        ("folder", None),
    ):
        settings = OmegaConf.to_container(composed(f"protocol={name}", "data=mnist").protocol, resolve=True)
        protocol = get_class(settings.pop("_target_"))(**settings)
        assert [value for key, value in vars(protocol).items() if key.endswith("_class")] == [expected] * (
            expected is not None
        )


def test_data_root_of_the_environment(composed, monkeypatch):
    monkeypatch.setenv("ANOMALY_BENCH_DATA", "/somewhere")
    assert composed("data=mnist").data.root == "/somewhere"
    monkeypatch.delenv("ANOMALY_BENCH_DATA")
    assert composed("data=mnist").data.root is None
