"""What one run's detector reached: its scores, and every number that comes of them and of the labels."""

import logging
from typing import Any

import numpy as np
import torch

from anomaly_bench import metrics, record
from anomaly_bench.compose import Job
from anomaly_bench.detector import Detector
from anomaly_bench.rows import Rows
from anomaly_bench.training.checkpoint import Epoch
from anomaly_bench.training.control import untrained
from anomaly_bench.training.scoring import map_rows, score_rows, scoring

log = logging.getLogger("anomaly_bench")

TRAINING_SAMPLE = 1024
"""Training rows that are scored for the threshold and for the percentiles of new files."""

HINDSIGHT = "best F1, has seen the test labels"

CONTROLS = tuple(f"{name}_untrained" for name in ("auroc", "f1", "auroc_pixel", "aupro"))
"""What there may be of the untrained control: its F1 at a known ratio, its areas where pixels are marked."""


def test_order(job: Job) -> np.ndarray:
    """The order in which test rows are put into batches, as positions among the split's test rows."""
    if job.evaluation["test_order"] == "by_class":
        return np.argsort(job.split.anomalous, kind="stable")
    return some(np.arange(len(job.split.test)), len(job.split.test), job.seed)


def some(rows: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Up to `number` of the rows, shuffled; the same on every machine, since RandomState's streams are frozen."""
    return np.random.RandomState(seed).permutation(rows)[:number]


def scores_of(job: Job, detector: Detector, rows: Rows) -> np.ndarray:
    """Scores `[N]` of rows as `evaluation` has them."""
    scores = score_rows(
        detector,
        rows,
        precision=job.trainer.precision,
        batch_size=job.evaluation["batch_size"],
        batch_statistics=job.evaluation["batch_norm"] == "batch",
        fold=job.trainer.fold,
    )
    return scores.numpy()


def validated(job: Job, detector: Detector) -> dict[str, float]:
    """The AUROC on validation rows, where there are some: what a sweeper maximises."""
    if job.validation is None:
        return {}
    scores = scores_of(job, detector, job.rows(job.validation.rows))
    return {"auroc_validation": metrics.auroc(scores, job.validation.anomalous)}


def pixel_numbers(job: Job, detector: Detector, test: Rows, anomalous: np.ndarray) -> dict[str, float]:
    """How well the anomaly maps find marked pixels, on normal rows and on those with a mark; nothing without either."""
    if job.dataset.masks is None:
        return {}
    masks = job.dataset.masks[job.split.test[test_order(job)]]
    known = np.flatnonzero(~anomalous | masks.any((1, 2)))
    if not masks[known].any():
        return {}
    rows = test.subset(torch.from_numpy(known).to(test.device))
    maps = map_rows(
        detector,
        rows,
        precision=job.trainer.precision,
        batch_size=job.evaluation["batch_size"],
        batch_statistics=job.evaluation["batch_norm"] == "batch",
    )
    return {} if maps is None else metrics.pixel_areas(maps.numpy(), masks[known])


def control_numbers(job: Job, train: Rows, test: Rows, anomalous: np.ndarray) -> dict[str, float]:
    """AUROC of the untrained control, and what else there is of it, computed once and kept in `run.json`."""
    kept = record.read_json(job.folder / "run.json")
    if "auroc_untrained" not in kept:
        detector, kind = untrained(job.build, train, job.seed)
        scores = scores_of(job, detector, test)
        kept |= {"auroc_untrained": metrics.auroc(scores, anomalous), "control": kind}
        areas = pixel_numbers(job, detector, test, anomalous)
        kept |= {f"{name}_untrained": area for name, area in areas.items()}
        if (ratio := job.split.ratio) is not None:
            by_labels = job.evaluation["hindsight"]  # as the trained detector's threshold is
            threshold = (
                metrics.best_f1_threshold(scores, anomalous)
                if by_labels
                else metrics.share_threshold(scores, ratio)
            )
            kept["f1_untrained"] = metrics.measure(scores, anomalous, threshold)["f1"]
        record.write_json(job.folder / "run.json", kept)
    return {name: kept[name] for name in CONTROLS if name in kept}


def thresholds_of(
    job: Job, detector: Detector, scores: np.ndarray, anomalous: np.ndarray, training_scores: np.ndarray
) -> dict[str, float]:
    """Above which a row is called anomalous, by how it was found; the first needs no labels.

    It is what leaves the known ratio of the test rows above it, where the protocol knows one, else the method's
    own, where it has one, else a quantile of training scores. The other, in hindsight, is that of the best F1.
    """
    if job.split.ratio is not None:
        name = f"the known ratio, {100 * job.split.ratio:.3g} % of the test rows"
        first = metrics.share_threshold(scores, job.split.ratio)
    else:
        name, first = threshold_of(detector, training_scores, job.evaluation["quantile"])
    return {name: first, HINDSIGHT: metrics.best_f1_threshold(scores, anomalous)}


def threshold_of(detector: Detector, training_scores: np.ndarray, quantile: float) -> tuple[str, float]:
    """How a threshold is found where nothing is known of the test rows, in words, and the threshold.

    It is the method's own, where it has one, else that quantile of training scores.
    """
    if (own := detector.own_threshold()) is not None:
        return "the method's own", own
    return f"{100 * quantile:g} % of the training scores", metrics.quantile_threshold(
        training_scores, quantile
    )


def best_epoch(history: list[Epoch]) -> dict[str, float]:
    """The best evaluated epoch, from 1, and its test AUROC, which has seen the labels; nothing where none was."""
    evaluated = [(line.auroc, -number) for number, line in enumerate(history, 1) if line.auroc is not None]
    if not evaluated:
        return {}
    auroc, number = max(evaluated)
    return {"auroc_best_epoch": auroc, "best_epoch": -number}


def in_hindsight(
    job: Job, detector: Detector, train: Rows, test: Rows, anomalous: np.ndarray
) -> dict[str, Any]:
    """The best AUROC of the hyper-parameters that the method lets the test labels choose, and which these are."""
    if not job.evaluation["hindsight"]:
        return {}
    with scoring(detector, test.device, precision=job.trainer.precision, fold=job.trainer.fold):
        tried = [
            (metrics.auroc(scores.cpu().numpy(), anomalous), values)
            for values, scores in detector.in_hindsight(train, test)
        ]
    if not tried:
        return {}
    auroc, values = max(tried, key=lambda one: one[0])
    return {"auroc_hindsight": auroc, "hindsight": values, "hindsight_tried": len(tried)}


def warn_of_flat(scores: np.ndarray) -> None:
    """Say so where the scores hardly tell one row from another."""
    distinct = len(np.unique(scores)) / len(scores)
    if distinct < 0.1:
        log.warning(
            "only %.1f %% of the scores are distinct: the detector may not have learned", 100 * distinct
        )
