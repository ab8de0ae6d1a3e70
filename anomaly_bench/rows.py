"""Rows of a data set on one device, handed out as float batches: all that a detector ever sees of the data."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Batch(NamedTuple):
    """One batch of training rows; labels never come this far."""

    x: Tensor  # [B, *shape] float32
    index: Tensor  # [B] int64, row numbers in the training set


class Rows:
    """Rows that stay where they are, as they are, and become float32 a batch at a time.

    Args:
        x: `uint8` images `[N, C, H, W]`, scaled to `(x / 255 - mean) / std` when taken, or `float32` rows
            `[N, D]`, taken as they are.
        mean, std: of the pixels on [0, 1]; 0.5 and 0.5 give a range of [-1, 1].
        channels_last: hand out images in the channels-last memory format.
        chosen: numbers of the rows of `x` that these are, int64 `[M]`; None for all.
    """

    def __init__(
        self,
        x: Tensor,
        mean: float = 0.5,
        std: float = 0.5,
        channels_last: bool = False,
        chosen: Tensor | None = None,
    ) -> None:
        self.x = x
        self.chosen = chosen
        self.mean = mean
        self.std = std
        self.memory_format = (
            torch.channels_last if channels_last and x.dim() == 4 else torch.contiguous_format
        )

    def __len__(self) -> int:
        return len(self.x if self.chosen is None else self.chosen)

    @property
    def shape(self) -> tuple[int, ...]:
        """Of one row: `(C, H, W)` or `(D,)`."""
        return tuple(self.x.shape[1:])

    @property
    def device(self) -> torch.device:
        """Where the rows are, and where batches come out."""
        return self.x.device

    def subset(self, index: Tensor) -> "Rows":
        """Rows `index` (int64 `[M]`, on the rows' device) as rows of their own, not copied."""
        channels_last = self.memory_format == torch.channels_last
        return Rows(self.x, self.mean, self.std, channels_last, self.numbers(index))

    def numbers(self, index: Tensor) -> Tensor:
        """Where rows `index` are in `x`."""
        return index if self.chosen is None else self.chosen[index]

    def take(self, index: Tensor) -> Tensor:
        """Rows `index` (int64 `[B]`, on the rows' device) as float32 `[B, *shape]`."""
        rows = self.x[self.numbers(index)]
        if rows.dtype == torch.uint8:
            rows = rows.to(torch.float32).mul_(1 / (255 * self.std)).sub_(self.mean / self.std)
        return rows.contiguous(memory_format=self.memory_format)

    def batch_size(self, wanted: int) -> int:
        """The batch size that `wanted` comes to: never more than there are rows."""
        return min(wanted, len(self))

    def steps(self, batch_size: int) -> int:
        """Batches in one shuffled epoch; the last, partial one is left out."""
        return len(self) // self.batch_size(batch_size)

    def shuffled(self, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
        """One epoch in random order. `generator` lives on the CPU, so that every device sees one order."""
        size = self.batch_size(batch_size)
        order = torch.randperm(len(self), generator=generator).to(self.device)
        for start in range(0, self.steps(size) * size, size):
            index = order[start : start + size]
            yield Batch(self.take(index), index)

    def in_order(self, batch_size: int) -> Iterator[Batch]:
        """Every row once, in order, the last batch as small as it comes."""
        for index in torch.arange(len(self), device=self.device).split(batch_size):
            yield Batch(self.take(index), index)

    def map(self, function: Callable[[Tensor], Tensor], batch_size: int = 512) -> Tensor:
        """`function` over all rows in order, float32 batch by batch, its results joined along dimension 0."""
        return torch.cat([function(batch.x).float() for batch in self.in_order(batch_size)])

    def fingerprints(self) -> tuple[Tensor, Tensor]:
        """The fingerprints of all rows, ascending, and the numbers of the rows that they are of, int64 `[N]` each."""
        known, number = torch.cat([fingerprints(batch.x) for batch in self.in_order(512)]).sort()
        return known, number


def fingerprints(x: Tensor) -> Tensor:
    """A number for each row of float32 `[N, ...]`, int64 `[N]`: the same for the same bits, whatever the batch."""
    bits = x.float().flatten(1).contiguous().view(torch.int32).long()
    factors = np.random.RandomState(0).randint(0, 2**63, bits.shape[1])  # a stream that never changes
    return (bits * torch.from_numpy(factors | 1).to(x.device)).sum(1)  # modulo 2**64, so exact in any order


def of_known_rows(x: Tensor, known: Tensor, values: Tensor, otherwise: Tensor) -> Tensor:
    """`values[i]` for rows of `x` whose fingerprint is `known[i]`, `otherwise` for the others, `[N]`.

    This is how a score that learning has settled for its own rows is looked up, batch by batch.

    Args:
        known: fingerprints, ascending, int64 `[K]`; none is fine.
        values: `[K]`.
        otherwise: `[N]`.
    """
    if not len(known):
        return otherwise
    wanted = fingerprints(x)
    place = torch.searchsorted(known, wanted).clamp_max(len(known) - 1)
    return torch.where(known[place] == wanted, values[place], otherwise)


def numbers_of(x: Tensor, known: Tensor, number: Tensor) -> Tensor:
    """Which of `known` rows each of `x` is, int64 `[N]`, -1 where none: no row is to be its own neighbour.

    Args:
        known, number: as `Rows.fingerprints` gives them.
    """
    return of_known_rows(x, known, number, number.new_full(x.shape[:1], -1))
