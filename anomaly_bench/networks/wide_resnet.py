"""Wide residual networks: Zagoruyko, Komodakis, BMVC 2016, arXiv 1605.07146; as GeoTrans and E3Outlier have them.

Batch norm and ReLU stand before the convolutions; three groups of blocks, the second and third of which halve the
sides. Keras, which the code of GeoTrans uses, pads convolutions of stride 2 on one side, ours are padded on both.
"""

import math

from torch import Tensor, nn

from anomaly_bench.errors import SettingError
from anomaly_bench.networks.mlp import check_sizes


def conv(inputs: int, outputs: int, side: int, stride: int = 1) -> nn.Conv2d:
    """A convolution without shift; first weights normal after He, by what goes in."""
    layer = nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)
    nn.init.normal_(layer.weight, std=math.sqrt(2 / (inputs * side**2)))
    return layer


class Block(nn.Module):
    """`[N, inputs, H, W]` to `[N, outputs, H / stride, W / stride]`: two 3 x 3 convolutions beside a shortcut.

    Where the number of channels changes, the shortcut is a 1 x 1 convolution and shares the first activation.
    """

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.activate = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
        self.path = nn.Sequential(
            conv(inputs, outputs, 3, stride),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            conv(outputs, outputs, 3),
        )
        self.shortcut = None if inputs == outputs else conv(inputs, outputs, 1)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """Feature maps."""
        active = self.activate(x)
        if self.shortcut is None:
            return self.path(active) + x
        # Pixels are left out before the 1 x 1 convolution: with a stride of its own and few channels last in memory,
        # its gradient in oneDNN (torch 2.15, CPU) writes beyond its memory.
        return self.path(active) + self.shortcut(active[:, :, :: self.stride, :: self.stride])


class WideResNet(nn.Module):
    """Logits `[N, classes]` of images `[N, C, H, W]`, WRN-`depth`-`widen_factor`.

    Features are averaged over 8 x 8 pixels of the last map, as far as it has so many: at 32 pixels that leaves one
    vector, at 64 a grid of 2 x 2.

    Args:
        shape: `(C, H, W)` of one image.
        classes: how many.
        depth: 6 n + 4, n blocks a group.
        widen_factor: the groups have 1, 2, 4 times `widen_factor` times `width` channels.
        width: filters of the first convolution; 16 in all papers.
    """

    def __init__(
        self, shape: tuple[int, ...], classes: int, depth: int, widen_factor: int, width: int = 16
    ) -> None:
        super().__init__()
        if depth < 10 or depth % 6 != 4:
            raise SettingError(f"model.depth={depth}: allowed is 6 n + 4, such as 10, 16 and 28")
        check_sizes(widen_factor=widen_factor, width=width)
        channels = width
        blocks: list[nn.Module] = []
        for group in range(3):
            outputs = width * widen_factor << group
            for number in range((depth - 4) // 6):
                blocks.append(Block(channels, outputs, 2 if group and number == 0 else 1))
                channels = outputs
        high, wide = (max(1, math.ceil(side / 4) // 8) for side in shape[1:])
        self.features = nn.Sequential(
            conv(shape[0], width, 3),
            *blocks,
            nn.BatchNorm2d(channels),
            nn.ReLU(inplace=True),
            nn.AdaptiveAvgPool2d((high, wide)),
            nn.Flatten(),
        )
        self.head = nn.Linear(channels * high * wide, classes)
        nn.init.zeros_(self.head.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Logits."""
        return self.head(self.features(x))
