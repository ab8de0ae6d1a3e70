"""What `run.json` says of a run that was begun more than once."""

import json
from pathlib import Path

import pytest
import torch
from finished import finished, job_of

from anomaly_bench import run as running
from anomaly_bench.run import run
from anomaly_bench.training.trainer import Trainer

SMALL = {
    "model": "ae",
    "data": "digits",
    "data__limit": "60",
    "model__network": "dense",
    "model__epochs": "3",
}
ELSEWHERE = {"git": "b" * 40, "threads": 99, "auroc_untrained": 0.123, "experiments": ["ganomaly_mnist"]}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(running, "draw_run", lambda *_: None)


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


def interrupted(runs: Path, monkeypatch) -> Path:
    """The folder of a run that was stopped within its last epoch."""
    job, one_epoch = job_of(runs, **SMALL), Trainer.one_epoch

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
