"""The processes that scripts/bench.py measures, seen from outside."""

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn


class Contender:
    """A process of `bench_contenders.py` that waits for its turn and answers requests with one number.

    Args:
        command: that starts it.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self.command = command
        self.log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed when the contender is let go
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": self.log}
        self.process = subprocess.Popen(command, text=True, env=environment(command), **pipes)
        self.facts: dict[str, Any] = {}

    def ready(self) -> "Contender":
        """Itself, when it has said what is to be known of it."""
        self.facts = self.facts or self.answer()
        return self

    def ask(self, *request: Any) -> None:
        """Send a request, for `answer` to answer."""
        assert self.process.stdin
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        """The next thing it says; where it has died instead, the benchmark ends with its last words."""
        assert self.process.stdout
        line = self.process.stdout.readline()
        if not line:
            give_up(self.command, self.log)
        return json.loads(line)

    def measure(self, *request: Any) -> float:
        """The answer to a request."""
        self.ask(*request)
        return self.answer()["value"]

    def end(self) -> None:
        """Let it go."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()
        self.log.close()


@dataclass(frozen=True)
class Ended:
    """A command that ran to its end.

    Attributes:
        first, seconds: from its start to its first line and to its end.
        peak: the most memory of its main process, in MiB; children are not counted.
        said: its last line, if that is JSON.
    """

    first: float
    seconds: float
    peak: float
    said: dict[str, Any]


def run(command: Sequence[str], **variables: str) -> Ended:
    """Run a command to its end; one that fails ends the benchmark."""
    with tempfile.TemporaryFile("w+") as log:
        started = time.perf_counter()
        pipes = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": log}
        process = subprocess.Popen(command, text=True, env=environment(command) | variables, **pipes)
        assert process.stdout
        line = process.stdout.readline()
        first = time.perf_counter() - started
        lines = [line, *process.stdout]
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)
        process.stdout.close()
        if process.returncode:
            give_up(command, log)
    peak = usage.ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    return Ended(first, seconds, peak, json.loads(lines[-1]) if lines[-1].startswith("{") else {})


def environment(command: Sequence[str]) -> dict[str, str]:
    """This process's variables, byte code allowed, as installed programs have it; a peer sees nothing of ours."""
    dropped = {"PYTHONDONTWRITEBYTECODE"} | ({"PYTHONPATH"} if command[0] != sys.executable else set())
    return {key: value for key, value in os.environ.items() if key not in dropped}


def give_up(command: Sequence[str], log: Any) -> NoReturn:
    """End with a command that failed and its last words."""
    log.seek(0)
    sys.exit(f"bench: {shlex.join(command)}\n{log.read()[-2000:]}")
