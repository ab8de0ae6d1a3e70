"""Anomalies made of normal rows, for data of which no anomalous row is known: a proxy, and no more than that."""

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from anomaly_bench.data.dataset import Dataset
from anomaly_bench.errors import SettingError

HELD_OUT = 0.2
"""Share of the rows that is held out where a data set has no test part of its own."""

MOST = 1000
"""Rows held out, and anomalies made of them, at most."""


def load(
    of: Dataset,
    name: str,
    image_size: int | None = None,
    fit: str | None = None,
    mean: float = 0.5,
    std: float = 0.5,
) -> Dataset:
    """The rows of `of`, all of them normal; of each held-out row an anomaly is made, in a class of its own.

    Held out is the test part, or a fifth of the rows where there is none. An anomaly is a held-out image with a
    rectangle from another one in it, a quarter to a half of each side long, at a place drawn without regard to where
    it was there (after CutPaste: Li and others, CVPR 2021), or a row in which one number at least, and each of the
    others with a chance of a half, is that of another row.

    Args:
        of: the data set without anomalies.
        name: of the new one.
        image_size, fit, mean, std: those of `of`; new files are prepared by them.
    """
    draw = np.random.RandomState(0)
    test = np.flatnonzero(~of.official_train)
    if not len(test):
        test = draw.permutation(len(of.x))[: round(HELD_OUT * len(of.x))]
    held = np.sort(draw.permutation(test)[:MOST])
    train = np.setdiff1d(np.flatnonzero(of.official_train), test)
    if len(held) < 2 or not len(train):
        raise SettingError(f"data={of.name}: {len(train)} rows train and {len(held)} are held out: too few")
    x = of.x[torch.from_numpy(held)]
    made = (pasted if x.dim() == 4 else exchanged)(x, draw)
    n_normal = len(train) + len(held)
    return replace(
        of,
        name=name,
        x=torch.cat([of.x[torch.from_numpy(train)], x, made]),
        classes=np.repeat([0, 1], [n_normal, len(made)]),
        class_names=("normal", "made_up"),
        official_train=np.arange(n_normal + len(made)) < len(train),
        source="synthetic",
        files=None,
        masks=None,
        note="its anomalies are made of normal rows, and say nothing of real ones",
    )


def pasted(x: Tensor, draw: np.random.RandomState) -> Tensor:
    """Images `[N, C, H, W]`, each with a rectangle from the image before it."""
    made, (height, width) = x.clone(), x.shape[2:]
    for number in range(len(x)):
        h, w = (max(1, round(side * draw.uniform(0.25, 0.5))) for side in (height, width))
        (top, left), (y, z) = ((draw.randint(height - h + 1), draw.randint(width - w + 1)) for _ in range(2))
        made[number, :, y : y + h, z : z + w] = x[number - 1, :, top : top + h, left : left + w]
    return made


def exchanged(x: Tensor, draw: np.random.RandomState) -> Tensor:
    """Rows `[N, D]`, each with about half of its numbers from the row before it in a random order."""
    order = draw.permutation(len(x))
    other = x[torch.from_numpy(order[np.argsort(order) - 1])]
    taken = draw.rand(*x.shape) < 0.5
    taken[np.arange(len(x)), draw.randint(x.shape[1], size=len(x))] = True
    return torch.where(torch.from_numpy(taken), other, x)
