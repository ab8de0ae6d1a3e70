"""Losses that several methods share."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, conv2d, cross_entropy, normalize, pad


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


def nt_xent(z: Tensor, tau: float) -> Tensor:
    """How badly the views of an image find each other among all others, a scalar.

    Chen, Kornblith, Norouzi, Hinton, ICML 2020, arXiv 2002.05709, equation 1: mean over all views i, and j the other of
    the same image, of `-log(exp(cos(z_i, z_j) / tau) / sum over k != i of exp(cos(z_i, z_k) / tau))`. Computed in
    float32, whatever autocast says.

    Args:
        z: `[2 B, D]`, one view of each of B images, then the other of each in the same order.
        tau: the temperature.
    """
    with torch.autocast(z.device.type, enabled=False):
        z = normalize(z.float(), dim=1)
        places = torch.arange(len(z), device=z.device)
        itself = places[:, None] == places
        likeness = (z @ z.T / tau).masked_fill(itself, -torch.inf)
        return cross_entropy(likeness, places.roll(len(z) // 2))


def ssim(x: Tensor, y: Tensor) -> Tensor:
    """Structural similarity of images in [-1, 1], two batches, around each pixel: `[N, C, H, W]`, 1 where alike.

    Wang, Bovik, Sheikh, Simoncelli, IEEE TIP 13(4), 2004, equation 13: a Gaussian window of 11 x 11 pixels and
    deviation 1.5, K1 = 0.01, K2 = 0.03; images are mirrored at their edges, so their sides are at least 6 pixels.
    Computed in float32, whatever autocast says.
    """
    x, y = x.float(), y.float()
    c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
    mean_x, mean_y = _blurred(x), _blurred(y)
    var_x, var_y = _blurred(x * x) - mean_x**2, _blurred(y * y) - mean_y**2
    covariance = _blurred(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return luminance * (2 * covariance + c2) / (var_x + var_y + c2)


def _blurred(x: Tensor) -> Tensor:
    """Images under a Gaussian window of 11 x 11 pixels and deviation 1.5, mirrored at their edges."""
    offsets = torch.arange(-5, 6, device=x.device, dtype=torch.float32)
    window = torch.softmax(-(offsets**2) / (2 * 1.5**2), dim=0)
    flat = pad(x.flatten(0, 1)[:, None], (5, 5, 5, 5), "reflect")
    with torch.autocast(x.device.type, enabled=False):
        return conv2d(conv2d(flat, window.view(1, 1, 11, 1)), window.view(1, 1, 1, 11)).view(x.shape)
