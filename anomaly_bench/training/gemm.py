"""The weight gradient of a strided convolution as one matrix product: a stand-in for the operator of a recorded step.

The windows of the larger images, `[N OH OW, KH KW C]`, are laid out once and multiplied by the smaller ones,
`[O, N OH OW]`. The operator itself is its readable twin: the tests hold the two equal. `scripts/bench.py` measures
the ratio.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

aten = torch.ops.aten

FEWEST_CHANNELS = 32
"""On either side; windows of fewer cost more to lay out than the product gains."""


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
    """`aten.convolution_backward` of strided 2-d convolutions with many channels; NotImplemented elsewhere."""
    wants_x, wants_weight, wants_bias = output_mask
    plain = (
        x.dim() == 4 and groups == 1 and max(dilation) == 1 and not any(output_padding) and max(stride) > 1
    )
    if not wants_weight or not plain or min(x.shape[1], gradient.shape[1]) < FEWEST_CHANNELS:
        return NotImplemented
    rest = (stride, padding, dilation, transposed, output_padding, groups)
    of_x = None
    if wants_x:
        of_x = aten.convolution_backward(gradient, x, weight, None, *rest, [True, False, False])[0]
    small, large = (x, gradient) if transposed else (gradient, x)
    of_weight = _weight_gradient(small, large, weight.shape[2:], stride, padding)
    return of_x, of_weight, gradient.sum((0, 2, 3)) if wants_bias else None


STAND_INS = {aten.convolution_backward.default: convolution_backward}


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
