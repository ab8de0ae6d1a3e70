"""Pictures of one run. Titles come from the caller, and say so where the data are synthetic."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from anomaly_bench.errors import printable
from anomaly_bench.report.style import ANOMALOUS, LINES, NORMAL, drawn

NOT_LOSSES = ("stage", "name", "epoch", "rows", "seconds")
SHOWN_OF_EACH = 3
BINS = 50


def score_histogram(
    path: Path, scores: np.ndarray, anomalous: np.ndarray, thresholds: Mapping[str, float], title: str
) -> None:
    """Histogram of scores `[N]`, of the normal and of the anomalous rows (bool `[N]`), as shares of either.

    Scores beyond the 99.5 % quantile stand in the last bin, so that one outlier does not hide the rest.
    `thresholds` are drawn under their names.
    """
    scores = scores.astype(np.float64)  # float32 has no 50 bins between scores that are nearly alike
    with drawn(path, title, 1, 1, (7.0, 4.4)) as (axes,):
        low, most = scores.min(), np.quantile(scores, 0.995)
        least = BINS * 2 * np.spacing(max(abs(low), abs(most)))
        margin = max(0.5, least) if most - low < least else 0
        edges = np.linspace(low - margin, most + margin, BINS + 1)
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
        for (name, threshold), line in zip(thresholds.items(), LINES[2:], strict=False):
            axes.axvline(threshold, color="black", linestyle=line, label=f"{name}: {threshold:.4g}")
        axes.set(xlabel="anomaly score", ylabel="share of rows", xlim=(edges[0], edges[-1]))
        axes.figure.legend(loc="outside lower center", ncols=2)


def roc_and_pr(path: Path, scores: np.ndarray, anomalous: np.ndarray, title: str) -> None:
    """The ROC and the precision-recall curve of scores `[N]` against truth (bool `[N]`), with chance."""
    from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score, roc_curve

    with drawn(path, title, 1, 2, (9.0, 4.8)) as (left, right):
        false_positive, true_positive, _ = roc_curve(anomalous, scores)
        area = roc_auc_score(anomalous, scores)
        left.plot(false_positive, true_positive, color=NORMAL, label=f"AUROC {area:.3f}")
        left.plot([0, 1], [0, 1], color="grey", linestyle=":", label="chance 0.500")
        left.set(xlabel="false positive rate", ylabel="true positive rate")
        precision, recall, _ = precision_recall_curve(anomalous, scores)
        area, share = average_precision_score(anomalous, scores), anomalous.mean()
        label = f"average precision {area:.3f}"
        right.plot(recall, precision, color=NORMAL, drawstyle="steps-post", label=label)
        right.axhline(share, color="grey", linestyle=":", label=f"chance {share:.3f}")
        right.set(xlabel="recall", ylabel="precision")
        for axes in (left, right):
            axes.set(xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
            axes.legend(loc="lower right" if axes is left else "lower left")


def losses(path: Path, losses_frame: pd.DataFrame, title: str) -> None:
    """A panel for each loss over the epochs of all stages: `losses.csv`, whose number columns they are.

    A column `auroc` is the test AUROC of the evaluated epochs; of these the last and the best are marked.
    """
    from matplotlib.ticker import MaxNLocator

    names = [name for name in losses_frame.columns if name not in NOT_LOSSES]
    epochs = np.arange(1, len(losses_frame) + 1)
    columns = min(3, len(names))
    lines = -(-len(names) // columns)
    with drawn(path, title, lines, columns, (3.1 * columns + 0.4, 2.3 * lines + 0.5)) as panels:
        for axes, name in zip(panels, names, strict=False):
            given = losses_frame[name].notna().to_numpy()
            x, y = epochs[given], losses_frame[name].to_numpy()[given]
            axes.plot(x, y, color=NORMAL, marker="." if given.sum() < 30 else "")
            for border in np.flatnonzero(np.diff(losses_frame["stage"])) + 1.5:
                axes.axvline(border, color="grey", linestyle=":")
            axes.set(title=printable(name), xlim=(0.5, len(epochs) + 0.5), xlabel="epoch")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
            if name == "auroc" and len(y):
                best = int(y.argmax())
                axes.plot(x[-1], y[-1], "s", color=NORMAL, label=f"last: {y[-1]:.3f}")
                label = f"best: {y[best]:.3f}, has seen the labels"
                axes.plot(x[best], y[best], "*", color=ANOMALOUS, ms=11, mec="black", label=label)
                axes.set(title="AUROC on the test rows")
                axes.margins(y=0.45)
                axes.legend(loc="lower right", fontsize=7.5)
        for axes in panels[len(names) :]:
            axes.remove()


def reconstructions(
    path: Path,
    x: np.ndarray,
    reconstruction: np.ndarray | None,
    maps: np.ndarray,
    scores: np.ndarray,
    anomalous: np.ndarray,
    title: str,
) -> None:
    """The normal and the anomalous images scored lowest and highest, each above its reconstruction, if any, and map.

    `x` and `reconstruction` are `[N, C, H, W]` on [0, 1], `maps` `[N, H, W]` in any unit, drawn on one scale.
    """
    groups = _extremes(scores, anomalous)
    rows = {"input": _pictures(x), "map": maps}
    if reconstruction is not None:
        rows = {"input": _pictures(x), "reconstruction": _pictures(reconstruction), "residual": maps}
    height, width = x.shape[2:]
    wide = sum(max(0.75 * len(group), 1.2) for group in groups.values()) + 1.2  # titles need 1.2
    tall = 0.75 * height / width * len(rows) + 1.3
    with drawn(path, title, len(rows), len(groups), (wide, tall)) as panels:
        grid = np.reshape(np.array(panels, dtype=object), (len(rows), len(groups)))
        for line, (row, pictures) in enumerate(rows.items()):
            colours = (
                {"cmap": "inferno", "vmax": max(maps.max(), 1e-12)}
                if pictures is maps
                else {"cmap": "gray", "vmax": 1}
            )
            for axes, (name, group) in zip(grid[line], groups.items(), strict=True):
                strip = np.concatenate([pictures[number] for number in group], axis=1)
                axes.imshow(strip, vmin=0, interpolation="nearest", aspect="equal", **colours)
                axes.set(yticks=[], xticks=[])
                axes.grid(False)
                axes.spines[:].set_visible(False)
                for border in range(1, len(group)):
                    axes.axvline(border * width - 0.5, color="white", linewidth=2)
                if line == 0:
                    axes.set_title(name.replace(", ", "\n").replace(": ", "\n"), fontsize=9)
            grid[line][0].set_ylabel(row, rotation=0, ha="right", va="center")
        for axes, group in zip(grid[-1], groups.values(), strict=True):
            centres = (np.arange(len(group)) + 0.5) * width - 0.5
            axes.set_xticks(centres, [f"{scores[number]:.3g}" for number in group], fontsize=8)
            axes.tick_params(length=0)
        grid[-1][0].figure.supxlabel("anomaly score", fontsize=8)


def _extremes(scores: np.ndarray, anomalous: np.ndarray) -> dict[str, np.ndarray]:
    """Row numbers of the lowest and highest scores of either kind: what is told apart best and worst.

    Of a kind with a single row, that row under the kind's name.
    """
    groups = {}
    for name, best, worst in (("normal", "lowest", "highest"), ("anomalous", "highest", "lowest")):
        rows = np.flatnonzero(anomalous == (name == "anomalous"))
        rows = rows[np.argsort(scores[rows], kind="stable")]
        few = min(SHOWN_OF_EACH, len(rows) // 2)
        if few:
            ends = {"lowest": rows[:few], "highest": rows[-few:]}
            groups[f"{name}, {best} scores: best"] = ends[best]
            groups[f"{name}, {worst} scores: worst"] = ends[worst]
        elif len(rows):
            groups[name] = rows
    return groups


def _pictures(images: np.ndarray) -> np.ndarray:
    """`[N, C, H, W]` as `[N, H, W, 3]`, or as grey `[N, H, W]` for any other number of channels."""
    return images.transpose(0, 2, 3, 1) if images.shape[1] == 3 else images.mean(axis=1)


def embedding(path: Path, features: np.ndarray, anomalous: np.ndarray, title: str) -> None:
    """A t-SNE of features `[N, D]` of a few hundred rows, the same for the same features."""
    from sklearn.manifold import TSNE
    from threadpoolctl import threadpool_limits

    perplexity = min(30, (len(features) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, init="random", max_iter=500, random_state=0)
    with threadpool_limits(1):  # on a busy machine more threads cost minutes in waiting for each other
        points = tsne.fit_transform(features)
    with drawn(path, title, 1, 1, (5.6, 5.6)) as (axes,):
        normal, odd = points[~anomalous], points[anomalous]
        axes.scatter(*normal.T, s=14, color=NORMAL, label=f"normal ({len(normal)})")
        edge = {"edgecolor": "black", "linewidth": 0.4}
        label = f"anomalous ({len(odd)})"
        axes.scatter(*odd.T, s=22, marker="^", facecolor=ANOMALOUS, label=label, **edge)
        axes.set(xticks=[], yticks=[], xlabel="t-SNE of the features")
        axes.spines[:].set_visible(False)
        axes.figure.legend(loc="outside lower center", ncols=2)
