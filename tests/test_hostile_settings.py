"""Settings that nobody should type: each is taken for what it is, or refused in one line before there is a folder."""

import sys
from pathlib import Path

import pytest
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.errors import HydraException
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from anomaly_bench import cli, refusals
from anomaly_bench import run as runs
from anomaly_bench.arguments import is_of
from anomaly_bench.compose import compose
from anomaly_bench.errors import SettingError
from anomaly_bench.schema import Settings

CONFIGS = Path(__file__).parents[1] / "configs"
TINY = ("data=digits", "data.limit=300", "model.ngf=4", "model.ndf=4", "model.nz=4")
MODELS = {"ganomaly": TINY, "ae": TINY[:2], "deep_svdd": TINY[:2], "ocsvm": TINY[:2], "e3outlier": TINY[:2]}
PROTOCOLS = ("leave_one_class_out", "contaminated", "tabular_half")
TEXTS = [
    "",
    "nan",
    "=cmd|' /C calc'!A0",
    "<script>",
    "a\nb",
    "\0",
    "../../x",
    "日本",
    "x" * 5000,
    "\udcff",
    "${seed}",
]
WHOLE = [-(2**70), -1, 0, 1, 3, 2**31, 2**63, 2**70]  # what lies between would ask for gigabytes
REAL = [float("nan"), float("inf"), -float("inf"), -1.0, -0.0, 0.5, 1e-320, 1.5, 1e300]
VALUES = st.recursive(
    st.sampled_from([None, True, False, *WHOLE, *REAL, *TEXTS]),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["a", "_target_"]), inner, max_size=1)
    ),
    max_leaves=2,
)


@pytest.fixture(scope="module")
def composed() -> dict[tuple[str, str], DictConfig]:
    """What Hydra makes of each method and each protocol."""
    ConfigStore.instance().store("schema", Settings)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        pairs = [(model, PROTOCOLS[0]) for model in MODELS] + [("ganomaly", name) for name in PROTOCOLS[1:]]
        return {
            pair: hydra_compose("config", [f"model={pair[0]}", f"protocol={pair[1]}", *MODELS[pair[0]]])
            for pair in pairs
        }


def leaves(settings: DictConfig) -> list[str]:
    """Every setting of a run that is typed with a value."""
    groups = ("data", "protocol", "model", "trainer", "evaluation")
    inside = [f"{group}.{key}" for group in groups for key in settings[group] if not key.startswith("_")]
    return [
        "abnormal_class",
        "normal_class",
        "seed",
        "point",
        "rerun",
        "runs_dir",
        "data",
        "protocol",
        "model",
        *inside,
    ]


def number_of(settings: DictConfig, key: str) -> bool:
    value = OmegaConf.select(settings, key)
    return isinstance(value, int | float) and not isinstance(value, bool) and not key.endswith("_class")


@given(data=st.data())
@hypothesis_settings(
    max_examples=150, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
def test_any_value_of_any_setting_is_taken_or_refused_in_a_line(composed, tmp_path, monkeypatch, data):
    monkeypatch.chdir(tmp_path)
    pair = data.draw(st.sampled_from(sorted(composed)))
    key = data.draw(st.sampled_from(leaves(composed[pair])))
    value = data.draw(VALUES)
    settings = composed[pair].copy()
    was_number = number_of(settings, key)
    names = {"model": pair[0], "data": "digits", "protocol": pair[1], "evaluation": "clean"}
    try:
        OmegaConf.update(settings, key, value, merge=False)
        job = compose(settings, names, [f"{key}={value}"])
        runs.check_that_it_builds(job)
    except (SettingError, HydraException, OmegaConfBaseException) as error:
        line = refusals.explained(error, [])
        assert line
        assert key.rpartition(".")[2] in line or key.partition(".")[0] in line
    else:
        assert not (was_number and isinstance(value, list | dict)), "it takes numbers only"
        assert not (was_number and isinstance(value, str) and value != "${seed}"), "it takes numbers only"
        assert not (was_number and value in (float("inf"), -float("inf")))
        assert not (was_number and value != value), "NaN"
    assert not list(tmp_path.iterdir())


@example(value=True, hint=int, fits=False)
@example(value=2, hint=float, fits=True)
@example(value=2.0, hint=int, fits=False)
@example(value=float("nan"), hint=float | None, fits=False)
@example(value=None, hint=float | None, fits=True)
@example(value=1, hint=bool, fits=False)
@example(value=[1, "a"], hint=list[int], fits=False)
@example(value=[1, 2], hint=list[int], fits=True)
@example(value=[True], hint=list[int], fits=False)
@example(value=True, hint=bool | None, fits=True)
@example(value=0, hint=int | str, fits=True)
@given(value=st.integers(2**31), hint=st.just(int), fits=st.just(False))
@hypothesis_settings(max_examples=20, derandomize=True, database=None)
def test_what_is_of_a_type(value, hint, fits):
    assert is_of(hint, value) == fits


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("model=1.5", ["model=1.5", "a name is needed", "ganomaly"]),
        ("model=null", ["model=null", "a name is needed"]),
        ("trainer={a:1}", ["trainer={a:1}", "a name is needed", "default"]),
        ("data=[digits,mnist]", ["data=[digits,mnist]", "a name is needed"]),
        ("model='../../etc/passwd'", ["model", "there is none"]),
        ("data.root=日本", ["data.root=日本", "quotes within quotes"]),
        ("seed=-1", ["seed=-1", "0 to 2**32 - 1"]),
        ("seed=abc", ["bench: seed=abc: a whole number is needed"]),
        ("evaluation.quantile=abc", ["bench: evaluation.quantile=abc: a number is needed"]),
        ("deterministic=maybe", ["bench: deterministic=maybe: true or false is needed"]),
        ("abnormal_class=1.5", ["bench: abnormal_class=1.5: a whole number or a name (in quotes"]),
        ("abnormal_class=null", ["bench: abnormal_class=null: a value other than null is needed"]),
        ("trainer.device=[1]", ["bench: trainer.device=[1]: a text is needed"]),
        ("data.std=0", ["data.std=0", "above 0"]),
        ("data.mean=nan", ["data.mean=nan", "a finite number"]),
        *(
            (f"data.image_size={typed}", [f"data.image_size={read}: must be a whole number from 1 to 4096, or null"])
            for typed, read in (("true", "True"), ("-3", "-3"), ("0", "0"), ("abc", "abc"), ("4097", "4097"))
        ),
        ("abnormal_class=-1", ["bench: abnormal_class=-1: data=digits has no such class"]),
        ("abnormal_class=-3000000000", ["bench: abnormal_class=-3000000000: must be"]),
        ("protocol.train_share=half", ["protocol.train_share=half", "a finite number"]),
        ("trainer.epoch_scale=inf", ["trainer.epoch_scale=inf", "at most"]),
        ("trainer.max_epochs=99999999999999999999999", ["trainer.max_epochs", "at most 2147483647"]),
        ("evaluation.batch_size=0", ["evaluation.batch_size=0", "from 1"]),
        ("evaluation.quantile=nan", ["evaluation.quantile=nan", "from 0 to 1"]),
        ("model.lr=-1", ["model.lr=-1", "above 0"]),
        ("model.epochs=1.5", ["model.epochs=1.5", "a whole number"]),
        ("+model.unheard=1", ["model.unheard=1", "no such setting", "lr"]),
        ("+model.lr.deep=1", ["model.lr"]),
        ("model._target_=os.system", ["model._target_=os.system", "not a Detector"]),
        ("data._target_=no.where", ["data._target_=no.where", "no package no"]),
        ("~model._target_", ["model._target_", "a Detector is needed"]),
        ("runs_dir='a\0b'", ["runs_dir"]),
        ("runs_dir=taken/below", ["runs_dir", "taken"]),
    ],
)  # fmt: skip
def test_typed_at_the_command_line_it_ends_with_exit_code_2(typed, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("taken").write_text("a file")
    monkeypatch.setattr(runs, "compute", lambda job: pytest.fail("it was taken"))
    arguments = [*TINY, "data.image_size=16", typed]
    monkeypatch.setattr(sys, "argv", ["anomaly-bench", *arguments])
    code = cli.answer(arguments)
    shown = capsys.readouterr()
    assert code == 2, shown.err
    assert len(shown.err.strip().splitlines()) == 1
    assert [word for word in words if word not in shown.err] == []
    assert [path.name for path in tmp_path.iterdir()] == ["taken"]
