"""A trained run on new files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from anomaly_bench.compose import load_run
from anomaly_bench.data.folder import decode_files, list_images
from anomaly_bench.errors import SettingError
from anomaly_bench.training.scoring import score_rows

BLOCK = 4096
"""Files decoded at once, so that memory is bounded."""


def score_files(folder: Path, files: Sequence[Path], device: str = "auto") -> pd.DataFrame:
    """Score images with the detector of a finished run, prepared as the run's own data were.

    Args:
        folder: of the run.
        files: images, or folders that are searched for images.
        device: `auto`, `cpu`, `cuda`, `cuda:i`, `mps`.

    Returns:
        One line a file: `file`, `score`, `verdict` (anomalous above the run's threshold) and `percentile`,
        the share of the run's training rows, 0 to 100, that score lower.
    """
    trained = load_run(folder, device)
    shape, data = tuple(trained.run["shape"]), trained.values["data"]
    fit = data.get("fit", "stretch") if data["image_size"] else None
    if len(shape) != 3:
        raise SettingError(f"{folder}: its detector takes rows of {shape[0]} numbers, not images")
    paths = list_images(files)
    scores = []
    for start in range(0, len(paths), BLOCK):
        x = decode_files(paths[start : start + BLOCK], shape, fit)
        rows = trained.trainer.rows(x, data["mean"], data["std"])
        scores.append(
            score_rows(
                trained.detector,
                rows,
                precision=trained.trainer.precision,
                batch_size=256,
                fold=trained.trainer.fold,
            )
        )
    joined = torch.cat(scores).numpy()
    return pd.DataFrame(
        {
            "file": [str(path) for path in paths],
            "score": joined,
            "verdict": np.where(joined > trained.metrics["threshold"], "anomalous", "normal"),
            "percentile": percentiles(joined, np.asarray(trained.run["training_scores"]["quantiles"])),
        }
    )


def percentiles(scores: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """The share of training rows below each score, in percent, from 101 quantiles of their scores."""
    return np.interp(scores, quantiles, np.linspace(0, 100, len(quantiles))).round(1)
