"""A trained run on new files: images, or tables with the columns that it was trained on."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from anomaly_bench.compose import Trained, load_run
from anomaly_bench.data.dataset import Column
from anomaly_bench.data.folder import decode_files, list_images
from anomaly_bench.data.table import read_rows
from anomaly_bench.training.scoring import score_rows

BLOCK = 4096
"""Files decoded at once, so that memory is bounded."""


def score_files(folder: Path, files: Sequence[Path], device: str = "auto") -> pd.DataFrame:
    """Score images or tables with the detector of a finished run, prepared as the run's own data were.

    Args:
        folder: of the run.
        files: images, or folders that are searched for images; for a run on rows of numbers, tables.
        device: `auto`, `cpu`, `cuda`, `cuda:i`, `mps`.

    Returns:
        One line an image or row: `file`, for tables `row` (from 0), `score`, `verdict` (anomalous above the
        run's threshold) and `percentile`, the share of the run's training rows, 0 to 100, that score lower.
    """
    trained = load_run(folder, device)
    named, scores = (image_scores if trained.scaler is None else table_scores)(trained, files)
    return pd.DataFrame(
        named
        | {
            "score": scores,
            "verdict": np.where(scores > trained.metrics["threshold"], "anomalous", "normal"),
            "percentile": percentiles(scores, np.asarray(trained.run["training_scores"]["quantiles"])),
        }
    )


def image_scores(trained: Trained, files: Sequence[Path]) -> tuple[dict[str, Any], np.ndarray]:
    """Names and scores `[N]` of images."""
    data = trained.values["data"]
    fit = data.get("fit", "stretch") if data["image_size"] else None
    paths = list_images(files)
    scores = []
    for start in range(0, len(paths), BLOCK):
        x = decode_files(paths[start : start + BLOCK], tuple(trained.run["shape"]), fit)
        scores.append(scores_of(trained, x, data["mean"], data["std"]))
    return {"file": [str(path) for path in paths]}, np.concatenate(scores)


def table_scores(trained: Trained, files: Sequence[Path]) -> tuple[dict[str, Any], np.ndarray]:
    """Names and scores `[N]` of the rows of tables."""
    assert trained.scaler is not None
    columns = [
        Column(c) if isinstance(c, str) else Column(c[0], tuple(c[1:])) for c in trained.run["columns"]
    ]
    tables = [trained.scaler(read_rows(path, columns)) for path in files]
    named = {
        "file": [str(path) for path, x in zip(files, tables, strict=True) for _ in range(len(x))],
        "row": [row for x in tables for row in range(len(x))],
    }
    return named, np.concatenate([scores_of(trained, x) for x in tables])


def scores_of(trained: Trained, x: Tensor, mean: float = 0.5, std: float = 0.5) -> np.ndarray:
    """Scores `[N]` of images, with which their pixels are scaled, or of scaled rows."""
    rows = trained.trainer.rows(x, mean, std)
    trainer = trained.trainer
    scores = score_rows(
        trained.detector, rows, precision=trainer.precision, batch_size=256, fold=trainer.fold
    )
    return scores.numpy()


def percentiles(scores: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """The share of training rows below each score, in percent, from 101 quantiles of their scores."""
    return np.interp(scores, quantiles, np.linspace(0, 100, len(quantiles))).round(1)
