"""What every loader needs of its settings: where data lies, which sizes are allowed, which rows are kept."""

import os
from pathlib import Path

import numpy as np

from anomaly_bench.errors import SettingError


def user_cache() -> Path:
    """The folder `anomaly-bench` in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "anomaly-bench"


def data_root(root: str | Path | None) -> Path:
    """The folder of all data sets: `root`, else `$ANOMALY_BENCH_DATA`, else the user's cache."""
    chosen = root or os.environ.get("ANOMALY_BENCH_DATA")
    return Path(chosen).expanduser() if chosen else user_cache()


def check_image_size(image_size: int | None) -> None:
    """Refuse an `image_size` that is neither null nor a number of pixels."""
    if image_size is not None and not (type(image_size) is int and 1 <= image_size <= 4096):
        raise SettingError(f"data.image_size={image_size}: allowed are 1 to 4096 pixels, or null")


def kept_rows(classes: np.ndarray, official_train: np.ndarray, limit: int | None) -> np.ndarray:
    """Rows, ascending, of at most `limit` rows of each part, spread evenly over the classes.

    Of each class the first ones are kept; a class with too few leaves its share to the others.

    Args:
        classes: int64 `[N]`.
        official_train: bool `[N]`.
        limit: rows kept of the training part, and of the test part; None keeps all.
    """
    if limit is None:
        return np.arange(len(classes))
    if type(limit) is not int or limit < 1:
        raise SettingError(f"data.limit={limit}: allowed is a number of rows from 1, or null for all")
    kept = [_spread(np.flatnonzero(part), classes, limit) for part in (official_train, ~official_train)]
    return np.sort(np.concatenate(kept))


def _spread(rows: np.ndarray, classes: np.ndarray, limit: int) -> np.ndarray:
    rank = np.zeros(len(rows), dtype=np.int64)  # of each row within its class
    for index in np.unique(classes[rows]):
        members = classes[rows] == index
        rank[members] = np.arange(members.sum())
    return rows[np.lexsort((classes[rows], rank))[:limit]]
