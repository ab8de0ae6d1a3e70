"""A table for each data set and protocol, and the report's files."""

import math
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import pandas as pd

from anomaly_bench.errors import SettingError
from anomaly_bench.record import Record, read_records, write_csv, write_text
from anomaly_bench.report import formats
from anomaly_bench.report.formats import Table
from anomaly_bench.report.notes import failure, notes, synthetic
from anomaly_bench.report.page import write_page
from anomaly_bench.report.pictures import draw_report
from anomaly_bench.report.results import CELL, ROW, Line, latest, results, span, tidy

ABSENT = "–"


def write_report(runs_dir: Path | str, out: Path | str | None = None) -> str:
    """Write tables (CSV, Markdown, LaTeX), `figures/` and `index.html` of all runs; gives back the text to print.

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
    tables = make_tables(records)
    cells = [cell for table in tables for cell in table.cells]
    write_csv(folder / "table.csv", pd.DataFrame(cells, columns=list(CELL)))
    write_text(folder / "table.md", "\n".join(map(formats.markdown, tables)))
    write_text(folder / "table.tex", formats.LATEX_HEAD + "\n".join(map(formats.latex, tables)))
    write_page(folder, tables, records, draw_report(folder / "figures", records))
    return "\n\n".join([*map(formats.text, tables), f"Written to {folder}"])


def text_of(records: Sequence[Record]) -> str:
    """The tables of some records for a terminal, at most 120 characters wide where their names allow it."""
    return "\n\n".join(map(formats.text, make_tables(records)))


def make_tables(records: Sequence[Record]) -> list[Table]:
    """One table for each data set and protocol, and one without rows for the runs that fit in none."""

    def key(record: Record) -> tuple[str, str]:
        return record.run["data"], record.run["protocol"]

    kept = sorted(latest(records), key=key)
    tables = [_table(*names, list(group)) for names, group in groupby(kept, key)]
    if left_out := [_left_out(record) for record in records if record not in kept]:
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
    columns = sorted({(cell["order"], cell["class"]) for cell in cells})
    shown = ROW if any(cell["settings"] for cell in cells) else ROW[:2]
    n_classes = max(len(record.run.get("data_classes") or []) for record in records)
    rows = []
    for key, group in groupby(cells, lambda cell: tuple(cell[name] for name in ROW)):
        row = list(group)
        part = row[-1]["class"] == "mean" and len(row) - 1 < n_classes
        told = [*key[1 : len(shown)], span(cell["n"] for cell in row[:-1] or row), row[-1]["epochs"]]
        rows.append([key[0], *told, *_numbers(row, "", columns, part)])
        for kind, name in (("untrained_", "· untrained"), ("best_epoch_", "· best epoch *")):
            if not all(math.isnan(cell[f"{kind}mean"]) for cell in row):
                rows.append([name, *[""] * len(told), *_numbers(row, kind, columns, part)])
    title = f"AUROC on {data}, {protocol}" + (", SYNTHETIC DATA" if synthetic(records) else "")
    headers = [*shown, "n", "epochs", *(name for _, name in columns)]
    return Table(f"{data}-{protocol}", title, headers, len(shown) + 2, rows, notes(records, lines), cells)


def _numbers(row: list[Line], kind: str, columns: Sequence[tuple[float, str]], part: bool) -> list[str]:
    """Texts such as `0.912 ± 0.010`, one for each (order, class) of the table; a mean of a part is marked."""
    texts = dict.fromkeys(columns, ABSENT)
    for cell in row:
        mean, std = cell[f"{kind}mean"], cell[f"{kind}std"]
        if not math.isnan(mean):
            mark = " †" if part and cell is row[-1] else ""
            texts[cell["order"], cell["class"]] = (
                f"{mean:.3f}{'' if math.isnan(std) else f' ± {std:.3f}'}{mark}"
            )
    return list(texts.values())
