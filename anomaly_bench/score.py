"""A trained run on new files: images, or tables with the columns that it was trained on."""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import starmap
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from anomaly_bench.data.columns import numbered
from anomaly_bench.data.dataset import Column
from anomaly_bench.data.folder import list_images
from anomaly_bench.data.pool import decode_each, named, unreadable
from anomaly_bench.data.settings import as_text
from anomaly_bench.data.table import read_rows
from anomaly_bench.data.table_files import list_tables
from anomaly_bench.errors import SettingError
from anomaly_bench.overlays import Overlays
from anomaly_bench.trained import Trained, load_run
from anomaly_bench.training.determinism import deterministic
from anomaly_bench.training.scoring import scoring

log = logging.getLogger("anomaly_bench")

BLOCK = 64 << 20
"""Bytes of decoded pixels held at once; however many the files, no more are."""

BATCH = 256
"""Rows scored at once."""

RULES = "quantile=SHARE, contamination=SHARE, max_train"


@dataclass(frozen=True)
class Scored:
    """What scoring came to.

    Attributes:
        table: one line an image or row: `file`, for tables `row` (from 0), `score`, `verdict` (`anomalous`
            above the threshold, else `normal`), `percentile` (the share of the run's training rows, 0 to
            100, that score lower) and, where maps were drawn, `map`, the file of each.
        threshold: above which a row is called anomalous.
        rule: how the threshold was found, in words.
        left_out: which image files could not be read, and why, in words; empty where all could.
    """

    table: pd.DataFrame
    threshold: float
    rule: str
    left_out: str

    @property
    def n_anomalous(self) -> int:
        """How many are called anomalous."""
        return self.table["verdict"].tolist().count("anomalous")


class Source(NamedTuple):
    """What is to be scored, block by block: the names of its rows, and the rows as a data set has them."""

    total: int | None  # rows, where that is known
    unit: str
    blocks: Iterator[tuple[pd.DataFrame, Tensor]]
    failures: list[tuple[str, str]]  # path and reason of files that the blocks so far left out


def score_files(
    folder: Path,
    files: Sequence[Path],
    device: str = "auto",
    threshold: str | None = None,
    maps: Path | None = None,
    packages: Sequence[str] = (),
) -> Scored:
    """Score images or tables with the detector of a finished run, prepared as the run's own data were.

    Args:
        folder: of the run.
        files: images, or folders that are searched for images; for a run on rows of numbers, tables.
        device: `auto`, `cpu`, `cuda`, `cuda:i`, `mps`.
        threshold: `quantile=0.99`: above that quantile of the run's training scores; `max_train`: above all of
            them; `contamination=0.05`: so large a share of these files is anomalous. None is the run's own.
        maps: folder for a heat map over each image, as PNG.
        packages: that the run's method may come from, beside this one; see `load_run`.

    Raises:
        SettingError: no finished run, no such files, none that can be read, a threshold that cannot be, a method
            without maps.
    """
    kind, share = rule_of(threshold)
    trained = load_run(folder, device, packages)
    overlays = overlays_in(maps, trained) if maps is not None else None
    source = (images if trained.scaler is None else tables)(trained, files)
    warn_of_batch_statistics(trained)
    with deterministic(trained.values.get("deterministic") is True):
        table = scored(trained, source, overlays)
    # As the run compares them: a threshold may lie between two float32.
    scores = table["score"].to_numpy(np.float64)
    levels, quantiles = training_quantiles(trained.run, folder)
    if kind is None:
        bound, words = own_threshold(trained.metrics, folder), "the run's own"
    else:
        bound, words = threshold_by(kind, share, scores, levels, quantiles)
    place = list(table.columns).index("score") + 1
    table.insert(place, "verdict", np.where(scores > bound, "anomalous", "normal"))
    table.insert(place + 1, "percentile", percentiles(scores, levels, quantiles))
    left_out = named(source.failures, source.total or 0) if source.failures else ""
    return Scored(table, bound, words, left_out)


def threshold_by(
    kind: str, share: float, scores: np.ndarray, levels: np.ndarray, quantiles: np.ndarray
) -> tuple[float, str]:
    """The threshold by a rule of `rule_of`, of new scores or of quantiles of the training scores; and it in words."""
    if kind == "max_train":
        return float(quantiles[-1]), "the highest training score"
    if kind == "quantile":
        return float(np.interp(share, levels, quantiles)), f"{100 * share:.4g} % of the training scores"
    from anomaly_bench.metrics import share_threshold  # imports scikit-learn, a second

    return share_threshold(scores, share), f"{100 * share:.4g} % of these rows"


def percentiles(scores: np.ndarray, levels: np.ndarray, quantiles: np.ndarray) -> np.ndarray:
    """The share of training rows that score lower, 0 to 100, by the quantiles of theirs at ascending levels."""
    first = np.searchsorted(quantiles, scores).clip(max=len(quantiles) - 1)
    shared = quantiles[first] == scores  # by training rows, which are not lower
    return (100 * np.where(shared, levels[first], np.interp(scores, quantiles, levels))).round(1)


def warn_of_batch_statistics(trained: Trained) -> None:
    """Say so where the run's own scores are not those of single rows."""
    if trained.values["evaluation"]["batch_norm"] == "batch":
        log.warning(
            "evaluation.batch_norm=batch: the run scored by the statistics of its test batches; new files are "
            "scored one by one, by those of training, and its threshold may not fit them"
        )


def rule_of(threshold: str | None) -> tuple[str | None, float]:
    """Name and share of a threshold's rule as it is typed; a rule that cannot be is a SettingError."""
    if threshold is None:
        return None, 0.0
    name, _, value = threshold.partition("=")
    if name == "max_train" and not value:
        return name, 1.0
    try:
        share = float(value)
    except ValueError:
        share = -1.0
    if name in ("quantile", "contamination") and 0 <= share <= 1:
        return name, share
    raise SettingError(f"--threshold {threshold}: allowed are {RULES}, where SHARE is from 0 to 1")


def own_threshold(metrics: dict[str, Any], folder: Path) -> float:
    """The threshold in `metrics.json`."""
    if not isinstance(bound := metrics.get("threshold"), int | float):
        raise SettingError(
            f"{folder / 'metrics.json'}: its threshold is {bound!r}; give one with --threshold RULE"
        )
    return float(bound)


def training_quantiles(run: dict[str, Any], folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Levels, from 0 to 1, and the quantiles of training scores there, as `run.json` has them."""
    try:
        kept = run["training_scores"]
        quantiles = np.asarray(kept["quantiles"], dtype=float)
        levels = np.asarray(kept.get("levels", np.linspace(0, 1, len(quantiles))), dtype=float)
        if levels.ndim != 1 or levels.shape != quantiles.shape or not len(levels):
            raise ValueError(f"{levels.shape} levels and {quantiles.shape} quantiles")
        if not all(np.isfinite(one).all() and (np.diff(one) >= 0).all() for one in (levels, quantiles)):
            raise ValueError("they do not rise")
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise SettingError(f"{folder / 'run.json'}: not the training_scores of a run: {error}") from error
    return levels, quantiles


def images(trained: Trained, files: Sequence[Path]) -> Source:
    """Images, decoded as for training, a block at a time."""
    data, shape = trained.values["data"], tuple(trained.run["shape"])
    fit = data.get("fit", "stretch") if data.get("image_size") else None
    paths = list_images(files)
    size = max(1, min(4096, BLOCK // prod(shape)))
    parts = (paths[start : start + size] for start in range(0, len(paths), size))
    failures: list[tuple[str, str]] = []

    def block(part: list[Path]) -> tuple[pd.DataFrame, Tensor]:
        x, failed = decode_each(part, shape, fit)
        if failed:
            bad = {path for path, _ in failed}
            good = [number for number, path in enumerate(part) if str(path) not in bad]
            part, x = [part[number] for number in good], x[good]
            failures.extend(failed)
        return pd.DataFrame({"file": [as_text(str(path)) for path in part]}), x

    some = filter(lambda block: len(block[0]), map(block, parts))
    return Source(len(paths), " files", some, failures)


def tables(trained: Trained, files: Sequence[Path]) -> Source:
    """The scaled rows of tables, a table at a time."""
    assert trained.scaler is not None
    scaler = trained.scaler
    columns = columns_of(trained.run)

    def block(path: Path) -> tuple[pd.DataFrame, Tensor]:
        x = scaler(read_rows(path, columns))
        return pd.DataFrame({"file": as_text(str(path)), "row": np.arange(len(x))}), x

    return Source(None, " rows", map(block, list_tables(files)), [])


def columns_of(run: dict[str, Any]) -> list[Column]:
    """The columns that a run on rows of numbers was trained on, as `run.json` has them; numbered without names."""
    kept = run.get("columns") or numbered(run["shape"][0])
    if not isinstance(kept, list):
        raise SettingError("run.json names no columns: not of a run on rows of numbers")
    lists = [[one] if isinstance(one, str) else one for one in kept]
    if not all(isinstance(one, list) and one and all(isinstance(word, str) for word in one) for one in lists):
        raise SettingError("run.json: its columns are not what runs write")
    return [
        Column(one[0], tuple(one[1:]) if isinstance(was, list) else None)
        for one, was in zip(lists, kept, strict=True)
    ]


def scored(trained: Trained, source: Source, overlays: Overlays | None) -> pd.DataFrame:
    """Names, `score` and, with overlays, `map` of all rows."""
    trainer, data = trained.trainer, trained.values["data"]

    def score(names: pd.DataFrame, x: Tensor) -> pd.DataFrame:
        rows = trainer.rows(x, data.get("mean", 0.5), data.get("std", 0.5))
        scores, drawn = [], []
        for batch in rows.in_order(BATCH):
            if overlays is None:
                scores.append(trained.detector.score(batch.x).float().cpu())
                continue
            said = trained.detector.explain(batch.x)
            assert said.map is not None
            scores.append(said.score.float().cpu())
            part = slice(len(drawn), len(drawn) + len(batch.x))
            drawn += overlays.draw(names["file"][part], x[part].numpy(), said.map.float().cpu().numpy())
        names["score"] = torch.cat(scores).numpy()
        if wrong := int((~np.isfinite(names["score"])).sum()):
            raise SettingError(
                f"{wrong} of {len(names)} scores are not finite, the first of "
                f"{names['file'][(~np.isfinite(names['score'])).argmax()]}"
            )
        return names if overlays is None else names.assign(map=drawn)

    with (
        scoring(trained.detector, trainer.device, precision=trainer.precision, fold=trainer.fold),
        tqdm(total=source.total, desc="scoring", unit=source.unit, disable=None, leave=False) as bar,
    ):
        parts = []
        for part in starmap(score, source.blocks):  # which lets go of a block before it takes the next
            parts.append(part)
            bar.update(len(part))
    if not parts:
        raise unreadable(source.failures, len(source.failures))
    return pd.concat(parts, ignore_index=True)


def overlays_in(folder: Path, trained: Trained) -> Overlays:
    """Where maps are drawn; a run whose method has none is a SettingError."""
    trainer, shape = trained.trainer, tuple(trained.run["shape"])
    x = torch.zeros(1, *shape, dtype=torch.uint8 if trained.scaler is None else torch.float32)
    with scoring(trained.detector, trainer.device, precision=trainer.precision, fold=trainer.fold):
        shown = trained.detector.explain(
            trainer.rows(x, 0.5, 0.5).take(torch.tensor([0], device=trainer.device))
        )
    if shown.map is None:
        what = "rows of numbers have" if len(shape) == 1 else f"model={trained.run['model']} has"
        raise SettingError(f"--maps {folder}: {what} no anomaly map; leave --maps out")
    if folder.exists() and not folder.is_dir():
        raise SettingError(f"--maps {folder}: it is a file; a folder is needed")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(f"--maps {folder}: no folder can be made there: {error.strerror}") from error
    return Overlays(folder)
