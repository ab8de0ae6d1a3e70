"""Jobs of a sweep side by side: how many at once, and the processes that run them.

A worker is a process of its own (`anomaly_bench.worker`), started afresh rather than forked, since a fork of a
process in which torch has started threads may hang. It imports torch once, runs many jobs, and maps the data set
that the first of them has loaded. It is asked and answers in lines of JSON.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any, NamedTuple

from tqdm import tqdm

from anomaly_bench.machine import cores, free_gib

SHARED = "ANOMALY_BENCH_SHARED"
"""Names the folder of the data sets that the workers of a sweep share."""

GIB_PER_WORKER = 1.0
"""Free memory that a worker has to find: torch and a small network with its batches take a good half of it."""

GRACE = 5.0
"""Seconds that a worker has to end by itself."""

THREAD_SETTINGS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); from anomaly_bench.worker import main; main()"
)


# ------------------------------------------------------------------------------ how many at once


def shares(jobs: int, wanted: int | None = None) -> tuple[int, int]:
    """Workers for so many jobs, and the threads of each; one worker means one job after another.

    One thread for each job and a job for each core has the highest total throughput, since a small network
    leaves a second thread waiting most of the time. Where there are fewer jobs than cores, each has its share of
    the cores.

    Args:
        jobs: of the sweep.
        wanted: workers; None for as many as cores and memory allow. `OMP_NUM_THREADS`, where it is set, are
            the threads of each.
    """
    told = os.environ.get("OMP_NUM_THREADS", "")
    threads = int(told) if told.isdecimal() and int(told) else None
    workers = wanted or min(cores() // (threads or 1), int(free_gib() / GIB_PER_WORKER))
    workers = max(1, min(workers, jobs))
    return workers, threads or max(1, cores() // workers)


# ------------------------------------------------------------------------------ workers


@dataclass(frozen=True)
class Job:
    """One job of a sweep.

    Attributes:
        number: in the sweep.
        overrides: what makes it differ.
        config: composed, as plain values.
    """

    number: int
    overrides: list[str]
    config: dict[str, Any]

    @property
    def data(self) -> str:
        """The settings of its data set; jobs for which they are equal share one."""
        return json.dumps(self.config["data"], sort_keys=True)


class End(NamedTuple):
    """How a job's turn ended.

    Attributes:
        training: what it has in common with jobs that learn the same; None for one of which none is known.
        held: it has not begun, as such a job is learning that.
        error: why it failed, where it could not leave a note of that itself.
    """

    training: str | None = None
    held: bool = False
    error: str | None = None


class WorkerDiedError(Exception):
    """A worker ended before it had answered."""


class Worker:
    """A process that runs one job at a time. What it says on standard error is passed on, line by line.

    Args:
        threads: that it computes with.
        folder: of the data sets that workers share.
    """

    def __init__(self, threads: int, folder: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-c", START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
            env=os.environ | dict.fromkeys(THREAD_SETTINGS, str(threads)) | {SHARED: folder},
        )
        self.requests: Any = self.process.stdin
        self.answers: Any = self.process.stdout
        self.said: Any = self.process.stderr
        self.listener = threading.Thread(target=self.pass_on, daemon=True)
        self.listener.start()

    def pass_on(self) -> None:
        """Repeat what the worker says, above the bar if there is one."""
        for line in self.said:
            with contextlib.suppress(OSError):  # nobody reads ours; a worker must not wait for that
                tqdm.write(line.rstrip("\n"), file=sys.stderr)

    def ask(self, what: str, of: Any) -> Any:
        """Send one request and wait for its answer; a worker that ends meanwhile is a WorkerDiedError."""
        line = ""
        with contextlib.suppress(OSError, ValueError):  # its end of the pipe, or ours, is closed
            self.requests.write(json.dumps([what, of], default=str) + "\n")
            self.requests.flush()
            line = self.answers.readline()
        if line.endswith("\n"):
            return json.loads(line)
        raise WorkerDiedError(self.last_words())

    def last_words(self) -> str:
        """How it ended."""
        self.stop()
        self.end()
        code = self.process.returncode
        if code >= 0:
            return f"its worker ended with exit code {code}"
        name = signal.Signals(-code).name
        return f"its worker was killed by {name}" + (" (out of memory?)" if name == "SIGKILL" else "")

    def stop(self) -> None:
        """Tell it to end, in the middle of a job if need be."""
        with contextlib.suppress(OSError):
            self.requests.close()

    def end(self) -> None:
        """Wait until it has ended, by force if it does not in time."""
        try:
            self.process.wait(GRACE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self.listener.join()
        self.answers.close()
        self.said.close()


class Workers:
    """So many workers, replaced when they die.

    A context manager: at its end, whatever the reason, all are stopped, and jobs not begun are dropped.
    """

    def __init__(self, number: int, threads: int) -> None:
        self.number = number
        self.threads = threads
        self.callers = ThreadPoolExecutor(number)
        self.folder = tempfile.TemporaryDirectory(prefix="anomaly-bench-")
        self.lock = threading.Lock()
        self.open = True
        self.all = [Worker(threads, self.folder.name) for _ in range(number)]
        self.idle = self.all[:]
        self.loading = defaultdict(threading.Lock)
        self.loaded: set[str] = set()
        self.asking = threading.Lock()
        self.learning: set[str | None] = set()
        self.learned: set[str | None] = set()
        self.held: dict[str | None, list[Job]] = defaultdict(list)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(self, *_: object) -> None:
        with self.lock:
            self.open = False
        for worker in self.all:
            worker.stop()
        for worker in self.all:
            worker.end()
        self.callers.shutdown(cancel_futures=True)
        self.folder.cleanup()

    def device(self) -> str | None:
        """The kind of device that `trainer.device=auto` means here; None where it cannot be told."""
        with contextlib.suppress(WorkerDiedError):
            worker = self.take()
            kind = worker.ask("device", "auto")
            self.idle.append(worker)
            return kind
        return None

    def run(self, jobs: Iterable[Job]) -> Iterator[tuple[Job, str | None]]:
        """Run jobs, drawn as workers become free, and give each when it is over.

        Beside it stands why it failed, where it could not leave a note of that itself, else None. A job that learns
        what another is learning is held until that is over, and then takes its weights; others are drawn before it.
        """
        pending: dict[Future[End], Job] = {}
        for job in jobs:
            self.submit(job, pending)
            if len(pending) > self.number:  # one is ready for the first worker that is free
                yield from self.over(pending)
        while pending:
            yield from self.over(pending)

    def submit(self, job: Job, pending: dict[Future[End], Job]) -> None:
        """Have a job run by the first worker that is free."""
        pending[self.callers.submit(self.run_one, job)] = job

    def over(self, pending: dict[Future[End], Job]) -> Iterator[tuple[Job, str | None]]:
        """Wait for the first of `pending`; give what is over with its error, and let go on what was held for it."""
        for future in wait(pending, return_when=FIRST_COMPLETED).done:
            job, end = pending.pop(future), future.result()
            if end.held:
                self.held[end.training].append(job)
            else:
                if end.error is None:
                    self.learned.add(end.training)
                self.learning.discard(end.training)
                yield job, end.error
            if end.training not in self.learning:
                for waiting in self.held.pop(end.training, []):
                    self.submit(waiting, pending)

    def run_one(self, job: Job) -> End:
        """Run a job on a worker of its own; the first of those that want one data set loads it for all."""
        training = None
        try:
            worker = self.take()
            with self.asking:  # in the order of the jobs, so that the first of its kind learns
                training, waits = worker.ask("training", job.config)
                begins = self.may_begin(training, waits)
            if not begins:
                self.idle.append(worker)
                return End(training, held=True)
            with self.lock:
                loading = self.loading[job.data]
            with loading:
                error = None if job.data in self.loaded else worker.ask("load", job.config)
                if error is None:
                    self.loaded.add(job.data)
            error = error or worker.ask("run", job.config)
        except (WorkerDiedError, OSError) as death:
            return End(training, error=str(death))
        self.idle.append(worker)
        return End(training, error=error)

    def may_begin(self, training: str | None, waits: bool) -> bool:
        """Whether a job need not wait for one that is learning the same; if none has, it is learning from now on."""
        if waits and training in self.learning:
            return False
        if training is not None and training not in self.learned:
            self.learning.add(training)
        return True

    def take(self) -> Worker:
        """An idle worker, else a new one."""
        with self.lock:
            if not self.open:
                raise WorkerDiedError("stopped")
            if self.idle:
                return self.idle.pop()
            self.all = [worker for worker in self.all if worker.process.poll() is None]
            self.all.append(Worker(self.threads, self.folder.name))
            return self.all[-1]
