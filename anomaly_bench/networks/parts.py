"""Batches that are too large for what is made of them, part by part."""

import torch
from torch import Tensor


def in_parts(x: Tensor, size: int, on_a_cpu: int | None = None) -> tuple[Tensor, ...]:
    """Rows `[N, ...]` in parts of at most `size`, at least 1; all as one in a graph that is exported, for any N.

    Args:
        on_a_cpu: their size there, where what is made of a part should stay in the caches.
    """
    if on_a_cpu is not None and x.device.type == "cpu":
        size = on_a_cpu
    return (x,) if torch.compiler.is_exporting() else x.split(max(1, size))
