"""The command line. Heavy imports stay inside functions: help, completion and `list` answer at once."""

import argparse
import contextlib
import difflib
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

from anomaly_bench.errors import SettingError

HERE = Path(__file__).resolve().parent
CONFIGS = next(path for path in (HERE / "configs", HERE.parent / "configs") if path.is_dir())
"""The configs in the wheel, else those of the checkout."""

GROUPS = {"models": "model", "data": "data", "protocols": "protocol", "experiments": "experiment"}
DEBUG = "ANOMALY_BENCH_DEBUG"
SWEEP = "ANOMALY_BENCH_SWEEP"
FOUND = 3
"""Exit code of `score --fail-on-anomaly` that found one."""

log = logging.getLogger("anomaly_bench")

UNWRITTEN: list[dict[str, Any]] = []
"""What this process could not note of a sweep's jobs, as on a full disk."""


def main() -> None:
    """The console script: one of the subcommands, else a run or a sweep."""
    signal.signal(signal.SIGTERM, stop)
    sys.exit(answer(sys.argv[1:]))


def stop(*_: object) -> None:
    """End as at Ctrl-C, so that half-written files are removed and workers stopped."""
    raise KeyboardInterrupt


def answer(arguments: list[str]) -> int:
    """Do what the arguments say; gives the exit code: 2 for what the user can put right, 1 for a failure."""
    commands = {"report": report, "score": score, "recommend": recommend, "list": list_choices}
    try:
        if arguments and arguments[0] in commands:
            with notices():
                return commands[arguments[0]](arguments[1:])
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
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come here, where they become one line
    os.environ.setdefault(SWEEP, datetime.now(UTC).strftime("%Y%m%dT%H%M%S-") + str(os.getpid()))
    ConfigStore.instance().store("schema", Settings)
    outcome: dict[str, BaseException] = {}
    program = hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")
    try:
        program(lambda settings: task(settings, outcome))()
        if "error" in outcome:
            raise outcome["error"]
    except Exception as error:
        line = explained(error, arguments)
        if line is None:
            raise
        return refuse(line)
    return 0


def task(settings: Any, outcome: dict[str, BaseException]) -> None:
    """One run. Nothing is raised into Hydra: alone it leaves its error in `outcome`, in a sweep a note."""
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
    try:
        folder = one_run(settings, names, overrides, note)
        if alone:
            print(f"{summary(folder)}\n{folder}")
        else:
            log.info(summary(folder))
    except Exception as error:
        outcome["error"] = error
        note["error"] = reason(error, overrides)
    if alone:
        return
    outcome.clear()
    leave_note(settings.runs_dir, hydra.job.num, note)


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
    return (
        f"AUROC {figures['auroc']:.3f}, untrained {figures['auroc_untrained']:.3f}: {run['model']} on "
        f"{run['data']}, {run['case']}, seed {run['seed']}, {run['epochs_done']} epochs, "
        f"{figures['train_seconds']:.0f} s of training"
    )


def notes_of_sweep(runs_dir: str) -> Path:
    """Where the jobs of this sweep say how they ended."""
    return Path(runs_dir) / ".sweeps" / os.environ[SWEEP]


def leave_note(runs_dir: str, number: int, note: dict[str, Any]) -> None:
    """Say how job `number` of this sweep ended: its `overrides`, its `folder` if known, the `error` if there was one.

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
    except OSError as error:
        log.error("no note of that could be written: %s", error)
        UNWRITTEN.append(note)


def folder_without_run(runs_dir: str, overrides: Sequence[str]) -> Path:
    """Where the failure of a job is recorded that has no run's folder; the same job has the same."""
    from anomaly_bench.record import settings_hash

    told = sorted(text for text in overrides if text.split(".")[0] != "hydra")
    return Path(runs_dir) / f"failed-{settings_hash({'overrides': told})}"


class SweepTable:
    """A Hydra callback: at the end of a sweep, its table; a failed job makes the exit code 1."""

    def on_multirun_end(self, config: Any, **_: Any) -> None:
        """Print the table of this sweep's runs, and those that failed."""
        from anomaly_bench.record import read_json, read_records
        from anomaly_bench.report.tables import text_of

        written = [read_json(path) for path in notes_of_sweep(config.runs_dir).glob("*.json")]
        notes = [note for note in written if note] + UNWRITTEN
        records = [found for note in notes if "folder" in note for found in read_records(note["folder"])]
        if any(record.status == "finished" for record in records):
            print(text_of(records, config.hydra.runtime.choices.get("experiment")))
        failed = [note for note in notes if "error" in note]
        for note in failed:
            print(f"failed: {' '.join(note['overrides'])}: {note['error']}")
        if failed:
            sys.exit(1)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("on_"):
            return lambda **_: None
        raise AttributeError(name)


# ------------------------------------------------------------------------------ error messages


def dashes_are_not_settings(arguments: Sequence[str]) -> None:
    """`--model x` is a frequent slip."""
    known = {*os.listdir(CONFIGS), "seed", "abnormal_class", "normal_class", "runs_dir", "rerun"}  # noqa: PTH208
    for argument in arguments:
        word = argument.lstrip("-").split("=")[0]
        if argument.startswith("--") and word.split(".")[0] in known:
            raise SettingError(f"{argument}: settings have no dashes; write {word}=VALUE")


def refusal_in(error: BaseException | None) -> SettingError | None:
    """The SettingError that an error was made from, if it was."""
    while error is not None:
        if isinstance(error, SettingError):
            return error
        error = error.__cause__ or error.__context__
    return None


def explained(error: Exception, arguments: Sequence[str]) -> str | None:
    """One line for what Hydra and OmegaConf refuse; None for any other error."""
    from hydra.errors import HydraException, InstantiationException, MissingConfigException
    from omegaconf.errors import OmegaConfBaseException

    if (refusal := refusal_in(error)) is not None:
        return str(refusal)
    if isinstance(error, MissingConfigException) and error.options:
        group, _, wanted = str(error.missing_cfg_file).rpartition("/")
        return f"{group}={wanted}: there is none; allowed are {', '.join(sorted(error.options))}"
    if isinstance(error, InstantiationException):
        return one_line(error)
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
    given = parser.parse_args(arguments)
    if given.output is not None and given.output.suffix.lower() not in (".csv", ".json"):
        raise SettingError(f"--output {given.output}: allowed are names that end in .csv or .json")
    from anomaly_bench.record import safe_csv, write_csv, write_json
    from anomaly_bench.score import score_files

    scored = score_files(given.run_dir, given.files, given.device, given.threshold, given.maps)
    table = scored.table
    if given.output is None:
        print(safe_csv(table).to_csv(index=False), end="")
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


if __name__ == "__main__":
    main()
