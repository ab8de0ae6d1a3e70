"""A run's folder on disk: written whole or not at all, read back as it is."""

from __future__ import annotations

import csv
import hashlib
import json
import logging
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from uuid import uuid4

import numpy as np
import yaml
from filelock import FileLock, Timeout

if TYPE_CHECKING:
    import pandas as pd

log = logging.getLogger("anomaly_bench")

SWEPT = frozenset({"abnormal_class", "normal_class", "seed"})
FORMULA = re.compile(r"['\s]*[=+\-@\t\r＝＋－＠]")
"""How a text begins that a spreadsheet may run; its full-width signs count, and what is in front of it is trimmed."""

LARGEST = 64 << 20
"""Bytes that are read of a file of a run, unless it holds weights."""

LARGEST_CONFIG = 1 << 20
"""The same of its config."""

SAFE_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
"""PyYAML's, in C where that was built: eight times as fast."""

DEEPEST = 20
"""Levels of nested values that a file of a run may have."""


LATER = {
    "deterministic": False,
    "evaluation.validation": None,
    "evaluation.validation_class": None,
    "model.d_l2": 0.0,
    "model.dropout": None,
    "model.extralayers": 0,
    "model.first_activation": True,
    "model.jitter": 1e-6,
    "model.standardise": False,
    "model.version": "paper",
}
"""Settings that came later, each with the value by which a run is what it was before: so it tells no runs apart."""


def without_later(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings without those of `LATER` that have the value there."""
    return {
        key: without_later(value, f"{prefix}{key}.") if isinstance(value, Mapping) else value
        for key, value in values.items()
        if f"{prefix}{key}" not in LATER or LATER[f"{prefix}{key}"] != value
    }


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

    @cached_property
    def config(self) -> str:
        """The text of `config.yaml`, read when asked for; empty, with a warning, where it cannot be."""
        try:
            return own_file(self.folder / "config.yaml", LARGEST_CONFIG).read_text(encoding="utf-8")
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read: %s", self.folder / "config.yaml", error)
            return ""

    @cached_property
    def values(self) -> dict[str, Any]:
        """The settings in `config.yaml`, nested; empty where it cannot be read, or holds none."""
        try:
            values = yaml.load(plain_yaml(self.config), Loader=SAFE_LOADER)
        except (yaml.YAMLError, ValueError):  # of a stranger's run
            return {}
        return values if isinstance(values, dict) else {}


def read_records(runs_dir: Path | str) -> list[Record]:
    """Every run under `runs_dir` (or that it is itself), at any depth, in the order of their paths.

    A JSON file that cannot be read counts as absent and is named in a warning.
    """
    found = {path.parent for name in ("run.json", "error.json") for path in Path(runs_dir).rglob(name)}
    return [_read_record(folder) for folder in sorted(found)]


def _read_record(folder: Path) -> Record:
    run, metrics, failure = (read_json(folder / f"{name}.json") for name in ("run", "metrics", "error"))
    run, metrics = (
        _of_kind(folder / "run.json", run, RUN),
        _of_kind(folder / "metrics.json", metrics, METRICS),
    )
    if metrics:
        return Record(folder, "finished", run, metrics, {})
    return Record(folder, "failed" if failure else "unfinished", run, {}, failure)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e100


def _is_area(value: Any) -> bool:
    return _is_number(value) and 0 <= value <= 1


def _is_object(value: Any) -> bool:
    return isinstance(value, dict)


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_text, value))


RUN = {
    **dict.fromkeys(
        ("model", "data", "protocol", "case", "class", "settings_hash", "training_hash"), _is_text
    ),
    **dict.fromkeys(
        ("data_source", "data_fingerprint", "data_note", "device", "precision", "control"), _is_text
    ),
    **dict.fromkeys(("git", "started", "finished", "trained_in"), _is_text),
    **dict.fromkeys(("class_index", "seed", "epochs_done", "n_train", "n_test", "n_anomalous"), _is_whole),
    **dict.fromkeys(("n_missing", "n_distinct", "n_test_seen_in_training", "threads"), _is_whole),
    **dict.fromkeys(("overrides", "data_classes", "data_formats", "experiments", "evaluations"), _are_texts),
    **dict.fromkeys(("evaluation", "versions", "machine"), _is_object),
    "resumed_from": lambda value: isinstance(value, list) and all(map(_is_object, value)),
    **{"known_ratio": _is_area, "auroc_untrained": _is_area, "f1_untrained": _is_area},
}
"""What readers rely on in `run.json`, wherever it has them."""

AREAS = (
    *("auroc", "auroc_untrained", "auroc_best_epoch", "auroc_hindsight"),
    *("aupr_in", "aupr_out", "average_precision", "f1"),
    *("auroc_pixel", "auroc_pixel_untrained", "aupro", "aupro_untrained"),
)
METRICS = {
    **dict.fromkeys(AREAS, _is_area),
    "hindsight": lambda value: _is_object(value) and all(map(_is_number, value.values())),
    "per_class": lambda value: (
        _is_object(value) and all(area is None or _is_area(area) for area in value.values())
    ),
    "auroc_interval": lambda value: isinstance(value, list) and len(value) == 2 and all(map(_is_area, value)),
}
"""The same of `metrics.json`, where all else is a number."""


def _of_kind(path: Path, data: dict[str, Any], kinds: Mapping[str, Callable[[Any], bool]]) -> dict[str, Any]:
    """The object without what is not of its kind, which a warning names; null is of every kind."""
    otherwise = _is_number if kinds is METRICS else _is_anything
    wrong = [key for key, value in data.items() if value is not None and not kinds.get(key, otherwise)(value)]
    if wrong:
        log.warning("%s: left out, for it is not what runs write: %s", path, ", ".join(map(repr, wrong[:5])))
    return {key: value for key, value in data.items() if key not in wrong}


def _is_anything(_: Any) -> bool:
    return True


def read_json(path: Path) -> dict[str, Any]:
    """The object in `path`; empty where there is no such file, or, with a warning, nothing of use in it.

    The file may be a stranger's: see `own_file`. What is not a finite number is null, as runs write it.
    """
    try:
        raw = own_file(path).read_bytes()
        data = json.loads(raw, parse_constant=lambda _: None, parse_float=_finite, parse_int=_exact)
        if b"\\ud" in raw.lower():  # half a sign, which no table can hold
            data = json.loads(json.dumps(data, ensure_ascii=False).encode("utf-8", "replace"))
        if _is_deep(data):
            raise ValueError(f"nested more than {DEEPEST} deep")
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        log.warning("%s cannot be read and is left out: %s", path, error)
        return {}
    if not isinstance(data, dict):
        log.warning("%s is left out: it holds no JSON object", path)
        return {}
    return data


def own_file(path: Path, largest: int = LARGEST, folder: Path | None = None) -> Path:
    """`path`, where it can be read whatever a stranger put there: a plain file that lies in its folder.

    Raises:
        OSError: it is not there; it is a link out of `folder` (by default the one it is in), which would show what
            the folder's maker could not read; a pipe or a device, which may have no end; or larger than `largest`.
    """
    try:
        found = path.resolve(strict=True)
    except RuntimeError as error:
        raise OSError(f"it is a link to itself ({error})") from error
    if (folder or path.parent).resolve() not in found.parents:
        raise OSError("it is a link that leads out of its folder")
    if not found.is_file():
        raise OSError("it is no plain file")
    if (size := found.stat().st_size) > largest:
        raise OSError(f"it has {size} bytes, and at most {largest} are read")
    return found


def plain_yaml(text: str) -> str:
    """The YAML text, if it holds values only.

    Raises:
        ValueError: it has aliases, of which a few lines can stand for any number of values, or is nested more deeply
            than a config is.
        YAMLError: it is no YAML.
    """
    depth = 0
    for event in yaml.parse(text, Loader=SAFE_LOADER):
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has YAML aliases")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > DEEPEST:
            raise ValueError(f"it is nested more than {DEEPEST} deep")
    return text


def _finite(text: str) -> float | None:
    """A number of JSON; None for one that is too large to be one."""
    return number if math.isfinite(number := float(text)) else None


def _exact(text: str) -> int | float | None:
    """A whole number of JSON; one too large for 64 bits is a float, as anywhere else."""
    return number if abs(number := int(text)) < 2**63 else _finite(text)


def _is_deep(data: Any) -> bool:
    level = [data]
    for _ in range(DEEPEST):
        inner = [list(one.values()) if isinstance(one, dict) else one for one in level]
        level = [value for one in inner if isinstance(one, list) for value in one]
    return bool(level)


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
    """Write `text` as UTF-8, whole or not at all; bytes of a name that are no text are spelled out."""
    with replacing(path) as temporary:
        temporary.write_bytes(text.encode("utf-8", "backslashreplace"))


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write strict JSON, indented and sorted by key; what is not a finite number becomes null."""
    write_text(
        path, json.dumps(_plain(data), indent=2, sort_keys=True, ensure_ascii=False, allow_nan=False) + "\n"
    )


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    """Write a table without its index, as UTF-8 and with its texts inert: see `csv_text`."""
    write_text(path, csv_text(frame))


def csv_text(frame: pd.DataFrame) -> str:
    """A table as CSV, without its index, with no text in it that a spreadsheet would run as a formula.

    The rule: a text, in a cell or as a column's name, gets a ' in front where it begins, after any ' and white space,
    with = + - @, a tab, a carriage return, or the full-width form of a sign. Spreadsheets show such a cell as text.
    Taking one ' off each text that begins so gives back what was written. Numbers are no texts: -0.5 stays -0.5.
    """
    inert = frame.map(_inert).rename(columns=_inert)
    returns = inert.map(lambda cell: isinstance(cell, str) and "\r" in cell).any(axis=None)
    returns |= any("\r" in str(name) for name in inert)  # which would end a line, were they not quoted
    return inert.to_csv(
        index=False, quoting=csv.QUOTE_NONNUMERIC if returns else csv.QUOTE_MINIMAL, lineterminator="\n"
    )


def typed_text(text: str) -> str:
    """A text of `csv_text` as it was before."""
    return text[1:] if text.startswith("'") and FORMULA.match(text) else text


def _inert(cell: Any) -> Any:
    return f"'{cell}" if isinstance(cell, str) and FORMULA.match(cell) else cell


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

    The seed and the swept class, which the protocol has too, are left out: the run's name holds them, and all runs
    of one sweep share one hash. A method's own setting of such a name counts.
    """
    counted = {key: item for key, item in settings.items() if key not in SWEPT}
    if isinstance(protocol := counted.get("protocol"), Mapping):
        counted["protocol"] = {key: item for key, item in protocol.items() if key not in SWEPT}
    text = json.dumps(counted, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_name(data: str, protocol: str, model: str, case: str, seed: int, hash: str) -> str:
    """The name of a run's folder, such as `mnist-leave_one_class_out-ganomaly-abnormal_2-seed0-1a2b3c4d`."""
    return "-".join([*map(safe_name, (data, protocol, model, case)), f"seed{seed}", hash])


def run_names(data: str, protocol: str, case: str, seed: int) -> str:
    """The pattern of these names, whatever model and settings."""
    data, protocol, case = map(safe_name, (data, protocol, case))
    return f"{data}-{protocol}-*-{case}-seed{seed}-*"


def safe_name(text: str) -> str:
    """`text` as a part of a file name: letters, digits and `_ . + -`, not hidden, at most 45 characters.

    Where that changes it, five hexadecimal digits of its hash are added: two texts that come out alike otherwise share
    a name once in a million.
    """
    safe = re.sub(r"[^\w.+-]+", "_", text, flags=re.ASCII).lstrip(".")[:40]
    return safe if safe == text and safe else f"{safe}{hashlib.sha256(text.encode()).hexdigest()[:5]}"
