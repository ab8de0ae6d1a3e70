"""Sweeps on real workers: the same bits, one data set, and what happens when something goes wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hydra.core.utils import JobReturn, JobStatus

from anomaly_bench import sweep, worker
from anomaly_bench.cli import answer
from anomaly_bench.run import draw_run
from anomaly_bench.versions import git_revision

MINE = '''
"""A small autoencoder, and digits that are counted when they are loaded."""

import os
import signal
import time
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import mse_loss

import anomaly_bench.run
import anomaly_bench.versions

from anomaly_bench.data import digits
from anomaly_bench.detector import Detector, Stage, adam, descend, detached


anomaly_bench.versions.git_revision = lambda: "a" * 40  # of no edited checkout


def load(name):
    print("a word on standard output, which is no answer")
    with open("loaded", "a") as log:
        print(os.getpid(), file=log)
    time.sleep(0.2)
    return digits.load(name, image_size=8, limit=200)


class Mine(Detector):
    def __init__(self, shape, *, do):
        super().__init__()
        self.rebuild = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 64))
        self.do = do

    def stages(self, train):
        with open("learned", "a") as log:
            mapped = Path("/proc/self/maps").exists() and "x.npy" in Path("/proc/self/maps").read_text()
            print(os.getpid(), torch.get_num_threads(), mapped, file=log)
        if self.do == "weigh":
            anomaly_bench.run.draw_run = lambda *_: None
            pages = [Path(f"/proc/{pid}/statm").read_text().split()[1] for pid in (os.getpid(), os.getppid())]
            with open("weights", "a") as log:
                print(os.getpid(), *pages, file=log)
        optimizer = adam(self, lr=1e-2)

        def step(batch):
            loss = mse_loss(self.rebuild(batch.x + 0.1 * torch.randn_like(batch.x)), batch.x.flatten(1))
            descend(optimizer, loss)
            return detached(loss=loss)

        yield Stage("first", 1, step, (optimizer,), batch_size=16)
        if self.do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.do == "wait" and Path("waits").exists():
            with open("waits", "a") as log:
                print(os.getpid(), file=log)
            time.sleep(900)
        yield Stage("second", 1, step, (optimizer,), batch_size=16)

    def score(self, x):
        return (self.rebuild(x) - x.flatten(1)).square().sum(1)
'''
MODEL = "_target_: mine.Mine\n_partial_: true\ndo: learn\n"
DATA = "_target_: mine.load\nname: counted\n"
COMMAND = ["-m", "--config-dir", "configs", "model=mine", "data=counted"]


@pytest.fixture
def place(tmp_path, monkeypatch):
    """An empty folder with a method and a data set of the user's, on a machine of two cores."""
    (tmp_path / "code").mkdir()
    (tmp_path / "code/mine.py").write_text(MINE)
    for path, text in (("model/mine", MODEL), ("data/counted", DATA)):
        (tmp_path / "configs" / f"{path}.yaml").parent.mkdir(parents=True)
        (tmp_path / "configs" / f"{path}.yaml").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "code")
    sys.modules.pop("mine", None)  # other tests have a module of this name
    for name in ("ANOMALY_BENCH_DEBUG", "ANOMALY_BENCH_SWEEP", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(sweep.tempfile, "tempdir", None)
    monkeypatch.setattr(sweep, "cores", lambda: 2)
    monkeypatch.setattr(sweep, "free_gib", lambda: 64.0)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # `mine` sets these, in this process too where no worker is needed: they are put back after the test.
    monkeypatch.setattr("anomaly_bench.versions.git_revision", git_revision)
    monkeypatch.setattr("anomaly_bench.run.draw_run", draw_run)
    yield tmp_path
    sys.modules.pop("mine", None)
    assert not list((tmp_path / "temporary").glob("anomaly-bench-*"))


@pytest.fixture
def bench(place, monkeypatch, capfd):
    """Calls the command line; gives exit code, standard output and standard error."""

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["anomaly-bench", *COMMAND, *arguments])
        monkeypatch.delenv("ANOMALY_BENCH_SWEEP", raising=False)
        try:
            code = answer([*COMMAND, *arguments])
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        return code, *capfd.readouterr()

    return call


def lines(path: str) -> list[list[str]]:
    return [line.split() for line in Path(path).read_text().splitlines()]


def finished(folder: str = "runs") -> dict[str, Path]:
    return {path.parent.name: path.parent for path in Path(folder).glob("*/metrics.json")}


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def test_side_by_side_gives_the_bits_of_one_after_another(bench):
    code, out, err = bench("seed=0,1", "abnormal_class=0,1")
    assert code == 0
    assert "AUROC on counted" in out
    assert sum(line.startswith("AUROC 0.") for line in err.splitlines()) == 4
    assert "4 jobs, 2 at a time, threads of each: 1" in err
    assert "Traceback" not in err
    workers = lines("learned")
    assert len(lines("loaded")) == 1
    assert {threads for _, threads, _ in workers} == {"1"}
    assert os.getpid() not in {int(pid) for pid, *_ in workers}
    assert len({pid for pid, *_ in workers}) == 2
    if sys.platform == "linux":
        assert {mapped for *_, mapped in workers} == {"True"}
    Path("runs").rename("together")

    code, out, err = bench("seed=0,1", "abnormal_class=0,1", "hydra.launcher.n_jobs=1")
    assert code == 0, err
    assert "4 jobs, one after another" in err
    assert {int(pid) for pid, *_ in lines("learned")[len(workers) :]} == {os.getpid()}
    together, alone = finished("together"), finished()
    assert len(alone) == 4
    assert sorted(together) == sorted(alone)
    for name, run in alone.items():
        for file in ("model.safetensors", "scores.csv", "config.yaml"):
            assert (run / file).read_bytes() == (together[name] / file).read_bytes(), (name, file)
        facts, others = read(run / "run.json"), read(together[name] / "run.json")
        times = {key for key in facts if facts[key] != others[key]}
        assert times <= {"started", "finished"}
        assert facts["threads"] == 1


def test_jobs_that_differ_in_their_scoring_learn_once(bench):
    code, _, err = bench("evaluation.quantile=0.9,0.8,0.7", "seed=0,1")
    assert code == 0, err
    runs = [read(run / "run.json") for run in finished().values()]
    assert [sum("trained_in" in run for run in runs if run["seed"] == seed) for seed in (0, 1)] == [2, 2]


def test_a_killed_worker_fails_its_job_and_the_table_has_a_hole(bench):
    code, out, err = bench("model.do=kill,learn")
    assert code == 1
    assert len(finished()) == 1
    assert "AUROC on counted" in out
    (failure,) = [line for line in out.splitlines() if line.startswith("failed: ")]
    assert "model.do=kill" in failure
    assert failure.endswith("its worker was killed by SIGKILL (out of memory?)")
    assert failure in err.splitlines()
    (told,) = Path("runs").glob("failed-*/error.json")
    assert read(told)["error"] == "its worker was killed by SIGKILL (out of memory?)"
    assert "model.do=kill" in read(told)["overrides"]
    assert bench("model.do=kill,learn")[0] == 1
    assert len(list(Path("runs").glob("failed-*"))) == 1


def test_a_sweep_of_one_job_needs_no_worker(bench):
    assert bench("seed=3")[0] == 0
    assert {int(pid) for pid, *_ in lines("learned")} == {os.getpid()}


@pytest.mark.parametrize("value", ["0", "-1", "many", "true", "1.5"])
def test_a_number_of_jobs_that_cannot_be_is_refused(bench, value):
    code, out, err = bench("seed=0,1", f"hydra.launcher.n_jobs={value}")
    assert code == 2
    assert out == ""
    assert err.splitlines() == [
        f"anomaly-bench: hydra.launcher.n_jobs={value}: allowed are auto, or a number from 1".replace(
            "=true", "=True"
        )
    ]


def test_ctrl_c_ends_all_workers_and_the_same_command_goes_on(place, tmp_path):
    """The signal goes to every process of the group, as a terminal sends it."""
    command = [sys.executable, "-m", "anomaly_bench.cli", *COMMAND, "model.do=wait", "seed=0,1,2"]
    command.append("hydra.launcher.n_jobs=2")
    paths = os.pathsep.join([str(tmp_path / "code"), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {"env": os.environ | {"PYTHONPATH": paths}, "text": True, "stderr": subprocess.PIPE}
    Path("waits").touch()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, start_new_session=True, **settings)
    deadline = time.monotonic() + 600
    while len(waiting := lines("waits")) < 2:
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=600)
    assert process.returncode == 130
    assert "the same command goes on" in err
    assert "Traceback" not in err
    for (pid,) in waiting:
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)
    assert not finished()
    assert not list(Path("runs").rglob("*.tmp"))

    Path("waits").unlink()
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, **settings)
    assert "AUROC on counted" in done.stdout
    assert len(finished()) == 3
    epochs = [(run / "losses.csv").read_text().count("\n") for run in finished().values()]
    assert epochs == [3, 3, 3]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_memory_of_a_long_sweep_is_flat(bench):
    """Of the process that starts the workers, and of each worker: the first ten jobs of each are its warming up."""
    assert bench("model.do=weigh", "seed=range(80)", "hydra.launcher.n_jobs=2")[0] == 0
    assert len(finished()) == 80
    by_worker: dict[str, list[list[int]]] = {}
    for pid, *pages in lines("weights"):
        by_worker.setdefault(pid, []).append([int(number) * 4 // 1024 for number in pages])
    for sizes in by_worker.values():
        assert len(sizes) > 40
        (own, parent), (own_later, parent_later) = sizes[len(sizes) // 4], sizes[-1]
        assert own_later - own < 20, sizes
        assert parent_later - parent < 5, sizes


@pytest.mark.slow
def test_workers_end_with_the_sweep_that_started_them(place, tmp_path):
    command = [sys.executable, "-m", "anomaly_bench.cli", *COMMAND, "model.do=wait", "seed=0,1"]
    paths = os.pathsep.join([str(tmp_path / "code"), *filter(None, [os.environ.get("PYTHONPATH")])])
    Path("waits").touch()
    process = subprocess.Popen(
        [*command, "hydra.launcher.n_jobs=2"],
        env=os.environ | {"PYTHONPATH": paths},
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 600
    while len(waiting := lines("waits")) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.wait()
    while any(Path(f"/proc/{pid}").exists() for (pid,) in waiting):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_what_goes_wrong_around_a_job_reaches_the_sweep(monkeypatch):
    done = JobReturn(status=JobStatus.FAILED, _return_value=OSError("no room"))
    monkeypatch.setattr("hydra.core.utils.run_job", lambda **_: done)
    assert worker.run({"hydra": {"overrides": {"task": ["seed=1"]}}}) == "OSError: no room"
