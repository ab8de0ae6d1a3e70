"""The command line. Heavy imports stay inside functions: help, completion and `list` answer at once."""

import argparse
import contextlib
import io
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from anomaly_bench import __version__, jobs
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
from anomaly_bench.usage import GROUPS, lines_of_choices, usage

if TYPE_CHECKING:
    from anomaly_bench.score import Scored

FOUND = 3
"""Exit code of `score --fail-on-anomaly` that found one."""

log = logging.getLogger("anomaly_bench")


def main() -> None:
    """The console script: one of the subcommands, else a run or a sweep."""
    signal.signal(signal.SIGTERM, stop)
    sys.unraisablehook = unheard
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files and classes may be no text
    completes = "COMP_LINE" in os.environ  # what a shell completes that cannot be read is offered nothing
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
        if os.environ.get(DEBUG) == "1":
            traceback.print_exc()
            return 1
        refuse(f"unexpected {type(error).__name__}: {one_line(error)} ({DEBUG}=1 shows where)")
        return 1


@contextlib.contextmanager
def writable(what: str) -> Iterator[None]:
    """Refuse a place, `what` as it was typed, that nothing can be written to."""
    try:
        yield
    except OSError as error:
        raise SettingError(f"{what}: it cannot be written: {error.strerror or error}") from error


@contextlib.contextmanager
def notices() -> Iterator[None]:
    """Show this package's notices on standard error, a line each."""
    logging.basicConfig(format="%(message)s", level=logging.INFO, stream=sys.stderr)
    yield


# ------------------------------------------------------------------------------ runs, sweeps


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


# ------------------------------------------------------------------------------ subcommands


class Arguments(argparse.ArgumentParser):
    """What a subcommand takes; anything else is refused in a line."""

    def error(self, message: str) -> NoReturn:
        """Refuse what was typed."""
        command = self.prog.removeprefix("anomaly-bench").strip()
        said = f"{command}: {one_line(message)}" if command else one_line(message)
        raise SettingError(f"{said}; {self.prog} --help shows what it takes")


def report(arguments: list[str]) -> int:
    """`report [RUNS_DIR]`: tables and pictures again, from records alone."""
    parser = Arguments("anomaly-bench report", description=report.__doc__)
    parser.add_argument("runs_dir", nargs="?", default="runs", type=Path, help="default: runs")
    parser.add_argument("--output", type=Path, help="folder of the report; default: RUNS_DIR/report")
    given = parser.parse_args(arguments)
    name, _, folder = str(given.runs_dir).partition("=")
    if name == "runs_dir":
        raise SettingError(f"{given.runs_dir}: report takes the folder alone: anomaly-bench report {folder}")
    from anomaly_bench.report.tables import write_report

    with writable(f"--output {given.output}" if given.output else f"runs_dir={given.runs_dir}"):
        text = write_report(given.runs_dir, given.output)
    print(text)
    return 0


def score(arguments: list[str]) -> int:
    """`score RUN_DIR FILES_OR_FOLDER`: a trained run on new files: score, verdict, percentile."""
    given = score_arguments().parse_args(arguments)
    suffix = "" if given.output is None else given.output.suffix.lower()
    if given.output is not None and suffix not in (".csv", ".json"):
        raise SettingError(f"--output {given.output}: allowed are names that end in .csv or .json")
    check_spared("--output", given.output, [given.run_dir, *filter(Path.is_file, given.files)])
    check_spared("--maps", given.maps, [given.run_dir, *given.files])
    from anomaly_bench.record import csv_text, read_json
    from anomaly_bench.score import score_files
    from anomaly_bench.training.device import pick_device

    pick_device(given.device, "--device ")
    if suffix == ".csv" and "columns" in read_json(given.run_dir / "run.json"):  # a run on rows of numbers
        check_spared("--output", given.output, given.files)
    scored = score_files(given.run_dir, given.files, given.device, given.threshold, given.maps, given.allow)
    if given.output is None:
        print(csv_text(scored.table), end="")
    else:
        write_scores(scored, given.output, given.run_dir.name)
    if scored.left_out:
        return refuse(f"{scored.left_out}; the others are scored")
    return FOUND if given.fail_on_anomaly and scored.n_anomalous else 0


def score_arguments() -> Arguments:
    """What `score` takes."""
    parser = Arguments("anomaly-bench score", description=score.__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a finished run")
    parser.add_argument("files", nargs="+", type=Path, help="images, tables, or folders of them")
    parser.add_argument(
        "--output", type=Path, help="FILE.csv or FILE.json to write; default: CSV on the terminal"
    )
    parser.add_argument(
        "--threshold",
        metavar="RULE",
        help="quantile=0.99 of the training scores; max_train, the highest of them; contamination=0.05, the share "
        "of these files that is anomalous; default: the run's own threshold",
    )
    parser.add_argument(
        "--maps", type=Path, metavar="DIR", help="folder for a heat map over each image, as PNG"
    )
    parser.add_argument(
        "--fail-on-anomaly", action="store_true", help=f"exit code {FOUND} where anything is anomalous"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps")
    allow_packages(parser)
    return parser


def write_scores(scored: "Scored", output: Path, run: str) -> None:
    """Scores into a CSV or JSON file, and a line that says how many and by which threshold."""
    from anomaly_bench.record import write_csv, write_json

    table = scored.table
    with writable(f"--output {output}"):
        if output.suffix.lower() == ".csv":
            write_csv(output, table)
        else:
            facts = {"run": run, "threshold": scored.threshold, "rule": scored.rule}
            write_json(output, facts | {"rows": table.to_dict("records")})
    what = ("row" if "row" in table else "file") + ("" if len(table) == 1 else "s")
    print(
        f"{output}: {len(table)} {what}, {scored.n_anomalous} of them anomalous, "
        f"above {scored.threshold:.6g} ({scored.rule})"
    )


def allow_packages(parser: argparse.ArgumentParser) -> None:
    """Let a subcommand that loads a run take `--allow PACKAGE`."""
    parser.add_argument(
        "--allow",
        metavar="PACKAGE",
        action="append",
        default=[],
        help="package of a method of your own that the run may name; code of no other is imported",
    )


def check_spared(option: str, place: Path | None, spared: Sequence[Path]) -> None:
    """Refuse to write over these files, or into these folders."""
    within = [path for path in spared if place is not None and place.resolve().is_relative_to(path.resolve())]
    if within:
        raise SettingError(f"{option} {place}: it would change {within[0]}; name another place")


def export(arguments: list[str]) -> int:
    """`export RUN_DIR`: a trained run as one file, which scores without this package."""
    parser = Arguments("anomaly-bench export", description=export.__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--format", required=True, choices=["onnx", "torch"], help="of ONNX, or torch.export's"
    )
    parser.add_argument(
        "--output", type=Path, help="FILE.onnx or FILE.pt2 to write; default: RUN_DIR/model.onnx or .pt2"
    )
    allow_packages(parser)
    given = parser.parse_args(arguments)
    from anomaly_bench.export import export as export_run

    with writable(f"--output {given.output or given.run_dir}"):
        path, difference = export_run(given.run_dir, given.format, given.output, given.allow)
    print(f"{path}: scores as the run does in float32, to {difference:.1g} of the largest value")
    return 0


def recommend(arguments: list[str]) -> int:
    """`recommend data=folder data.root=FOLDER`: a short race of a few methods on your data, ranked."""
    parser = Arguments("anomaly-bench recommend", description=recommend.__doc__)
    parser.add_argument("settings", nargs="*", help="as for a run; model=a,b names the methods")
    parser.add_argument("--minutes", type=float, default=5.0, help="bound of the whole race; default: 5")
    given = parser.parse_intermixed_args(arguments)
    from anomaly_bench.recommend import recommend as race

    print(race(given.settings, given.minutes))
    return 0


def folder_of_configs(arguments: list[str]) -> Path | None:
    """The folder that `--config-dir` among the arguments names."""
    parser = Arguments("anomaly-bench", add_help=False, allow_abbrev=False)
    parser.add_argument("--config-dir", "-cd", type=Path)
    return parser.parse_known_args(arguments)[0].config_dir


def list_choices(arguments: list[str]) -> int:
    """`list [models|data|protocols|experiments]`: what there is, a line each."""
    parser = Arguments("anomaly-bench list", description=list_choices.__doc__)
    parser.add_argument("what", nargs="?", choices=sorted(GROUPS), help="default: all")
    parser.add_argument("--config-dir", metavar="DIR", type=Path, help="folder of configs of your own")
    given = parser.parse_args(arguments)
    print("\n".join(lines_of_choices(given.what, given.config_dir)))
    return 0


COMMANDS = {"report": report, "score": score, "export": export, "recommend": recommend, "list": list_choices}
"""What `anomaly-bench WORD ...` calls; all else is a run."""


if __name__ == "__main__":
    from anomaly_bench import cli  # by the name that callbacks, launchers and their processes know it by

    cli.main()
