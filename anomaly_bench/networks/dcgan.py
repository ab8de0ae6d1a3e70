"""The convolutional pair of DCGAN (Radford et al. 2016, arXiv 1511.06434) as GANomaly lays it out."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from anomaly_bench.errors import SettingError
from anomaly_bench.networks.shapes import check_images


def dcgan_init(module: nn.Module) -> None:
    """DCGAN's first weights, for `module.apply`: convolutions N(0, 0.02), batch norm N(1, 0.02) with shift 0.

    Biases of convolutions stay as PyTorch draws them, where DCGAN's code has 0; GANomaly has no such biases.
    """
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, 0.02)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, 0.02)
        nn.init.zeros_(module.bias)


@torch.no_grad()
def reinitialised(network: nn.Module, fresh: nn.Module, collapsed: Tensor) -> Tensor:
    """Give `network` the weights of `fresh` if `collapsed` (bool scalar); 1 if so. Its optimiser's state stays.

    Decided on the device, so that nothing waits for the value.
    """
    share = collapsed.float()
    for weight, first in zip(network.parameters(), fresh.parameters(), strict=True):
        weight.lerp_(first, share)
    return share


def check_dcgan_shape(shape: tuple[int, ...]) -> tuple[int, int]:
    """Channels and size of square images whose side is 16 times a power of two; anything else is a SettingError."""
    check_images(shape)
    channels, height, width = shape
    if height != width or height % 16 or (height // 16) & (height // 16 - 1):
        raise SettingError(
            f"data.image_size: found images of {height} x {width}; this network takes square images of "
            f"16, 32, 64, 128, ... pixels, 16 times a power of two (nearest: {nearest_dcgan_size(height)})"
        )
    return channels, height


def nearest_dcgan_size(size: int) -> int:
    """The allowed size closest to `size`."""
    return min((16 << power for power in range(8)), key=lambda allowed: abs(allowed - size))


class OverAll(nn.Conv2d):
    """A convolution whose kernel is as large as its images: one matrix product, `[N, C, H, W]` to `[N, O, 1, 1]`.

    Several times as fast as the general operator; with channels-last tensors nothing is copied for it.
    """

    def forward(self, input: Tensor) -> Tensor:
        """`[N, O, 1, 1]` of images `[N, C, H, W]`."""
        return self.product(input, self.laid_out(self.weight), self.bias)

    @staticmethod
    def laid_out(weight: Tensor) -> Tensor:
        """Weights as `product` takes them; a network that only scores keeps them so."""
        return pixel_rows(weight)

    @staticmethod
    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with other weights, laid out."""
        return linear(pixel_rows(x), weight, bias)[:, :, None, None]


class FromPoint(nn.ConvTranspose2d):
    """The transpose of `OverAll`, for images of one pixel: `[N, C, 1, 1]` to `[N, O, H, W]`, H x W the kernel."""

    def forward(self, input: Tensor, output_size: list[int] | None = None) -> Tensor:
        """`[N, O, H, W]` of codes `[N, C, 1, 1]`."""
        return self.product(input, self.laid_out(self.weight), self.bias)

    @staticmethod
    def laid_out(weight: Tensor) -> Tensor:
        """Weights as `product` takes them; a network that only scores keeps them so."""
        return weight.permute(2, 3, 1, 0)

    @staticmethod
    def product(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The layer with other weights, laid out."""
        *sides, channels, _ = weight.shape
        pixels = linear(x.flatten(1), weight.flatten(0, 2))
        images = pixels.view(-1, *sides, channels).permute(0, 3, 1, 2)
        return images if bias is None else images + bias[:, None, None]


def pixel_rows(x: Tensor) -> Tensor:
    """`[N, C, H, W]` as `[N, H W C]`."""
    return x.permute(0, 2, 3, 1).flatten(1)


def extra_layer(width: int) -> tuple[nn.Module, nn.Module]:
    """A convolution of 3 x 3 that keeps size and filters, with batch norm."""
    return nn.Conv2d(width, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width)


class Encoder(nn.Module):
    """Strided convolutions from `[N, nc, size, size]` down to 4 x 4, then one over all of it.

    The stages before that last convolution are `features`, giving `[N, ngf * size / 8, 4, 4]`; `head` makes
    `[N, nz, 1, 1]` of them. No bias; no batch norm on the first stage, behind which `extralayers` keep its size.
    """

    def __init__(self, size: int, nc: int, nz: int, ngf: int, extralayers: int = 0) -> None:
        super().__init__()
        stages: list[nn.Module] = [nn.Conv2d(nc, ngf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        for _ in range(extralayers):
            stages += [*extra_layer(ngf), nn.LeakyReLU(0.2, inplace=True)]
        side, width = size // 2, ngf
        while side > 4:
            stages += [
                nn.Conv2d(width, 2 * width, 4, 2, 1, bias=False),
                nn.BatchNorm2d(2 * width),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            side, width = side // 2, 2 * width
        self.features = nn.Sequential(*stages)
        self.head = OverAll(width, nz, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Code `[N, nz, 1, 1]` of images `[N, nc, size, size]`."""
        return self.head(self.features(x))


class Decoder(nn.Sequential):
    """The encoder's mirror: codes `[N, nz, 1, 1]` to images `[N, nc, size, size]` in (-1, 1)."""

    def __init__(self, size: int, nc: int, nz: int, ngf: int, extralayers: int = 0) -> None:
        width, side = ngf * size // 8, 4
        stages: list[nn.Module] = [
            FromPoint(nz, width, 4, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        ]
        while side < size // 2:
            stages += [
                nn.ConvTranspose2d(width, width // 2, 4, 2, 1, bias=False),
                nn.BatchNorm2d(width // 2),
                nn.ReLU(inplace=True),
            ]
            side, width = side * 2, width // 2
        for _ in range(extralayers):
            stages += [*extra_layer(width), nn.ReLU(inplace=True)]
        super().__init__(*stages, nn.ConvTranspose2d(width, nc, 4, 2, 1, bias=False), nn.Tanh())


class Discriminator(Encoder):
    """An encoder with one output: features `[N, ndf * size / 8, 4, 4]` and logits `[N]` of being real."""

    def __init__(self, size: int, nc: int, ndf: int, extralayers: int = 0) -> None:
        super().__init__(size, nc, 1, ndf, extralayers)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Features and logits of images `[N, nc, size, size]`."""
        features = self.features(x)
        return features, self.head(features).flatten()
