"""What the jobs of a sweep say of their end, in whichever process they ran, and what the sweep says of them."""

import contextlib
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from anomaly_bench.refusals import of_problem_and_swept, refuse

SWEEP = "ANOMALY_BENCH_SWEEP"

log = logging.getLogger("anomaly_bench")

UNWRITTEN: list[dict[str, Any]] = []
"""What this process could not note of a sweep's jobs, as on a full disk."""


def notes_of_sweep(runs_dir: str) -> Path:
    """Where the jobs of this sweep say how they ended."""
    return Path(runs_dir) / ".sweeps" / os.environ[SWEEP]


def begin_note(runs_dir: str, number: int, overrides: list[str]) -> None:
    """Say that job `number` of this sweep has begun, so that it is missed if it never says how it ended."""
    from anomaly_bench.record import write_json

    with contextlib.suppress(OSError):  # the note of its end is tried all the same
        write_json(notes_of_sweep(runs_dir) / f"{number}.json", {"overrides": overrides, "begun": True})


def leave_note(runs_dir: str, number: int, note: dict[str, Any]) -> None:
    """Say how job `number` of this sweep ended.

    The note has its `overrides`, its `folder` if known, its `objective` if it has one, the `error` if there was one.

    A failed job without a folder, or killed in its own, has `error.json` in a folder for that, until it is well.
    """
    from anomaly_bench.record import write_json

    substitute = folder_without_run(runs_dir, note["overrides"])
    try:
        if "error" in note:
            log.error("failed: %s: %s", " ".join(note["overrides"]), note["error"])
            folder = Path(note.get("folder", substitute))
            if not (folder / "error.json").exists():
                write_json(folder / "error.json", {key: note[key] for key in ("error", "overrides")})
        elif substitute.exists():
            (substitute / "error.json").unlink(missing_ok=True)
            substitute.rmdir()
        write_json(notes_of_sweep(runs_dir) / f"{number}.json", note)
    except (OSError, ValueError) as error:
        log.error("no note of that could be written: %s", error)
        UNWRITTEN.append(note)


def folder_without_run(runs_dir: str, overrides: Sequence[str]) -> Path:
    """Where the failure of a job is recorded that has no run's folder; the same job has the same."""
    from anomaly_bench.record import settings_hash

    told = sorted(text for text in overrides if text.split(".")[0] != "hydra")
    return Path(runs_dir) / f"failed-{settings_hash({'overrides': told})}"


class SweepTable:
    """A Hydra callback: at the end of a sweep, its table; a failed job makes the exit code 1."""

    begun: Any = None
    """The config of the sweep that this process has begun and not ended."""

    def on_multirun_start(self, config: Any, **_: Any) -> None:
        """Remember the sweep: a launcher that breaks off ends it without `on_multirun_end`.

        A sweeper that chooses is refused here where it has nothing to choose by, and a sweep of torchrun's.
        """
        if "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") != "1":
            sys.exit(
                refuse("torchrun: it takes one run, not a sweep; hydra/launcher= spreads the jobs of a sweep")
            )
        check_search(config)
        if config.hydra.job.chdir:
            sys.exit(
                refuse(
                    "hydra.job.chdir=true: the jobs of a sweep stay in this folder, where its table is read"
                )
            )
        for text in config.hydra.overrides.task:
            if text.startswith("runs_dir=") and "," in text and not text.endswith(("'", '"')):
                sys.exit(refuse(f"{text}: a sweep has one folder, where its table is read"))
        try:
            notes_of_sweep(config.runs_dir).mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=notes_of_sweep(config.runs_dir)):
                pass
        except OSError as error:
            sys.exit(refuse(f"runs_dir={str(config.runs_dir)!r}: nothing can be written there: {error}"))
        SweepTable.begun = config

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        """Print the table of this sweep's runs, and those that failed."""
        if print_sweep(config):
            sys.exit(1)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda **_: None
        raise AttributeError(name)


def check_search(config: Any) -> None:
    """Refuse Optuna's sweeper where it has nothing to choose by, or no way to."""
    sweeper, choices = config.hydra.sweeper, config.hydra.runtime.choices
    if "optuna" not in str(sweeper.get("_target_")):
        return
    if config.evaluation.validation is None:
        line = "test rows choose nothing; evaluation.validation=0.1 holds rows out for it"
        told = f"{line}, and evaluation.validation_class=CLASS says whose are the anomalies"
        sys.exit(refuse(f"hydra/sweeper={choices['hydra/sweeper']}: {told}"))
    tests_all = str(config.protocol.get("_target_")).endswith(".LeaveOneClassOut")
    if tests_all and config.evaluation.validation_class is None:
        line = "this protocol tests every anomalous row; evaluation.validation_class=CLASS names others to choose by"
        sys.exit(refuse(f"protocol={choices['protocol']}: {line}"))
    params = sweeper.get("params") or {}
    typed = [*config.hydra.overrides.task, *(f"{key}={value}" for key, value in params.items())]
    for text in of_problem_and_swept(typed):
        line = f"{text}: a search would choose among these as among settings, the luckiest seed or the easiest class"
        sys.exit(refuse(f"{line}; give one value"))
    if type(sweeper.n_trials) is not int or sweeper.n_trials < 1:
        sys.exit(refuse(f"hydra.sweeper.n_trials={sweeper.n_trials}: allowed is a number from 1"))
    direction = getattr(sweeper.direction, "name", sweeper.direction)  # Hydra's own config has an enum
    if direction != "maximize":
        line = "what a search goes by is the AUROC on validation rows; allowed is maximize"
        sys.exit(refuse(f"hydra.sweeper.direction={direction}: {line}"))
    installed = find_spec("hydra_plugins.hydra_optuna_sweeper") is not None
    # Its group is optional, since Optuna is, so that any name passes.
    if installed and "_target_" not in sweeper.sampler:
        name = choices.get("hydra/sweeper/sampler")
        allowed = "tpe, random, cmaes, nsgaii and motpe"
        sys.exit(refuse(f"hydra/sweeper/sampler={name}: there is no such sampler; allowed are {allowed}"))


def print_sweep(config: Any, broken: str | None = None) -> bool:
    """Print the table of a sweep's runs and what failed; gives whether anything did.

    A job that has begun and left no note of its end was killed, or still runs on another machine where the launcher
    has broken off. It has failed until it says that it is well.

    Args:
        broken: why the launcher gave up, if it did.
    """
    from anomaly_bench.record import read_json, read_records
    from anomaly_bench.report.tables import text_of

    notes, told = UNWRITTEN[:], [note["overrides"] for note in UNWRITTEN]
    for path in sorted(notes_of_sweep(config.runs_dir).glob("*.json"), key=lambda path: int(path.stem)):
        note = read_json(path)
        if not note or note["overrides"] in told:
            continue
        if note.pop("begun", False):
            note["error"] = "its process left no word of its end: killed (out of memory? out of time?)"
            leave_note(config.runs_dir, int(path.stem), note)
        notes.append(note)
    folders = dict.fromkeys(note["folder"] for note in notes if "folder" in note)  # jobs may share a run
    records = [found for folder in folders for found in read_records(folder)]
    if any(record.status == "finished" for record in records):
        print(text_of(records, config.hydra.runtime.choices.get("experiment")))
    failed = [f"{' '.join(note['overrides'])}: {note['error']}" for note in notes if "error" in note]
    if broken:
        failed.append(broken)
    for line in failed:
        print(f"failed: {line}")
    return bool(failed)
