"""Run folders from strangers: nothing in them is executed, waited for, or shown from outside; all is told in a line."""

import contextlib
import json
import logging
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
import torch
import yaml
from finished import digit_files, finished, job_of
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from anomaly_bench import record
from anomaly_bench.cli import answer
from anomaly_bench.errors import SettingError
from anomaly_bench.report.beside import paper_tables
from anomaly_bench.report.formats import latex, markdown, text
from anomaly_bench.report.page import write_page
from anomaly_bench.report.tables import make_tables, write_report
from anomaly_bench.run import run
from anomaly_bench.score import score_files
from anomaly_bench.training.checkpoint import Checkpoint, Epoch, load_tensors, save_tensors

IMAGES = {
    "data": "folder",
    "protocol": "folder",
    "data__image_size": "16",
    "model": "ae",
    "model__width": "4",
}
MARK = "EXECUTED"

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and links of POSIX systems")


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run, and beside it the images that it was made from."""
    place = tmp_path_factory.mktemp("honest")
    digit_files(place / "bags")
    return finished(place / "runs", **IMAGES, data__root=str(place / "bags"), model__epochs="1")


@pytest.fixture
def stranger(honest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it to spoil, in an empty working folder."""
    monkeypatch.chdir(tmp_path)
    return Path(shutil.copytree(honest, tmp_path / "runs" / honest.name))


def image_of(honest: Path) -> Path:
    return honest.parents[1] / "bags/test/0.normal/00.png"


def refused(run_folder: Path, honest: Path, **settings: object) -> str:
    """What `score` says of the folder: a refusal, in one line."""
    with pytest.raises(SettingError) as error:
        score_files(run_folder, [image_of(honest)], "cpu", **settings)
    assert "\n" not in str(error.value)
    return str(error.value)


def edited(path: Path, change: Callable[[dict], object]) -> None:
    """A JSON or YAML file with a change."""
    of_yaml = path.suffix == ".yaml"
    data = yaml.safe_load(path.read_text()) if of_yaml else json.loads(path.read_text())
    change(data)
    path.write_text(yaml.safe_dump(data) if of_yaml else json.dumps(data))


def test_the_untouched_copy_scores(stranger, honest):
    assert len(score_files(stranger, [image_of(honest)], "cpu").table) == 1


# ------------------------------------------------------------------------------ targets


OS_SYSTEM = {"_target_": "os.system", "_args_": [f"touch {MARK}"]}
EVAL = {"_target_": "builtins.eval", "_args_": [f"open('{MARK}', 'w')"]}


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model.update(OS_SYSTEM),
        lambda model: model.update(EVAL),
        lambda model: model.update(features=EVAL),
        lambda model: model.update(channels=[1, [OS_SYSTEM]]),
        lambda model: model.update(features={"deep": {"deeper": [{"_partial_": False, **EVAL}]}}),
        lambda model: model.update(_target_="hydra.utils.instantiate", config=EVAL),
        lambda model: model.update(_target_="anomaly_bench.detectors.ae.torch.hub.load"),
        lambda model: model.update(_target_="anomaly_bench.cli.main"),
        lambda model: model.update(_target_="anomaly_bench.detectors.ae.."),
        lambda model: model.update(_target_=None),
        lambda model: model.update(_target_=["a"]),
        lambda model: model.pop("_target_"),
    ],
)
def test_a_run_names_no_other_targets_than_methods_of_ours(stranger, honest, change):
    edited(stranger / "config.yaml", lambda config: change(config["model"]))
    assert "_target_" in refused(stranger, honest)
    assert not Path(MARK).exists()


@pytest.mark.parametrize("group", ["data", "protocol", "trainer", "hydra", "evaluation"])
def test_targets_elsewhere_are_not_looked_at(stranger, honest, group):
    edited(stranger / "config.yaml", lambda config: config.setdefault(group, {}).update(EVAL))
    with contextlib.suppress(SettingError):
        score_files(stranger, [image_of(honest)], "cpu")
    assert not Path(MARK).exists()


PLUGIN = f"""
open({MARK!r}, "a").close()
from anomaly_bench.detectors.ae import Autoencoder

class Mine(Autoencoder):
    '''Of a user.'''
"""


def test_a_users_own_method_is_imported_only_when_allowed(stranger, honest, monkeypatch, capsys):
    Path("own_methods.py").write_text(PLUGIN)
    monkeypatch.syspath_prepend(str(Path.cwd()))
    edited(stranger / "config.yaml", lambda config: config["model"].update(_target_="own_methods.Mine"))
    said = refused(stranger, honest)
    assert "model._target_=own_methods.Mine" in said
    assert "--allow own_methods" in said
    assert "--allow own_methods" in refused(stranger, honest, packages=["own", "other"])
    assert "own_methods" not in sys.modules
    assert not Path(MARK).exists()
    assert (
        answer(["score", str(stranger), str(image_of(honest)), "--device", "cpu", "--allow", "own_methods"])
        == 0
    )
    assert Path(MARK).exists()
    sys.modules.pop("own_methods")


# ------------------------------------------------------------------------------ config.yaml


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("model: ${oc.env:HOME}", "interpolations"),
        ("model: {lr: '${oc.env:SECRET_OF_MINE}'}", "interpolations"),
        ("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]", "aliases"),
        ("model: !!python/object/apply:os.system ['touch EXECUTED']", "config"),
        ("[" * 5000, "config"),
        ("- 1", "config"),
        ("seed: 0", "a config with a _target_"),
        ("\0", "config"),
        ("a: 1\na: 2", "config"),
        ("", "a config with a _target_"),
        ("x: " + "y" * (2 << 20), "at most 1048576"),
    ],
)
def test_a_config_holds_values_and_nothing_else(stranger, honest, config, said, monkeypatch):
    monkeypatch.setenv("SECRET_OF_MINE", "xyzzy")
    (stranger / "config.yaml").write_text(config)
    line = refused(stranger, honest)
    assert said in line
    assert "xyzzy" not in line
    assert not Path(MARK).exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda config: config["model"].update(unheard=1),
        lambda config: config["model"].update(width="wide"),
        lambda config: config["model"].update(width=8),
        lambda config: config.update(trainer="fast"),
        lambda config: config["trainer"].update(unheard=1),
        lambda config: config.pop("trainer"),
        lambda config: config.pop("evaluation"),
        lambda config: config["evaluation"].pop("batch_norm"),
        lambda config: config.pop("data"),
        lambda config: config.update(data="fast"),
    ],
)
def test_settings_that_do_not_fit_are_told(stranger, honest, change):
    edited(stranger / "config.yaml", change)
    assert refused(stranger, honest)


# ------------------------------------------------------------------------------ weights


class Executes:
    def __reduce__(self) -> tuple:
        return os.system, (f"touch {MARK}",)


def pickled(path: Path) -> None:
    path.unlink()
    torch.save({"a": Executes()}, path)


def with_tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def spoil(path: Path) -> None:
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        pickled,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes((1 << 62).to_bytes(8, "little") + b"{}"),
        lambda path: path.write_bytes((99_000_000).to_bytes(8, "little") + b"{" * 1000),
        lambda path: path.write_bytes((4).to_bytes(8, "little") + b"null"),
        lambda path: path.write_bytes(path.read_bytes()[:-9]),
        with_tensors(lambda tensors: tensors.clear()),
        with_tensors(lambda tensors: tensors.update(more=torch.zeros(3))),
        with_tensors(lambda tensors: tensors.update({name: torch.zeros(2, 2) for name in tensors})),
        lambda path: (path.unlink(), os.mkfifo(path)),
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
        lambda path: (path.unlink(), path.symlink_to(path.name)),
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.unlink(),
    ],
)
def test_weights_that_are_none_are_told(stranger, honest, spoil):
    spoil(stranger / "model.safetensors")
    assert refused(stranger, honest)
    assert not Path(MARK).exists()


@given(place=st.integers(0, 4000), byte=st.integers(0, 255))
@hypothesis_settings(max_examples=60, derandomize=True, database=None, deadline=None,
                     suppress_health_check=[HealthCheck.function_scoped_fixture])  # fmt: skip
def test_a_byte_that_changed_is_told(honest, tmp_path, place, byte):
    whole = (honest / "model.safetensors").read_bytes()
    if whole[place] == byte:
        return
    (tmp_path / "x.safetensors").write_bytes(whole[:place] + bytes([byte]) + whole[place + 1 :])
    with pytest.raises(SettingError):
        load_tensors(tmp_path / "x.safetensors")


# ------------------------------------------------------------------------------ run.json, metrics.json


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("run", lambda run: run.update(shape="wide")),
        ("run", lambda run: run.update(shape=[10**12, 10**12])),
        ("run", lambda run: run.update(shape=[1, 32, 32, 4])),
        ("run", lambda run: run.update(shape=[])),
        ("run", lambda run: run.pop("shape")),
        ("run", lambda run: run.update(precision="fp7")),
        ("run", lambda run: run.update(training_scores=3)),
        ("run", lambda run: run.update(training_scores={"quantiles": ["a", "b"]})),
        ("run", lambda run: run.update(training_scores={"quantiles": [3, 1], "levels": [0, 1]})),
        ("run", lambda run: run.update(training_scores={"quantiles": [1, 2, 3], "levels": [0, 1]})),
        ("run", lambda run: run.clear()),
        ("metrics", lambda metrics: metrics.update(threshold="high")),
        ("metrics", lambda metrics: metrics.update(threshold=None)),
        ("metrics", lambda metrics: metrics.clear()),
    ],
)
def test_records_that_do_not_fit_are_told(stranger, honest, name, change):
    edited(stranger / f"{name}.json", change)
    assert refused(stranger, honest)


def replaced_by(make: Callable[[Path], object]) -> Callable[[Path], None]:
    def replace(path: Path) -> None:
        path.unlink()
        make(path)

    return replace


def huge(path: Path) -> None:
    with path.open("wb") as file:
        file.write(b'{"auroc": 0.5, "')
        file.seek(100 << 20)
        file.write(b'": 1}')


UNREADABLE = {
    "pipe": replaced_by(os.mkfifo),
    "endless": replaced_by(lambda path: path.symlink_to("/dev/zero")),
    "outside": replaced_by(lambda path: path.symlink_to(Path("/etc/passwd"))),
    "loop": replaced_by(lambda path: path.symlink_to(path.name)),
    "folder": replaced_by(Path.mkdir),
    "100 MB": huge,
    "deep": lambda path: path.write_text("[" * 100_000),
    "nested": lambda path: path.write_text('{"a":' * 500 + "1" + "}" * 500),
    "digits": lambda path: path.write_text('{"auroc": ' + "9" * 10_000 + "}"),
    "list": lambda path: path.write_text("[1]"),
    "binary": lambda path: path.write_bytes(b"\xff\xfe\0"),
}


@pytest.mark.parametrize("kind", UNREADABLE)
@pytest.mark.parametrize("name", ["metrics.json", "run.json", "config.yaml", "scores.csv", "losses.csv"])
def test_files_that_cannot_be_read_hang_and_leak_nothing(stranger, honest, name, kind, caplog):
    UNREADABLE[kind](stranger / name)
    if name in ("metrics.json", "run.json", "config.yaml"):
        assert refused(stranger, honest)
    with caplog.at_level(logging.WARNING, "anomaly_bench"):
        records = record.read_records(stranger)
        tables = [*make_tables(records), *paper_tables(records)]
        write_page(Path("out"), tables, records, [])
    if name.endswith(".json"):
        assert name in caplog.text
    assert "root:" not in Path("out/index.html").read_text()


def test_curves_of_files_that_cannot_be_read_are_left_out(stranger):
    os.mkfifo(stranger / "pipe")
    for name in ("scores.csv", "losses.csv"):
        (stranger / name).unlink()
        (stranger / name).symlink_to("pipe")
    write_report(stranger.parent)
    assert (stranger.parent / "report/index.html").exists()
    assert not list((stranger.parent / "report/figures").glob("*roc*"))


def test_pictures_from_outside_do_not_come_into_the_page(stranger):
    Path("secret.png").write_bytes(b"secret of mine")
    (stranger / "figures/mine.png").symlink_to(Path("secret.png").resolve())
    Path("secrets").mkdir()
    Path("secrets/other.png").write_bytes(b"secret of mine")
    copy = Path(shutil.copytree(stranger, stranger.with_name("other"), symlinks=True))
    shutil.rmtree(copy / "figures")
    (copy / "figures").symlink_to(Path("secrets").resolve())
    write_page(stranger.parent / "report", [], record.read_records(stranger.parent), [])
    page = (stranger.parent / "report/index.html").read_text()
    assert "c2VjcmV0IG9mIG1pbmU=" not in page  # in base64
    assert "mine" not in page
    assert "scores" in page


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.sampled_from(
        ["", "../../x", "=1+1", "<script>x</script>", "a\nb", "\ud800", "\\input{x}", "| a |", "`x`", "y" * 999]
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)  # fmt: skip


@given(data=st.data())
@hypothesis_settings(max_examples=40, derandomize=True, database=None, deadline=None,
                     suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])  # fmt: skip
def test_a_report_is_written_whatever_the_records_say(honest, tmp_path, data):
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)
    for number in range(2):
        facts = {name: json.loads((honest / f"{name}.json").read_text()) for name in ("run", "metrics")}
        for _ in range(data.draw(st.integers(1, 3))):
            name = data.draw(st.sampled_from(["run", "metrics"]))
            key = data.draw(
                st.sampled_from([*sorted(facts[name]), "class", "experiments", "data_note", "known_ratio"])
            )
            facts[name][key] = data.draw(JSON)
        folder = tmp_path / "runs" / str(number)
        folder.mkdir(parents=True)
        for name in facts:
            (folder / f"{name}.json").write_text(json.dumps(facts[name]))
        (folder / "config.yaml").write_text(
            data.draw(st.sampled_from(["", "a: [", "model: 3", "model: {nz: {}}"]))
        )
    records = record.read_records(tmp_path / "runs")
    tables = [*make_tables(records), *paper_tables(records)]
    for table in tables:
        assert "<script>" not in markdown(table)
        assert "\\input" not in latex(table)
        text(table)
    write_page(tmp_path / "out", tables, records, [])
    page = (tmp_path / "out/index.html").read_text()
    assert page.count("<script") == 1
    record.write_csv(tmp_path / "out/table.csv", pd.DataFrame([c for t in tables for c in t.cells]))


def test_our_own_records_are_of_the_kinds_that_runs_write(caplog):
    with caplog.at_level(logging.WARNING, "anomaly_bench"):
        assert len(record.read_records(Path(__file__).parents[1] / "results")) > 10
    assert not caplog.text


# ------------------------------------------------------------------------------ going on with a run


def job_in(runs: Path, honest: Path):
    """The honest run's job, to be done in other folder of runs."""
    return job_of(runs, **IMAGES, data__root=str(honest.parents[1] / "bags"), model__epochs="1")


def checkpoint(**facts: object) -> Checkpoint:
    line = Epoch(0, "a", 1, {"loss": 0.5}, 40, 0.1)
    return Checkpoint(
        **{"stage": 0, "epoch": 1, "over": False, "history": [line], "tensors": {}, "groups": []} | facts
    )


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: checkpoint().save(path),
        lambda path: checkpoint(tensors={"model.a": torch.zeros(3)}).save(path),
        lambda path: save_tensors(path, {}, {"checkpoint": json.dumps({"stage": "a"})}),
        lambda path: save_tensors(path, {}, {"checkpoint": "[" * 100_000}),
        lambda path: checkpoint(stage="0").save(path),
        lambda path: checkpoint(history=[Epoch(0, 3, "x", {"loss": "low"}, -1, 0.1)]).save(path),
        lambda path: checkpoint(groups=3).save(path),
        pickled,
        replaced_by(os.mkfifo),
    ],
)
def test_a_checkpoint_of_something_else_is_told_or_passed_over(honest, tmp_path, spoil, monkeypatch):
    monkeypatch.chdir(tmp_path)
    job = job_in(tmp_path / "runs", honest)
    job.folder.mkdir(parents=True)
    path = job.folder / "checkpoint.safetensors"
    path.touch()
    spoil(path)
    said = None
    try:
        run(job)
        assert json.loads((job.folder / "metrics.json").read_text())["auroc"] >= 0
    except SettingError as error:
        said = str(error)
    if said is not None:
        assert "\n" not in said
        assert "rerun=true" in said
        assert (job.folder / "error.json").exists()
    assert not Path(MARK).exists()


def test_a_run_is_not_written_through_links(honest, tmp_path):
    job = job_in(tmp_path / "runs", honest)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/scores.png").write_text("mine")
    job.folder.mkdir(parents=True)
    (job.folder / "figures").symlink_to(tmp_path / "mine")
    with pytest.raises(SettingError, match="figures: it is a link"):
        run(job)
    assert (tmp_path / "mine/scores.png").read_text() == "mine"
    assert [path.name for path in job.folder.iterdir()] == ["figures"]
