"""Losses that several methods share."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits


def bce(logits: Tensor, target: float) -> Tensor:
    """Mean binary cross-entropy of logits of any shape against one constant target, in float32."""
    logits = logits.float()
    return binary_cross_entropy_with_logits(logits, torch.full_like(logits, target))


def gradient_penalty(critic: Callable[[Tensor], Tensor], real: Tensor, fake: Tensor) -> Tensor:
    """How far the critic's slope is from 1 between real and fake rows, a scalar before its weight.

    Gulrajani et al., NeurIPS 2017, arXiv 1704.00028, equation 3: mean of `(|grad_u D(u)|_2 - 1)^2` at
    `u = e x + (1 - e) x~`, with one `e` from U(0, 1) for each row. Its gradient needs second derivatives, so
    all of it is computed in float32, whatever autocast says; `fake` gets no gradient.

    Args:
        critic: gives values `[N]` of rows `[N, ...]`, each row's alone (no batch norm).
        real, fake: rows `[N, ...]`.
    """
    with torch.autocast(real.device.type, enabled=False):
        real, fake = real.float(), fake.detach().float()
        mix = torch.rand(len(real), *[1] * (real.dim() - 1), device=real.device)
        between = (mix * real + (1 - mix) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
        return (slope.flatten(1).norm(dim=1) - 1).square().mean()
