"""Pictures of a run and of a sweep as PNG files. Matplotlib is imported when one is drawn, and needs no TeX.

Titles come from the caller and are shown as they are; they say so where the data are synthetic.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from anomaly_bench.record import replacing
from anomaly_bench.report.results import ROW, Line

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NORMAL, ANOMALOUS = "#16427a", "#e08a00"
"""Dark blue and light orange: apart for colour-blind eyes, and dark and light in grey."""

NOT_LOSSES = ("stage", "name", "epoch", "rows", "seconds")
SHOWN_OF_EACH = 4
EMBEDDED = 600


def score_histogram(
    path: Path, scores: np.ndarray, anomalous: np.ndarray, threshold: float | None, title: str
) -> None:
    """Histogram of scores `[N]`, of the normal and of the anomalous rows (bool `[N]`), as shares of either.

    Scores beyond the 99.5 % quantile stand in the last bin, so that one outlier does not hide the rest.
    """
    figure, (axes,) = _figure(title, 1, 1, (6.4, 4.0))
    most = np.quantile(scores, 0.995)
    edges = np.histogram_bin_edges(np.minimum(scores, most), bins=50)
    for name, rows, color, line in (
        ("normal", ~anomalous, NORMAL, "-"),
        ("anomalous", anomalous, ANOMALOUS, "--"),
    ):
        counts, _ = np.histogram(np.minimum(scores[rows], most), bins=edges)
        shares = counts / max(rows.sum(), 1)
        axes.stairs(shares, edges, fill=True, color=color, alpha=0.3)
        axes.stairs(
            shares, edges, color=color, linestyle=line, linewidth=1.5, label=f"{name} ({rows.sum():,})"
        )
    if threshold is not None:
        axes.axvline(threshold, color="black", linestyle=":", label=f"threshold {threshold:.4g}")
    axes.set(xlabel="anomaly score", ylabel="share of rows")
    axes.legend(frameon=False)
    _save(figure, path)


def roc_and_pr(path: Path, scores: np.ndarray, anomalous: np.ndarray, title: str) -> None:
    """The ROC and the precision-recall curve of scores `[N]` against truth (bool `[N]`), with chance."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    figure, (left, right) = _figure(title, 1, 2, (9.0, 4.5))
    false_positive, true_positive, _ = roc_curve(anomalous, scores)
    left.plot(
        false_positive, true_positive, color=NORMAL, label=f"AUROC {roc_auc_score(anomalous, scores):.3f}"
    )
    left.plot([0, 1], [0, 1], color="grey", linestyle=":", label="chance 0.500")
    left.set(xlabel="false positive rate", ylabel="true positive rate")
    precision, recall, _ = precision_recall_curve(anomalous, scores)
    area, share = average_precision_score(anomalous, scores), anomalous.mean()
    right.plot(recall, precision, color=NORMAL, drawstyle="steps-post", label=f"average precision {area:.3f}")
    right.axhline(share, color="grey", linestyle=":", label=f"chance {share:.3f}")
    right.set(xlabel="recall", ylabel="precision")
    for axes in (left, right):
        axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
        axes.legend(frameon=False, loc="lower right" if axes is left else "lower left")
    _save(figure, path)


def losses(path: Path, losses_frame: pd.DataFrame, title: str) -> None:
    """A panel for each loss over the epochs of all stages: `losses.csv`, whose number columns they are.

    A column `auroc` is the test AUROC of the evaluated epochs.
    """
    from matplotlib.ticker import MaxNLocator

    names = [name for name in losses_frame.columns if name not in NOT_LOSSES]
    epochs = np.arange(1, len(losses_frame) + 1)
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    figure, panels = _figure(title, lines, columns, (3.4 * columns + 0.4, 2.4 * lines + 0.5))
    for axes, name in zip(panels, names, strict=False):
        given = losses_frame[name].notna().to_numpy()
        axes.plot(
            epochs[given], losses_frame[name][given], color=NORMAL, marker="." if given.sum() < 30 else ""
        )
        for border in np.flatnonzero(np.diff(losses_frame["stage"])) + 1.5:
            axes.axvline(border, color="grey", linestyle=":")
        axes.set_title("AUROC on the test rows" if name == "auroc" else name, fontsize=9, parse_math=False)
        axes.set(xlim=(0.5, len(epochs) + 0.5), xlabel="epoch")
        axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    for axes in panels[len(names) :]:
        axes.remove()
    _save(figure, path)


def reconstructions(
    path: Path,
    x: np.ndarray,
    reconstruction: np.ndarray,
    scores: np.ndarray,
    anomalous: np.ndarray,
    maps: np.ndarray | None = None,
    title: str = "",
) -> None:
    """The normal and the anomalous images scored lowest and highest, each above its reconstruction and map.

    `x` and `reconstruction` are `[N, C, H, W]` on [0, 1], `maps` `[N, H, W]` in any unit, drawn on one scale.
    """
    groups = _extremes(scores, anomalous)
    rows = {"input": _pictures(x), "reconstruction": _pictures(reconstruction)}
    if maps is not None:
        rows["map"] = maps
    height, width = x.shape[2:]
    wide = 0.8 * sum(len(group) for group in groups.values()) + 0.8
    tall = 0.85 * height / width * len(rows) + 1.0
    figure, panels = _figure(title, len(rows), len(groups), (wide, tall))
    grid = np.reshape(np.array(panels, dtype=object), (len(rows), len(groups)))
    for line, (row, pictures) in enumerate(rows.items()):
        scale = {"cmap": "inferno", "vmin": 0, "vmax": pictures.max()} if row == "map" else {"cmap": "gray"}
        for axes, (name, group) in zip(grid[line], groups.items(), strict=True):
            strip = np.concatenate([pictures[number] for number in group], axis=1)
            axes.imshow(strip, **({"vmin": 0, "vmax": 1} | scale), interpolation="nearest", aspect="equal")
            axes.set(yticks=[], xticks=[])
            for border in range(1, len(group)):
                axes.axvline(border * width - 0.5, color="white", linewidth=2)
            if line == 0:
                axes.set_title(name, fontsize=9)
        grid[line][0].set_ylabel(row, fontsize=9)
    for axes, group in zip(grid[-1], groups.values(), strict=True):
        centres = (np.arange(len(group)) + 0.5) * width - 0.5
        axes.set_xticks(centres, [f"{scores[number]:.3g}" for number in group], fontsize=7)
        axes.tick_params(length=0)
    _save(figure, path)


def _extremes(scores: np.ndarray, anomalous: np.ndarray) -> dict[str, np.ndarray]:
    """Row numbers of the lowest and highest scores of either kind: what is told apart best and worst."""
    groups = {}
    for name, kind in (("normal", False), ("anomalous", True)):
        rows = np.flatnonzero(anomalous == kind)
        rows = rows[np.argsort(scores[rows], kind="stable")]
        few = min(SHOWN_OF_EACH, len(rows) // 2)
        if few:
            groups |= {f"{name}, lowest scores": rows[:few], f"{name}, highest scores": rows[-few:]}
    return groups


def _pictures(images: np.ndarray) -> np.ndarray:
    """`[N, C, H, W]` as `[N, H, W, 3]`, or as grey `[N, H, W]` for any other number of channels."""
    return images.transpose(0, 2, 3, 1) if images.shape[1] == 3 else images.mean(axis=1)


def embedding(path: Path, features: np.ndarray, anomalous: np.ndarray, title: str) -> None:
    """A t-SNE of features `[N, D]`, of at most 600 rows, the same for the same features."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    # RandomState's streams are frozen by NumPy, so that the picture is the same everywhere.
    picked = np.random.RandomState(0).permutation(len(features))[:EMBEDDED]
    features, anomalous = features[picked], anomalous[picked]
    perplexity = min(30, (len(features) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="random", max_iter=500, random_state=0)
    with threadpool_limits(1):  # on a busy machine more threads cost minutes in waiting for each other
        points = tsne.fit_transform(features)
    figure, (axes,) = _figure(title, 1, 1, (5.5, 5.5))
    axes.scatter(*points[~anomalous].T, s=14, color=NORMAL, label="normal")
    axes.scatter(
        *points[anomalous].T,
        s=22,
        marker="^",
        facecolor=ANOMALOUS,
        edgecolor="black",
        linewidth=0.4,
        label="anomalous",
    )
    axes.set(xticks=[], yticks=[], xlabel="t-SNE of the features")
    axes.legend(frameon=True)
    _save(figure, path)


def class_heat_map(path: Path, cells: Sequence[Line], title: str) -> None:
    """Mean AUROC of each method (rows) and class (columns); the `cells` of one table as `tidy` gives them.

    The colours begin at chance: an AUROC below 0.5 is as dark as one of 0.5.
    """
    methods = list(dict.fromkeys(_row_name(cell) for cell in cells))
    columns = sorted({(cell["order"], cell["class"]) for cell in cells})
    grid = np.full((len(methods), len(columns)), np.nan)
    for cell in cells:
        grid[methods.index(_row_name(cell)), columns.index((cell["order"], cell["class"]))] = cell["mean"]
    classes = [name for _, name in columns]
    longest = max(map(len, methods))
    size = (
        0.62 * len(classes) + 0.085 * longest + 1.6,
        0.45 * len(methods) + 0.06 * max(map(len, classes)) + 1.5,
    )
    figure, (axes,) = _figure(title, 1, 1, size)
    picture = axes.imshow(grid, cmap="cividis", vmin=0.5, vmax=1, aspect="auto")
    for (line, column), area in np.ndenumerate(grid):
        text = "–" if np.isnan(area) else f"{area:.3f}"
        dark = not np.isnan(area) and area < 0.75
        axes.text(
            column, line, text, ha="center", va="center", fontsize=8, color="white" if dark else "black"
        )
    slanted: dict[str, Any] = {"rotation": 35, "ha": "right", "rotation_mode": "anchor"}
    axes.set_xticks(range(len(classes)), classes, fontsize=8, parse_math=False, **slanted)
    axes.set_yticks(range(len(methods)), methods, fontsize=8, parse_math=False)
    figure.colorbar(picture, ax=axes, label="AUROC", extend="min")
    _save(figure, path)


def _row_name(cell: Line) -> str:
    return ", ".join(filter(None, (cell[key] for key in ROW)))


def _figure(title: str, rows: int, columns: int, size: tuple[float, float]) -> tuple[Figure, list[Axes]]:
    """A figure without pyplot's global state, and its panels row by row."""
    from matplotlib.figure import Figure

    figure = Figure(size, dpi=120, layout="constrained")
    # 12 characters an inch; matplotlib's own wrapping reads dollar signs as mathematics all the same
    figure.suptitle(fill(title, int(12 * size[0])), fontsize=10, parse_math=False)
    return figure, list(figure.subplots(rows, columns, squeeze=False).flat)


def _save(figure: Figure, path: Path) -> None:
    with replacing(path) as temporary:
        figure.savefig(temporary, format="png")
