"""Fully connected networks on rows of numbers."""

from collections.abc import Callable, Sequence
from itertools import pairwise

from torch import nn

from anomaly_bench.errors import SettingError


def length_of(shape: tuple[int, ...]) -> int:
    """The length of rows `(D,)`; images are refused."""
    if len(shape) != 1:
        raise SettingError(f"model: it takes rows of numbers, found images of shape {shape}")
    return shape[0]


def check_sizes(**settings: int | Sequence[int]) -> None:
    """Refuse a layer without units, naming its setting."""
    for name, value in settings.items():
        if min([value] if isinstance(value, int) else value, default=1) < 1:
            raise SettingError(f"model.{name}={value}: a layer needs at least 1 unit")


def mlp(sizes: Sequence[int], activation: Callable[[], nn.Module], bias: bool = True) -> nn.Sequential:
    """Layers of these sizes, the first the input's; an activation after each but the last."""
    pairs = list(pairwise(sizes))
    layers = [nn.Sequential(nn.Linear(*pair, bias=bias), activation()) for pair in pairs[:-1]]
    return nn.Sequential(*layers, nn.Linear(*pairs[-1], bias=bias))
