"""A data set in memory, and its fingerprint."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from anomaly_bench.errors import SettingError


class Column(NamedTuple):
    """A column of a table: a number, or a category that becomes one 0/1 column for each of its values."""

    name: str
    categories: tuple[str, ...] | None = None  # None for numbers


@dataclass(frozen=True)
class Dataset:
    """A named data set. It knows nothing of anomalies.

    Attributes:
        name: as in `data=`.
        x: `uint8` images `[N, C, H, W]` or `float32` rows `[N, D]`.
        classes: int64 `[N]`, the class of each row, an index into `class_names`.
        class_names: one a class; a sub-class is written `class/subclass`.
        official_train: bool `[N]`, True for the rows of the data set's own training part.
        source: where it came from: `torchvision`, `folder`, `scikit-learn`, `synthetic`, `file NAME`,
            or what a prepared file says of itself, else `prepared file NAME`.
        files: paths relative to the data set's folder, one a row, where the rows are files; bytes that are no text are
            spelled out in them and in class names.
        mean, std: with which pixels on [0, 1] are scaled for a detector.
        columns: of the table that rows of numbers were made from; NaN in `x` is a missing number.
        scale: how rows of numbers are scaled once a split is known: a kind of `data.scaling`.
        note: what a reader of results must know of the data, in a sentence.
        masks: bool `[N, H, W]`, the marked pixels of each image, where a data set marks any.
    """

    name: str
    x: Tensor
    classes: np.ndarray
    class_names: tuple[str, ...]
    official_train: np.ndarray
    source: str
    files: tuple[str, ...] | None = None
    mean: float = 0.5
    std: float = 0.5
    columns: tuple[Column, ...] | None = None
    scale: str | None = None
    note: str | None = None
    masks: np.ndarray | None = None

    def __post_init__(self) -> None:
        if not self.std > 0:
            raise SettingError(f"data.std={self.std}: must be above 0, for pixels are divided by it")

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row: `(C, H, W)` or `(D,)`."""
        return tuple(self.x.shape[1:])

    def fingerprint(self) -> str:
        """A hash of rows, classes, parts and masks: equal content gives equal text, whatever the source."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.blake2b(digest_size=12)
        digest.update(repr((tuple(self.x.shape), str(self.x.dtype), self.class_names)).encode())
        for part in (self.x.numpy(), self.classes.astype("<i8"), self.official_train.astype("u1")):
            digest.update(np.ascontiguousarray(part).data)
        if self.masks is not None:
            digest.update(np.packbits(self.masks).data)
        return digest.hexdigest()


def resized(images: np.ndarray, size: int | None) -> Tensor:
    """`uint8` images `[N, H, W, C]` as a contiguous tensor `[N, C, size, size]`.

    Resizing is bilinear and antialiased; `size=None` keeps them as they are.
    """
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    if size is None or x.shape[2:] == (size, size):
        return x.contiguous()
    resize = torch.nn.functional.interpolate
    parts = [resize(part, (size, size), mode="bilinear", antialias=True) for part in x.split(4096)]
    return torch.cat(parts).contiguous()
