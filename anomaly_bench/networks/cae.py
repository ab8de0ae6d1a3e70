"""The convolutional autoencoder that the GeoTrans and E3Outlier papers take as their baseline."""

import math

from torch import Tensor, nn

from anomaly_bench.networks.shapes import check_images, check_multiple


def stages_for(shape: tuple[int, ...]) -> int:
    """How many stride-2 stages images `(C, H, W)` get: three up to 63 pixels, one more from 64 on."""
    check_images(shape)
    stages = 3 if min(shape[1:]) < 64 else 4
    check_multiple(shape, 2**stages)
    return stages


class ConvEncoder(nn.Sequential):
    """Images `[N, C, H, W]` to codes `[N, code]` in (-1, 1): 3 x 3 stride-2 stages of 64, 128, 256, ... filters."""

    def __init__(self, shape: tuple[int, ...], code: int, width: int) -> None:
        layers: list[nn.Module] = []
        channels = shape[0]
        for stage in range(stages_for(shape)):
            filters = width << stage
            layers += [nn.Conv2d(channels, filters, 3, 2, 1, bias=False), nn.BatchNorm2d(filters), nn.ReLU()]
            channels = filters
        super().__init__(*layers, nn.Flatten(), nn.Linear(math.prod(bottom(shape, width)), code), nn.Tanh())


class ConvDecoder(nn.Sequential):
    """The encoder's mirror: codes `[N, code]` to images `[N, C, H, W]` in (-1, 1)."""

    def __init__(self, shape: tuple[int, ...], code: int, width: int) -> None:
        channels, height, side = bottom(shape, width)
        layers: list[nn.Module] = [
            nn.Linear(code, channels * height * side, bias=False),
            nn.BatchNorm1d(channels * height * side),
            nn.ReLU(),
            nn.Unflatten(1, (channels, height, side)),
        ]
        for _ in range(stages_for(shape) - 1):
            layers += [
                nn.ConvTranspose2d(channels, channels // 2, 3, 2, 1, output_padding=1, bias=False),
                nn.BatchNorm2d(channels // 2),
                nn.ReLU(),
            ]
            channels //= 2
        last = nn.ConvTranspose2d(channels, shape[0], 3, 2, 1, output_padding=1)
        super().__init__(*layers, last, nn.Tanh())


def bottom(shape: tuple[int, ...], width: int) -> tuple[int, int, int]:
    """Shape of the feature map between convolutions and code."""
    stages = stages_for(shape)
    return width << (stages - 1), shape[1] >> stages, shape[2] >> stages


def squared_error(x: Tensor, reconstruction: Tensor) -> Tensor:
    """Squared error summed over each row, `[N]`."""
    return (x - reconstruction).float().square().flatten(1).sum(1)
