"""A table for each data set and protocol, and the report's files."""

import math
from collections.abc import Sequence
from itertools import chain, groupby
from pathlib import Path

import pandas as pd

from anomaly_bench.errors import SettingError
from anomaly_bench.record import Record, read_records, write_csv, write_text
from anomaly_bench.report import formats
from anomaly_bench.report.beside import CELL as PRINTED
from anomaly_bench.report.beside import paper_tables
from anomaly_bench.report.comparison import comparison_table
from anomaly_bench.report.formats import Table
from anomaly_bench.report.notes import failure, notes, synthetic
from anomaly_bench.report.page import write_page
from anomaly_bench.report.pictures import draw_paper_curves, draw_report
from anomaly_bench.report.results import CELL, RARE, ROW, Line, latest, results, span, tidy

ABSENT = "–"
BELOW = (
    ("· 95 % from", "low"),
    ("· 95 % to", "high"),
    ("· untrained", "untrained_mean", "untrained_std"),
    ("· best epoch *", "best_epoch_mean", "best_epoch_std"),
    ("· hindsight *", "hindsight_mean", "hindsight_std"),
    ("· pixels", "pixel_mean", "pixel_std"),
    ("· pixels, untrained", "pixel_untrained_mean", "pixel_untrained_std"),
)
"""The rows that stand below one of ours, and what they show."""


def write_report(runs_dir: Path | str, out: Path | str | None = None) -> str:
    """Write tables (CSV, Markdown, LaTeX), `figures/` and `index.html` of all runs; gives back the text to print.

    Where runs can stand beside a paper's numbers, `paper.csv` has a line for each of these.

    Args:
        runs_dir: folder with the runs' folders, at any depth.
        out: folder to write to, `<runs_dir>/report` by default.

    Raises:
        SettingError: there are no runs.
    """
    records = read_records(runs_dir)
    if not records:
        raise SettingError(f"runs_dir={runs_dir} holds no runs: a run is a folder with a run.json in it")
    folder = Path(out) if out is not None else Path(runs_dir) / "report"
    ours, beside = make_tables(records), paper_tables(records)
    tables = [*ours, *beside]
    cells = [cell for table in ours for cell in table.cells]
    write_csv(folder / "table.csv", frame_of(cells))
    write_text(folder / "table.md", "\n".join(map(formats.markdown, tables)))
    write_text(folder / "table.tex", formats.LATEX_HEAD + "\n".join(map(formats.latex, tables)))
    if beside:
        printed = [cell for table in beside for cell in table.cells]
        write_csv(folder / "paper.csv", pd.DataFrame(printed, columns=list(PRINTED)))
    figures = folder / "figures"
    write_page(folder, tables, records, [*draw_report(figures, records), *draw_paper_curves(figures, beside)])
    return "\n\n".join([*map(formats.text, tables), f"Written to {folder}"])


def frame_of(cells: Sequence[Line]) -> pd.DataFrame:
    """What `table.csv` holds: rare numbers only where there are any.

    Where a class is called as a line over all classes is, `whole` says which of them is over all.
    """
    absent = {
        f"{kind}{number}"
        for kind in RARE
        for number in ("mean", "std")
        if all(math.isnan(cell[f"{kind}mean"]) for cell in cells)
    }
    frame = pd.DataFrame(cells, columns=[name for name in CELL if name not in absent])
    whole = [math.isinf(cell["order"]) for cell in cells]
    over_all = frame["class"].isin(["mean", "overall"])
    return frame if over_all.tolist() == whole else frame.assign(whole=whole)


def text_of(records: Sequence[Record], experiment: str | None = None) -> str:
    """The tables of some records for a terminal, at most 120 characters wide where their names allow it.

    `experiment` is the one that the records were asked for by, whatever they were first made for.
    """
    return "\n\n".join(map(formats.text, [*make_tables(records), *paper_tables(records, experiment)]))


def make_tables(records: Sequence[Record]) -> list[Table]:
    """One table for each data set and protocol, and one without rows for the runs that fit in none.

    Where a table has several methods, a comparison of them follows it.
    """

    def key(record: Record) -> tuple[str, str]:
        return record.run["data"], record.run["protocol"]

    kept = sorted(latest(records), key=key)
    tables = []
    for names, group in groupby(kept, key):
        own = list(group)
        tables.append(_table(*names, own))
        if compared := comparison_table("-".join(names), results(own)):
            tables.append(compared)
    shown = {id(record) for record in kept}
    if left_out := [_left_out(record) for record in records if id(record) not in shown]:
        tables.append(Table("others", "Runs in no table", [], 0, [], left_out, []))
    return tables


def _left_out(record: Record) -> str:
    if record.status == "failed":
        return failure(record)
    reason = (
        "a newer run has the same settings, class and seed" if record.run else "its run.json cannot be read"
    )
    return f"Left out: {record.folder.name}: {reason}."


def _table(data: str, protocol: str, records: Sequence[Record]) -> Table:
    """Rows of one data set and protocol: each method, its untrained control, and its best epoch."""
    lines = results(records)
    cells = tidy(lines)
    due = (line for line in lines if line["swept"] and cells)  # a class of which no run is finished is a hole
    columns = sorted({(one["order"], one["class"]) for one in chain(cells, due)})
    shown = ROW if any(cell["settings"] for cell in cells) else ROW[:2]
    n_classes = max(len(record.run.get("data_classes") or []) for record in records)
    rows = []
    for key, group in groupby(cells, lambda cell: tuple(cell[name] for name in ROW)):
        row = list(group)
        averaged = (row[-1]["class"], row[-1]["order"]) == ("mean", math.inf)  # no class that is called so
        part = averaged and len(row) - 1 < n_classes
        told = [*key[1 : len(shown)], span(cell["n"] for cell in row[:-1] or row), row[-1]["epochs"]]
        rows.append([key[0], *told, *_numbers(row, ("mean", "std"), columns, part)])
        for name, *numbers in BELOW:
            if not all(math.isnan(cell[numbers[0]]) for cell in row):
                rows.append([name, *[""] * len(told), *_numbers(row, numbers, columns, part)])
    title = f"AUROC on {data}, {protocol}" + (", SYNTHETIC DATA" if synthetic(records) else "")
    below = notes(records, lines)
    headers = [*shown, "n", "epochs", *(name for _, name in columns)]
    return Table(f"{data}-{protocol}", title, headers, len(shown) + 2, rows, below, cells, len(shown))


def _numbers(
    row: list[Line], numbers: Sequence[str], columns: Sequence[tuple[float, str]], part: bool
) -> list[str]:
    """Texts such as `0.912 ± 0.010`, one for each (order, class) of the table; a mean of a part is marked.

    `numbers` are the keys of a cell's number and, where it has one, its deviation.
    """
    texts = dict.fromkeys(columns, ABSENT)
    for cell in row:
        number, *spread = (cell[name] for name in numbers)
        if not math.isnan(number):
            told = "".join(f" ± {std:.3f}" for std in spread if not math.isnan(std))
            mark = " †" if part and cell is row[-1] else ""
            texts[cell["order"], cell["class"]] = f"{number:.3f}{told}{mark}"
    return list(texts.values())
