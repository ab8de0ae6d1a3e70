"""Scaling of rows of numbers: fitted on some rows, then applied to any."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from anomaly_bench.errors import SettingError

SCALES = ("minmax", "standard", None)

BLOCK = 1 << 22
"""Numbers that are held in float64 at once."""

NO_SPREAD = 1e-12
"""Of the size of float64 numbers: a smaller spread is left by rounding."""


class Scaler(NamedTuple):
    """`(x - shift) * factor`, `fill` in place of missing numbers, `[D]` each, of the type of the rows fitted to."""

    fill: Tensor
    shift: Tensor
    factor: Tensor

    def __call__(self, x: Tensor) -> Tensor:
        """Rows `[N, D]` scaled, without missing numbers; `x` stays as it is."""
        return torch.where(x.isnan(), self.fill, x).sub_(self.shift).mul_(self.factor)


def moments(x: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Mean and deviation of the columns of `[N, D]`, in float64, of some columns at a time."""
    for part in x.split(max(1, BLOCK // len(x)), dim=1):
        deviation, mean = torch.std_mean(part.double(), 0, correction=0)
        yield mean, deviation


def fit_scaler(x: Tensor, scale: str | None) -> Scaler:
    """The scaler of rows `[N, D]`, float32 or float64, in which NaN is a missing number.

    `minmax` maps the rows' range onto [0, 1], `standard` to a mean of 0 and a deviation of 1, None leaves
    numbers as they are. A column without spread, or with too little to divide by, is shifted only; one with too
    much for float32 stays as it is. A missing number becomes the rows' median of its column, 0 where these rows
    have none.
    """
    if scale not in SCALES:
        raise SettingError(f"data.scale={scale}: allowed are minmax, standard, null")
    # Of every column: one that has no gap in these rows may have some in others.
    fill = torch.cat([part.nanmedian(0).values for part in x.split(max(1, BLOCK // len(x)), 1)]).nan_to_num(0)
    if x.isnan().any():
        x = torch.where(x.isnan(), fill, x)
    if scale == "minmax":
        shift = x.amin(0)
        spread = x.amax(0) - shift
    elif scale == "standard":
        shift, spread = (torch.cat(parts).to(x.dtype) for parts in zip(*moments(x), strict=True))
        # Rounding leaves a constant column a trace of spread.
        spread = torch.where(x.amax(0) == x.amin(0), 0, spread)
    else:
        shift, spread = x.new_zeros(x.shape[1]), x.new_zeros(x.shape[1])
    if x.dtype == torch.float64:
        spread = torch.where(spread < NO_SPREAD * x.abs().amax(0), 0, spread)
    factor = 1 / spread
    return Scaler(
        fill,
        torch.where(spread.isfinite(), shift, 0),
        torch.where((factor > 0) & factor.isfinite(), factor, 1),
    )
