"""Batches that are too large for what is made of them, part by part."""

import torch
from torch import Tensor


def in_parts(x: Tensor, size: int) -> tuple[Tensor, ...]:
    """Rows `[N, ...]` in parts of at most `size`, at least 1; all as one in a graph that is exported, for any N."""
    return (x,) if torch.compiler.is_exporting() else x.split(max(1, size))
