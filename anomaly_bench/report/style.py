"""How every picture looks, and how it comes onto the disk. Matplotlib is imported when one is drawn."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

from anomaly_bench.errors import printable
from anomaly_bench.record import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NORMAL, ANOMALOUS = "#00456e", "#e69f00"
"""Dark blue and light orange: apart for colour-blind eyes, and dark and light in grey."""

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#000000", "#cc79a7", "#56b4e9", "#e69f00")
"""Okabe and Ito's, without their yellow, which is lost on white."""
LINES = ("-", "--", "-.", (0, (1, 1)), (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")

SHAPE = re.compile(r'(?<=id=")[a-z]*[0-9a-f]{10}(?=")')
"""A shape's name in matplotlib's SVG: a hash of its numbers to the last digit, which processors round differently."""

GROUP = re.compile(r"^(?:model|data|protocol|trainer|evaluation)\.")
"""How the key of a setting begins."""

STYLE: dict[Any, Any] = {
    "font.size": 9,
    "axes.titlesize": 9,
    "figure.titlesize": 10,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "0.9",
    "lines.linewidth": 1.6,
    "figure.dpi": 150,
    "figure.facecolor": "white",
    "svg.fonttype": "none",  # text stays text, and a reader's own fonts have the letters that ours lack
    "svg.hashsalt": "anomaly-bench",  # the same picture gives the same file
    "text.parse_math": False,  # a dollar sign in a name is no formula
    "text.usetex": False,
}


@contextmanager
def drawn(
    path: Path, title: str, rows: int, columns: int, size: tuple[float, float], **panels: Any
) -> Iterator[list[Axes]]:
    """Give the panels of a figure, row by row; at the end it is `<path>.png` and `<path>.svg`.

    `size` is in inches, wide and high; `panels` goes to matplotlib's `subplots`.
    """
    from matplotlib import rc_context
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with rc_context(STYLE), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # it is drawn as a box
        figure = Figure(size, layout="constrained")
        figure.suptitle(fill(printable(title), int(12 * size[0])))  # 12 characters an inch
        yield list(figure.subplots(rows, columns, squeeze=False, **panels).flat)
        with replacing(path.with_name(f"{path.name}.png")) as temporary:
            FigureCanvasAgg(figure).print_png(temporary)  # `savefig` draws each picture twice
        figure.set_layout_engine("none")  # the panels stay where they are, and need no second look
        with replacing(path.with_name(f"{path.name}.svg")) as temporary:
            FigureCanvasSVG(figure).print_svg(temporary, metadata={"Date": None})
            temporary.write_text(numbered(temporary.read_text("utf-8")), "utf-8")


def numbered(svg: str) -> str:
    """An SVG whose shapes are named in their order, so that another machine makes the same file."""
    for number, name in enumerate(dict.fromkeys(SHAPE.findall(svg))):
        svg = svg.replace(name, f"shape{number}")
    return svg


def line(number: int) -> dict[str, Any]:
    """Colour and kind of line of the method with this number; the first 35 differ from each other."""
    return {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}


def marker(number: int) -> dict[str, Any]:
    """Colour and shape of the point of the method with this number; the first 56 differ from each other."""
    return {"color": COLOURS[number % len(COLOURS)], "marker": MARKERS[number % len(MARKERS)]}


def short(name: str, longest: int = 28) -> str:
    """A printable name, without its middle where it is too long: both ends may tell it from others."""
    name = printable(name)
    if len(name) <= longest:
        return name
    return f"{name[: longest // 2]}…{name[len(name) - (longest - 1) // 2 :]}"


def shorts(names: Sequence[str], longest: int, lines: int = 1) -> list[str]:
    """Printable names of methods, of which no two look alike, in at most so many lines.

    Settings that all share are left out, and the groups of keys; what is still too long is cut as by `short`.
    """
    parts = [name.split(", ") for name in names]
    shared = set.intersection(*map(set, parts)) if len(parts) > 1 else set()
    own = [[first, *(GROUP.sub("", text) for text in rest if text not in shared)] for first, *rest in parts]
    cut = [short(", ".join(texts), lines * longest - 8 * (lines - 1)) for texts in own]
    alike = {name for name in cut if cut.count(name) > 1}
    told = [f"{number}: {name}" if name in alike else name for number, name in enumerate(cut, 1)]
    return [fill(name, longest) for name in told] if lines > 1 else told
