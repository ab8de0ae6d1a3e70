"""What a run does and says of itself, begun once or more than once."""

import itertools
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from finished import finished, job_of

from anomaly_bench import run as running
from anomaly_bench.compose import Job
from anomaly_bench.errors import SettingError
from anomaly_bench.metrics import measure
from anomaly_bench.run import run
from anomaly_bench.training.checkpoint import Checkpoint, Epoch, load_tensors, save_weights
from anomaly_bench.training.trainer import Trainer

SMALL = {
    "model": "ae",
    "data": "digits",
    "data__limit": "60",
    "model__network": "dense",
    "model__epochs": "3",
}
ELSEWHERE = {"git": "b" * 40, "threads": 99, "auroc_untrained": 0.123, "experiments": ["ganomaly_mnist"]}


pytestmark = pytest.mark.usefixtures("undrawn")


def told(folder: Path) -> dict:
    return json.loads((folder / "run.json").read_text())


def begun_elsewhere(folder: Path) -> None:
    """Let what is there say that another version began it on another machine."""
    (folder / "run.json").write_text(json.dumps(told(folder) | ELSEWHERE))


def test_a_run_that_is_computed_again_is_told_of_as_it_was_computed(tmp_path):
    folder = finished(tmp_path, **SMALL)
    first = told(folder)
    (folder / "metrics.json").unlink()
    begun_elsewhere(folder)
    finished(tmp_path, **SMALL)
    again = told(folder)
    for name in ("git", "threads", "auroc_untrained"):
        assert again[name] == first[name]
    assert again["experiments"] == ["ganomaly_mnist"]
    assert json.loads((folder / "metrics.json").read_text())["auroc_untrained"] == first["auroc_untrained"]
    assert "resumed_from" not in again


def interrupted(runs: Path, monkeypatch, **others: str) -> Path:
    """The folder of a run that was stopped within its last epoch."""
    job, one_epoch = job_of(runs, **SMALL, **others), Trainer.one_epoch

    def stopped(self, number, epoch, *rest):
        if epoch == 3:
            raise KeyboardInterrupt
        return one_epoch(self, number, epoch, *rest)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "one_epoch", stopped)
        with pytest.raises(KeyboardInterrupt):
            run(job)
    return job.folder


def test_a_run_that_goes_on_elsewhere_tells_of_both(tmp_path, monkeypatch):
    folder = interrupted(tmp_path, monkeypatch)
    first = told(folder)
    begun_elsewhere(folder)
    run(job_of(tmp_path, **SMALL))
    whole = told(folder)
    assert whole["resumed_from"] == [{"git": "b" * 40, "threads": 99}]
    assert (whole["git"], whole["threads"]) == (first["git"], first["threads"])


def test_a_run_that_goes_on_without_its_record_is_told_of_anew(tmp_path, monkeypatch):
    folder = interrupted(tmp_path, monkeypatch)
    first = told(folder)
    (folder / "run.json").write_text('{"mod')
    run(job_of(tmp_path, **SMALL))
    whole = told(folder)
    assert (whole["model"], whole["settings_hash"]) == ("ae", first["settings_hash"])
    assert "resumed_from" not in whole


def test_a_run_learns_from_the_training_rows_alone(tmp_path, monkeypatch):
    job, learn, seen = job_of(tmp_path, **SMALL), Trainer.learn, []

    def watched(self, detector, train, **others):
        seen.append(train.x[train.numbers(torch.arange(len(train)))])
        return learn(self, detector, train, **others)

    monkeypatch.setattr(Trainer, "learn", watched)
    run(job)
    assert torch.equal(seen[0], job.x[job.split.train])


def test_a_failed_run_that_goes_on_well_has_not_failed(tmp_path):
    folder = finished(tmp_path, **SMALL)
    (folder / "metrics.json").unlink()
    (folder / "error.json").write_text('{"error": "no room"}')
    finished(tmp_path, **SMALL)
    assert not (folder / "error.json").exists()


def test_what_a_finished_run_was_killed_before_it_could_drop_is_dropped(tmp_path):
    folder = finished(tmp_path, **SMALL)
    files = {path.name for path in folder.iterdir()}
    for name in (*running.UNFINISHED_ONLY, ".scores.csv.1a2b3c4d.tmp"):
        (folder / name).touch()
    finished(tmp_path, **SMALL)
    assert {path.name for path in folder.iterdir()} == files


def test_a_method_that_cannot_be_built_is_refused_before_there_is_a_folder(tmp_path, monkeypatch):
    def fails(self):
        raise RuntimeError("no such\nsize")

    job = job_of(tmp_path, **SMALL)
    monkeypatch.setattr(Job, "build", fails)
    with pytest.raises(
        SettingError, match=r"model\.epochs=3: it cannot be built so: RuntimeError: no such size"
    ):
        run(job)
    assert not job.folder.exists()


def test_best_weights_that_are_gone_damaged_or_not_the_best_are_lost(tmp_path):
    assert not running.best_is_lost(tmp_path)
    history = [Epoch(0, "all", n, {}, 1, 1.0, auroc) for n, auroc in enumerate((0.5, None, 0.75, 0.25), 1)]
    Checkpoint(0, 4, False, history, {"model.a": torch.ones(1)}).save(tmp_path / running.KEEP)
    assert running.best_is_lost(tmp_path)
    best = tmp_path / running.BEST
    for auroc in (0.5, 0.75):
        save_weights(best, torch.nn.Linear(1, 1), auroc=auroc)
        assert running.best_is_lost(tmp_path) is (auroc < 0.75)
    best.write_bytes(best.read_bytes()[:-1])
    assert running.best_is_lost(tmp_path)


def test_a_run_without_the_weights_of_its_best_epoch_starts_anew(tmp_path, monkeypatch):
    wanted = {"evaluation__epoch": "best_test", "trainer__eval_every": "1"}
    folder = interrupted(tmp_path, monkeypatch, **wanted)
    (folder / running.BEST).unlink()
    one_epoch, learned = Trainer.one_epoch, []

    def counted(self, number, epoch, *rest):
        learned.append(epoch)
        return one_epoch(self, number, epoch, *rest)

    monkeypatch.setattr(Trainer, "one_epoch", counted)
    run(job_of(tmp_path, **SMALL, **wanted))
    assert learned == [1, 2, 3]


def test_the_numbers_of_a_run_are_those_of_its_tables(tmp_path, monkeypatch):
    monkeypatch.setattr(running, "time", SimpleNamespace(perf_counter=itertools.count().__next__))
    folder = finished(tmp_path, **SMALL)
    numbers = json.loads((folder / "metrics.json").read_text())
    scores, losses = pd.read_csv(folder / "scores.csv"), pd.read_csv(folder / "losses.csv")
    assert scores["row"].is_monotonic_increasing
    assert (numbers["n_test"], numbers["n_anomalous"]) == (len(scores), scores["label"].sum())
    expected = measure(scores["score"], scores["label"], numbers["threshold"])
    assert {name: numbers[name] for name in expected} == pytest.approx(expected, abs=1e-6)
    assert numbers["per_class"] == {"0": numbers["auroc"]}
    assert numbers["train_images_per_s"] * numbers["train_seconds"] == pytest.approx(losses["rows"].sum())
    assert numbers["score_ms_per_image"] == pytest.approx(1000 / len(scores))  # in one tick of that clock


def test_with_hindsight_rows_are_called_anomalous_by_the_best_f1(tmp_path):
    small = {"model": "ocsvm", "data": "digits", "data__limit": "60"}
    folder = finished(tmp_path, **small, evaluation__hindsight="true")
    scores, numbers = pd.read_csv(folder / "scores.csv"), json.loads((folder / "metrics.json").read_text())
    bounds = [*scores["score"], -np.inf]
    best = max(measure(scores["score"], scores["label"], bound)["f1"] for bound in bounds)
    assert numbers["f1"] == pytest.approx(best)


def test_the_control_has_the_kind_of_threshold_that_the_trained_detector_has(tmp_path):
    draw = np.random.RandomState(0)
    frame = pd.DataFrame(draw.randn(120, 3), columns=list("abc")).assign(kind=["odd", *["usual"] * 3] * 30)
    frame.loc[frame["kind"] == "odd", "a"] += 2
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = {
        "model": "ae_dense",
        "data": "table",
        "data__root": str(tmp_path / "t.csv"),
        "data__label": "kind",
    }
    own = {"protocol": "tabular_half", "normal_class": "usual", "protocol__ratio": "0.05"}
    few, best = (
        json.loads(
            (
                finished(tmp_path / text, **table, **own, evaluation__hindsight=text) / "metrics.json"
            ).read_text()
        )
        for text in ("false", "true")
    )
    assert few["auroc_untrained"] == best["auroc_untrained"]
    assert few["f1_untrained"] < best["f1_untrained"]


@pytest.mark.parametrize("anomalous", [[False, True], [True, False]])
def test_of_epochs_that_are_equally_good_the_first_is_kept(anomalous, tmp_path, monkeypatch):
    job = SimpleNamespace(folder=tmp_path, evaluation={"epoch": "best_test"})
    detector = torch.nn.Linear(1, 1)
    monkeypatch.setattr(running, "scores_of", lambda *_: np.arange(2.0))
    evaluate = running.evaluator(job, detector, None, np.array(anomalous))
    evaluate()
    first = load_tensors(tmp_path / running.BEST)[0]
    torch.nn.init.zeros_(detector.weight)
    assert evaluate() == anomalous[1]
    assert torch.equal(load_tensors(tmp_path / running.BEST)[0]["weight"], first["weight"])


def test_a_picture_that_cannot_be_drawn_is_told_of_and_no_failure(tmp_path, monkeypatch, caplog):
    def broken(*_):
        raise ValueError("no font")

    monkeypatch.setattr(running, "draw_run", broken)
    result = np.arange(2.0), np.array([False, True]), {}
    running.draw(SimpleNamespace(folder=tmp_path, title="a run"), None, None, result, [])
    assert "not every picture could be drawn: ValueError: no font" in caplog.text


def test_pictures_show_the_pixels_as_they_were_and_what_became_of_them(tmp_path):
    job = job_of(tmp_path, **SMALL)
    detector, test = job.build(), job.rows(job.split.test)
    pictures = running.shown(job, detector, test, np.array([3, 1]))
    pixels = job.x[torch.from_numpy(job.split.test[[3, 1]])] / 255
    np.testing.assert_allclose(pictures.x, pixels, atol=1e-6)
    assert pictures.reconstruction.shape == pixels.shape
    assert 0 <= pictures.reconstruction.min() <= pictures.reconstruction.max() <= 1


def test_a_finished_run_is_found_where_nothing_may_be_written(tmp_path, monkeypatch):
    folder = finished(tmp_path, **SMALL)
    files = {path.name: path.read_bytes() for path in folder.iterdir()}
    monkeypatch.setattr(running.os, "access", lambda *_: False)
    monkeypatch.setattr(running.record, "alone", None)
    finished(tmp_path, **SMALL)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    (folder / "metrics.json").unlink()
    with pytest.raises(SettingError, match=r"runs_dir=.*: .* may not be written to"):
        finished(tmp_path, **SMALL)


def test_a_finished_run_of_other_columns_is_not_taken_for_this_one(tmp_path, monkeypatch):
    rows = np.random.default_rng(0).normal(size=(60, 2))
    for name, columns in (("one", ["a", "b"]), ("other", ["b", "a"])):
        frame = pd.DataFrame(rows, columns=columns).assign(kind=np.arange(60) % 6 == 0)
        frame.to_csv(tmp_path / f"{name}.csv", index=False)

    def of(name: str, **more: str) -> Path:
        settings = {"model": "isolation_forest", "data": "table", "protocol": "tabular_half"}
        return finished(
            tmp_path / "runs",
            data__root=str(tmp_path / f"{name}.csv"),
            data__label="kind",
            **settings,
            **more,
        )

    folder = of("one")
    assert of("one") == folder
    for may_write in (True, False):
        with monkeypatch.context() as patch:
            patch.setattr(running.os, "access", lambda *_, may_write=may_write: may_write)
            with pytest.raises(
                SettingError, match="the same numbers under other names of columns; rerun=true"
            ):
                of("other")
    assert told(of("other", rerun="true"))["columns"] == ["b", "a"]
