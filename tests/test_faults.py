"""Nothing that was reported kept is lost: to kills, to a full disk, to damaged files, to another process."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from finished import finished

from anomaly_bench import record

PROGRAM = Path(__file__).with_name("faults.py")
LONE_THREADS = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")

pytestmark = pytest.mark.skipif(
    not Path("/proc/self").exists(), reason="forks of a process, watched in /proc"
)


def disturbed(folder: Path, kills: int, *kinds: str) -> dict:
    """What `faults.py` says of so many kills, after each of which the run has been checked."""
    command = [sys.executable, str(PROGRAM), str(folder), str(kills), "7", *kinds]
    paths = os.pathsep.join(map(str, [PROGRAM.parents[1], *filter(None, [os.environ.get("PYTHONPATH")])]))
    done = subprocess.run(
        command, env=os.environ | LONE_THREADS | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_a_run_comes_to_the_same_numbers_whatever_disturbs_it(tmp_path):
    kinds = ("write", "full", "checkpoint", "json", "SIGKILL", "two")
    assert disturbed(tmp_path, 6, *kinds)["kills"] == dict.fromkeys(kinds, 1)


def test_a_picture_that_cannot_be_drawn_costs_no_run(tmp_path, monkeypatch, caplog):
    def fails(*_: object) -> None:
        raise ValueError("too many\nbins")

    monkeypatch.setattr("anomaly_bench.run.draw_run", fails)
    with caplog.at_level("WARNING", "anomaly_bench"):
        folder = finished(tmp_path, model="mahalanobis", data="digits", data__limit="100")
    assert "auroc" in record.read_json(folder / "metrics.json")
    assert not (folder / "error.json").exists()
    (told,) = [one.getMessage() for one in caplog.records]
    assert told == f"{folder}: not every picture could be drawn: ValueError: too many bins"


@pytest.mark.slow
def test_hundreds_of_kills(tmp_path):
    told = disturbed(tmp_path, 208)
    assert sum(told["kills"].values()) >= 208
    assert len(told["kills"]) == 8


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own, almost full."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=160k", "none", str(place)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a small tmpfs cannot be mounted here")
    yield place
    subprocess.run(["umount", str(place)], check=True)


@pytest.mark.slow
def test_a_run_that_a_full_disk_has_stopped_goes_on_when_there_is_room(tmp_path, small_disk):
    tiny = [
        "model=ganomaly",
        "data.limit=60",
        "data.image_size=16",
        "model.ngf=4",
        "model.ndf=4",
        "model.nz=4",
    ]
    command = [sys.executable, "-m", "anomaly_bench.cli", *tiny, "model.epochs=3", "model.batch_size=32"]
    run = {"env": os.environ | LONE_THREADS, "capture_output": True, "text": True, "cwd": tmp_path}
    stopped = subprocess.run([*command, f"runs_dir={small_disk}"], **run)
    assert stopped.returncode == 1
    assert "No space left on device" in stopped.stderr
    assert len(stopped.stderr.strip().splitlines()) == 1
    assert not list(small_disk.rglob("*.tmp"))
    subprocess.run(["mount", "-o", "remount,size=4m", str(small_disk)], check=True)
    for place in (small_disk, tmp_path / "whole"):
        assert subprocess.run([*command, f"runs_dir={place}"], **run).returncode == 0
    figures = [
        json.loads(next(place.glob("*/metrics.json")).read_text())["auroc"]
        for place in (small_disk, tmp_path / "whole")
    ]
    assert figures[0] == pytest.approx(figures[1], abs=1e-6)


def test_a_folder_has_one_process_at_a_time(tmp_path, caplog):
    inside = []

    def enter(name: str) -> None:
        with record.alone(tmp_path / "run"):
            inside.append(f"{name} begins")
            time.sleep(0.3)
            inside.append(f"{name} ends")

    callers = [threading.Thread(target=enter, args=(name,)) for name in ("one", "other")]
    with caplog.at_level("INFO", "anomaly_bench"):
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join()
    first, second = inside[0].split()[0], inside[2].split()[0]
    assert inside == [f"{first} begins", f"{first} ends", f"{second} begins", f"{second} ends"]
    assert caplog.text.count("another process computes this run; waiting for it") == 1


def test_a_lock_ends_with_its_process(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from anomaly_bench.record import alone\n"
        "with alone(Path(sys.argv[1])): print('in', flush=True); time.sleep(900)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "in\n"
    threading.Timer(0.3, holder.send_signal, [signal.SIGKILL]).start()
    with record.alone(tmp_path):
        assert holder.wait() == -signal.SIGKILL
    holder.stdout.close()


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    for path in ("run/.metrics.json.1a2b3c4d.tmp", "run/figures/.roc.svg.1a2b3c4d.tmp", "run/run.json"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    record.sweep_up(tmp_path / "run")
    assert [path.name for path in tmp_path.rglob("*.*")] == ["run.json"]
