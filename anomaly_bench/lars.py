"""LARS, descent whose steps are as long as the weights: You, Gitman, Ginsburg 2017, arXiv 1708.03888."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class LARS(Optimizer):
    """LARS with momentum, as torchlars has it around torch's SGD: biases and batch norm are scaled like all else.

        g' = (g + weight_decay w) * trust |w| / (|g| + weight_decay |w| + eps),   unscaled where |w| or |g| is 0
        m  = momentum m + g',   w = w - rate m

    Args:
        parameters: what it moves.
        rate: the learning rate, a scalar tensor that its owner may change between steps: a recorded step sees it.
        momentum, weight_decay, trust, eps: as above.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        rate: Tensor,
        *,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 1e-3,
        eps: float = 1e-8,
    ) -> None:
        super().__init__(
            parameters, {"momentum": momentum, "weight_decay": weight_decay, "trust": trust, "eps": eps}
        )
        self.rate = rate

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """One update of every parameter that has a gradient."""
        for group in self.param_groups:
            weights = [weight for weight in group["params"] if weight.grad is not None]
            long = torch.stack([weight.norm() for weight in weights])
            steep = torch.stack([weight.grad.norm() for weight in weights])
            scale = group["trust"] * long / (steep + group["weight_decay"] * long + group["eps"])
            scale = torch.where((long > 0) & (steep > 0), scale, 1.0)
            for weight, own in zip(weights, scale, strict=True):
                if not (state := self.state[weight]):
                    state["momentum"] = torch.zeros_like(weight)
                scaled = weight.grad.add(weight, alpha=group["weight_decay"]).mul_(own)
                state["momentum"].mul_(group["momentum"]).add_(scaled)
                weight.sub_(self.rate * state["momentum"])
