"""Put finished runs into a folder of results/: their records, and the tables made from these alone.

    python scripts/publish.py runs results/ganomaly_mnist experiments=ganomaly_mnist

copies the records of the finished runs under `runs` whose `run.json` says so, without weights and without the
places where data lay, and writes the report beside them. A record of the same command that is there already, made by
an older version, goes. Called with the results folder alone, it makes the
report again from the records there:

    python scripts/publish.py results/ganomaly_mnist

Each time it also writes the index in the README.md of the folder above, from all records below that.
"""

import argparse
import math
import re
import shlex
import shutil
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
from omegaconf import OmegaConf

from anomaly_bench.errors import SettingError
from anomaly_bench.record import SWEPT, Record, read_records, write_json, write_text
from anomaly_bench.report.beside import paper_tables
from anomaly_bench.report.formats import MARKDOWN
from anomaly_bench.report.notes import source
from anomaly_bench.report.results import Line, span
from anomaly_bench.report.tables import write_report

MOST_EPOCHS = 200
"""Lines of a run's `losses.csv` that are kept, evenly spaced; there may be one more."""

PLACE = re.compile(r"\+*(runs_dir|tracker\..*|data\.(.*\.)?root)")
"""A key that holds a place."""

INDEX = "<!-- What follows is written by scripts/publish.py, from the records. -->\n"


def main(arguments: Sequence[str] | None = None) -> None:
    """Copy what is asked for, then make the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", help="[RUNS_DIR] RESULTS_FOLDER [KEY=VALUE ...]")
    given = parser.parse_args(arguments).folders
    conditions = dict(text.split("=", 1) for text in given if "=" in text)
    *runs_dirs, target = [Path(text) for text in given if "=" not in text]
    for runs_dir in runs_dirs:
        copy_records(runs_dir, target, conditions)
    publish(target)
    write_index(target.parent)


def copy_records(runs_dir: Path, target: Path, conditions: dict[str, str]) -> None:
    """Copy the records of finished runs whose facts are as the conditions say; none at all is an error."""
    chosen = [record for record in read_records(runs_dir) if fits(record, conditions)]
    if not chosen:
        raise SettingError(f"{runs_dir}: no finished run with {conditions}")
    for record in chosen:
        place = target / "records" / record.folder.name
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(record.folder / "metrics.json", place / "metrics.json")
        write_text(place / "losses.csv", thinned((record.folder / "losses.csv").read_text(encoding="utf-8")))
        write_text(place / "config.yaml", without_places(record.config))
        overrides = [without_place(text) for text in record.run["overrides"]]
        write_json(place / "run.json", record.run | {"overrides": overrides})
    drop_replaced(target / "records", {record.folder.name for record in chosen})


def drop_replaced(folder: Path, copied: set[str]) -> None:
    """Remove the records of the same commands as the copied ones, which another version made under other names."""
    records = read_records(folder)
    of_copied = {typed(record) for record in records if record.folder.name in copied}
    for record in records:
        if record.folder.name not in copied and typed(record) in of_copied:
            shutil.rmtree(record.folder)


def typed(record: Record) -> frozenset[str]:
    """What was typed for a run, but for places."""
    return frozenset(text for text in record.run["overrides"] if not PLACE.fullmatch(text.partition("=")[0]))


def without_places(config: str) -> str:
    """The text of a `config.yaml` without the places of data, runs and what tracks them."""
    values: Any = OmegaConf.to_container(OmegaConf.create(config))
    without = {"data": without_roots(values.get("data")), "runs_dir": None, "tracker": {}}
    return OmegaConf.to_yaml(OmegaConf.create({key: without.get(key, values[key]) for key in values}))


def without_roots(value: Any) -> Any:
    """The settings of a data set, which may be made of another, with every `root` null."""
    match value:
        case dict():
            return {key: None if key == "root" else without_roots(inner) for key, inner in value.items()}
        case list():
            return [without_roots(inner) for inner in value]
    return value


def without_place(override: str) -> str:
    """An override, with FOLDER for its value where that is or holds a place."""
    key, _, value = override.partition("=")
    holds = key.lstrip("+").startswith("data.") and re.search(r"\broot\s*:", value)
    return f"{key}=FOLDER" if PLACE.fullmatch(key) or holds else override


def thinned(losses: str) -> str:
    """The lines of a `losses.csv`; of more than `MOST_EPOCHS` each second, third or so, the last, and the evaluated."""
    header, *lines = losses.splitlines(keepends=True)
    step = -(-len(lines) // MOST_EPOCHS) or 1
    names = header.strip().split(",")
    place = names.index("auroc") if "auroc" in names else None

    def kept(number: int, line: str) -> bool:
        evaluated = place is not None and line.strip().split(",")[place] != ""
        return number % step == 0 or number == len(lines) or evaluated

    return "".join([header, *(line for number, line in enumerate(lines, 1) if kept(number, line))])


def fits(record: Record, conditions: dict[str, str]) -> bool:
    """Whether a run is finished and its `run.json` has these values, or lists that hold them."""
    held = {key: record.run.get(key) for key in conditions}
    facts = {key: value if isinstance(value, list) else [value] for key, value in held.items()}
    wanted = all(value in map(str, facts[key]) for key, value in conditions.items())
    return record.status == "finished" and wanted


def publish(target: Path) -> None:
    """Write the tables, and a page with them and the command that makes the runs again."""
    records = read_records(target / "records")
    shutil.rmtree(target / "figures", ignore_errors=True)  # there may be fewer now
    print(write_report(target / "records", target))
    table = (target / "table.md").read_text(encoding="utf-8")
    write_text(target / "README.md", f"{table}\nMade by:\n\n{commands(records)}\nReport: {remake(target)}\n")


def commands(records: Sequence[Record]) -> str:
    """The sweeps that make these runs, as indented lines."""
    return "".join(f"    {line}\n" for line in sweeps(records))


def sweeps(records: Sequence[Record]) -> list[str]:
    """The commands that make these runs and no others."""
    by_keys: dict[tuple[str, ...], set[tuple[str, ...]]] = {}
    for record in records:
        parts = [text.partition("=") for text in record.run["overrides"]]  # ~KEY has no value
        keys = tuple(key + sign for key, sign, _ in parts)
        by_keys.setdefault(keys, set()).add(tuple(value for *_, value in parts))
    texts = [words for keys, rows in by_keys.items() for words in products(keys, sorted(rows))]
    return [shlex.join(["anomaly-bench", "-m", *words]) for words in texts]


def products(keys: Sequence[str], rows: Sequence[tuple[str, ...]]) -> list[list[str]]:
    """Rows of values as sweeps, each of which is a whole product; settings are set apart before classes and seeds."""
    columns = [sorted(set(column), key=by_number) for column in zip(*rows, strict=True)]
    if math.prod(map(len, columns)) == len(rows):
        return [[f"{key}{','.join(values)}" for key, values in zip(keys, columns, strict=True)]]
    several = [place for place, values in enumerate(columns) if len(values) > 1]
    place = min(several, key=lambda place: keys[place].rstrip("=") in SWEPT)
    alike: dict[tuple[tuple[str, ...], ...], list[str]] = {}
    for value in columns[place]:
        rest = tuple(row[:place] + row[place + 1 :] for row in rows if row[place] == value)
        alike.setdefault(rest, []).append(value)
    others = [*keys[:place], *keys[place + 1 :]]
    return [
        [*words[:place], f"{keys[place]}{','.join(values)}", *words[place:]]
        for rest, values in alike.items()
        for words in products(others, rest)
    ]


def by_number(value: str) -> tuple[float, str]:
    """What whole numbers are sorted by in their order, before names."""
    return (float(value) if value.isdecimal() else math.inf), value


def remake(target: Path) -> str:
    """The command that makes the report again."""
    return f"`python scripts/publish.py {target.as_posix()}`"


def write_index(results: Path) -> None:
    """Write the table of all results below what `README.md` says of them."""
    lines = [line for folder in sorted(results.glob("*/records")) for line in index_lines(folder.parent)]
    table = pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)
    page = results / "README.md"
    text = page.read_text(encoding="utf-8").partition(INDEX)[0] if page.exists() else ""
    write_text(page, f"{text}{INDEX}\n{table}\n")


def index_lines(folder: Path) -> list[dict[str, str]]:
    """What the index says of a folder: a line for each of the papers' tables its records stand beside, or one."""
    records = read_records(folder / "records")
    runs = [record.run for record in records]
    first = {
        "results": f"[{folder.name}]({folder.name}/README.md)",
        "made": max(str(run["finished"])[:10] for run in runs),
    }
    rest = {
        "command": shortened(sweeps(records)),
        "data": listed(source(run) for run in runs),
        "machine": listed(
            f"{run['machine']['cpu']}, {run['machine']['cores']} cores; {run['device']}, {run['precision']}"
            for run in runs
        ),
        "versions": listed(
            ", ".join(f"{name} {run['versions'][name]}" for name in ("anomaly-bench", "python", "torch"))
            for run in runs
        ),
    }
    found = [distance(table.cells) for table in paper_tables(records)]
    return [
        first | {"beside the paper": told} | rest for told in found or ["no paper's number to compare with"]
    ]


def distance(cells: Sequence[Line]) -> str:
    """How far the runs are from a paper's table: the mean difference, what was reached, and with what."""
    groups: dict[tuple[str, str], list[Line]] = {}
    run = [cell for cell in cells if cell["n"]]
    for cell in [cell for cell in run if cell["class"] != "mean"] or run:  # some papers print means alone
        groups.setdefault((cell["model"], cell["evaluation"]), []).append(cell)
    told = []
    for names, own in groups.items():
        marks = [cell["reached"] for cell in own if cell["reached"] is not None]
        reached = f", {sum(marks)} of {len(marks)} reached" if marks else ""
        epochs = ", ".join(sorted({cell["epochs"] for cell in own}))
        far = f"{fmean(cell['difference'] for cell in own):+.3f} on average{reached}"
        told.append(f"{', '.join(names)}: {far} (seeds: {span(cell['n'] for cell in own)}; epochs: {epochs})")
    return f"{cells[0]['table']}: {'; '.join(told) or 'none of its numbers was run'}".translate(MARKDOWN)


def shortened(sweeps: Sequence[str]) -> str:
    """The first of the commands, and how many more the folder's own page has."""
    more = len(sweeps) - 1
    return f"`{sweeps[0]}`" + (f" and {more} more" if more else "")


def listed(texts: Iterable[str]) -> str:
    """The different ones, escaped."""
    return "; ".join(sorted(set(texts))).translate(MARKDOWN)


if __name__ == "__main__":
    try:
        main()
    except SettingError as error:
        sys.exit(f"publish: {error}")
