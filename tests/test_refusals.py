"""What is said of settings that cannot be taken."""

import pytest
from hydra.core.config_store import ConfigStore

from anomaly_bench import refusals
from anomaly_bench.cli import answer
from anomaly_bench.commands import COMMANDS
from anomaly_bench.errors import SettingError
from anomaly_bench.refusals import (
    explained,
    flags_among,
    for_each_job,
    frequent_slips,
    groups_take_names,
    ranges_stand_alone,
    words_are_commands,
)
from anomaly_bench.schema import Settings


@pytest.mark.parametrize("word", ["model", "trainer.max_epochs", "seed", "runs_dir"])
def test_a_setting_with_dashes_is_refused(word):
    with pytest.raises(SettingError, match=f"--{word}=3: settings have no dashes; write {word}=VALUE"):
        frequent_slips([f"--{word}=3"])


@pytest.mark.parametrize(
    "arguments", [[], ["-m", "seed=0,1"], ["--cfg", "job"], ["--multirun"], ["~tracker"], ["runs_dir=."]]
)
def test_what_hydra_takes_is_no_slip(arguments):
    frequent_slips(arguments)
    flags_among(arguments)
    words_are_commands(arguments, ["report"])
    groups_take_names(arguments)


def test_a_group_takes_a_name_and_experiments_are_left_to_hydra():
    groups_take_names(["model=ae", "model=ae,ganomaly", "model", "experiment=3", "data.limit=3", "model='"])
    with pytest.raises(SettingError, match="model=3: a name is needed; there are aae, "):
        groups_take_names(["model=3"])


@pytest.mark.parametrize("argument", ["~model", "~data", "~protocol=folder", "~evaluation"])
def test_no_group_that_a_run_needs_is_taken_away(argument):
    with pytest.raises(SettingError, match=f"{argument}: a run needs one; there are "):
        groups_take_names([argument])


@pytest.mark.parametrize("value", ["0,range(3,5)", "range(2),5", "range(2), range(4,6)"])
def test_a_range_among_other_values_is_refused(value):
    with pytest.raises(SettingError, match=r"range\(\.\.\.\) stands alone or not at all"):
        ranges_stand_alone([f"abnormal_class={value}"])


def test_a_range_alone_and_a_list_of_it_are_left_to_hydra():
    ranges_stand_alone(
        ["seed=range(20)", "seed=range(0,10,5)", "seed=choice(0,3)", "model.a='range(2),3'", "-m"]
    )


def test_a_key_of_swept_models_is_given_to_each_and_no_other_key_is():
    ConfigStore.instance().store("schema", Settings)
    given = [
        "model=ae_dense,dagmm",
        "model.hidden=[3]",
        "model.unheard=1",
        "trainer.max_epochs=3",
        "seed=0,1",
    ]
    asked = for_each_job(given)
    assert asked == [given[0], "++model.hidden=[3]", *given[2:]]
    assert refusals.as_typed(asked) == given
    alone = ["model=ae_dense", "model.hidden=[3]"]
    assert for_each_job(alone) == alone
    chosen = ["model=choice(ae_dense,dagmm)", "model.hidden=[3]"]
    assert for_each_job(chosen) == [chosen[0], "++model.hidden=[3]"]


def test_a_key_of_a_swept_model_of_ones_own_is_given_to_it(tmp_path):
    ConfigStore.instance().store("schema", Settings)
    own = tmp_path / "it's mine, a = b"
    (own / "model").mkdir(parents=True)
    (own / "model/shallow.yaml").write_text("_target_: mine.Shallow\ncode: 4\n")
    given = ["-m", "--config-dir", str(own), "model=shallow,knn", "model.code=8"]
    assert for_each_job(given) == [*given[:4], "++model.code=8"]


@pytest.mark.parametrize(
    ("plugin", "kind", "package"),
    [
        ("submitit", "launcher", "anomaly-bench[slurm]"),
        ("joblib", "launcher", "anomaly-bench[joblib]"),
        ("optuna", "sweeper", "anomaly-bench[optuna]"),
        ("ray", "launcher", "hydra-ray-launcher"),
        ("nevergrad_two", "sweeper", "hydra-nevergrad-two-sweeper"),
    ],
)
def test_a_plugin_that_is_not_there_is_told_with_what_to_install(plugin, kind, package):
    error = RuntimeError(f"Unknown plugin class : 'hydra_plugins.hydra_{plugin}_{kind}.{kind}.Plugin'")
    name = f"hydra-{plugin}-{kind}".replace("_", "-")
    assert explained(error, []) == f"hydra/{kind}: {name} is not installed: pip install {package}"


def test_a_refusal_is_found_behind_other_errors():
    def failing():
        try:
            raise SettingError("data.limit=0: too few")
        except SettingError:
            raise RuntimeError("while instantiating")  # noqa: B904

    with pytest.raises(RuntimeError) as caught:
        failing()
    assert explained(caught.value, []) == "data.limit=0: too few"
    assert explained(RuntimeError("else"), []) is None


def test_where_a_refusal_comes_from_is_shown_on_demand(monkeypatch, capsys):
    def refused(_):
        raise SettingError("seed=-1: too small")

    for wanted in ("0", "1"):
        monkeypatch.setenv(refusals.DEBUG, wanted)
        monkeypatch.setitem(COMMANDS, "list", refused)
        assert answer(["list"]) == 2
        shown = capsys.readouterr().err
        assert shown.endswith("anomaly-bench: seed=-1: too small\n")
        assert ("Traceback" in shown) == (wanted == "1")


def test_a_name_cannot_command_the_terminal(capsys):
    assert refusals.refuse("data.root=\x1b[2J\x07猫\n: no such folder") == 2
    assert capsys.readouterr().err == "anomaly-bench: data.root= [2J 猫 : no such folder\n"
