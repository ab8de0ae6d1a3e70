"""What bidirectional GANs share: dense layers, first weights, a discriminator of pairs, and averaged weights."""

import copy
from collections.abc import Callable, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


def dense(sizes: Sequence[int], slope: float, dropout: float = 0.0) -> list[nn.Module]:
    """Linear layers from each size to the next, each with a leaky ReLU (`slope` 0: a ReLU) and dropout."""
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.LeakyReLU(slope), nn.Dropout(dropout)]
    return layers


def init_weights(network: nn.Module, draw: Callable[[Tensor], object]) -> None:
    """`draw` the weights of all linear layers and convolutions, in place; their biases are 0."""
    for module in network.modules():
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d):
            draw(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


class PairDiscriminator(nn.Module):
    """Tells pairs (x, E(x)) from (G(z), z): features `[N, F]` and logits `[N]` of being the first kind.

    Args:
        see_x: rows `[N, *shape]` to `[N, A]`.
        see_z: codes `[N, nz]` to `[N, B]`.
        join: `[N, A + B]` to the features.
        features: F.
    """

    def __init__(self, see_x: nn.Module, see_z: nn.Module, join: nn.Module, features: int) -> None:
        super().__init__()
        self.see_x, self.see_z, self.join = see_x, see_z, join
        self.head = nn.Linear(features, 1)

    def forward(self, x: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of rows `[N, *shape]` with codes `[N, nz]`."""
        features = self.join(torch.cat([self.see_x(x), self.see_z(z)], 1))
        return features, self.head(features).flatten()


def averages_of(*modules: nn.Module) -> nn.ModuleList:
    """A copy of each module that is not trained, for `average` to keep a moving average in."""
    return nn.ModuleList(copy.deepcopy(module) for module in modules).requires_grad_(False)


@torch.no_grad()
def average(averages: nn.ModuleList, modules: Sequence[nn.Module], decay: float) -> None:
    """Move each average to `decay` times itself plus `1 - decay` times its module; buffers are copied.

    No correction for the first steps, as TensorFlow's: what it starts from fades by `decay` a step.
    """
    for kept, module in zip(averages, modules, strict=True):
        get_ema_multi_avg_fn(decay)(list(kept.parameters()), list(module.parameters()), 0)
        for ours, theirs in zip(kept.buffers(), module.buffers(), strict=True):
            ours.copy_(theirs)
