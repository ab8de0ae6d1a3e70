"""All pictures of one run."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

from anomaly_bench.report import figures

TELLING = 4
"""Rows shown of each kind at either end of the scores."""

EMBEDDED = 600
"""Test rows whose features are shown."""


class Shown(NamedTuple):
    """What a detector shows of some rows, as arrays."""

    x: np.ndarray  # [N, C, H, W] on [0, 1], or rows of numbers
    reconstruction: np.ndarray | None  # like x
    map: np.ndarray | None  # [N, H, W]
    features: np.ndarray | None  # [N, D]


def draw_run(
    folder: Path,
    title: str,
    result: tuple[np.ndarray, np.ndarray, float],
    losses: pd.DataFrame,
    show: Callable[[np.ndarray], Shown],
) -> None:
    """Draw what there is to see of a run into `folder`.

    Args:
        folder: for the PNG files.
        title: of each picture.
        result: scores `[N]`, truth (bool `[N]`) and threshold.
        losses: as in `losses.csv`.
        show: gives what the detector shows of the rows at some positions (int `[M]`).
    """
    scores, anomalous, threshold = result
    figures.score_histogram(folder / "scores.png", scores, anomalous, threshold, title)
    figures.roc_and_pr(folder / "roc_and_pr.png", scores, anomalous, title)
    if len(losses):
        figures.losses(folder / "losses.png", losses, title)
    telling = telling_rows(scores, anomalous)
    shown = show(telling)
    if shown.reconstruction is not None and shown.x.ndim == 4:
        figures.reconstructions(
            folder / "reconstructions.png",
            shown.x,
            shown.reconstruction,
            scores[telling],
            anomalous[telling],
            maps=shown.map,
            title=title,
        )
    if shown.features is not None:
        spread = np.linspace(0, len(scores) - 1, min(EMBEDDED, len(scores))).astype(int)
        features = show(spread).features
        assert features is not None
        figures.embedding(folder / "features.png", features, anomalous[spread], title)


def telling_rows(scores: np.ndarray, anomalous: np.ndarray) -> np.ndarray:
    """Positions of the lowest and the highest scores among the normal and among the anomalous rows."""
    picked = []
    for kind in (False, True):
        rows = np.flatnonzero(anomalous == kind)
        ranked = rows[np.argsort(scores[rows], kind="stable")]
        picked += [ranked[:TELLING], ranked[max(TELLING, len(ranked) - TELLING) :]]
    return np.concatenate(picked)
