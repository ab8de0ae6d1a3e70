"""What levers do to AUROC, at a size that a test can bear."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from anomaly_bench.record import read_json

SCRIPTS = Path(__file__).parents[2] / "scripts"


def test_a_lever_s_difference_is_of_the_same_class_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    from bench_levers import differences

    on = {"2, seed 0": 0.9, "2, seed 1": 0.8, "4, seed 0": 0.7, "4, seed 1": 0.5}
    off = {"4, seed 1": 0.5, "4, seed 0": 0.7, "2, seed 1": 0.9, "2, seed 0": 0.7}
    lever, seed = differences({"all": on, "without_gemm": off})
    assert (lever[""], lever["n"]) == ("without gemm", "4")
    assert lever["mean"] == pytest.approx((0.2 - 0.1) / 4)
    assert (lever["lowest"], lever["highest"]) == pytest.approx((-0.1, 0.2))
    assert (seed[""], seed["n"], seed["mean"]) == ("another seed", "2", pytest.approx(0.15))


def test_one_seed_has_no_other_and_one_run_no_deviation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    from bench_levers import differences

    (lever,) = differences({"all": {"2, seed 0": 0.9}, "inductor": {"2, seed 0": 0.7}})
    assert lever["mean"] == pytest.approx(0.2)
    assert pd.isna(lever["standard deviation"])


def test_runs_of_other_settings_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    from bench_levers import is_of

    sweep = {"seed": "0,1", "trainer.max_epochs": "6", "hydra.launcher.n_jobs": "1"}
    assert is_of(sweep, ["seed=1", "trainer.max_epochs=6"])
    assert is_of(sweep | {"trainer.fold": "false"}, ["seed=1", "trainer.max_epochs=6", "trainer.fold=False"])
    assert not is_of(sweep, ["seed=2", "trainer.max_epochs=6"])
    assert not is_of(sweep, ["seed=1", "trainer.max_epochs=2"])
    assert not is_of(sweep, ["seed=1"])
    assert not is_of(sweep, ["seed=1", "trainer.max_epochs=6", "data.limit=60"])
    assert not is_of(sweep, ["seed=1", "trainer.max_epochs=6", "~point"])


@pytest.mark.slow
def test_every_lever_is_run_and_written_down(tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPTS / "bench_levers.py"), str(tmp_path / "runs")]
    tiny = ["data=digits", "data.image_size=16", "trainer.max_epochs=1", "model.ngf=4", "model.ndf=4"]
    tiny.append("trainer.precision=fp32")  # in bf16, folding moves areas of so few rows
    output = ["--output", str(tmp_path / "levers.json")]
    said = subprocess.run([*command, *output, *tiny], capture_output=True, text=True, check=True).stdout
    told = read_json(tmp_path / "levers.json")
    assert {"all", "without_compile", "without_fold", "inductor"} <= set(told["aurocs"])
    for cells in told["aurocs"].values():
        assert set(cells) == {f"{digit}, seed {seed}" for digit in (2, 4, 8) for seed in (0, 1)}
    assert told["aurocs"]["without_fold"] == pytest.approx(told["aurocs"]["all"], abs=1e-4)
    assert "another seed" in said
    assert (tmp_path / "levers.md").read_text() == said.removesuffix("\n")
