"""Sweeps under Hydra's other launchers, each run for real: joblib, submitit here and on a make-believe Slurm, Ray."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from anomaly_bench import cli, jobs

CHECKOUT = Path(__file__).parents[1]
PLUGINS = {"local_joblib": "joblib", "local_submitit": "submitit", "slurm": "submitit", "local_ray": "ray"}

STAGES = 2
"""How often a run walks through a method's stages: once for the control."""

MINE = '''
"""A method that learns nothing, or does not come to it."""

import os
import signal
import time

from anomaly_bench.detector import Detector


class Mine(Detector):
    def __init__(self, shape, *, do):
        super().__init__()
        self.do = do

    def stages(self, train):
        with open("learned", "a") as log:
            told = [os.environ.get(name, "unset") for name in ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS")]
            print(os.getpid(), *told, file=log)
        if self.do == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1)
        return iter(())

    def score(self, x):
        return x.flatten(1).square().sum(1)
'''

SLURM = {
    "sbatch": """
import os, re, subprocess, sys
text = open(sys.argv[-1]).read()
tasks = re.search(r"--array=0-(\\d+)", text)
job = f"{7 + len(os.listdir('states'))}"
told = {"SLURM_JOB_ID": job, "SLURM_NTASKS": "1", "SLURM_JOB_NUM_NODES": "1", "SLURM_NODEID": "0"}
told |= {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NODELIST": "here"}
# a cluster's nodes have not the environment of the shell that submits, unless it is told to pass it on
clean = {key: value for key, value in os.environ.items() if key != "ANOMALY_BENCH_SWEEP"}
for task in range(int(tasks[1]) + 1) if tasks else [None]:
    array = {} if task is None else {"SLURM_ARRAY_JOB_ID": job, "SLURM_ARRAY_TASK_ID": str(task)}
    name = job if task is None else f"{job}_{task}"
    # the state of a job is the name of a file
    watch = f'bash -c "$1" && touch states/{name}.COMPLETED || touch states/{name}.FAILED'
    quiet = subprocess.DEVNULL
    subprocess.Popen(["bash", "-c", watch, "-", text], env=clean | told | array, stdout=quiet, stderr=quiet)
print("Submitted batch job", job)
""",
    "srun": """
import os, sys
words = sys.argv[1:]
while words[0].startswith("-"):
    words = words[2 if words[0] in ("--output", "--error") else 1 :]
os.execvp(words[0], words)
""",
    "sacct": """
import os
print("JobID|State|NodeList|")
for name in sorted(os.listdir("states")):
    job, state = name.split(".")
    print(f"{job}|{state}|here|")
""",
    "scancel": "",
}


@pytest.fixture
def bench(tmp_path):
    """Calls the command line in an empty folder with a method of the user's and, on its path, a make-believe Slurm."""
    files = {
        "code/mine.py": MINE,
        "configs/model/mine.yaml": "_target_: mine.Mine\n_partial_: true\ndo: learn\n",
    }
    files |= {f"bin/{name}": f"#!{sys.executable}\n{code}" for name, code in SLURM.items()}
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)
    (tmp_path / "states").mkdir()
    paths = [str(tmp_path / "code"), str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": ":".join(paths)}
    own["RAY_AUTH_MODE"] = "disabled"  # else it writes an access token into the home folder
    own["RAY_raylet_start_wait_time_s"] = "300"  # on a busy machine, Ray takes longer than it waits
    hidden = ("ANOMALY_BENCH_SWEEP", "ANOMALY_BENCH_DEBUG", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
    env = {key: value for key, value in os.environ.items() if key not in hidden} | own

    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "anomaly_bench.cli", "-m", "--config-dir", "configs", "model=mine"]
        told = ["data=digits", "data.limit=150", "trainer.device=cpu", *arguments]
        return subprocess.run([*command, *told], cwd=tmp_path, env=env, capture_output=True, text=True)

    return call


def launcher(name: str) -> str:
    if find_spec(f"hydra_plugins.hydra_{PLUGINS[name]}_launcher") is None:
        pytest.skip(f"the extra with hydra-{PLUGINS[name]}-launcher is not installed")
    return f"hydra/launcher={name}"


def read(path: Path) -> dict:
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("slurm", "anomaly-bench[slurm]"),
        ("local_ray", "hydra-ray-launcher"),
        ("tune", "anomaly-bench[optuna]"),
    ],
)
def test_what_is_not_installed_is_named_with_its_command(tmp_path, monkeypatch, capsys, name, told):
    group = "sweeper" if name == "tune" else "launcher"
    if find_spec(f"hydra_plugins.hydra_{PLUGINS.get(name, 'optuna')}_{group}") is not None:
        pytest.skip("it is installed")
    chosen_by = ["evaluation.validation=0.1", "evaluation.validation_class=1"]
    arguments = ["-m", f"hydra/{group}={name}", *chosen_by, "model.nz=10,20"]
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["anomaly-bench", *arguments])
    monkeypatch.delenv("ANOMALY_BENCH_SWEEP", raising=False)
    assert cli.answer(arguments) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines()[-1].endswith(f"is not installed: pip install {told}")
    assert len(said.err.splitlines()) == 1


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """The config of a sweep, as a callback has it."""
    monkeypatch.setenv("ANOMALY_BENCH_SWEEP", "one")
    return OmegaConf.create(
        {"runs_dir": str(tmp_path), "hydra": {"runtime": {"choices": {"experiment": None}}}}
    )


def test_a_job_that_left_no_word_has_failed_until_it_says_otherwise(sweep, tmp_path, capsys):
    jobs.begin_note(str(tmp_path), 0, ["seed=0"])
    jobs.begin_note(str(tmp_path), 1, ["seed=1"])
    jobs.leave_note(str(tmp_path), 1, {"overrides": ["seed=1"], "folder": str(tmp_path / "run")})
    assert jobs.print_sweep(sweep, "the launcher: it died")
    out = capsys.readouterr().out.splitlines()
    assert [line.partition(": its")[0] for line in out] == ["failed: seed=0", "failed: the launcher: it died"]
    (recorded,) = tmp_path.glob("failed-*/error.json")
    assert read(recorded)["overrides"] == ["seed=0"]
    jobs.leave_note(str(tmp_path), 0, {"overrides": ["seed=0"], "folder": str(tmp_path / "run")})
    assert not recorded.exists()
    assert not jobs.print_sweep(sweep)


def test_failures_are_told_in_the_order_of_the_jobs(sweep, tmp_path, capsys):
    for number in reversed(range(12)):
        jobs.leave_note(str(tmp_path), number, {"overrides": [f"seed={number}"], "error": "broken"})
    assert jobs.print_sweep(sweep)
    assert capsys.readouterr().out.splitlines() == [f"failed: seed={number}: broken" for number in range(12)]


def test_a_job_whose_end_could_not_be_noted_is_told_once(sweep, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(jobs, "UNWRITTEN", [{"overrides": ["seed=0"], "error": "No space left on device"}])
    jobs.begin_note(str(tmp_path), 0, ["seed=0"])
    assert jobs.print_sweep(sweep)
    assert capsys.readouterr().out == "failed: seed=0: No space left on device\n"


def test_a_note_that_another_process_could_not_write_comes_back_as_an_error(monkeypatch):
    monkeypatch.setattr(jobs, "UNWRITTEN", [])
    monkeypatch.setattr(cli, "task", lambda *_: jobs.UNWRITTEN.append({"error": "No space left on device"}))
    cli.task_anywhere(None, {}, "one", os.getpid())  # here it is read at the end
    assert len(jobs.UNWRITTEN) == 1
    with pytest.raises(OSError, match="No space left"):
        cli.task_anywhere(None, {}, "one", os.getpid() + 1)
    monkeypatch.setattr(cli, "task", lambda *_: os.environ["ANOMALY_BENCH_SWEEP"])
    monkeypatch.setattr(jobs, "UNWRITTEN", [])
    monkeypatch.setenv("ANOMALY_BENCH_SWEEP", "of another machine's own")
    assert cli.task_anywhere(None, {}, "one", 0) == "one"


@pytest.mark.slow
@pytest.mark.parametrize("name", PLUGINS)
def test_the_table_the_failures_and_one_computation_of_a_job_that_comes_twice(bench, tmp_path, name):
    done = bench(launcher(name), "abnormal_class=0,0,77", "seed=0")
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    assert "AUROC on digits, leave_one_class_out" in done.stdout
    (failure,) = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert "abnormal_class=77" in failure
    assert "Traceback" not in said
    assert "at a time, threads of each" not in said  # our own launcher stands aside
    (told,) = (tmp_path / "runs").glob("failed-*/error.json")
    assert "abnormal_class=77" in read(told)["error"]
    learned = (tmp_path / "learned").read_text().splitlines()
    assert len(learned) == STAGES
    _, gpus, threads = learned[0].split()
    (run,) = [path.parent for path in (tmp_path / "runs").glob("*/metrics.json")]
    assert read(run / "run.json")["class_index"] == 0
    notes = [read(path) for path in (tmp_path / "runs/.sweeps").glob("*/*.json")]
    assert sorted("error" in note for note in notes) == [False, False, True]
    if name == "local_joblib":
        assert int(threads) == max(1, len(os.sched_getaffinity(0)) // 2)
    if name == "local_submitit":
        assert gpus == "0"  # no job is without the GPU
    if name == "slurm":
        (script,) = (tmp_path / "runs/.sweeps/.submitit").rglob("*_submission.sh")
        for line in ("--array=0-2%3", "--gpus-per-node=1", "--time=1440", "--cpus-per-task=4"):
            assert f"#SBATCH {line}\n" in script.read_text()

    done = bench(launcher(name), "abnormal_class=0,1", "seed=0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert len((tmp_path / "learned").read_text().splitlines()) == 2 * STAGES


@pytest.mark.slow
@pytest.mark.parametrize("name", PLUGINS)
def test_a_killed_job_is_named_and_recorded_until_it_is_well(bench, tmp_path, name):
    done = bench(launcher(name), "model.do=learn,kill", "seed=0")
    said = done.stdout + done.stderr
    assert done.returncode == 1, said
    failures = [line for line in done.stdout.splitlines() if line.startswith("failed: ")]
    assert any("model.do=kill" in line and "left no word of its end" in line for line in failures), said
    recorded = [read(path)["overrides"] for path in (tmp_path / "runs").glob("failed-*/error.json")]
    assert any("model.do=kill" in overrides for overrides in recorded)

    done = bench(launcher(name), "model.do=learn", "seed=0,1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "AUROC on digits, leave_one_class_out" in done.stdout
    assert "learn" not in [
        read(path)["overrides"] for path in (tmp_path / "runs").glob("failed-*/error.json")
    ]
