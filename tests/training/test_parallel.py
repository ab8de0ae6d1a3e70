"""Runs that torchrun has started on two processes come to the numbers of one, for the methods that say so."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from anomaly_bench import cli
from anomaly_bench.detector import agreed
from anomaly_bench.training import parallel

CHECKOUT = Path(__file__).parents[2]
DATA = ["data=digits", "data.limit=200", "trainer.device=cpu", "trainer.compile=off"]
GAN = [
    "data.image_size=16",
    "model.ngf=4",
    "model.ndf=4",
    "model.nz=8",
    "model.batch_size=16",
    "model.epochs=3",
]
METHODS = {
    "ganomaly": [
        *GAN,
        "model.reinit_below=0.64",
    ],  # so that a step decides by its loss, which falls through this
    "ganomaly_first": ["model.losses=first", *GAN],
    "skip_ganomaly": ["data.image_size=32", *GAN[1:]],
    "ae": ["data.image_size=16", "model.width=4", "model.code=8", "model.batch_size=16", "model.epochs=3"],
}


def by_torchrun(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A command in a folder, on two processes."""
    paths = [str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    hidden = ("ANOMALY_BENCH_SWEEP", "ANOMALY_BENCH_DEBUG")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]
    return subprocess.run(
        [sys.executable, *torchrun, "--module", "anomaly_bench.cli", *arguments],
        env=env | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"},
        cwd=place,
        capture_output=True,
        text=True,
    )


def one(place: Path) -> Path:
    (run,) = [path.parent for path in place.glob("*/metrics.json")]
    return run


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_processes_come_to_the_numbers_of_one(tmp_path, monkeypatch, name):
    told = [f"model={name.removesuffix('_first')}", *DATA, *METHODS[name]]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["anomaly-bench", *told, "runs_dir=one"])
    assert cli.answer([*told, "runs_dir=one"]) == 0
    done = by_torchrun(tmp_path, *told, "runs_dir=two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("AUROC") == 1
    first, second = one(tmp_path / "one"), one(tmp_path / "two")
    assert first.name == second.name
    assert json.loads((second / "run.json").read_text())["processes"] == 2
    losses = [pd.read_csv(run / "losses.csv").drop(columns="seconds") for run in (first, second)]
    pd.testing.assert_frame_equal(*losses, rtol=1e-4, atol=1e-5)
    if name == "ganomaly":
        assert losses[0]["reinit"].max() > 0
    weights, others = (load_file(run / "model.safetensors") for run in (first, second))
    step = (
        1e-3 if name == "ae" else 2e-4
    )  # of Adam, which goes where rounding points if a gradient is nearly 0
    for key, weight in weights.items():
        torch.testing.assert_close(
            others[key], weight, rtol=1e-3, atol=step, msg=lambda text, key=key: f"{key}: {text}"
        )
    scores = [pd.read_csv(run / "scores.csv") for run in (first, second)]
    pd.testing.assert_frame_equal(*scores, rtol=1e-3, atol=1e-5)

    if name == "ae":  # the others hear that there is nothing to do
        done = by_torchrun(tmp_path, *told, "runs_dir=two")
        assert done.returncode == 0, done.stderr
        assert "finished already" in done.stderr


@pytest.mark.slow
def test_what_cannot_be_split_or_diverges_is_told_once_and_recorded(tmp_path):
    for arguments, words in (
        (["model=ganomaly", "model.losses=paper"], "not known to be a mean over its rows"),
        (["model=ganomaly", "model.batch_size=15"], "trainer.batch_size=15"),
        (["model=ganomaly", "model.lr=1e30"], "try a smaller model.lr"),
    ):
        shutil.rmtree(tmp_path / "runs", ignore_errors=True)
        done = by_torchrun(tmp_path, *arguments[:1], *DATA, *GAN, *arguments[1:])
        assert done.returncode != 0
        assert done.stderr.count(words) == 1
        assert len(list(tmp_path.glob("runs/*/error.json"))) == 1
        assert not list(tmp_path.glob("runs/*/metrics.json"))


def test_a_sweep_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["anomaly-bench", "-m", "seed=0,1"])
    monkeypatch.delenv("ANOMALY_BENCH_SWEEP", raising=False)
    for key, value in (("RANK", "0"), ("WORLD_SIZE", "2")):
        monkeypatch.setenv(key, value)
    with pytest.raises(SystemExit) as leaving:
        cli.answer(["-m", "seed=0,1"])
    assert leaving.value.code == 2
    assert capsys.readouterr().err.startswith("anomaly-bench: torchrun: it takes one run")
    assert not Path("runs").exists()


def test_one_process_asks_nobody(monkeypatch):
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("WORLD_SIZE", "8")  # of a cluster's own making
    assert parallel.processes() == 1
    assert parallel.tell(True, torch.device("cpu"))
    assert not parallel.tell(False, torch.device("cpu"))
    assert agreed(torch.tensor(3.0)) == 3
    monkeypatch.delenv("WORLD_SIZE")
    monkeypatch.setenv("RANK", "1")  # of another launcher
    assert (parallel.processes(), parallel.rank()) == (1, 0)


def test_batch_norm_is_torchs_own(monkeypatch):
    """Of one process; the means over several are held by whole runs."""
    monkeypatch.setattr(parallel.dist, "all_reduce", lambda _: None)
    for kind, shape in ((torch.nn.BatchNorm2d, (6, 3, 4, 5)), (torch.nn.BatchNorm1d, (6, 3))):
        torch.manual_seed(0)
        norm, other = kind(3, momentum=0.2), kind(3, momentum=0.2)
        for parameter in norm.parameters():
            torch.nn.init.normal_(parameter)
        other.load_state_dict(norm.state_dict())
        x = torch.randn(shape, requires_grad=True)
        y = x.detach().clone().requires_grad_()
        for _ in range(2):
            mine, theirs = parallel.normalised(norm, x), other(y)
            torch.testing.assert_close(mine, theirs)
        weights = torch.randn_like(mine)
        for ours, expected in zip(
            torch.autograd.grad((mine * weights).sum(), [x, *norm.parameters()]),
            torch.autograd.grad((theirs * weights).sum(), [y, *other.parameters()]),
            strict=True,
        ):
            torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)
        for name, buffer in norm.named_buffers():
            torch.testing.assert_close(buffer, dict(other.named_buffers())[name])
        norm.eval(), other.eval()
        torch.testing.assert_close(parallel.normalised(norm, x), other(y))
