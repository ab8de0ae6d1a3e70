"""Fully connected autoencoders, on rows `[N, D]` or on images, which they take flattened."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from anomaly_bench.networks.mlp import check_sizes, mlp


class DenseEncoder(nn.Sequential):
    """Rows `[N, *shape]` to codes `[N, code]`: hidden layers with an activation, a code that is linear."""

    def __init__(
        self,
        shape: tuple[int, ...],
        code: int,
        hidden: Sequence[int],
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        check_sizes(code=code, hidden=hidden)
        super().__init__(nn.Flatten(), *mlp([math.prod(shape), *hidden, code], activation))


class DenseDecoder(nn.Sequential):
    """The encoder's mirror: codes `[N, code]` to rows `[N, *shape]`, linear."""

    def __init__(
        self,
        shape: tuple[int, ...],
        code: int,
        hidden: Sequence[int],
        activation: type[nn.Module] = nn.ReLU,
    ) -> None:
        check_sizes(code=code, hidden=hidden)
        sizes = [code, *reversed(hidden), math.prod(shape)]
        super().__init__(*mlp(sizes, activation), nn.Unflatten(1, shape))


def to_unit(x: Tensor) -> Tensor:
    """Images `[N, C, H, W]` in [-1, 1] as rows in [0, 1], `[N, D]`; rows as they are."""
    return (x.flatten(1) + 1) / 2 if x.dim() == 4 else x


def from_unit(y: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The inverse of `to_unit` for rows of the shape `[N, ...]`."""
    return (2 * y - 1).view(shape) if len(shape) == 4 else y


class SigmoidAutoencoder(nn.Module):
    """Layers of sigmoids with tied weights: the decoder has the encoder's weights, transposed.

    It rebuilds `to_unit(x)`: pixels on [0, 1], which the decoder's last sigmoid can reach, or rows as they are,
    for which its last layer is linear.

    Args:
        shape: of one row.
        sizes: of the layers above the input, the code last.
    """

    def __init__(self, shape: tuple[int, ...], sizes: Sequence[int]) -> None:
        super().__init__()
        check_sizes(layers=sizes)
        self.on_unit = len(shape) == 3
        pairs = list(pairwise([math.prod(shape), *sizes]))
        self.weights = nn.ParameterList(torch.empty(outputs, inputs) for inputs, outputs in pairs)
        self.up = nn.ParameterList(torch.empty(outputs) for _, outputs in pairs)
        self.down = nn.ParameterList(torch.empty(inputs) for inputs, _ in pairs)
        self.reset()

    def reset(self) -> None:
        """First weights: Xavier-uniform ones and biases of 0."""
        for weight in self.weights:
            nn.init.xavier_uniform_(weight)
        for bias in [*self.up, *self.down]:
            nn.init.zeros_(bias)

    def encode(self, y: Tensor, layers: int | None = None) -> Tensor:
        """Codes in (0, 1) of rows `[N, D]`, `[N, code]`, or what the lowest `layers` layers make of them."""
        for weight, bias in list(zip(self.weights, self.up, strict=True))[:layers]:
            y = torch.sigmoid(linear(y, weight, bias))
        return y

    def decode(self, code: Tensor) -> Tensor:
        """What codes are rebuilt to, `[N, D]`, float32."""
        y = self.decode_linear(code)
        return torch.sigmoid(y) if self.on_unit else y

    def decode_linear(self, code: Tensor) -> Tensor:
        """`decode` before its last sigmoid."""
        for number in reversed(range(len(self.weights))):
            code = linear(code, self.weights[number].t(), self.down[number])
            code = torch.sigmoid(code) if number else code
        return code.float()

    def forward(self, y: Tensor) -> Tensor:
        """Rows `[N, D]` rebuilt."""
        return self.decode(self.encode(y))
