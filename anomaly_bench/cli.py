"""The command line. Heavy imports stay inside functions: help, completion and `list` answer at once."""

import argparse
import contextlib
import difflib
import io
import logging
import os
import re
import signal
import sys
import traceback
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anomaly_bench import __version__
from anomaly_bench.errors import SettingError

HERE = Path(__file__).resolve().parent
CONFIGS = next(path for path in (HERE / "configs", HERE.parent / "configs") if path.is_dir())
"""The configs in the wheel, else those of the checkout."""

GROUPS = {"models": "model", "data": "data", "protocols": "protocol", "experiments": "experiment"}
DEBUG = "ANOMALY_BENCH_DEBUG"
SWEEP = "ANOMALY_BENCH_SWEEP"
EXTRAS = ("joblib", "slurm", "optuna")
FOUND = 3
"""Exit code of `score --fail-on-anomaly` that found one."""

log = logging.getLogger("anomaly_bench")

UNWRITTEN: list[dict[str, Any]] = []
"""What this process could not note of a sweep's jobs, as on a full disk."""


def main() -> None:
    """The console script: one of the subcommands, else a run or a sweep."""
    signal.signal(signal.SIGTERM, stop)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files and classes may be no text
    sys.exit(answer(sys.argv[1:]))


def stop(*_: object) -> None:
    """End as at Ctrl-C, so that half-written files are removed and workers stopped."""
    raise KeyboardInterrupt


def answer(arguments: list[str]) -> int:
    """Do what the arguments say; gives the exit code: 2 for what the user can put right, 1 for a failure."""
    try:
        if arguments == ["--version"]:
            print(f"anomaly-bench {__version__}")
            return 0
        if arguments and arguments[0] in COMMANDS:
            with notices():
                return COMMANDS[arguments[0]](arguments[1:])
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


def refuse(line: str) -> int:
    """One line on standard error, and exit code 2."""
    if os.environ.get(DEBUG) == "1" and sys.exc_info()[0]:
        traceback.print_exc()
    print(f"anomaly-bench: {line}", file=sys.stderr)
    return 2


def one_line(error: BaseException | str) -> str:
    """A message without its line breaks."""
    return " ".join(str(error).split())


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
    dashes_are_not_settings(arguments)
    groups_take_names(arguments)
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, where they become one line
    os.environ.setdefault(
        "RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0"
    )  # Ray's jobs run in this folder, by `uv run` too
    sweep = os.environ.setdefault(SWEEP, datetime.now(UTC).strftime("%Y%m%dT%H%M%S-") + str(os.getpid()))
    ConfigStore.instance().store("schema", Settings)
    outcome: dict[str, BaseException] = {}
    SweepTable.begun = None
    program = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
    home = os.getpid()
    try:
        program(lambda settings: task_anywhere(settings, outcome, sweep, home))()
        if "error" in outcome:
            raise outcome["error"]
    except Exception as error:
        line = explained(error, arguments)
        if line is not None:
            return refuse(line)
        if SweepTable.begun is None:
            raise
        print_sweep(SweepTable.begun, f"the launcher: {type(error).__name__}: {one_line(error)[:300]}")
        return 1
    return 0


def task_anywhere(settings: Any, outcome: dict[str, BaseException], sweep: str, home: int) -> float | None:
    """`task`, in whichever process a launcher runs it; from another than `home`, a note that could not be written
    comes back as an error.
    """
    os.environ[SWEEP] = sweep  # a process on another machine has not this one's environment
    objective = task(settings, outcome)
    if UNWRITTEN and os.getpid() != home:
        raise OSError(UNWRITTEN.pop().get("error", "no note of its end could be written"))
    return objective


def task(settings: Any, outcome: dict[str, BaseException]) -> float | None:
    """One run; gives what a sweeper maximises, where there is that.

    Nothing is raised into Hydra: alone it leaves its error in `outcome`, in a sweep a note.
    """
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    names = {
        group: str(hydra.runtime.choices[group]) for group in ("model", "data", "protocol", "evaluation")
    }
    if experiment := hydra.runtime.choices.get("experiment"):
        names["experiment"] = str(experiment)
    overrides = list(hydra.overrides.task)
    alone = hydra.mode != RunMode.MULTIRUN
    note: dict[str, Any] = {"overrides": overrides}
    if not alone:
        begin_note(settings.runs_dir, hydra.job.num, overrides)
    try:
        folder = one_run(settings, names, overrides, note)
        note["objective"] = objective_of(folder)
        if alone:
            if os.environ.get("RANK", "0") == "0":  # else the first process of torchrun's says it
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
    return (
        f"AUROC {figures['auroc']:.3f}, untrained {figures['auroc_untrained']:.3f}{chosen_by}: {run['model']} on "
        f"{run['data']}, {run['case']}, seed {run['seed']}, {run['epochs_done']} epochs, "
        f"{figures['train_seconds']:.0f} s of training"
    )


def objective_of(folder: Path) -> float | None:
    """What a sweeper maximises: the AUROC on validation rows, never the one on test rows; None without such rows."""
    from anomaly_bench.record import read_json

    return read_json(folder / "metrics.json").get("auroc_validation")


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
        if "optuna" in str(config.hydra.sweeper.get("_target_")) and config.evaluation.validation is None:
            sweeper = config.hydra.runtime.choices["hydra/sweeper"]
            line = f"hydra/sweeper={sweeper}: test rows choose nothing; evaluation.validation=0.1 holds rows out for it"
            sys.exit(refuse(f"{line}, and evaluation.validation_class=CLASS says whose are the anomalies"))
        SweepTable.begun = config

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        """Print the table of this sweep's runs, and those that failed."""
        if print_sweep(config):
            sys.exit(1)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda **_: None
        raise AttributeError(name)


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
    for path in notes_of_sweep(config.runs_dir).glob("*.json"):
        note = read_json(path)
        if not note or note["overrides"] in told:
            continue
        if note.pop("begun", False):
            note["error"] = "its process left no word of its end: killed (out of memory? out of time?)"
            leave_note(config.runs_dir, int(path.stem), note)
        notes.append(note)
    records = [found for note in notes if "folder" in note for found in read_records(note["folder"])]
    if any(record.status == "finished" for record in records):
        print(text_of(records, config.hydra.runtime.choices.get("experiment")))
    failed = [f"{' '.join(note['overrides'])}: {note['error']}" for note in notes if "error" in note]
    if broken:
        failed.append(broken)
    for line in failed:
        print(f"failed: {line}")
    return bool(failed)


# ------------------------------------------------------------------------------ error messages


def dashes_are_not_settings(arguments: Sequence[str]) -> None:
    """`--model x` is a frequent slip."""
    known = {*os.listdir(CONFIGS), "seed", "abnormal_class", "normal_class", "runs_dir", "rerun"}  # noqa: PTH208
    for argument in arguments:
        word = argument.lstrip("-").split("=")[0]
        if argument.startswith("--") and word.split(".")[0] in known:
            raise SettingError(f"{argument}: settings have no dashes; write {word}=VALUE")


def groups_take_names(arguments: Sequence[str]) -> None:
    """Refuse `model=1.5` and the like: a group takes the name of a file."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import OverrideParseException

    for argument in arguments:
        group = argument.partition("=")[0]
        if group == "experiment" or not (CONFIGS / group).is_dir() or argument == group:
            continue
        try:
            value = OverridesParser.create().parse_override(argument).value()
        except OverrideParseException:
            continue  # which Hydra tells of
        if value is None or isinstance(value, bool | int | float | list | dict):
            names = sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
            raise SettingError(f"{argument}: a name is needed; there are {', '.join(names)}")


def refusal_in(error: BaseException | None) -> SettingError | None:
    """The SettingError that an error was made from, if it was."""
    while error is not None:
        if isinstance(error, SettingError):
            return error
        error = error.__cause__ or error.__context__
    return None


def explained(error: Exception, arguments: Sequence[str]) -> str | None:
    """One line for what Hydra and OmegaConf refuse; None for any other error."""
    from hydra.errors import (
        HydraException,
        InstantiationException,
        MissingConfigException,
        OverrideParseException,
    )
    from omegaconf.errors import OmegaConfBaseException

    if (refusal := refusal_in(error)) is not None:
        return str(refusal)
    if isinstance(error, MissingConfigException) and error.options:
        group, _, wanted = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={wanted}: there is none; allowed are {', '.join(sorted(error.options))}"
    if isinstance(error, OverrideParseException):
        return (
            f"{error.override}: cannot be read; a value with other signs than letters, digits and _ . / - needs "
            "quotes within quotes, as in 'data.root=\"a b\"'"
        )
    if isinstance(error, InstantiationException):
        return one_line(error)
    if missing := re.search(
        r"Unknown plugin class : 'hydra_plugins\.hydra_(\w+)_(launcher|sweeper)\.", str(error)
    ):
        extra = {"submitit": "slurm"}.get(missing[1], missing[1])
        plugin = f"hydra-{missing[1]}-{missing[2]}".replace("_", "-")
        what = f"anomaly-bench[{extra}]" if extra in EXTRAS else plugin
        return f"hydra/{missing[2]}: {plugin} is not installed: pip install {what}"
    if not isinstance(error, HydraException | OmegaConfBaseException):
        return None
    if unknown := re.search(r"Could not override '(.+?)'", str(error)):
        return f"{unknown[1]}: no such setting{did_you_mean(unknown[1], arguments)}"
    reason = str(error.__cause__ or "").partition("\n")[0]
    return f"{one_line(error)}: {reason}" if reason else one_line(error)


def reason(error: Exception, overrides: Sequence[str]) -> str:
    """Why a job of a sweep failed, in a line."""
    return explained(error, overrides) or one_line(f"{type(error).__name__}: {error}")


def did_you_mean(wanted: str, arguments: Sequence[str]) -> str:
    """The keys there are that come closest."""
    close = difflib.get_close_matches(wanted, known_keys(arguments), n=3, cutoff=0.6)
    return f"; did you mean {' or '.join(close)}?" if close else "; --cfg job shows all there are"


def known_keys(arguments: Sequence[str]) -> list[str]:
    """Every key of the config that the groups among the arguments compose."""
    from hydra import compose, initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from omegaconf import OmegaConf

    pairs = [argument.partition("=") for argument in arguments if "=" in argument]
    choices = [f"{group}={name}" for group, _, name in pairs if (CONFIGS / group / f"{name}.yaml").is_file()]
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        settings = compose("config", choices)
    return list(paths_in(OmegaConf.to_container(settings)))


def paths_in(values: Any, prefix: str = "") -> Iterator[str]:
    """The dotted names of nested values."""
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, dict):
            yield from paths_in(value, f"{prefix}{key}.")


# ------------------------------------------------------------------------------ subcommands


def report(arguments: list[str]) -> int:
    """`report [RUNS_DIR]`: tables and pictures again, from records alone."""
    parser = argparse.ArgumentParser("anomaly-bench report", description=report.__doc__)
    parser.add_argument("runs_dir", nargs="?", default="runs", type=Path, help="default: runs")
    parser.add_argument("--output", type=Path, help="folder of the report; default: RUNS_DIR/report")
    given = parser.parse_args(arguments)
    from anomaly_bench.report.tables import write_report

    print(write_report(given.runs_dir, given.output))
    return 0


def score(arguments: list[str]) -> int:
    """`score RUN_DIR FILES_OR_FOLDER`: a trained run on new files: score, verdict, percentile."""
    parser = argparse.ArgumentParser("anomaly-bench score", description=score.__doc__)
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
    parser.add_argument(
        "--allow",
        metavar="PACKAGE",
        action="append",
        default=[],
        help="package of a method of your own that the run may name; code of no other is imported",
    )
    given = parser.parse_args(arguments)
    if given.output is not None and given.output.suffix.lower() not in (".csv", ".json"):
        raise SettingError(f"--output {given.output}: allowed are names that end in .csv or .json")
    from anomaly_bench.record import csv_text, write_csv, write_json
    from anomaly_bench.score import score_files

    scored = score_files(given.run_dir, given.files, given.device, given.threshold, given.maps, given.allow)
    table = scored.table
    if given.output is None:
        print(csv_text(table), end="")
    elif given.output.suffix.lower() == ".csv":
        write_csv(given.output, table)
    else:
        facts = {"run": given.run_dir.name, "threshold": scored.threshold, "rule": scored.rule}
        write_json(given.output, facts | {"rows": table.to_dict("records")})
    if given.output is not None:
        what = "rows" if "row" in table else "files"
        print(
            f"{given.output}: {len(table)} {what}, {scored.n_anomalous} of them anomalous, "
            f"above {scored.threshold:.6g} ({scored.rule})"
        )
    return FOUND if given.fail_on_anomaly and scored.n_anomalous else 0


def export(arguments: list[str]) -> int:
    """`export RUN_DIR`: a trained run as one file, which scores without this package."""
    parser = argparse.ArgumentParser("anomaly-bench export", description=export.__doc__)
    parser.add_argument("run_dir", type=Path, help="folder of a finished run")
    parser.add_argument(
        "--format", required=True, choices=["onnx", "torch"], help="of ONNX, or torch.export's"
    )
    parser.add_argument(
        "--output", type=Path, help="FILE.onnx or FILE.pt2 to write; default: RUN_DIR/model.onnx or .pt2"
    )
    given = parser.parse_args(arguments)
    from anomaly_bench.export import export as export_run

    path, difference = export_run(given.run_dir, given.format, given.output)
    print(f"{path}: scores as the run does, to {difference:.1g} of the largest value")
    return 0


def recommend(arguments: list[str]) -> int:
    """`recommend data=folder data.root=FOLDER`: a short race of a few methods on your data, ranked."""
    parser = argparse.ArgumentParser("anomaly-bench recommend", description=recommend.__doc__)
    parser.add_argument("settings", nargs="*", help="as for a run; model=a,b names the methods")
    parser.add_argument("--minutes", type=float, default=5.0, help="bound of the whole race; default: 5")
    given = parser.parse_intermixed_args(arguments)
    from anomaly_bench.recommend import recommend as race

    print(race(given.settings, given.minutes))
    return 0


def list_choices(arguments: list[str]) -> int:
    """`list [models|data|protocols|experiments]`: what there is, a line each."""
    parser = argparse.ArgumentParser("anomaly-bench list", description=list_choices.__doc__)
    parser.add_argument("what", nargs="?", choices=sorted(GROUPS), help="default: all")
    given = parser.parse_args(arguments)
    for title, group in GROUPS.items():
        choices = sorted((CONFIGS / group).glob("*.yaml"))
        if given.what not in (None, title) or not choices:
            continue
        if given.what is None:
            print(title)
        for path in choices:
            print(f"  {path.stem:<26}{headline(path)}")
    return 0


def headline(path: Path) -> str:
    """The first comment of a config, which says what it is; Hydra's own `# @package` stands above it."""
    with path.open(encoding="utf-8") as lines:
        return next((line.lstrip("# ").rstrip() for line in lines if re.match("# [^@]", line)), "")


COMMANDS = {"report": report, "score": score, "export": export, "recommend": recommend, "list": list_choices}
"""What `anomaly-bench WORD ...` calls; all else is a run."""


if __name__ == "__main__":
    from anomaly_bench import cli  # by the name that callbacks, launchers and their processes know it by

    cli.main()
