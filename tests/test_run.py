"""What `run.json` says of a run that was begun more than once."""

import json
from pathlib import Path

import pytest
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


def test_a_run_that_goes_on_elsewhere_tells_of_both(tmp_path, monkeypatch):
    job, one_epoch = job_of(tmp_path, **SMALL), Trainer.one_epoch

    def interrupted(self, number, epoch, *rest):
        if epoch == 3:
            raise KeyboardInterrupt
        return one_epoch(self, number, epoch, *rest)

    monkeypatch.setattr(Trainer, "one_epoch", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(job)
    first = told(job.folder)
    monkeypatch.setattr(Trainer, "one_epoch", one_epoch)
    begun_elsewhere(job.folder)
    run(job_of(tmp_path, **SMALL))
    whole = told(job.folder)
    assert whole["resumed_from"] == [{"git": "b" * 40, "threads": 99}]
    assert (whole["git"], whole["threads"]) == (first["git"], first["threads"])
