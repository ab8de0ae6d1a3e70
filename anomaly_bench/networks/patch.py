"""Networks that describe a patch by a vector and, with the same weights, the patch around every pixel of an image.

The layers are those of Uninformed Students (Bergmann, Fauser, Sattlegger, Steger, CVPR 2020, Tables 4 and 5) as
denguir/student-teacher-anomaly-detection and LuyaooChen/uninformed-students-pytorch have them; a leaky ReLU of slope
0.005 follows each convolution but the last, whose answers must be free to be negative.

A patch is p pixels wide, but pooling a map of odd width leaves its last row and column out: of 33 pixels the first
32 count, and of 65 the first 60. Of 17 pixels all count, as nothing is pooled.
"""

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import conv2d, max_pool2d, pad

from anomaly_bench.errors import SettingError
from anomaly_bench.networks.mlp import check_sizes

SLOPE = 5e-3
BLACK = -1.0


class Conv(NamedTuple):
    """A convolution: its side, and its filters in multiples of `width`."""

    side: int
    filters: int


POOL = None
LAYERS: dict[int, tuple[Conv | None, ...]] = {
    17: (Conv(6, 1), Conv(5, 2), Conv(5, 2), Conv(4, 1)),
    33: (Conv(5, 1), POOL, Conv(5, 2), POOL, Conv(2, 2), Conv(4, 1)),
    65: (Conv(5, 1), POOL, Conv(5, 1), POOL, Conv(5, 2), POOL, Conv(4, 2), Conv(1, 1)),
}
"""By p; the last convolution has `d` filters, whatever stands here."""


class PatchNetwork(nn.Module):
    """Vectors `[N, d]` of patches `[N, C, p, p]`.

    Args:
        p: 17, 33 or 65 pixels.
        channels: C.
        width: filters of the first convolution; 128 in the paper.
        d: length of the vectors; 128 in the paper.

    Attributes:
        p: as above.
        reach: how many pixels of a patch count, from its first, in both directions.
    """

    def __init__(self, p: int, channels: int, width: int = 128, d: int = 128) -> None:
        super().__init__()
        if p not in LAYERS:
            raise SettingError(f"model.patch_sizes: found {p}, allowed are {', '.join(map(str, LAYERS))}")
        check_sizes(width=width, d=d)
        self.p = p
        self.reach = 1
        layers: list[nn.Module] = []
        apart = 1  # pixels of the image between two neighbours of the map
        *_, last = LAYERS[p]
        for layer in LAYERS[p]:
            if layer is None:  # a pool
                layers.append(nn.MaxPool2d(2, stride=1, dilation=apart))
                self.reach += apart
                apart *= 2
            else:
                filters = d if layer is last else layer.filters * width
                layers += [nn.Conv2d(channels, filters, layer.side, dilation=apart), nn.LeakyReLU(SLOPE)]
                self.reach += apart * (layer.side - 1)
                channels = filters
        self.layers = nn.Sequential(*layers[:-1])

    def forward(self, patches: Tensor) -> Tensor:
        """Vectors `[N, d]`: in training by layers with strides, where those of `dense` are dilated."""
        if not self.training:
            return self.layers(patches[:, :, : self.reach, : self.reach]).flatten(1)
        for layer in self.layers:
            if isinstance(layer, nn.Conv2d):
                patches = conv2d(patches, layer.weight, layer.bias)
            elif isinstance(layer, nn.MaxPool2d):
                patches = max_pool2d(patches, 2)
            else:
                patches = layer(patches)
        return patches.flatten(1)

    def dense(self, x: Tensor) -> Tensor:
        """Vectors `[N, d, H, W]` of the patches around all pixels of images `[N, C, H, W]`, black beyond their edges.

        Each pool of stride 2 is one of stride 1, after which neighbours lie twice as far apart: all layers behind it
        are dilated by two.
        """
        before = self.p // 2
        after = self.reach - 1 - before
        return self.layers(pad(x, (before, after, before, after), value=BLACK))


# ------------------------------------------------------------------------------ patches


def random_pixels(x: Tensor) -> tuple[Tensor, Tensor]:
    """Row and column of one pixel of each image `[B, C, H, W]`, int64 `[B]` each."""
    top, left = (torch.rand(len(x), device=x.device) * side for side in x.shape[2:])
    return top.long(), left.long()


def moved(x: Tensor, top: Tensor, left: Tensor, by: int) -> tuple[Tensor, Tensor]:
    """Other pixels of the images, up to `by` rows and columns away."""
    places = []
    for place, side in ((top, x.shape[2]), (left, x.shape[3])):
        steps = (torch.rand(len(x), device=x.device) * (2 * by + 1)).long() - by
        places.append((place + steps).clamp(0, side - 1))
    return places[0], places[1]


def varied(patches: Tensor) -> Tensor:
    """Patches `[B, C, p, p]`, each brighter or darker by up to a tenth, with noise of deviation 0.05."""
    light = 0.9 + 0.2 * torch.rand(len(patches), 1, 1, 1, device=patches.device)
    return (patches - BLACK) * light + BLACK + 0.05 * torch.randn_like(patches)


def patches_at(x: Tensor, top: Tensor, left: Tensor, p: int) -> Tensor:
    """The patch `[B, C, p, p]` around one pixel of each image `[B, C, H, W]`, black beyond its edges."""
    framed = pad(x, [p // 2] * 4, value=BLACK)
    steps = torch.arange(p, device=x.device)
    image = torch.arange(len(x), device=x.device)[:, None, None]
    rows, columns = (top[:, None] + steps)[:, :, None], (left[:, None] + steps)[:, None]
    return framed.permute(0, 2, 3, 1)[image, rows, columns].permute(0, 3, 1, 2)
