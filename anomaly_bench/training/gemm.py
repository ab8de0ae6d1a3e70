"""Faster ways to compute convolutions on a CPU: stand-ins for the operators of a recorded step.

Of strided convolutions the weight gradient is one matrix product: the windows of the larger images,
`[N OH OW, KH KW C]`, are laid out once and multiplied by the smaller ones, `[O, N OH OW]`. In bfloat16 the gradient of
the larger images is one too, where the smaller ones have many channels: the windows are then the product, and are
added up where they overlap. Grey images get a second channel of zeros there, for with one alone oneDNN takes
channels-last tensors for others and copies them. The operators themselves are the readable twins: the tests hold
both equal. `scripts/bench.py` measures the ratio.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

aten = torch.ops.aten

FEWEST_CHANNELS = 32
"""On either side of a weight gradient; windows of fewer cost more to lay out than the product gains."""

PRECISION = torch.bfloat16
"""In which all but weight gradients gain; in float32 they did not."""

MANY_CHANNELS = 256
"""Of the smaller images, from which the gradient of the larger ones gains."""


def convolution(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    """`aten.convolution` of grey images, or transposed ones of many channels, in bfloat16; NotImplemented elsewhere."""
    if x.dtype != PRECISION or x.dim() != 4:
        return NotImplemented
    rest = (stride, padding, dilation, transposed, output_padding, groups)
    if x.shape[1] == 1 and not transposed:
        return aten.convolution(_with_zeros(x), _with_zeros(weight), bias, *rest)
    if not transposed or x.shape[1] < MANY_CHANNELS or not _strided(x, *rest):
        return NotImplemented
    sizes = [
        (side - 1) * step - 2 * edge + reach
        for side, step, edge, reach in zip(x.shape[2:], stride, padding, weight.shape[2:], strict=True)
    ]
    out = _spread(x, weight, sizes, stride, padding)
    return out if bias is None else out + bias[:, None, None]


def convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    bias_sizes: Sequence[int] | None,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
    output_mask: Sequence[bool],
) -> Any:
    """`aten.convolution_backward` where a part of it gains as a product, or x is grey; NotImplemented elsewhere."""
    wants_x, wants_weight, wants_bias = output_mask
    rest = (stride, padding, dilation, transposed, output_padding, groups)
    gains = x.dtype == PRECISION
    if gains and x.dim() == 4 and x.shape[1] == 1 and not transposed:
        of_x, of_weight, of_bias = aten.convolution_backward(
            gradient, _with_zeros(x), _with_zeros(weight), bias_sizes, *rest, output_mask
        )
        return of_x[:, :1] if wants_x else None, of_weight[:, :1] if wants_weight else None, of_bias
    if not _strided(x, *rest):
        return NotImplemented
    small, large = (x, gradient) if transposed else (gradient, x)
    as_product = wants_weight and min(small.shape[1], large.shape[1]) >= FEWEST_CHANNELS
    spread = wants_x and gains and not transposed and small.shape[1] >= MANY_CHANNELS
    if not as_product and not spread:
        return NotImplemented
    left = [wants_x and not spread, wants_weight and not as_product, False]
    of_x = of_weight = None
    if any(left):
        of_x, of_weight, _ = aten.convolution_backward(gradient, x, weight, None, *rest, left)
    if spread:
        of_x = _spread(gradient, weight, x.shape[2:], stride, padding)
    if as_product:
        of_weight = _weight_gradient(small, large, weight.shape[2:], stride, padding)
    return of_x, of_weight, gradient.sum((0, 2, 3)) if wants_bias else None


STAND_INS = {
    aten.convolution.default: convolution,
    aten.convolution_backward.default: convolution_backward,
}


def _strided(
    x: Tensor,
    stride: Sequence[int],
    _padding: Sequence[int],
    dilation: Sequence[int],
    _transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> bool:
    """Whether a convolution is of images, strided, and has no further features."""
    return x.dim() == 4 and groups == 1 and max(dilation) == 1 and not any(output_padding) and max(stride) > 1


def _with_zeros(x: Tensor) -> Tensor:
    """`[N, 1, H, W]` with a second channel, of zeros."""
    return pad(x, (0, 0, 0, 0, 0, 1))


def _weight_gradient(
    small: Tensor, large: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Gradient `[O, C, KH, KW]` from `small` `[N, O, OH, OW]` and the images `large` `[N, C, H, W]` it saw."""
    n, channels, high, wide = small.shape
    around = pad(large, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1)
    windows = around.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])[:, :high, :wide]
    columns = windows.permute(0, 1, 2, 4, 5, 3).reshape(n * high * wide, -1)
    product = small.permute(0, 2, 3, 1).reshape(-1, channels).t() @ columns
    return product.view(channels, *kernel, large.shape[1]).permute(0, 3, 1, 2)


def _spread(
    small: Tensor, weight: Tensor, sizes: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Images `[N, C, *sizes]` that `small` `[N, O, OH, OW]` is spread over by `weight` `[O, C, KH, KW]`.

    Row `a s + r` of window `i` is row `r` of block `i + a`, blocks of `s` rows each: whole blocks are added up.
    """
    n, channels, high, wide = small.shape
    reach = [-(-side // step) for side, step in zip(weight.shape[2:], stride, strict=True)]  # in blocks
    lacking = [m * s - k for m, s, k in zip(reach, stride, weight.shape[2:], strict=True)]
    kernel = pad(weight.permute(0, 2, 3, 1), (0, 0, 0, lacking[1], 0, lacking[0])).reshape(channels, -1)
    windows = small.permute(0, 2, 3, 1).reshape(-1, channels) @ kernel
    windows = windows.view(n, high, wide, reach[0], stride[0], reach[1], stride[1], -1)
    blocks = torch.zeros((), dtype=small.dtype, device=small.device)
    for a in range(reach[0]):
        for b in range(reach[1]):
            before_and_after = (b, reach[1] - 1 - b, 0, 0, a, reach[0] - 1 - a)
            blocks = blocks + pad(windows[:, :, :, a, :, b].transpose(2, 3), (0, 0, 0, 0, *before_and_after))
    image = blocks.reshape(n, blocks.shape[1] * stride[0], blocks.shape[3] * stride[1], -1)
    after = [max(0, p + s - have) for p, s, have in zip(padding, sizes, image.shape[1:3], strict=True)]
    image = pad(image, (0, 0, 0, after[1], 0, after[0]))
    image = image[:, padding[0] : padding[0] + sizes[0], padding[1] : padding[1] + sizes[1]]
    return image.permute(0, 3, 1, 2)
