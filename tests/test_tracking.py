"""Trackers are told what the run's folder has, each epoch once, and can do the run no harm."""

import functools
import json
import logging
import socketserver
import sys
import threading
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import pytest
from finished import finished, job_of

from anomaly_bench import cli, tracking
from anomaly_bench import run as running
from anomaly_bench.compose import Job
from anomaly_bench.training.trainer import Trainer

SMALL = {
    "model": "ae",
    "data": "digits",
    "data__limit": "60",
    "model__network": "dense",
    "model__epochs": "3",
}
TOLD: list[tuple] = []
STEPS: list[int] = []


class Listening:
    """A tracker that remembers, and raises where it is told to."""

    def __init__(self, broken: str = "", *, name: str, settings: Mapping, id: str | None) -> None:
        if broken == "made":
            raise OSError("no room")
        self.broken = broken
        self.id = id or "its id"
        TOLD.append(("made", name, settings["seed"], id))

    def log(self, step: int, numbers: Mapping[str, float]) -> None:
        if self.broken == f"log {step}":
            raise OSError("no room")
        TOLD.append(("log", step, dict(numbers)))

    def finish(self, step: int, numbers: Mapping[str, float], error: str | None) -> None:
        if self.broken == "finish":
            raise OSError("no room")
        STEPS.append(step)
        TOLD.append(("finish", dict(numbers), error))


@pytest.fixture(autouse=True)
def quick(undrawn):
    """Nothing told yet, and no pictures."""
    TOLD.clear()
    STEPS.clear()


def listen(monkeypatch, broken: str = "") -> None:
    """From now on that tracker follows every run."""
    monkeypatch.setattr(Job, "tracker", lambda _: functools.partial(Listening, broken))


def said(kind: str) -> list[tuple]:
    return [line for line in TOLD if line[0] == kind]


def test_it_is_told_what_the_folder_has(tmp_path, monkeypatch):
    listen(monkeypatch)
    folder = finished(tmp_path, trainer__eval_every="2", seed="4", **SMALL)
    assert said("made") == [("made", folder.name, 4, None)]
    losses, numbers = pd.read_csv(folder / "losses.csv"), json.loads((folder / "metrics.json").read_text())
    assert [step for _, step, _ in said("log")] == [1, 2, 3]
    for (_, _, told), (_, line) in zip(said("log"), losses.iterrows(), strict=True):
        assert told["autoencoder/reconstruction"] == line["reconstruction"]
        assert told.get("auroc", "none") == (line["auroc"] if line["auroc"] == line["auroc"] else "none")
    ((_, told, error),) = said("finish")
    assert error is None
    assert told["auroc"] == numbers["auroc"]
    assert "per_class" not in told


def test_a_method_without_epochs_has_its_results_told(tmp_path, monkeypatch):
    listen(monkeypatch)
    finished(tmp_path, model="knn", data="digits", data__limit="60", seed="5")
    assert [line[0] for line in TOLD] == ["made", "finish"]


def test_a_finished_run_is_told_of_later_and_once(tmp_path, monkeypatch):
    folder = finished(tmp_path, **SMALL)
    assert not (folder / tracking.NOTE).exists()
    listen(monkeypatch)
    finished(tmp_path, **SMALL)
    told = list(TOLD)
    assert [line[0] for line in told] == ["made", "log", "log", "log", "finish"]
    finished(tmp_path, **SMALL)
    assert told == TOLD
    finished(tmp_path, rerun="true", **SMALL)
    assert [line[0] for line in TOLD[5:]] == [line[0] for line in told]  # anew, not gone on with
    assert TOLD[5] == told[0]


def test_a_run_that_goes_on_goes_on_there_too(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO, "anomaly_bench")
    listen(monkeypatch)
    whole = Trainer.one_epoch

    def one_epoch(self, number, epoch, *rest):
        if epoch == 3:
            raise KeyboardInterrupt
        return whole(self, number, epoch, *rest)

    with monkeypatch.context() as cut:
        cut.setattr(Trainer, "one_epoch", one_epoch)
        with pytest.raises(KeyboardInterrupt):
            finished(tmp_path, **SMALL)
    assert "goes on" not in caplog.text
    folder = finished(tmp_path, **SMALL)
    assert f"{folder} goes on after epoch 2 of autoencoder" in caplog.text
    assert said("made") == [("made", folder.name, 0, None), ("made", folder.name, 0, "its id")]
    assert [step for _, step, _ in said("log")] == [1, 2, 3]


def test_a_failed_run_is_told_why_and_then_how_it_went_on(tmp_path, monkeypatch):
    listen(monkeypatch)
    with monkeypatch.context() as broken:
        broken.setattr(running, "thresholds_of", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finished(tmp_path, **SMALL)
    assert said("finish") == [("finish", {}, "ZeroDivisionError: division by zero")]
    finished(tmp_path, **SMALL)
    assert [line[2] for line in said("finish")] == ["ZeroDivisionError: division by zero", None]
    assert [step for _, step, _ in said("log")] == [1, 2, 3]
    assert STEPS == [3, 3]  # the second tracker was told of no epoch


@pytest.mark.parametrize("broken", ["made", "log 3", "finish"])
def test_one_that_fails_is_told_nothing_more_and_harms_nothing(broken, tmp_path, monkeypatch, caplog):
    whole = finished(tmp_path / "whole", **SMALL)
    listen(monkeypatch, broken)
    folder = finished(tmp_path / "broken", **SMALL)
    assert (folder / "scores.csv").read_bytes() == (whole / "scores.csv").read_bytes()
    (line,) = [line.getMessage() for line in caplog.records if "tracker" in line.getMessage()]
    assert line == "tracker: OSError: no room; the run goes on without it"
    assert len(said("log")) == {"made": 0, "log 3": 2, "finish": 3}[broken]

    listen(monkeypatch)  # well again, it hears the rest of a finished run
    finished(tmp_path / "broken", **SMALL)
    assert {step for _, step, _ in said("log")} == {1, 2, 3}
    assert len(said("finish")) == 1


def test_a_note_that_a_stranger_wrote_harms_nothing(tmp_path, monkeypatch, caplog):
    folder = finished(tmp_path, **SMALL)
    listen(monkeypatch)
    (folder / tracking.NOTE).write_text('{"{}": {"id": 3, "epochs": "many", "told": false}}')
    finished(tmp_path, **SMALL)
    assert "the run goes on without it" in caplog.text


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_one_that_is_not_installed_is_named_with_its_extra(name, tmp_path, monkeypatch, caplog):
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    for module in ("tensorboard", "mlflow", "wandb"):
        monkeypatch.setitem(sys.modules, module, None)
    finished(tmp_path, tracker=name, **SMALL)
    assert f"pip install 'anomaly-bench[{name}]' does that; the run goes on without it" in caplog.text


@pytest.mark.parametrize(
    ("typed", "answer"),
    [
        (["tracker=visdom"], "mlflow"),
        (["tracker=wandb", "+tracker.entity=us"], "tracker.entity=us: no such setting"),
        (["tracker=wandb", "tracker.mode=3"], "tracker.mode=3: must be a text"),
    ],
)
def test_another_name_or_setting_is_refused(typed, answer, tmp_path, monkeypatch, capsys):
    arguments = [*typed, f"runs_dir={tmp_path}"]
    monkeypatch.setattr(sys, "argv", ["anomaly-bench", *arguments])
    assert cli.answer(arguments) == 2
    assert answer in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_it_moves_no_hash(tmp_path):
    plain, tracked = job_of(tmp_path, **SMALL), job_of(tmp_path, tracker="tensorboard", **SMALL)
    assert plain.folder == tracked.folder
    assert plain.training_hash == tracked.training_hash


def files(root: Path) -> list[Path]:
    return sorted(path for path in root.rglob("*") if path.is_file())


def test_tensorboard_shows_curves_and_results(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = finished(tmp_path, tracker="tensorboard", **SMALL)
    finished(tmp_path, tracker="tensorboard", rerun="true", **SMALL)
    events = accumulator.EventAccumulator(str(tmp_path / ".tensorboard" / folder.name)).Reload()
    curve = events.Scalars("autoencoder/reconstruction")
    assert [point.step for point in curve] == [1, 2, 3]  # of the second run only
    losses = pd.read_csv(folder / "losses.csv")["reconstruction"]
    assert [point.value for point in curve] == pytest.approx(losses.tolist(), rel=1e-6)
    (result,) = [point.value for point in events.Scalars("result/auroc")]
    assert result == pytest.approx(json.loads((folder / "metrics.json").read_text())["auroc"])


def test_mlflow_has_settings_curves_and_results(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    folder = finished(tmp_path, tracker="mlflow", seed="2", **SMALL)
    client = mlflow.MlflowClient((tmp_path / ".mlflow").as_uri())
    (experiment,) = [one for one in client.search_experiments() if one.name == "anomaly-bench"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == (folder.name, "FINISHED")
    assert run.data.params["seed"] == "2"
    assert run.data.params["chosen.model"] == "ae"
    curve = client.get_metric_history(run.info.run_id, "autoencoder/reconstruction")
    assert sorted((point.step, point.value) for point in curve) == [
        (step, pytest.approx(value))
        for step, value in enumerate(pd.read_csv(folder / "losses.csv")["reconstruction"], 1)
    ]
    assert run.data.metrics["result/auroc"] == json.loads((folder / "metrics.json").read_text())["auroc"]


def test_every_stage_of_deep_svdd_reaches_mlflow(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    small = {"model": "deep_svdd", "data": "digits", "data__limit": "60", "trainer__max_epochs": "1"}
    finished(tmp_path, tracker="mlflow", **small)
    client = mlflow.MlflowClient((tmp_path / ".mlflow").as_uri())
    (run,) = client.search_runs([client.get_experiment_by_name("anomaly-bench").experiment_id])
    assert run.info.status == "FINISHED"
    assert {"autoencoder_slower", "sphere"} <= {name.split("/")[0] for name in run.data.metrics}
    assert "result/auroc" in run.data.metrics


NAMES = [
    "a, b/loss",
    "layer 1/loss",
    "größe: 3/loss",
    "a//b/../c",
    "/",
    "",
    "..",
    "a\nb",
    "x" * 300,
    "\ud800",
]


def test_a_name_that_every_tracker_takes():
    validation = pytest.importorskip("mlflow.utils.validation")
    found = [tracking.safe(name) for name in NAMES]
    for name in found:
        validation._validate_metric_name(f"result/{name}")
        validation._validate_length_limit("Metric name", 250, f"result/{name}")
        validation._validate_param_name(name)
    assert found[:6] == ["a_b/loss", "layer 1/loss", "größe_3/loss", "a/b/c", "_", "_"]


def test_trackers_are_told_safe_names(tmp_path, monkeypatch):
    listen(monkeypatch)
    monkeypatch.setattr(tracking, "safe", lambda name: f"safe {name}")
    finished(tmp_path, **SMALL)
    names = {name for _, _, numbers in said("log") for name in numbers} | set(said("finish")[0][1])
    assert {"safe autoencoder/reconstruction", "safe auroc"} <= names
    assert all(name.startswith("safe ") for name in names)


def test_tensorboard_shows_the_same_names(tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    tracker = tracking.TensorBoard(str(tmp_path), name="a run", settings={}, id=None)
    names = {tracking.safe(name) for name in NAMES}
    tracker.log(1, dict.fromkeys(names, 1.0))
    tracker.finish(1, dict.fromkeys(names, 1.0), None)
    events = accumulator.EventAccumulator(str(tmp_path / "a run")).Reload()
    assert set(events.Tags()["scalars"]) == names | {f"result/{name}" for name in names}


def test_wandb_takes_the_same_names(tmp_path):
    pytest.importorskip("wandb")
    tracker = tracking.WandB("ours", str(tmp_path), "offline", name="a run", settings={}, id=None)
    numbers = {tracking.safe(name): 1.0 for name in NAMES}
    tracker.log(1, numbers)
    tracker.run.summary.update(numbers)
    assert set(numbers) <= set(tracker.run.summary.keys())
    tracker.finish(1, numbers, None)


def test_mlflow_gives_up_soon_and_in_a_line_where_no_server_answers(tmp_path, monkeypatch, caplog):
    pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "0")
    tries = []

    class Closing(socketserver.BaseRequestHandler):
        def handle(self):
            tries.append(self.client_address)

    with socketserver.TCPServer(("127.0.0.1", 0), Closing) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        address = f"http://127.0.0.1:{server.server_address[1]}"
        finished(tmp_path, tracker="mlflow", tracker__uri=address, **SMALL)
        server.shutdown()
    assert len(tries) == 3
    (line,) = [one.getMessage() for one in caplog.records if one.levelno >= logging.WARNING]
    assert line.startswith("tracker: MlflowException: ")


def test_mlflow_knows_when_it_was_told(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    tracker = tracking.MLflow(str(tmp_path), "ours", name="a run", settings={}, id=None)
    before = time.time() - 1
    tracker.log(1, {"loss": 1.0})
    tracker.finish(1, {"auroc": 1.0}, None)
    client = mlflow.MlflowClient(tmp_path.as_uri())
    for name in ("loss", "result/auroc"):
        (point,) = client.get_metric_history(tracker.id, name)
        assert before < point.timestamp / 1000 < time.time() + 1


def test_wandb_asks_nothing_at_the_terminal(tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb")
    tracker = tracking.WandB("ours", str(tmp_path), "offline", name="a run", settings={}, id=None)
    tracker.finish(0, {}, None)
    monkeypatch.setattr("wandb.errors.term._sys_stderr_isatty", lambda: True)
    monkeypatch.setattr("wandb.errors.term._sys_stdin_isatty", lambda: True)
    assert not wandb.errors.term.can_use_terminput()


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_bytes_that_are_no_text_are_told_spelled_out(name, tmp_path, monkeypatch, caplog):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    pytest.importorskip(name)
    job = job_of(tmp_path, tracker=name, **SMALL)
    settings = {"data": {"root": "a\udc80", "columns": ["b\udc81"]}}
    follow = tracking.Follower(job.tracker(), job.values["tracker"], tmp_path / "a run", settings)
    follow.end("cannot be read: c\udc82")
    assert "tracker:" not in caplog.text
    told = b"".join(path.read_bytes() for path in files(tmp_path))
    assert all(spelled in told for spelled in (b"udc80", b"udc81", b"udc82"))


def test_jobs_that_begin_at_once_share_an_mlflow_experiment(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    named = {"uri": str(tmp_path), "experiment": "ours", "name": "a run", "settings": {}, "id": None}
    looked = mlflow.MlflowClient.get_experiment_by_name

    def look_slowly(self, name):
        found = looked(self, name)
        time.sleep(0.2)
        return found

    monkeypatch.setattr(mlflow.MlflowClient, "get_experiment_by_name", look_slowly)
    with ThreadPoolExecutor(3) as pool:
        ids = {tracker.id for tracker in pool.map(lambda _: tracking.MLflow(**named), range(3))}
    client = mlflow.MlflowClient(tmp_path.as_uri())
    (experiment,) = [one for one in client.search_experiments() if one.name == "ours"]
    assert {run.info.run_id for run in client.search_runs([experiment.experiment_id])} == ids


def test_mlflow_says_that_a_run_failed_and_goes_on_with_it(tmp_path, monkeypatch):
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    with monkeypatch.context() as broken:
        broken.setattr(running, "thresholds_of", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            finished(tmp_path, tracker="mlflow", **SMALL)
    client = mlflow.MlflowClient((tmp_path / ".mlflow").as_uri())
    experiment = client.get_experiment_by_name("anomaly-bench").experiment_id
    (run,) = client.search_runs([experiment])
    assert (run.info.status, run.data.tags["error"]) == ("FAILED", "ZeroDivisionError: division by zero")
    finished(tmp_path, tracker="mlflow", **SMALL)
    (again,) = client.search_runs([experiment])
    assert (again.info.run_id, again.info.status) == (run.info.run_id, "FINISHED")


def test_wandb_keeps_a_run_offline(tmp_path):
    pytest.importorskip("wandb")
    folder = finished(tmp_path, tracker="wandb", **SMALL)
    (kept,) = [path for path in files(tmp_path / ".wandb") if path.suffix == ".wandb"]
    raw = kept.read_bytes()
    for word in (folder.name, "autoencoder/reconstruction", "auroc_untrained"):
        assert word.encode() in raw
    note = json.loads((folder / tracking.NOTE).read_text())
    assert [value["told"] for value in note.values()] == [True]
