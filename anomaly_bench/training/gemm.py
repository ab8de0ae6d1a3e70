"""Convolutions as matrix products, where that is faster: stand-ins for two operators of a recorded step.

Three cases, each written out beside the operator that it stands for in the tests:

- a kernel as large as the image (`[N, C, H, W]` to `[N, O, 1, 1]`), one product of `[N, H W C]` and `[H W C, O]`;
- its transpose, a kernel laid down from one pixel (`[N, C, 1, 1]` to `[N, O, H, W]`), likewise;
- the weight gradient of a strided convolution: the windows of one side, `[N OH OW, KH KW C]`, times the other.

With channels-last tensors all but the windows are views. The ratios are measured by `scripts/bench.py`.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

aten = torch.ops.aten

FEWEST_CHANNELS = 32
"""On either side of a weight gradient; windows of fewer cost more to lay out than the product gains."""


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
    """`aten.convolution` of 2-d images in the first two cases; NotImplemented elsewhere."""
    if not _plain(x, padding, dilation, output_padding, groups):
        return NotImplemented
    if not transposed and x.shape[2:] == weight.shape[2:]:
        y = (_rows(x) @ _rows(weight).t())[:, :, None, None]
    elif transposed and x.shape[2:] == (1, 1):
        y = _images(x.flatten(1) @ _rows(weight), weight.shape[1:])
    else:
        return NotImplemented
    return y if bias is None else y + bias[:, None, None]


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
    """`aten.convolution_backward` of 2-d images in the three cases; NotImplemented elsewhere."""
    wants_x, wants_weight, wants_bias = output_mask
    of_bias = gradient.sum((0, 2, 3)) if wants_bias else None
    of_x = of_weight = None
    if _plain(x, padding, dilation, output_padding, groups):
        if not transposed and x.shape[2:] == weight.shape[2:]:
            slope = gradient.flatten(1)
            of_x = _images(slope @ _rows(weight), x.shape[1:]) if wants_x else None
            of_weight = _images(slope.t() @ _rows(x), weight.shape[1:]) if wants_weight else None
            return of_x, of_weight, of_bias
        if transposed and x.shape[2:] == (1, 1):
            slope = _rows(gradient)
            of_x = (slope @ _rows(weight).t())[:, :, None, None] if wants_x else None
            of_weight = _images(x.flatten(1).t() @ slope, weight.shape[1:]) if wants_weight else None
            return of_x, of_weight, of_bias
    fewest = min(x.shape[1], gradient.shape[1])
    plain = x.dim() == 4 and groups == 1 and max(dilation) == 1 and not any(output_padding)
    if not wants_weight or not plain or fewest < FEWEST_CHANNELS or max(stride) == 1:
        return NotImplemented
    small, large = (x, gradient) if transposed else (gradient, x)
    of_weight = _weight_gradient(small, large, weight.shape[2:], stride, padding)
    if wants_x:
        rest = (stride, padding, dilation, transposed, output_padding, groups)
        of_x = aten.convolution_backward(gradient, x, weight, None, *rest, [True, False, False])[0]
    return of_x, of_weight, of_bias


STAND_INS = {aten.convolution.default: convolution, aten.convolution_backward.default: convolution_backward}


def _plain(
    x: Tensor, padding: Sequence[int], dilation: Sequence[int], output_padding: Sequence[int], groups: int
) -> bool:
    return x.dim() == 4 and groups == 1 and max(dilation) == 1 and not any((*padding, *output_padding))


def _weight_gradient(
    small: Tensor, large: Tensor, kernel: Sequence[int], stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    """Gradient `[O, C, KH, KW]` from `small` `[N, O, OH, OW]` and the images `large` `[N, C, H, W]` it saw."""
    n, channels, high, wide = small.shape
    around = pad(large, (padding[1], padding[1], padding[0], padding[0])).permute(0, 2, 3, 1)
    windows = around.unfold(1, kernel[0], stride[0]).unfold(2, kernel[1], stride[1])[:, :high, :wide]
    columns = windows.permute(0, 1, 2, 4, 5, 3).reshape(n * high * wide, -1)
    product = small.permute(0, 2, 3, 1).reshape(-1, channels).t() @ columns
    return _images(product, (large.shape[1], *kernel))


def _rows(x: Tensor) -> Tensor:
    """`[N, C, H, W]` as `[N, H W C]`."""
    return x.permute(0, 2, 3, 1).flatten(1)


def _images(rows: Tensor, shape: Sequence[int]) -> Tensor:
    """`[N, H W C]` as channels-last `[N, C, H, W]`; `shape` is `(C, H, W)`."""
    channels, high, wide = shape
    return rows.view(len(rows), high, wide, channels).permute(0, 3, 1, 2)
