"""A table as plain text, Markdown and LaTeX, with every name from outside escaped."""

import re
from dataclasses import dataclass
from textwrap import fill, wrap

import pandas as pd
from tabulate import tabulate

from anomaly_bench.errors import printable
from anomaly_bench.report.results import Line
from anomaly_bench.report.style import short

WIDTH = 120
LATEX_HEAD = "% \\usepackage{booktabs} in the preamble; XeLaTeX or LuaLaTeX for names beyond Latin letters\n"
NAME_WIDTHS = (24, 16, 12, 10, 8)
MARKDOWN = str.maketrans({sign: f"\\{sign}" for sign in r"\`*_[]<>|~$&#"})
LATEX = str.maketrans(
    {sign: f"\\{sign}" for sign in "{}$&#%_"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    | {"<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}", '"': "''"}
    | {"[": "{[}", "]": "{]}", "*": "{*}"}  # after a line's end these would be read as part of it
    | {"±": r"$\pm$", "†": r"\dag{}", "·": r"$\cdot$", "–": "--", "×": r"$\times$"}
    | {"✓": r"$\surd$", "²": r"$^2$"}
)


@dataclass(frozen=True)
class Table:
    """A table to show, its texts as they came.

    Attributes:
        name: of its data set and protocol, for a file.
        title: what it shows.
        headers: of the columns; the first `labels` of them say what a row is, the others hold numbers.
        rows: a text for each header.
        notes: sentences below it.
        cells: the numbers behind it, a line of a CSV file for each.
        folded: so many of the first labels share a column in a terminal.
    """

    name: str
    title: str
    headers: list[str]
    labels: int
    rows: list[list[str]]
    notes: list[str]
    cells: list[Line]
    folded: int = 1


def text(table: Table) -> str:
    """For a terminal: 120 characters wide where the names allow it, many classes in several blocks."""
    blocks = _blocks(table, range(table.labels, len(table.headers))) if table.rows else []
    title = printable(table.title)
    notes = [
        fill(printable(note), WIDTH, initial_indent="- ", subsequent_indent="  ") for note in table.notes
    ]
    return "\n\n".join([f"{title}\n{'=' * len(title)}", *blocks, "\n".join(notes)])


def _blocks(table: Table, numbers: range) -> list[str]:
    """All rows with some of their numbers, in as many blocks as it takes."""
    for stacked, longest in ((False, NAME_WIDTHS[0]), *((True, longest) for longest in NAME_WIDTHS)):
        lines = _block(table, numbers, longest, stacked)
        if max(map(len, lines)) <= WIDTH or (stacked and len(numbers) == 1):
            return ["\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])]
    half = (len(numbers) + 1) // 2
    return _blocks(table, numbers[:half]) + _blocks(table, numbers[half:])


def _block(table: Table, numbers: range, longest: int, stacked: bool) -> list[str]:
    """Lines of a block: folded labels below each other, class names cut, spreads `stacked` below their numbers."""
    labels = range(table.folded, table.labels)
    rows = [[table.headers[c] for c in (0, *labels)] + [short(table.headers[c], longest) for c in numbers]]
    for row in table.rows:
        folded = "\n".join(part for label in row[: table.folded] for part in _wrapped(label))
        cut = [short(label, NAME_WIDTHS[0]) for label in row[table.folded : table.labels]]
        cells = (_stacked(row[c]) if stacked else printable(row[c]) for c in numbers)
        rows.append([folded, *cut, *cells])
    align = ["left"] * (1 + len(labels)) + ["right"] * len(numbers)
    # without headers of its own, for tabulate pads those
    return tabulate(rows, tablefmt="plain", disable_numparse=True, colalign=align).splitlines()


def _wrapped(label: str) -> list[str]:
    """A label as lines that break at spaces, as those between settings, a longer word without its middle."""
    width = NAME_WIDTHS[0]
    words = wrap(printable(label), width, break_long_words=False, break_on_hyphens=False)
    return [short(line, width) for line in words]


def _stacked(cell: str) -> str:
    """`0.912 ± 0.010` as two lines, the second without its zeros before the point."""
    number, *spread = re.split(r" (?=[±\[])", printable(cell))
    return "\n".join([number, *(part.replace("± ", "±").replace("0.", ".") for part in spread)])


def markdown(table: Table) -> str:
    """A section with a pipe table and a list of notes."""
    parts = [f"## {_escaped(table.title, MARKDOWN)}"]
    if table.rows:
        align = ["left"] * table.labels + ["right"] * (len(table.headers) - table.labels)
        parts.append(_frame(table, MARKDOWN).to_markdown(index=False, disable_numparse=True, colalign=align))
    parts.append("\n".join(f"- {_escaped(note, MARKDOWN)}" for note in table.notes))
    return "\n\n".join(parts) + "\n"


def latex(table: Table) -> str:
    """A floating table with booktabs rules, its notes below the rules as a small list."""
    notes = "\n\n".join(f"\\noindent {_escaped(note, LATEX)}" for note in table.notes)
    notes = f"{{\\footnotesize\n{notes}\n\n}}\n"
    if not table.rows:
        return notes
    columns = "l" * table.labels + "r" * (len(table.headers) - table.labels)
    caption = _escaped(table.title, LATEX)
    body = _frame(table, LATEX).to_latex(
        index=False, escape=False, caption=caption, column_format=columns, position="htbp"
    )
    narrow = "\\footnotesize\\setlength{\\tabcolsep}{3pt}\n"
    body = body.replace("\\begin{tabular}", narrow + "\\begin{tabular}", 1)
    return body.replace("\\end{table}", notes + "\\end{table}")


def _frame(table: Table, signs: dict[int, str]) -> pd.DataFrame:
    rows = [[_escaped(cell, signs) for cell in row] for row in table.rows]
    return pd.DataFrame(rows, columns=[_escaped(header, signs) for header in table.headers])


def _escaped(name: str, signs: dict[int, str]) -> str:
    return printable(name).translate(signs)
