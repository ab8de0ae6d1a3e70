"""WGAN-GP's residual generator and critic (Gulrajani et al. 2017, arXiv 1704.00028) and f-AnoGAN's encoder.

As in the official f-AnoGAN code (tSchlegl/f-AnoGAN), for square images whose side is 16 times a power of two:
filters grow 1, 2, 4, 8, 8, ... times `width` down to 4 x 4, one block to each halving. That is the official
network at 64 pixels; at 32 the block between the two widest stages falls away. `most` is the limit, 8 there.

Batch norm takes its averages over with 0.1 a step, where the official code has 0.01: a training of few steps
would otherwise score with averages that have not left their first values.
"""

import math
from collections.abc import Callable
from itertools import pairwise
from typing import TypeVar

from torch import Tensor, nn

Norm = Callable[[int], nn.Module]
Layer = TypeVar("Layer", nn.Conv2d, nn.Linear)


def batch_norm(channels: int) -> nn.Module:
    """Batch norm with the official code's epsilon."""
    return nn.BatchNorm2d(channels, eps=1e-3)


def layer_norm(channels: int) -> nn.Module:
    """Layer norm over all of one image, with a scale and a shift a channel: group norm of one group."""
    return nn.GroupNorm(1, channels)


def glorot(layer: Layer, gain: float = 1.0) -> Layer:
    """The layer with first weights uniform after Glorot, and no shift."""
    nn.init.xavier_uniform_(layer.weight, gain)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def conv3(inputs: int, outputs: int, bias: bool = True) -> nn.Conv2d:
    """A 3 x 3 convolution before or after a ReLU: Glorot's variance, doubled."""
    return glorot(nn.Conv2d(inputs, outputs, 3, padding=1, bias=bias), math.sqrt(2))


class Residual(nn.Module):
    """The sum of two paths."""

    def __init__(self, path: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.path = path
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps of the shape that both paths give."""
        return self.shortcut(x) + self.path(x)


def down_block(inputs: int, outputs: int, norm: Norm) -> Residual:
    """`[N, inputs, H, W]` to `[N, outputs, H / 2, W / 2]`, by mean pooling."""
    path = nn.Sequential(
        norm(inputs),
        nn.ReLU(inplace=True),
        conv3(inputs, inputs, bias=False),
        norm(inputs),
        nn.ReLU(inplace=True),
        conv3(inputs, outputs),
        nn.AvgPool2d(2),
    )
    return Residual(path, nn.Sequential(nn.AvgPool2d(2), glorot(nn.Conv2d(inputs, outputs, 1))))


def up_block(inputs: int, outputs: int) -> Residual:
    """`[N, inputs, H, W]` to `[N, outputs, 2 H, 2 W]`, by repeating pixels.

    The shortcut's 1 x 1 convolution comes before the repetition: the same values for a quarter of the work.
    """
    path = nn.Sequential(
        batch_norm(inputs),
        nn.ReLU(inplace=True),
        nn.Upsample(scale_factor=2),
        conv3(inputs, outputs, bias=False),
        batch_norm(outputs),
        nn.ReLU(inplace=True),
        conv3(outputs, outputs),
    )
    return Residual(path, nn.Sequential(glorot(nn.Conv2d(inputs, outputs, 1)), nn.Upsample(scale_factor=2)))


def widths(size: int, width: int, most: int = 8) -> list[int]:
    """Filters at each resolution from `size` down to 4 pixels, at most `most` times `width`."""
    return [width * min(2**halvings, most) for halvings in range(size.bit_length() - 2)]


class Generator(nn.Sequential):
    """Codes `[N, nz]` to images `[N, nc, size, size]` in (-1, 1)."""

    def __init__(self, size: int, nc: int, nz: int, width: int, most: int = 8) -> None:
        filters = widths(size, width, most)[::-1]
        super().__init__(
            glorot(nn.Linear(nz, 16 * filters[0])),
            nn.Unflatten(1, (filters[0], 4, 4)),
            *map(up_block, filters, filters[1:]),
            batch_norm(width),
            nn.ReLU(inplace=True),
            conv3(width, nc),
            nn.Tanh(),
        )


class Trunk(nn.Sequential):
    """Images `[N, nc, size, size]` to features `[N, D]`, the flattened 4 x 4 maps of the last block.

    `out_features` is D.
    """

    def __init__(self, size: int, nc: int, width: int, norm: Norm, most: int = 8) -> None:
        filters = widths(size, width, most)
        blocks = [down_block(inputs, outputs, norm) for inputs, outputs in pairwise(filters)]
        super().__init__(glorot(nn.Conv2d(nc, width, 3, padding=1)), *blocks, nn.Flatten())
        self.out_features = 16 * filters[-1]


class Critic(nn.Module):
    """Features `[N, D]` and values `[N]` of images `[N, nc, size, size]`, each image's alone: layer norm."""

    def __init__(self, size: int, nc: int, width: int) -> None:
        super().__init__()
        self.features = Trunk(size, nc, width, layer_norm)
        self.head = glorot(nn.Linear(self.features.out_features, 1))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and values."""
        features = self.features(x)
        return features, self.head(features).flatten()


class Encoder(nn.Sequential):
    """Codes `[N, nz]`, unbounded, of images `[N, nc, size, size]`."""

    def __init__(self, size: int, nc: int, nz: int, width: int, most: int = 8) -> None:
        trunk = Trunk(size, nc, width, batch_norm, most)
        super().__init__(trunk, glorot(nn.Linear(trunk.out_features, nz)))
