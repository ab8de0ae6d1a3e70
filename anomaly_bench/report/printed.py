"""The numbers that papers print: `papers/*.csv`, a file for each paper, a line for each number.

| column | what |
| --- | --- |
| `table` | which of our tables it belongs to; an experiment of this name makes that table |
| `where`, `source` | the paper's table or figure; with the paper |
| `method` | as the paper calls it |
| `model`, `data`, `protocol` | as the command line calls them; no `model` where there is none here |
| `settings` | further settings by which a run is that number's, such as `model.nz=32 model.w_con=50` |
| `class` | of the data set: the anomalous, or under `one_vs_rest` the normal one; `mean` over all of them, `overall` \
anomalies, or `any` where it makes no difference |
| `metric` | as in `metrics.json`; what is no time is a share of one, whatever the paper prints |
| `value` | the number |
| `std`, `se`, `low`, `high` | deviation, standard error, or ends of a drawn bar, whichever the paper has |
| `n`, `epochs` | seeds and epochs, as far as the paper says |
| `read` | from the `paper`, off a `plot`, or `quoted` by somebody else; what was read nowhere is not here |
| `note` | what else one must know |
"""

import csv
import math
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "papers"


@dataclass(frozen=True)
class Printed:
    """One number of a paper: `paper` is the name of its file, the rest as in this module's docstring.

    Numbers that the paper does not give are NaN. `cls` is the column `class`.
    """

    paper: str
    table: str
    where: str
    method: str
    model: str
    settings: str
    data: str
    protocol: str
    cls: str
    metric: str
    value: float
    std: float
    se: float
    low: float
    high: float
    n: float
    epochs: float
    source: str
    read: str
    note: str

    @property
    def standard_error(self) -> float:
        """Of the value over the paper's seeds; NaN where it cannot be told."""
        return self.se if not math.isnan(self.se) else self.std / math.sqrt(self.n)


NUMBERS = [field.name for field in fields(Printed) if field.type is float]


@cache
def printed() -> tuple[Printed, ...]:
    """Every number of every paper, in the order of the files."""
    rows: list[Printed] = []
    for path in sorted(FOLDER.glob("*.csv")):
        with path.open(encoding="utf-8", newline="") as lines:
            rows += [_read(path.stem, line) for line in csv.DictReader(lines)]
    return tuple(rows)


def _read(paper: str, line: dict[str, str]) -> Printed:
    facts: dict[str, Any] = {"cls" if name == "class" else name: text for name, text in line.items()}
    facts |= {name: float(facts[name] or "nan") for name in NUMBERS}
    return Printed(paper=paper, **facts)
