"""Pictures of many runs beside each other. Names come from outside and are cut where they are too long."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from anomaly_bench.report.comparison import Ranking
from anomaly_bench.report.results import Line, row_name
from anomaly_bench.report.style import COLOURS, drawn, line, marker, short, shorts

GRID = np.linspace(0, 1, 101)
"""Where ROC and precision-recall curves of several seeds are averaged."""

MOST_LINES = 8
MOST_PANELS = 12
MOST_ROWS = 60
MOST_COLUMNS = 60
WITH_NUMBERS = 25
"""Columns of a heat map that leave room for the numbers in its cells."""

Curves = Mapping[str, Mapping[str, np.ndarray]]
"""Of each class and method the curves of its runs, `[seeds, points]`."""


class Point(NamedTuple):
    """A number of ours beside the paper's, at one value of a setting."""

    x: float | str
    mean: float
    std: float  # NaN where there is one seed
    paper: float | None


def class_heat_map(path: Path, cells: Sequence[Line], title: str) -> None:
    """Mean AUROC of each method (rows) and class (columns); the `cells` of one table as `tidy` gives them.

    The colours begin at chance: an AUROC below 0.5 is as dark as one of 0.5.
    """
    methods = list(dict.fromkeys(row_name(cell) for cell in cells))
    columns = sorted({(cell["order"], cell["class"]) for cell in cells})
    areas = {(row_name(cell), (cell["order"], cell["class"])): cell["mean"] for cell in cells}
    kept = []
    if len(methods) > MOST_ROWS:
        methods = methods[:MOST_ROWS]
        kept.append(f"{MOST_ROWS} methods")
    if len(columns) > MOST_COLUMNS:
        columns = [*columns[: MOST_COLUMNS - 1], columns[-1]]
        kept.append(f"{MOST_COLUMNS - 1} columns, and the last")
    title += f" (the first {' and '.join(kept)})" if kept else ""
    grid = np.array([[areas.get((name, column), np.nan) for column in columns] for name in methods])
    numbers = len(columns) <= WITH_NUMBERS
    rows, classes = shorts(methods, 40, 2), [short(name, 20) for _, name in columns]
    size = (
        (0.55 if numbers else 0.22) * len(classes) + 0.08 * min(40, max(map(len, rows))) + 1.6,
        0.36 * len(rows) + 0.06 * max(map(len, classes)) + 1.2,
    )
    with drawn(path, title, 1, 1, size) as (axes,):
        picture = axes.imshow(grid, cmap="cividis", vmin=0.5, vmax=1, aspect="auto")
        for (row, column), area in np.ndenumerate(grid) if numbers else ():
            text = "–" if np.isnan(area) else f"{area:.3f}"
            dark = not np.isnan(area) and area < 0.75
            colour = "white" if dark else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)
        slanted: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(classes)), classes, fontsize=8, **slanted)
        axes.set_yticks(range(len(rows)), rows, fontsize=8)
        axes.tick_params(length=0)
        axes.grid(False)
        axes.spines[:].set_visible(False)
        axes.figure.colorbar(picture, ax=axes, label="AUROC", extend="min", aspect=6 * size[1])


def roc_bands(path: Path, curves: Curves, title: str) -> None:
    """ROC of each class (panels) and method (lines), on `GRID`: mean over the seeds, and a deviation about it."""
    _bands(path, curves, title, "false positive rate", "true positive rate")


def pr_bands(path: Path, curves: Curves, title: str) -> None:
    """Precision over recall, like `roc_bands`."""
    _bands(path, curves, title, "recall", "precision")


def learning_curves(path: Path, curves: Curves, title: str) -> None:
    """Test AUROC over the share of training done, on `GRID`, like `roc_bands`."""
    _bands(path, curves, title, "share of the epochs", "AUROC on the test rows", bottom=None)


def _bands(path: Path, curves: Curves, title: str, x: str, y: str, bottom: float | None = 0) -> None:
    methods = list(dict.fromkeys(name for lines in curves.values() for name in lines))
    columns = min(4, len(curves))
    rows = -(-len(curves) // columns)
    wide = 5.5 if len(curves) == 1 else 2.4 * columns + 0.4
    tall = 4.4 if len(curves) == 1 else 2.3 * rows + 0.4
    names = shorts(methods, 40, 2)
    longest = max(len(text) for name in names for text in name.splitlines())
    abreast = max(1, int(wide / (0.6 + 0.065 * longest)))
    tall += 0.4 + 0.18 * sum(map(len, map(str.splitlines, names))) / abreast
    with drawn(path, title, rows, columns, (wide, tall), sharex=True, sharey=True) as panels:
        for number, (axes, (name, lines)) in enumerate(zip(panels, curves.items(), strict=False)):
            for method, several in lines.items():
                style = line(methods.index(method))
                mean = several.mean(axis=0)
                axes.plot(GRID, mean, label=names[methods.index(method)], **style)
                if len(several) > 1:
                    std = several.std(axis=0, ddof=1)
                    low, high = np.clip([mean - std, mean + std], 0, 1)
                    axes.fill_between(GRID, low, high, color=style["color"], alpha=0.15, linewidth=0)
            axes.set(title=short(name), xlim=(0, 1))
            if number + columns >= len(curves):  # nothing below it
                axes.set_xlabel(x)
                axes.tick_params(labelbottom=True)
        for axes in panels[len(curves) :]:
            axes.remove()
        for axes in panels[: len(curves) : columns]:
            axes.set_ylabel(y)
        panels[0].set_ylim(bottom, 1.01)  # of all panels, which share it, once all lines are there
        handles = {
            text: handle
            for axes in panels
            for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        shown = [text for text in names if text in handles]
        panels[0].figure.legend(
            [handles[text] for text in shown], shown, loc="outside lower center", ncols=abreast
        )


def runtime(
    path: Path, points: Sequence[tuple[str, float, float, float]], title: str, note: str = ""
) -> None:
    """AUROC over seconds of training, a point a method: (name, seconds, mean AUROC, its deviation or NaN).

    Of more than 60 the best are drawn, and the title says so.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    ranked = sorted(points, key=lambda point: -point[2])[:MOST_ROWS]
    if len(points) > len(ranked):
        title += f" (the best {len(ranked)} of {len(points)})"
    with drawn(path, title, 1, 1, (7.6, max(4.0, 0.9 + 0.2 * len(ranked)))) as (axes,):
        names = shorts([name for name, *_ in ranked], 36, 2)
        for number, (name, (_, seconds, mean, std)) in enumerate(zip(names, ranked, strict=True)):
            style = marker(number)
            label = f"{name}  {mean:.3f}"
            axes.errorbar(
                seconds,
                mean,
                yerr=None if math.isnan(std) else std,
                linestyle="",
                ms=7,
                capsize=2,
                elinewidth=1,
                label=label,
                **style,
            )
        axes.set_xscale("log")
        times = [point[1] for point in ranked]
        axes.xaxis.set_major_locator(LogLocator(subs=(1,) if max(times) > 100 * min(times) else (1, 2, 5)))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.xaxis.set_minor_formatter(NullFormatter())
        axes.axhline(0.5, color="grey", linestyle=":")
        axes.set(xlabel=f"seconds of training a run{note}", ylabel="AUROC")
        axes.figure.legend(loc="outside right center")


def paper_curve(path: Path, points: Sequence[Point], setting: str, metric: str, title: str) -> None:
    """A `metric` over the values of one `setting`, ours with its deviation, and the paper's where it has one."""
    from matplotlib.ticker import NullLocator

    labels = [f"{point.x:g}" if isinstance(point.x, (int, float)) else short(point.x, 16) for point in points]
    numbers = [point.x for point in points if isinstance(point.x, (int, float))]
    told = len(numbers) == len(points)
    x = np.array(numbers, float) if told else np.arange(len(points), dtype=float)
    order = np.argsort(x)
    x, points, labels = x[order], [points[i] for i in order], [labels[i] for i in order]
    with drawn(path, title, 1, 1, (6.4, 4.4)) as (axes,):
        std = np.nan_to_num([point.std for point in points])
        mean = [point.mean for point in points]
        axes.errorbar(x, mean, yerr=std, marker="o", color=COLOURS[0], capsize=3, label="here")
        paper = [
            (place, point.paper) for place, point in zip(x, points, strict=True) if point.paper is not None
        ]
        if paper:
            axes.plot(*zip(*paper, strict=True), "s--", color=COLOURS[1], mfc="white", label="the paper")
        if told and x[0] > 0 and x[-1] / x[0] > 20:
            axes.set_xscale("log")
            axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(x, labels, **({"rotation": 30, "ha": "right"} if sum(map(len, labels)) > 60 else {}))
        axes.set(xlabel=setting, ylabel=metric)
        axes.figure.legend(loc="outside lower center", ncols=2)


def critical_difference(path: Path, ranking: Ranking, title: str) -> None:
    """Average ranks of methods, rank 1 the best; a bar joins those that the test does not tell apart.

    The diagram of Demsar, JMLR 7, 2006.
    """
    names, ranks, difference = ranking.methods, ranking.ranks, ranking.critical_difference
    bars = [(ranks[group.start], ranks[group.stop - 1]) for group in ranking.groups]
    half = -(-len(names) // 2)
    low, high = 1, max(len(names), 2)
    margin, end = 0.05 * (high - low), max(high, low + difference)
    first = 0.5 + 0.28 * len(bars)
    depth = first + 0.4 * half
    with drawn(path, title, 1, 1, (8.4, 1.3 + 0.5 * depth)) as (axes,):
        axes.set(xlim=(low - margin, end + margin), ylim=(depth, -1.3))
        axes.set_axis_off()
        axes.plot([low, high], [0, 0], color="black", linewidth=1)
        for rank in range(low, high + 1):
            axes.plot([rank, rank], [0, -0.12], color="black", linewidth=1)
            axes.text(rank, -0.2, str(rank), ha="center", va="bottom")
        axes.plot([low, low + difference], [-0.75, -0.75], color="black", linewidth=1, marker="|")
        axes.text(low, -0.9, f"critical difference {difference:.2f}, n = {ranking.blocks}", va="bottom")
        for number, (name, rank) in enumerate(zip(shorts(names, 30), ranks, strict=True)):
            left = number < half
            y = first + 0.4 * (number if left else len(names) - 1 - number)
            edge = low if left else high
            axes.plot([rank, rank, edge], [0, y, y], color="black", linewidth=0.8)
            text = f"{name}  {rank:.2f} " if left else f" {rank:.2f}  {name}"
            axes.text(edge, y, text, ha="right" if left else "left", va="center")
        for number, (best, worst) in enumerate(bars):
            y = 0.25 + 0.28 * number
            axes.plot(
                [best - margin / 9, worst + margin / 9],
                [y, y],
                color="black",
                linewidth=3.5,
                solid_capstyle="butt",
            )
