"""What `anomaly-bench WORD ...` does; all else is a run or a sweep. Heavy imports stay inside functions."""

import argparse
import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from anomaly_bench.errors import SettingError, one_line
from anomaly_bench.refusals import refuse
from anomaly_bench.usage import GROUPS, lines_of_choices

if TYPE_CHECKING:
    from anomaly_bench.score import Scored

FOUND = 3
"""Exit code of `score --fail-on-anomaly` that found one."""


class Arguments(argparse.ArgumentParser):
    """What a subcommand takes; anything else is refused in a line."""

    def error(self, message: str) -> NoReturn:
        """Refuse what was typed."""
        command = self.prog.removeprefix("anomaly-bench").strip()
        said = f"{command}: {one_line(message)}" if command else one_line(message)
        raise SettingError(f"{said}; {self.prog} --help shows what it takes")


@contextlib.contextmanager
def writable(what: str) -> Iterator[None]:
    """Refuse a place, `what` as it was typed, that nothing can be written to."""
    try:
        yield
    except OSError as error:
        raise SettingError(f"{what}: it cannot be written: {error.strerror or error}") from error


def check_writable(option: str, place: Path, folder: Path) -> None:
    """Refuse an option's place in a folder that nothing can be written to, before there is anything to lose."""
    with writable(f"{option} {place}"):
        there = next(above for above in (folder, *folder.parents) if above.exists())
        with tempfile.TemporaryFile(dir=there):
            pass


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
    if given.output is not None:
        check_writable("--output", given.output, given.output.parent)
    if given.maps is not None:
        check_writable("--maps", given.maps, given.maps)
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


def commands_begun(line: str) -> list[str]:
    """The commands that a line of a shell, in which the program's name stands alone so far, may go on with."""
    _, space, word = line.partition(" ")
    return [name for name in COMMANDS if space and name.startswith(word)]
