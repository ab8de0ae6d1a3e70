"""The command line. Heavy imports stay inside functions: help, completion and `list` answer at once."""

import contextlib
import errno
import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anomaly_bench import __version__, jobs
from anomaly_bench.commands import COMMANDS, commands_begun, folder_of_configs
from anomaly_bench.errors import SettingError, described, one_line
from anomaly_bench.jobs import SWEEP, SweepTable, begin_note, leave_note, print_sweep
from anomaly_bench.places import CONFIGS
from anomaly_bench.refusals import (
    DEBUG,
    NEEDED,
    as_typed,
    commands_come_first,
    explained,
    flags_among,
    for_each_job,
    frequent_slips,
    groups_take_names,
    ranges_stand_alone,
    reason,
    refuse,
    words_are_commands,
)
from anomaly_bench.usage import usage

log = logging.getLogger("anomaly_bench")


def main() -> None:
    """The console script: one of the subcommands, else a run or a sweep."""
    signal.signal(signal.SIGTERM, stop)
    sys.unraisablehook = unheard
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files and classes may be no text
    completes = "COMP_LINE" in os.environ  # what a shell completes that cannot be read is offered nothing
    for name in commands_begun(os.environ["COMP_LINE"]) if completes else ():
        print(name)
    with contextlib.redirect_stderr(io.StringIO()) if completes else contextlib.nullcontext():
        code = answer(sys.argv[1:])
    sys.exit(code)


def stop(*_: object) -> None:
    """End as at Ctrl-C, so that half-written files are removed and workers stopped."""
    raise KeyboardInterrupt


def unheard(lost: "sys.UnraisableHookArgs") -> None:
    """Say an exception that Python drops, as one within a weak reference's callback; a wish to stop comes again."""
    if lost.exc_type is KeyboardInterrupt:
        later = 0.5  # seconds: while this hook lasts, on a busy machine, it would be dropped again
        threading.Timer(later, os.kill, [os.getpid(), signal.SIGTERM]).start()
    else:
        sys.__unraisablehook__(lost)


def answer(arguments: list[str]) -> int:
    """Do what the arguments say; gives the exit code: 2 for what the user can put right, 1 for a failure."""
    try:
        if arguments[:1] in (["--config-dir"], ["-cd"]) and arguments[2:3] == ["list"]:
            arguments = ["list", *arguments[3:], "--config-dir", arguments[1]]
        if arguments and arguments[0] in COMMANDS:
            with notices():
                return COMMANDS[arguments[0]](arguments[1:])
        if "--version" in arguments:
            print(f"anomaly-bench {__version__}")
            return 0
        if {"--help", "-h"} & set(arguments):
            print(usage(folder_of_configs(arguments)))
            return 0
        return launch(arguments)
    except SettingError as error:
        return refuse(str(error))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # whoever read has seen enough
        return 0
    except KeyboardInterrupt:
        print("anomaly-bench: stopped; the same command goes on from the last epoch kept", file=sys.stderr)
        return 130
    except Exception as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return refuse(f"{error.strerror}: make room, or set runs_dir=FOLDER; the same command goes on")
        if os.environ.get(DEBUG) == "1":
            traceback.print_exc()
            return 1
        refuse(f"unexpected {type(error).__name__}: {one_line(error)} ({DEBUG}=1 shows where)")
        return 1


@contextlib.contextmanager
def notices() -> Iterator[None]:
    """Show this package's notices on standard error, a line each."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    yield


def launch(arguments: list[str]) -> int:
    """Compose the config and run it, or each job of a sweep."""
    import hydra
    from hydra.core.config_store import ConfigStore

    from anomaly_bench.schema import Settings

    if not arguments:
        print(
            "A first run: GANomaly on scikit-learn's digits. anomaly-bench --help shows what else there is."
        )
    words_are_commands(arguments, COMMANDS)
    commands_come_first(arguments, COMMANDS)
    frequent_slips(arguments)
    flags = flags_among(arguments)
    groups_take_names(arguments)
    ranges_stand_alone(arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, where they become one line
    os.environ.setdefault(
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0"
    )  # Ray's jobs run in this folder, by `uv run` too
    sweep = os.environ.setdefault(SWEEP, datetime.now(UTC).strftime("%Y%m%dT%H%M%S-") + str(os.getpid()))
    ConfigStore.instance().store("schema", Settings)
    outcome: dict[str, BaseException] = {}
    SweepTable.begun = None
    sys.argv[1:] = for_each_job(arguments)
    program = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
    home = os.getpid()
    try:
        program(lambda settings: task_anywhere(settings, outcome, sweep, home))()
        if "error" in outcome:
            raise outcome["error"]
    except SystemExit as end:
        if not (flags.cfg and end.code):
            raise
        return 2  # there is no such part, as Hydra has said
    except Exception as error:
        line = explained(error, arguments)
        if line is None and isinstance(error, ValueError) and not (outcome or SweepTable.begun):
            line = one_line(error)  # of flags that do not go together
        if line is not None:
            return refuse(line)
        if SweepTable.begun is None:
            raise
        sweeper = SweepTable.begun.hydra.runtime.choices["hydra/sweeper"]
        who = "the launcher" if sweeper == "basic" else f"hydra/sweeper={sweeper}, or the launcher"
        print_sweep(SweepTable.begun, f"{who}: {described(error)}")
        return 1
    return 0


def task_anywhere(settings: Any, outcome: dict[str, BaseException], sweep: str, home: int) -> float | None:
    """`task`, in whichever process a launcher runs it; from another than `home`, a note that could not be written
    comes back as an error.
    """
    os.environ[SWEEP] = sweep  # a process on another machine has not this one's environment
    objective = task(settings, outcome)
    if jobs.UNWRITTEN and os.getpid() != home:
        raise OSError(jobs.UNWRITTEN.pop().get("error", "no note of its end could be written"))
    return objective


def task(settings: Any, outcome: dict[str, BaseException]) -> float | None:
    """One run; gives what a sweeper maximises, where there is that.

    Nothing is raised into Hydra: alone it leaves its error in `outcome`, in a sweep a note.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    from anomaly_bench.training import parallel

    hydra = HydraConfig.get()
    names = {group: str(hydra.runtime.choices[group]) for group in NEEDED}
    if experiment := hydra.runtime.choices.get("experiment"):
        names["experiment"] = str(experiment)
    overrides = as_typed(hydra.overrides.task)
    alone = hydra.mode != RunMode.MULTIRUN
    note: dict[str, Any] = {"overrides": overrides}
    if not alone:
        begin_note(settings.runs_dir, hydra.job.num, overrides)
    try:
        folder = one_run(settings, names, overrides, note)
        note["objective"] = objective_of(folder)
        if alone:
            if parallel.rank() == 0:  # else the first process of torchrun's says it
                print(f"{summary(folder)}\n{folder}")
        else:
            log.info(summary(folder))
    except Exception as error:
        outcome["error"] = error
        note["error"] = reason(error, overrides)
    if alone:
        return note.get("objective")
    outcome.clear()
    leave_note(settings.runs_dir, hydra.job.num, note)
    return note.get("objective")


def one_run(settings: Any, names: dict[str, str], overrides: list[str], note: dict[str, Any]) -> Path:
    """Import what computes, and compute; the run's folder is in the note as soon as it is known."""
    from anomaly_bench.compose import compose
    from anomaly_bench.run import run

    job = compose(settings, names, overrides)
    note["folder"] = str(job.folder)
    run(job)
    return job.folder


def summary(folder: Path) -> str:
    """The figures of one finished run, in a line."""
    from anomaly_bench.record import read_json

    figures, run = read_json(folder / "metrics.json"), read_json(folder / "run.json")
    chosen_by = (
        f", on validation rows {figures['auroc_validation']:.3f}" if "auroc_validation" in figures else ""
    )
    epochs = run["epochs_done"]
    return (
        f"AUROC {figures['auroc']:.3f}, untrained {figures['auroc_untrained']:.3f}{chosen_by}: {run['model']} on "
        f"{run['data']}, {run['case']}, seed {run['seed']}, {epochs} epoch{'' if epochs == 1 else 's'}, "
        f"{figures['train_seconds']:.0f} s of training"
    )


def objective_of(folder: Path) -> float | None:
    """What a sweeper maximises: the AUROC on validation rows, never the one on test rows; None without such rows."""
    from anomaly_bench.record import read_json

    return read_json(folder / "metrics.json").get("auroc_validation")


if __name__ == "__main__":
    from anomaly_bench import cli  # by the name that callbacks, launchers and their processes know it by

    cli.main()
