"""Runs that are killed, starved and damaged, as a program: it imports all that computes once, and forks each run.

    python tests/faults.py FOLDER KILLS SEED [KIND ...]

In FOLDER, the same tiny run is computed once undisturbed, and then again and again, each time under kills at random
moments until it is done; what it comes to must be the same. The program is not multi-threaded when it forks.
"""

import contextlib
import json
import os
import random
import resource
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import hydra.main  # noqa: F401 - this and the next are imported for the runs
import pandas as pd
import sklearn.datasets  # noqa: F401
import torch
import torch._dynamo

from anomaly_bench import cli, record, run
from anomaly_bench.errors import SettingError
from anomaly_bench.training.checkpoint import Checkpoint, previous_of

EPOCHS = 6
TINY = [
    *("model=ganomaly", "data=digits", "data.limit=60", "data.image_size=16", "trainer.device=cpu"),
    *("model.ngf=4", "model.ndf=4", "model.nz=4", f"model.epochs={EPOCHS}", "model.batch_size=32"),
    *("trainer.eval_every=1", "evaluation.epoch=best_test"),
]
KINDS = ("SIGKILL", "SIGTERM", "write", "full", "checkpoint", "json", "best", "two")
MOST_ATTEMPTS = 60


def no_figures(folder: Path, *_: object) -> None:
    """A picture that takes no second to draw."""
    record.write_text(folder / "scores.svg", "<svg/>")


def forked(runs: str, log: Path, disturb: Callable[[], None] = lambda: None) -> int:
    """Start the run in a process of its own; gives its id."""
    arguments = [*TINY, f"runs_dir={runs}"]
    if pid := os.fork():
        return pid
    code = 70
    try:
        out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(out, 1)
        os.dup2(out, 2)
        signal.signal(signal.SIGTERM, cli.stop)
        sys.argv = ["anomaly-bench", *arguments]
        disturb()
        code = cli.answer(arguments)
        sys.stdout.flush()
    finally:
        os._exit(code)


def ended(pid: int) -> int:
    """Wait for a process; its exit code, or the negative of the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def over(pid: int) -> bool:
    """Whether a process of ours has ended; it stays to be waited for."""
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def folder_of(runs: str) -> Path | None:
    return next(iter(Path(runs).glob("digits-*")), None)


def results(runs: str) -> tuple[dict, pd.DataFrame, list[float]]:
    """Figures without times, scores, and the losses of every epoch."""
    folder = folder_of(runs)
    assert folder is not None
    figures = json.loads((folder / "metrics.json").read_text())
    figures = {key: value for key, value in figures.items() if "second" not in key and "_per_" not in key}
    losses = pd.read_csv(folder / "losses.csv").drop(columns="seconds")
    return figures | figures.pop("per_class"), pd.read_csv(folder / "scores.csv"), losses


def same(one: object, other: object) -> bool:
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float) and isinstance(other, float):
        return abs(one - other) <= 1e-6
    return one == other


def check_whole(runs: str) -> None:
    """The run came to what the undisturbed one did, and left nothing behind."""
    (figures, scores, losses), (expected, their_scores, their_losses) = results(runs), results("whole")
    assert figures.keys() == expected.keys()
    different = {name for name in figures if not same(figures[name], expected[name])}
    assert not different, (runs, different)
    pd.testing.assert_frame_equal(scores, their_scores, rtol=0, atol=1e-6)
    pd.testing.assert_frame_equal(losses, their_losses, rtol=1e-6)
    folder = folder_of(runs)
    assert folder is not None
    left = {path.name for path in folder.rglob("*")} & {*run.UNFINISHED_ONLY, "error.json"}
    assert not left, left
    assert not list(folder.rglob("*.tmp"))
    facts = json.loads((folder / "run.json").read_text())
    assert facts["data_fingerprint"]
    assert facts["epochs_done"] == EPOCHS


def epochs_kept(runs: str) -> int:
    """Epochs that need not be computed again."""
    folder = folder_of(runs)
    for path in (folder / run.KEEP, previous_of(folder / run.KEEP)) if folder else ():
        with contextlib.suppress(SettingError):
            return len(Checkpoint.load(path).history)
    return 0


def killed_at_write(number: int, before: bool) -> Callable[[], None]:
    """Has the process killed at its n-th rename, before or after it."""

    def disturb() -> None:
        replace, calls = os.replace, iter(range(number, -1, -1))

        def counted(*paths: object) -> None:
            last = next(calls, None) == 0
            if last and before:
                os.kill(os.getpid(), signal.SIGKILL)
            replace(*paths)
            if last:
                os.kill(os.getpid(), signal.SIGKILL)

        os.replace = counted

    return disturb


def full_disk(limit: int) -> Callable[[], None]:
    """Has files end at so many bytes, as if the disk were full."""

    def disturb() -> None:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the log is a file too
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))

    return disturb


def damage(path: Path, draw: random.Random) -> None:
    """Cut a file short, put zeros in it, or turn a bit."""
    content = bytearray(path.read_bytes())
    place = draw.randrange(len(content))
    match draw.choice(("cut", "zeros", "bit")):
        case "cut":
            del content[place:]
        case "zeros":
            content[place : place + 512] = bytes(len(content[place : place + 512]))
        case _:
            content[place] ^= 1 << draw.randrange(8)
    path.write_bytes(content)


class Faults:
    """One series of kills."""

    def __init__(self, seed: int, seconds: float) -> None:
        self.draw = random.Random(seed)
        self.seconds = seconds
        self.done: Counter[str] = Counter()
        self.over = False
        self.logs = Path("log")

    def start(self, runs: str, disturb: Callable[[], None] = lambda: None) -> int:
        return forked(runs, self.logs, disturb)

    def one(self, kind: str, runs: str) -> None:
        """Disturb a run once."""
        before = epochs_kept(runs)
        getattr(self, kind)(runs)
        self.done[kind] += 1
        lost = {"checkpoint": 1, "best": EPOCHS, "json": EPOCHS * self.over}.get(kind, 0)  # what was damaged
        assert epochs_kept(runs) >= before - lost or finished(runs), (kind, runs, before)

    def wait(self, pid: int) -> None:
        """For a random time, or until the process has ended."""
        until = time.monotonic() + self.draw.uniform(0, self.seconds)
        while time.monotonic() < until and not over(pid):
            time.sleep(0.002)

    def at_any_moment(self, runs: str, name: signal.Signals) -> None:
        pid = self.start(runs)
        self.wait(pid)
        os.kill(pid, name)
        code = ended(pid)
        assert code in (-name, 0, 130), code

    def SIGKILL(self, runs: str) -> None:
        self.at_any_moment(runs, signal.SIGKILL)

    def SIGTERM(self, runs: str) -> None:
        self.at_any_moment(runs, signal.SIGTERM)

    def write(self, runs: str) -> None:
        """The moments at which a file takes the place of another are those that matter most."""
        number = self.draw.randrange(60)
        code = ended(self.start(runs, killed_at_write(number, self.draw.random() < 0.5)))
        assert code in (-signal.SIGKILL, 0), code

    def full(self, runs: str) -> None:
        code = ended(self.start(runs, full_disk(self.draw.choice((0, 500, 3_000, 20_000, 60_000)))))
        assert code in (0, 1), code

    def checkpoint(self, runs: str) -> None:
        """A kill, then a damaged checkpoint; the one before it is gone on from, or else the beginning."""
        self.SIGKILL(runs)
        folder = folder_of(runs)
        path = folder / run.KEEP if folder else None
        if path is not None and path.exists():
            damage(path, self.draw)

    def best(self, runs: str) -> None:
        self.SIGKILL(runs)
        folder = folder_of(runs)
        if folder is not None and (folder / run.BEST).exists():
            damage(folder / run.BEST, self.draw)

    def json(self, runs: str) -> None:
        """A kill, then half of a JSON file."""
        self.SIGKILL(runs)
        folder, self.over = folder_of(runs), finished(runs)  # a finished run has no checkpoint to go on from
        for path in sorted(folder.glob("*.json")) if folder else []:
            path.write_bytes(path.read_bytes()[: self.draw.randrange(60)])

    def two(self, runs: str) -> None:
        """Two at once; one of them is killed."""
        pids = [self.start(runs), self.start(runs)]
        self.wait(pids[0])
        os.kill(self.draw.choice(pids), signal.SIGKILL)
        codes = [ended(pid) for pid in pids]
        assert 0 in codes, codes


def finished(runs: str) -> bool:
    folder = folder_of(runs)
    return folder is not None and "auroc" in record.read_json(folder / "metrics.json")


def main() -> None:
    folder, kills, seed, *kinds = sys.argv[1:]
    kinds = kinds or KINDS
    os.chdir(folder)
    run.draw_run = no_figures
    threads = [path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")]
    assert set(threads) <= {threads[0], "jemalloc_bg_thd"}, f"not to be forked: it has threads {threads}"
    started = time.perf_counter()
    assert ended(forked("whole", Path("whole.log"))) == 0, Path("whole.log").read_text()
    faults = Faults(int(seed), time.perf_counter() - started)
    number, attempts = 0, 0
    while faults.done.total() < int(kills) or attempts:
        runs = f"run{number}"
        if faults.done.total() < int(kills) and attempts < MOST_ATTEMPTS and not finished(runs):
            faults.one(kinds[faults.done.total() % len(kinds)], runs)
            attempts += 1
            continue
        code = ended(faults.start(runs))
        assert code == 0, Path("log").read_text()[-3000:]
        check_whole(runs)
        number, attempts = number + 1, 0
    log = Path("log").read_text()
    assert "Traceback" not in log, log[-6000:]
    print(json.dumps({"kills": faults.done, "runs": number, "whole": faults.seconds}))


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
