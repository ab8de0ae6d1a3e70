"""Scores and truth turned into numbers: a higher score is more anomalous, and anomalous is positive."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike
from scipy.ndimage import label
from sklearn.metrics import (
    auc,
    average_precision_score,
    confusion_matrix,
    precision_recall_curve,
    roc_auc_score,
    roc_curve,
)

from anomaly_bench.errors import SettingError

PRO_LIMIT = 0.3
"""Share of unmarked pixels called anomalous up to which the overlap with regions is measured."""


def auroc(scores: ArrayLike, anomalous: ArrayLike) -> float:
    """Area under the ROC curve of `scores` `[N]` against `anomalous` (bool `[N]`), 0 to 1; 0.5 is chance.

    Raises SettingError where the rows are all normal or all anomalous, or a score is not finite.
    """
    scores, anomalous = _checked(scores, anomalous)
    return float(roc_auc_score(anomalous, scores))


def measure(scores: ArrayLike, anomalous: ArrayLike, threshold: float) -> dict[str, float]:
    """Every metric of `scores` `[N]` against `anomalous` (bool `[N]`), each 0 to 1 but for the threshold.

    A row is called anomalous where its score is above `threshold`. `aupr_out` is the area under the
    precision-recall curve by trapezoids with the anomalies positive, `aupr_in` the same with the normal rows
    positive and the scores negated; `average_precision` is the step-wise sum, with the anomalies positive.
    `eer` is the false positive rate where it equals the false negative rate, by linear interpolation on the
    ROC curve. `precision` is 0 where nothing is called anomalous. Raises as `auroc` does.
    """
    scores, anomalous = _checked(scores, anomalous)
    true_normal, false_anomalous, _, true_anomalous = confusion_matrix(anomalous, scores > threshold).ravel()
    called = true_anomalous + false_anomalous
    numbers = {
        "auroc": roc_auc_score(anomalous, scores),
        "aupr_in": _aupr(~anomalous, -scores),
        "aupr_out": _aupr(anomalous, scores),
        "average_precision": min(1.0, average_precision_score(anomalous, scores)),  # its sum may round above
        "eer": _equal_error_rate(anomalous, scores),
        "threshold": threshold,
        "precision": true_anomalous / called if called else 0,
        "recall": true_anomalous / anomalous.sum(),
        "specificity": true_normal / (~anomalous).sum(),
        "f1": 2 * true_anomalous / (called + anomalous.sum()),
    }
    return {name: float(number) for name, number in numbers.items()}


def auroc_interval(
    scores: ArrayLike, anomalous: ArrayLike, *, resamples: int = 2000, seed: int = 0
) -> tuple[float, float]:
    """Ends of the 95 % interval of the AUROC by a bootstrap that resamples normal and anomalous rows apart.

    It tells how far the AUROC moves with the choice of the test rows, not with the seed of the training. The
    ends are the 2.5 and 97.5 % quantiles of `resamples` AUROCs. Raises as `auroc` does.
    """
    scores, anomalous = _checked(scores, anomalous)
    normal, abnormal = np.sort(scores[~anomalous]), np.sort(scores[anomalous])
    first, last = np.searchsorted(normal, abnormal), np.searchsorted(normal, abnormal, "right")
    rng, n, m = np.random.default_rng(seed), len(normal), len(abnormal)
    below = np.zeros(n + 1, np.int64)  # drawn normal rows below each place in their order
    areas = np.empty(resamples)
    for number in range(resamples):
        np.cumsum(np.bincount(rng.integers(n, size=n, dtype=np.uint32), minlength=n), out=below[1:])
        beaten = below[first] + below[last]  # by each anomalous row, counted twice so that a tie is a half
        areas[number] = beaten[rng.integers(m, size=m, dtype=np.uint32)].sum()
    low, high = np.quantile(areas / (2 * n * m), (0.025, 0.975))
    return float(low), float(high)


def per_class(
    scores: ArrayLike, anomalous: ArrayLike, classes: ArrayLike, class_names: Sequence[str]
) -> dict[str, float]:
    """AUROC of each anomalous class against all normal rows, by class name.

    `classes` are int `[N]`, indices into `class_names`. Raises as `auroc` does.
    """
    scores, anomalous = _checked(scores, anomalous)
    classes = np.asarray(classes)
    areas = {}
    for number in np.unique(classes[anomalous]):
        rows = ~anomalous | (classes == number)
        areas[class_names[number]] = float(roc_auc_score(anomalous[rows], scores[rows]))
    return areas


def pixel_areas(maps: ArrayLike, masks: ArrayLike) -> dict[str, float]:
    """How well anomaly maps `[N, H, W]` find the marked pixels (bool `[N, H, W]`), each 0 to 1.

    `auroc_pixel` is the AUROC of all pixels. `aupro` is the area under the mean share found of each marked region,
    against the share of unmarked pixels called anomalous from 0 to `PRO_LIMIT`, divided by that limit; regions touch
    by edges or corners (Bergmann and others, IJCV 2021). Raises as `auroc` does.
    """
    masks = np.asarray(masks, bool)
    scores, marked = _checked(np.ravel(maps), masks.ravel())
    shares = np.concatenate([_shares_of_regions(mask) for mask in masks])
    order = np.argsort(-scores, kind="stable")
    falls = np.flatnonzero(np.diff(scores[order], append=-np.inf))  # the last of equal scores
    found = np.r_[0, np.cumsum(shares[order])[falls]] / shares.sum()
    false = np.r_[0, np.cumsum(~marked[order])[falls]] / (~marked).sum()
    grid = np.r_[false[false <= PRO_LIMIT], PRO_LIMIT]
    area = np.trapezoid(np.r_[found[false <= PRO_LIMIT], np.interp(PRO_LIMIT, false, found)], grid)
    return {"auroc_pixel": float(roc_auc_score(marked, scores)), "aupro": min(1.0, float(area / PRO_LIMIT))}


def _shares_of_regions(mask: np.ndarray) -> np.ndarray:
    """What each pixel `[H * W]` is of its region; 0 outside of any."""
    regions = np.empty(mask.shape, np.int32)
    label(mask, np.ones((3, 3)), regions)
    sizes = np.bincount(regions.ravel())
    return np.where(mask, 1 / sizes[regions], 0).ravel()


def best_f1_threshold(scores: ArrayLike, anomalous: ArrayLike) -> float:
    """The threshold with the highest F1 on these very rows: it has seen their labels.

    It is the highest score still called normal, or just below all scores where every row is best called
    anomalous. Raises as `auroc` does.
    """
    scores, anomalous = _checked(scores, anomalous)
    precision, recall, thresholds = precision_recall_curve(anomalous, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, np.finfo(float).tiny)
    best = int(f1[:-1].argmax())  # the last point of the curve has no threshold
    # scikit-learn calls a row positive at its threshold, we above it: the next lower score says the same
    return float(thresholds[best - 1]) if best else float(np.nextafter(thresholds[0], -np.inf))


def quantile_threshold(training_scores: ArrayLike, quantile: float) -> float:
    """The score below which a share `quantile` (0 to 1) of the training rows lies; needs no labels.

    Raises SettingError for a quantile outside [0, 1] and for scores that are not finite.
    """
    if not 0 <= quantile <= 1:
        raise SettingError(f"the threshold's quantile is {quantile}; it must lie between 0 and 1")
    return float(np.quantile(_finite(training_scores), quantile))


def share_threshold(scores: ArrayLike, share: float) -> float:
    """The threshold that leaves a share (0 to 1) of these very rows above it; needs no labels.

    Rows of equal scores at the cut are all above it or all below, whichever comes nearer to the share. Raises as
    `quantile_threshold` does.
    """
    bound = quantile_threshold(scores, 1 - share)
    scores = _finite(scores)
    cut = scores[scores <= bound].max()
    at_cut = int((scores == cut).sum())
    lacking = share * len(scores) - (scores > bound).sum()
    if (at_cut > 1 or share == 1) and lacking > abs(at_cut - lacking):
        return float(np.nextafter(cut, -np.inf))
    return bound


def _checked(scores: ArrayLike, anomalous: ArrayLike) -> tuple[np.ndarray, np.ndarray]:
    """Scores as finite float64 `[N]` and truth as bool `[N]` with both kinds in it."""
    scores, anomalous = _finite(scores), np.asarray(anomalous, bool)
    if scores.shape != anomalous.shape:
        raise ValueError(f"{scores.shape} scores do not go with {anomalous.shape} labels")
    if anomalous.all() or not anomalous.any():
        kind = "anomalous" if anomalous.all() else "normal"
        raise SettingError(
            f"all {len(scores)} test rows are {kind}: an AUROC needs normal and anomalous rows"
        )
    return scores, anomalous


def _finite(scores: ArrayLike) -> np.ndarray:
    scores = np.asarray(scores, np.float64)
    if scores.ndim != 1 or not len(scores):
        raise ValueError(
            f"scores have the shape {scores.shape}; one number a row is needed, for one row or more"
        )
    if wrong := int((~np.isfinite(scores)).sum()):
        raise SettingError(f"{wrong} of {len(scores)} scores are not finite: the detector has diverged")
    return scores


def _aupr(positive: np.ndarray, scores: np.ndarray) -> float:
    precision, recall, _ = precision_recall_curve(positive, scores)
    return min(1.0, float(auc(recall, precision)))  # whose sum may round above


def _equal_error_rate(anomalous: np.ndarray, scores: np.ndarray) -> float:
    false_positive, true_positive, _ = roc_curve(anomalous, scores)
    # false positive minus false negative rate: strictly rising along the curve, from -1 to 1
    return float(np.interp(0, false_positive + true_positive - 1, false_positive))
