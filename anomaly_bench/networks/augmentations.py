"""The views that contrastive learning compares: SimCLR's augmentations as alinlab/CSI has them, on whole batches.

Mirrored with probability 1/2; with probability 0.8, contrast, brightness and saturation times up to 1 +- 0.4 and the
hue turned by up to 0.1 * 255 / 360 of a circle; grey with probability 0.2; then a part of 8 to 100 % of the area, of
sides 3:4 to 4:3, stretched to the whole. Images that are not of three channels only change in contrast and brightness.

Every number that is drawn comes from outside, uniform on [0, 1), so that a score can use the same for every image.
"""

import math

import torch
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

TRIES = 10
"""How often the sides of a part are drawn, until they fit into the image; else the part is all of it."""

DRAWS = 10 + 2 * TRIES
"""Numbers that a view takes."""

HUE = 0.1 * 255 / 360


def augment(x: Tensor, draws: Tensor, *, flip: bool, area: tuple[float, float] = (0.08, 1.0)) -> Tensor:
    """A view of each of images `[N, C, H, W]` in [-1, 1], of their shape and range.

    Args:
        x: the images.
        draws: `[N, DRAWS]`, uniform on [0, 1).
        flip: whether they may be mirrored.
        area: shares of the image between which a part lies.
    """
    with torch.autocast(x.device.type, enabled=False):
        u = draws[:, :10, None, None, None].unbind(1)
        area_draws, ratio_draws = draws[:, 10:].chunk(2, 1)
        x = (x.float() + 1) / 2
        x = torch.where(u[0] < 0.8, jittered(x, *u[1:6]), x)
        if x.shape[1] == 3:
            x = torch.where(u[6] < 0.2, grey(x), x)
        mirrored = (u[7].flatten() < 0.5) & flip
        return cropped(x, mirrored, u[8].flatten(), u[9].flatten(), [area_draws, ratio_draws], area) * 2 - 1


def jittered(
    x: Tensor, order: Tensor, contrast: Tensor, value: Tensor, saturation: Tensor, hue: Tensor
) -> Tensor:
    """Images in [0, 1] in other colours, still in [0, 1]; the contrast first where `order` is below 1/2."""
    first = order < 0.5
    contrast, value, saturation = (0.6 + 0.8 * draw for draw in (contrast, value, saturation))
    x = torch.where(first, contrasted(x, contrast), x)
    if x.shape[1] == 3:
        h, s, v = hsv(x).split(1, 1)
        turned = (h + HUE * (2 * hue - 1)) % 1
        x = rgb(torch.cat([turned, (s * saturation).clamp(0, 1), (v * value).clamp(0, 1)], 1))
    else:
        x = (x * value).clamp(0, 1)
    return torch.where(first, x, contrasted(x, contrast))


def contrasted(x: Tensor, factor: Tensor) -> Tensor:
    """Images with the distances from their channels' means times `factor`, cut to [0, 1]."""
    mean = x.mean((2, 3), keepdim=True)
    return ((x - mean) * factor + mean).clamp(0, 1)


def grey(x: Tensor) -> Tensor:
    """The luminance of images `[N, 3, H, W]`, in all three channels."""
    weights = torch.tensor([0.299, 0.587, 0.114], device=x.device).view(3, 1, 1)
    return (x * weights).sum(1, keepdim=True).expand_as(x)


def hsv(x: Tensor) -> Tensor:
    """Hue, saturation and value in [0, 1] of images `[N, 3, H, W]` in [0, 1]; the hue of grey is 0."""
    r, g, b = x.split(1, 1)
    high, low = x.amax(1, keepdim=True), x.amin(1, keepdim=True)
    spread = high - low
    by = torch.where(spread > 0, spread, 1)
    hue = torch.where(high == r, (g - b) / by % 6, torch.where(high == g, (b - r) / by + 2, (r - g) / by + 4))
    return torch.cat([hue / 6, spread / torch.where(high > 0, high, 1), high], 1)


def rgb(x: Tensor) -> Tensor:
    """The inverse of `hsv`."""
    h, s, v = x.split(1, 1)
    sector = (torch.tensor([5.0, 3.0, 1.0], device=x.device).view(3, 1, 1) + 6 * h) % 6
    return v - v * s * torch.minimum(sector, 4 - sector).clamp(0, 1)


def cropped(
    x: Tensor, mirrored: Tensor, across: Tensor, down: Tensor, sizes: list[Tensor], area: tuple[float, float]
) -> Tensor:
    """A part of each image, stretched to its size, and mirrored where told; beyond the edge, images go on mirrored.

    Args:
        x: images `[N, C, H, W]`.
        mirrored: bool `[N]`.
        across, down: where the part lies, uniform on [0, 1), `[N]`.
        sizes: its area and the ratio of its sides, uniform on [0, 1), each `[N, TRIES]`.
        area: shares of the image between which the area lies.
    """
    height, width = x.shape[2:]
    share = (area[0] + (area[1] - area[0]) * sizes[0]) * height * width
    ratio = torch.exp(math.log(4 / 3) * (2 * sizes[1] - 1))
    wide, high = (share * ratio).sqrt().round(), (share / ratio).sqrt().round()
    fits = (wide >= 1) & (wide <= width) & (high >= 1) & (high <= height)
    first = fits.int().argmax(1, keepdim=True)
    sides = []
    for found, whole in ((wide, width), (high, height)):
        sides.append(torch.where(fits.any(1), found.gather(1, first)[:, 0], whole))
    places = []  # of the part's middle, from -1 to 1, in steps of half a pixel
    for side, whole, where in zip(sides, (width, height), (across, down), strict=True):
        room = whole - side
        places.append(((where * (2 * room + 1)).floor() - room) / whole)
    sign = 1 - 2 * mirrored.float()
    zero = torch.zeros_like(sign)
    theta = torch.stack(
        [sign * sides[0] / width, zero, places[0], zero, sides[1] / height, places[1]], 1
    ).view(-1, 2, 3)
    grid = affine_grid(theta, list(x.shape), align_corners=False)
    return grid_sample(x, grid, padding_mode="reflection", align_corners=False)
