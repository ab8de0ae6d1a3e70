"""A run's folder on disk: written whole or not at all, read back as it is."""

import hashlib
import json
import logging
import math
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any, Literal
from uuid import uuid4

import numpy as np
import pandas as pd
from filelock import FileLock, Timeout

log = logging.getLogger("anomaly_bench")

PACKAGES = ("anomaly-bench", "torch", "torchvision", "numpy", "scikit-learn")
SWEPT = frozenset({"abnormal_class", "normal_class", "seed"})
FORMULA = frozenset("=+-@\t\r")


@dataclass(frozen=True)
class Record:
    """One run as its folder tells it.

    Attributes:
        folder: the run's.
        status: `finished` where `metrics.json` can be read, else `failed` where `error.json` can.
        run: `run.json`; empty where the run failed before it was written.
        metrics: `metrics.json`; empty unless finished.
        failure: `error.json`; empty unless failed.
    """

    folder: Path
    status: Literal["finished", "failed", "unfinished"]
    run: dict[str, Any]
    metrics: dict[str, Any]
    failure: dict[str, Any]

    @property
    def config(self) -> str:
        """The text of `config.yaml`, read when asked for."""
        return (self.folder / "config.yaml").read_text(encoding="utf-8")


def read_records(runs_dir: Path | str) -> list[Record]:
    """Every run under `runs_dir` (or that it is itself), at any depth, in the order of their paths.

    A JSON file that cannot be read counts as absent and is named in a warning.
    """
    found = {path.parent for name in ("run.json", "error.json") for path in Path(runs_dir).rglob(name)}
    return [_read_record(folder) for folder in sorted(found)]


def _read_record(folder: Path) -> Record:
    run, metrics, failure = (read_json(folder / f"{name}.json") for name in ("run", "metrics", "error"))
    if metrics:
        return Record(folder, "finished", run, metrics, {})
    return Record(folder, "failed" if failure else "unfinished", run, {}, failure)


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty where there is no such file, or, with a warning, nothing of use in it."""
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("%s cannot be read and is left out: %s", path, error)
        return {}
    if not isinstance(data, dict):
        log.warning("%s is left out: it holds no JSON object", path)
        return {}
    return data


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Give a temporary name to write to; at the end it replaces `path`, which an error leaves as it was."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        with temporary.open("r+b") as written:
            os.fsync(written.fileno())  # else a loss of power may leave the new name and no content
        os.replace(temporary, path)  # noqa: PTH105 - the same call, under the name that says atomic
    finally:
        temporary.unlink(missing_ok=True)


def sweep_up(folder: Path) -> None:
    """Remove the temporary files that a killed process has left in the folder of a run."""
    for left in folder.rglob(".*.tmp"):
        left.unlink(missing_ok=True)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Have the folder of a run for oneself, after whichever process has it now.

    The lock is the operating system's, on the empty file `lock`, which stays: it ends with its process, however that
    ends, and holds for all machines that share the file system, as far as that passes locks on.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log.info("another process computes this run; waiting for it: %s", folder)
        lock.acquire(poll_interval=0.2)
    try:
        yield
    finally:
        lock.release()


def write_text(path: Path, text: str) -> None:
    """Write `text` as UTF-8, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write strict JSON, indented and sorted by key; what is not a finite number becomes null."""
    write_text(
        path, json.dumps(_plain(data), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    )


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table without its index.

    A text that a spreadsheet would run as a formula, for it begins with = + - @, gets a ' in front.
    """
    with replacing(path) as temporary:
        safe_csv(frame).to_csv(temporary, index=False)


def safe_csv(frame: pd.DataFrame) -> pd.DataFrame:
    """The table with a ' before each text that begins as a formula does; numbers stay as they are."""
    return frame.map(lambda cell: f"'{cell}" if isinstance(cell, str) and cell[:1] in FORMULA else cell)


def _plain(value: Any) -> Any:
    """`value` in the words of JSON: numpy's numbers and arrays too, NaN and infinities as None."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (np.ndarray, np.generic)):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def settings_hash(settings: Mapping[str, Any]) -> str:
    """Eight hexadecimal digits of plain nested `settings`, whatever the order of their keys.

    The swept class and the seed are left out at every depth: the run's name holds them, and all runs of one
    sweep share one hash.
    """
    text = json.dumps(_without_swept(settings), sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _without_swept(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_swept(item) for key, item in value.items() if key not in SWEPT}
    if isinstance(value, (list, tuple)):
        return [_without_swept(item) for item in value]
    return value


def run_name(data: str, protocol: str, model: str, case: str, seed: int, hash: str) -> str:
    """The name of a run's folder, such as `mnist-leave_one_class_out-ganomaly-abnormal_2-seed0-1a2b3c4d`."""
    return "-".join([*map(safe_name, (data, protocol, model, case)), f"seed{seed}", hash])


def safe_name(text: str) -> str:
    """`text` as a part of a file name: letters, digits and `_ . + -`, not hidden, at most 45 characters.

    Where that changes it, five digits of its hash are added, so that two texts never share a name.
    """
    safe = re.sub(r"[^\w.+-]+", "_", text, flags=re.ASCII).lstrip(".")[:40]
    return safe if safe == text and safe else f"{safe}{hashlib.sha256(text.encode()).hexdigest()[:5]}"


@cache
def git_revision() -> str | None:
    """The commit of the checkout this package lies in, with `-dirty` after local changes; None elsewhere."""
    checkout = Path(__file__).resolve().parent.parent
    if not (checkout / ".git").exists():
        return None
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        answer = subprocess.run(command, cwd=checkout, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return answer.stdout.strip()


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that can move a number; None for one that is not installed."""
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = None
    return found


def machine() -> dict[str, str | int | float | None]:
    """The processor's name, the cores this process may use, the memory in GiB, and the operating system."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {"cpu": _cpu_name(), "cores": cores, "memory_gib": _memory_gib(), "platform": platform.platform()}


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None
