"""Fully connected autoencoders, on rows `[N, D]` or on images, which they take flattened."""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from anomaly_bench.errors import SettingError


def check_sizes(**settings: int | Sequence[int]) -> None:
    """Refuse a layer without units, naming the setting."""
    for name, value in settings.items():
        if min([value] if isinstance(value, int) else value, default=1) < 1:
            raise SettingError(f"model.{name}={value}: a layer needs at least 1 unit")


class DenseEncoder(nn.Sequential):
    """Rows `[N, *shape]` to codes `[N, code]`: hidden layers with ReLU, a code that is linear."""

    def __init__(self, shape: tuple[int, ...], code: int, hidden: Sequence[int]) -> None:
        check_sizes(code=code, hidden=hidden)
        super().__init__(nn.Flatten(), *layers([math.prod(shape), *hidden, code]))


class DenseDecoder(nn.Sequential):
    """The encoder's mirror: codes `[N, code]` to rows `[N, *shape]`, linear."""

    def __init__(self, shape: tuple[int, ...], code: int, hidden: Sequence[int]) -> None:
        check_sizes(code=code, hidden=hidden)
        super().__init__(*layers([code, *reversed(hidden), math.prod(shape)]), nn.Unflatten(1, shape))


def layers(sizes: Sequence[int]) -> list[nn.Module]:
    """Linear layers of these sizes with ReLU between them."""
    modules: list[nn.Module] = []
    for inputs, outputs in pairwise(sizes):
        modules += [nn.Linear(inputs, outputs), nn.ReLU()]
    return modules[:-1]


class SigmoidAutoencoder(nn.Module):
    """Layers of sigmoids with tied weights: the decoder has the encoder's weights, transposed.

    It computes on `unit(x)`: images are flattened and brought from [-1, 1] to [0, 1], where the last sigmoid
    of the decoder can reach them; rows stay as they are, and the decoder's last layer is then linear.

    Args:
        shape: of one row.
        sizes: of the layers above the input, the code last.
    """

    def __init__(self, shape: tuple[int, ...], sizes: Sequence[int]) -> None:
        super().__init__()
        check_sizes(sizes=sizes)
        self.shape, self.on_unit = shape, len(shape) == 3
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

    def unit(self, x: Tensor) -> Tensor:
        """Rows `[N, *shape]` as they are rebuilt, `[N, D]`."""
        return (x.flatten(1) + 1) / 2 if self.on_unit else x

    def rows(self, y: Tensor) -> Tensor:
        """The inverse of `unit`: `[N, D]` as rows `[N, *shape]`."""
        return (2 * y - 1).unflatten(1, self.shape) if self.on_unit else y

    def encode(self, y: Tensor) -> Tensor:
        """Codes `[N, code]` in (0, 1) of `unit(x)`."""
        for weight, bias in zip(self.weights, self.up, strict=True):
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
        """`unit(x)` rebuilt, `[N, D]`."""
        return self.decode(self.encode(y))
