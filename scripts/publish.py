"""Put finished runs into a folder of results/: their records, and the tables made from these alone.

    python scripts/publish.py runs results/ganomaly_mnist data=mnist model=ganomaly

copies the records of the finished runs under `runs` whose `run.json` says so, without weights and without the
places where data lay, and writes the report beside them. Called with the results folder alone, it makes the
report again from the records there:

    python scripts/publish.py results/ganomaly_mnist
"""

import argparse
import re
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from anomaly_bench.errors import SettingError
from anomaly_bench.record import Record, read_records, write_json, write_text
from anomaly_bench.report.tables import write_report


def main(arguments: Sequence[str] | None = None) -> None:
    """Copy what is asked for, then make the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, help="[RUNS_DIR] RESULTS_FOLDER [KEY=VALUE ...]")
    given = [str(folder) for folder in parser.parse_args(arguments).folders]
    conditions = dict(text.split("=", 1) for text in given if "=" in text)
    *sources, target = [Path(text) for text in given if "=" not in text]
    for source in sources:
        copy_records(source, target, conditions)
    publish(target)


def copy_records(runs_dir: Path, target: Path, conditions: dict[str, str]) -> None:
    """Copy the records of finished runs whose facts are as the conditions say; none at all is an error."""
    chosen = [record for record in read_records(runs_dir) if fits(record, conditions)]
    if not chosen:
        raise SettingError(f"{runs_dir}: no finished run with {conditions}")
    for record in chosen:
        place = target / "records" / record.folder.name
        place.mkdir(parents=True, exist_ok=True)
        for name in ("metrics.json", "losses.csv"):
            shutil.copyfile(record.folder / name, place / name)
        settings = re.sub(r"(?m)^(  root|runs_dir): .*$", r"\1: null", record.config)
        write_text(place / "config.yaml", settings)
        overrides = [
            re.sub(r"^(data\.root|runs_dir)=.*", r"\1=FOLDER", text) for text in record.run["overrides"]
        ]
        write_json(place / "run.json", record.run | {"overrides": overrides})


def fits(record: Record, conditions: dict[str, str]) -> bool:
    """Whether a run is finished and its `run.json` has these values."""
    wanted = all(str(record.run.get(key)) == value for key, value in conditions.items())
    return record.status == "finished" and wanted


def publish(target: Path) -> None:
    """Write the tables, and a page with them and the command that makes the runs again."""
    records = read_records(target / "records")
    print(write_report(target / "records", target))
    table = (target / "table.md").read_text(encoding="utf-8")
    write_text(target / "README.md", f"{table}\nMade by:\n\n{commands(records)}\nReport: {remake(target)}\n")


def commands(records: Sequence[Record]) -> str:
    """The sweeps that make these runs, one for each set of settings, as indented lines."""
    sweeps: dict[tuple[str, ...], dict[str, dict[str, None]]] = {}
    for record in records:
        pairs = [text.split("=", 1) for text in record.run["overrides"]]
        values = sweeps.setdefault(tuple(key for key, _ in pairs), {})
        for key, value in pairs:
            values.setdefault(key, {})[value] = None
    lines = [
        " ".join(f"{key}={','.join(sorted(each))}" for key, each in sweep.items())
        for sweep in sweeps.values()
    ]
    return "".join(f"    anomaly-bench -m {line}\n" for line in lines)


def remake(target: Path) -> str:
    """The command that makes the report again."""
    return f"`python scripts/publish.py {target.as_posix()}`"


if __name__ == "__main__":
    try:
        main()
    except SettingError as error:
        sys.exit(f"publish: {error}")
