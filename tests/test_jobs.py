"""What a job of a sweep leaves behind where it failed; tests/test_cli.py holds whole sweeps."""

import json

import pytest

from anomaly_bench import jobs
from anomaly_bench.jobs import folder_without_run, leave_note


@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setenv(jobs.SWEEP, "today")
    return tmp_path


def test_the_same_job_has_the_same_folder_for_its_failure():
    folder = folder_without_run("runs", ["model=ae", "seed=0"])
    assert folder_without_run("runs", ["seed=0", "hydra.launcher.n_jobs=2", "model=ae"]) == folder
    assert folder_without_run("runs", ["model=ae", "seed=1"]) != folder


def test_what_a_run_says_of_its_own_failure_is_left(runs):
    own, other = runs / "own", runs / "other"
    own.mkdir()
    (own / "error.json").write_text('{"error": "diverged"}')
    for number, folder in enumerate((own, other)):
        leave_note(str(runs), number, {"overrides": ["seed=0"], "folder": str(folder), "error": "killed"})
    assert json.loads((own / "error.json").read_text()) == {"error": "diverged"}
    assert json.loads((other / "error.json").read_text()) == {"error": "killed", "overrides": ["seed=0"]}
    assert not folder_without_run(str(runs), ["seed=0"]).exists()
