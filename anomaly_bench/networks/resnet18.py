"""ResNet-18 with the stem for small images: He, Zhang, Ren, Sun, CVPR 2016, arXiv 1512.03385; as alinlab/CSI has it."""

from itertools import pairwise

from torch import nn

from anomaly_bench.networks.mlp import check_sizes
from anomaly_bench.networks.resnet import Residual


def conv(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Sequential:
    """A convolution without shift, and batch norm."""
    layer = nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs))


def block(inputs: int, outputs: int) -> nn.Sequential:
    """`[N, inputs, H, W]` to `[N, outputs, H, W]`, or to half the sides where the channels change."""
    stride = 1 if inputs == outputs else 2
    path = nn.Sequential(*conv(inputs, outputs, 3, stride), nn.ReLU(inplace=True), *conv(outputs, outputs, 3))
    # Pixels are left out before the 1 x 1 convolution, not by it: see the block of `wide_resnet`.
    shorter = nn.Sequential(nn.MaxPool2d(1, stride), *conv(inputs, outputs, 1))
    shortcut = nn.Identity() if inputs == outputs else shorter
    return nn.Sequential(Residual(path, shortcut), nn.ReLU(inplace=True))


class ResNet18(nn.Sequential):
    """Features `[N, 8 * width]`, averaged over the last map, of images `[N, channels, H, W]` of any size.

    The first convolution is 3 x 3, and no pooling follows it. `width` is 64 in all papers; `out_features` is
    how long the features are.
    """

    def __init__(self, channels: int, width: int = 64) -> None:
        check_sizes(width=width)
        filters = [width << stage for stage in (0, 0, 0, 1, 1, 2, 2, 3, 3)]
        blocks = [block(*pair) for pair in pairwise(filters)]
        first = [*conv(channels, width, 3), nn.ReLU(inplace=True)]
        super().__init__(*first, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.out_features = filters[-1]
