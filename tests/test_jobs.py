"""What a failed job of a sweep leaves behind, and what breaks a sweep off; tests/test_cli.py holds whole sweeps."""

import json
import sys
from enum import Enum

import pytest
from omegaconf import DictConfig, OmegaConf

from anomaly_bench import cli, jobs
from anomaly_bench.jobs import SweepTable, check_search, folder_without_run, leave_note


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


class Direction(Enum):
    """As Hydra's plugin for Optuna has it."""

    minimize = 1


CHOSEN = {"hydra/sweeper": "tune", "hydra/sweeper/sampler": "foo", "protocol": "mine"}


def search(*typed: str, **changed) -> DictConfig:
    """The config of a sweep by Optuna, with so much typed and of its sweeper changed."""
    sweeper = {"_target_": "optuna_sweeper.OptunaSweeper", "n_trials": 20, "sampler": {"_target_": "TPE"}}
    sweeper |= {"direction": "maximize"}
    hydra = {"sweeper": sweeper | changed, "runtime": {"choices": CHOSEN}, "overrides": {"task": typed}}
    evaluation = {"validation": 0.1, "validation_class": None}
    return OmegaConf.create(
        {"hydra": hydra, "evaluation": evaluation, "protocol": {"_target_": "a.OneVsRest"}}
    )


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"n_trials": "many"}, "hydra.sweeper.n_trials=many: allowed is a number from 1"),
        ({"n_trials": 0}, "hydra.sweeper.n_trials=0: allowed is a number from 1"),
        ({"direction": "up"}, "hydra.sweeper.direction=up: what a search goes by is the AUROC"),
        ({"direction": Direction.minimize}, "hydra.sweeper.direction=minimize: what a search goes by"),
        ({"sampler": {"seed": 0}}, "hydra/sweeper/sampler=foo: there is no such sampler; allowed are tpe, "),
    ],
)
def test_a_search_that_cannot_begin_is_refused(changed, said, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "find_spec", lambda _: "installed")
    check_search(search())
    with pytest.raises(SystemExit) as leaving:
        check_search(search(**changed))
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith(f"anomaly-bench: {said}")


def test_a_search_needs_anomalies_that_are_not_all_tested(capsys):
    config = search()
    config.protocol["_target_"] = "anomaly_bench.protocols.LeaveOneClassOut"
    with pytest.raises(SystemExit) as leaving:
        check_search(config)
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith(
        "anomaly-bench: protocol=mine: this protocol tests every anomalous"
    )
    config.evaluation.validation_class = 0
    check_search(config)


def test_a_sampler_of_a_package_that_is_not_installed_is_not_blamed(monkeypatch):
    monkeypatch.setattr(jobs, "find_spec", lambda _: None)
    check_search(search(sampler={"seed": 0}))


@pytest.mark.parametrize(
    ("typed", "params"),
    [
        ("seed=0,1", {}),
        ("abnormal_class=range(3)", {}),
        ("data.limit=100,200", {}),
        ("", {"normal_class": "range(10)"}),
    ],
)
def test_a_search_chooses_no_seed_and_no_class(typed, params, capsys):
    check_search(search("seed=1", "model.w_con=choice(1,10)", params={"model.lr": "0.1,0.2"}))
    with pytest.raises(SystemExit) as leaving:
        check_search(search(*filter(None, [typed]), params=params))
    assert leaving.value.code == 2
    said = typed or "normal_class=range(10)"
    assert capsys.readouterr().err.startswith(f"anomaly-bench: {said}: a search would choose among these")


@pytest.mark.parametrize(
    ("sweeper", "who"), [("basic", "the launcher"), ("tune", "hydra/sweeper=tune, or the launcher")]
)
def test_who_broke_a_sweep_off_is_named(sweeper, who, runs, monkeypatch, capsys):
    choices = {"hydra/sweeper": sweeper}
    config = {"runs_dir": str(runs), "hydra": {"runtime": {"choices": choices}}}

    def broken() -> None:
        SweepTable.begun = OmegaConf.create(config)
        raise ValueError("it broke")

    monkeypatch.setattr("hydra.main", lambda **_: lambda _: broken)
    monkeypatch.setattr(SweepTable, "begun", None)
    monkeypatch.setattr(sys, "argv", ["anomaly-bench"])
    assert cli.answer(["-m", "seed=0,1"]) == 1
    assert capsys.readouterr().out == f"failed: {who}: ValueError: it broke\n"
