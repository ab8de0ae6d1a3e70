"""A Surface Defect Detection Method Based on Positive Samples.

Zhao, Li, Dong, Zhao, PRICAI 2018, https://doi.org/10.1007/978-3-319-97310-4_54; there is no official code.

Defects are painted onto normal images, and an autoencoder with an adversarial loss learns to take them off. Of
a test image it takes off real ones; input and repaired image are then compared by local binary patterns, which
a change of brightness leaves as they are.

    x~ = x with blocks of random number, position, size and grey value
    L_D = BCE(D(x), 1) + BCE(D(G(x~)), 0)
    L_G = BCE(D(G(x~)), 1) + lambda |x - G(x~)|_1 / n
    LBP(x)_p = sum over the 8 neighbours q of p of 2^i [x_q >= x_p]
    map(x)_p = min over q in a window around p of |LBP(x)_p - LBP(G(x))_q|

What the paper leaves open, and what is done here:

- Layers: those of the context encoder that the re-implementation mingren8888/GAN-defect has, 64, 64, 128, 256,
  512 filters on 128 pixels and a bottleneck of 4,000, one stage less for each halving of the size; with the
  paper's ReLU in the autoencoder and leaky ReLU in the discriminator, which is like the encoder, batch norm in both,
  and no skips.
- lambda, which the paper tuned without saying to what: 10, an assumption.
- The paper prints log(1 - D(G(x~))) for G; as everywhere, G descends -log D(G(x~)) in its place.
- Defects: up to `max_defects` rectangles of one value a channel, each side from 5 to 60 % of the image's, as there.
- Patterns: of the grey images, on 256 levels as image files have them, so that less than a level is no edge;
  radius 1, a window of 5 x 5.
- The score of a whole image: the mean of the highest tenth of its map (`top`); the paper scores pixels.
- Epochs: 300, as there. `augment` turns, scales and blurs training images, as the paper does with textures; what
  is upright by nature wants `augment=false`, which the sets of digits have without being told.

When to use it: On surfaces of a simple, periodic texture, with images of defect-free ones only, when a map of
where is wanted; the paper has 256 and 512 pixels. Training is that of a GAN, 300 passes; a score is one pass
and a comparison of patterns. As patterns leave brightness out, uneven light does no harm, and a spot that is
only darker shows at its edge alone. On complex, random backgrounds it fails, as the paper itself concludes;
there take `pretrained_patches` or `uninformed_students`.

Traps: A bottleneck of 4,000 is none for small images: 32 x 32 grey ones have 1,024 pixels, so lower
`model.nz`; it is 100 on the sets of such images that are known by name. In flat areas a repaired image that
wavers by a single level has other patterns, so that a plain background scores too. Patterns are compared as
numbers, in which one neighbour counts 128 times as much as another. What is to be found should look like what
is painted on: set `model.min_defect` and `model.max_defect` to its size. The paper's 98.5 % is the share of
right pixels, which an answer of "all normal" nearly has too where defects are small; lambda, epochs, layers
and the window are not in it, so that no run here reproduces it.
"""

import math
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import affine_grid, grid_sample, l1_loss, pad, unfold

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import SettingError, check_range
from anomaly_bench.losses import bce
from anomaly_bench.networks.dcgan import OverAll, check_dcgan_shape, dcgan_init

NEIGHBOURS = (0, 1, 2, 5, 8, 7, 6, 3)
"""Places around the middle of a 3 x 3 patch, in the order of the bits of a pattern."""

BLUR_TAPS = 5
"""Pixels of the Gaussian blur's window, along each side."""


class Repair(nn.Sequential):
    """G: images `[N, nc, size, size]` to repaired ones in (-1, 1), through a bottleneck of `nz`."""

    def __init__(self, size: int, nc: int, nz: int, ngf: int) -> None:
        filters = filters_of(size, ngf)
        down: list[nn.Module] = [nn.Conv2d(nc, ngf, 4, 2, 1, bias=False), nn.ReLU(inplace=True)]
        for inputs, outputs in pairwise(filters):
            down += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), *norm_relu(outputs)]
        down += [nn.Conv2d(filters[-1], nz, 4, bias=False), *norm_relu(nz)]
        up: list[nn.Module] = [nn.ConvTranspose2d(nz, filters[-1], 4, bias=False), *norm_relu(filters[-1])]
        for inputs, outputs in pairwise(filters[::-1]):
            up += [nn.ConvTranspose2d(inputs, outputs, 4, 2, 1, bias=False), *norm_relu(outputs)]
        super().__init__(*down, *up, nn.ConvTranspose2d(ngf, nc, 4, 2, 1), nn.Tanh())


class Discriminator(nn.Module):
    """Features `[N, F, 4, 4]` and logits `[N]` of being real, of images `[N, nc, size, size]`, by G's way down."""

    def __init__(self, size: int, nc: int, ndf: int) -> None:
        super().__init__()
        filters = filters_of(size, ndf)
        layers: list[nn.Module] = [nn.Conv2d(nc, ndf, 4, 2, 1, bias=False), nn.LeakyReLU(0.2, inplace=True)]
        for inputs, outputs in pairwise(filters):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, 1, bias=False), nn.BatchNorm2d(outputs)]
            layers += [nn.LeakyReLU(0.2, inplace=True)]
        self.features = nn.Sequential(*layers)
        self.head = OverAll(filters[-1], 1, 4, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of images."""
        features = self.features(x)
        return features, self.head(features).flatten()


def filters_of(size: int, width: int) -> list[int]:
    """Filters of each stage from half of `size` down to 4 pixels."""
    halvings = int(math.log2(size // 4))
    return [width, *(width * min(2**stage, 8) for stage in range(halvings - 1))]


def norm_relu(channels: int) -> tuple[nn.Module, nn.Module]:
    """Batch norm and ReLU."""
    return nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


class PositiveSample(Detector):
    """The method on square images `[N, C, S, S]` in [-1, 1], S being 16 times a power of two.

    Args:
        shape: `(C, S, S)` of one image.
        nz: length of the bottleneck.
        ngf, ndf: filters of the first stage of autoencoder and discriminator.
        lambda_: weight of the L1 reconstruction.
        max_defects: most blocks painted onto one image; there is at least one.
        min_defect, max_defect: sides of a block, as shares of the image's.
        augment: turn by any angle, scale by 0.5 to 2, and blur training images.
        window: side of the window in which patterns are compared, odd.
        top: share of the pixels, those of the highest values in the map, whose mean is the score; 0 for the
            highest alone.
        lr, beta1, batch_size, epochs: of both Adams.
    """

    scored_by: ClassVar[tuple[str, ...]] = ("window", "top")

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        nz: int = 4000,
        ngf: int = 64,
        ndf: int = 64,
        lambda_: float = 10.0,
        max_defects: int = 3,
        min_defect: float = 0.05,
        max_defect: float = 0.6,
        augment: bool = True,
        window: int = 5,
        top: float = 0.1,
        lr: float = 2e-4,
        beta1: float = 0.5,
        batch_size: int = 64,
        epochs: int = 300,
    ) -> None:
        super().__init__()
        check_range("max_defects", max_defects, at_least=1)
        if not 0 <= min_defect <= max_defect <= 1:
            raise SettingError(
                f"model.min_defect={min_defect}: must be from 0 to model.max_defect={max_defect}, and that at most 1"
            )
        if window < 1 or window % 2 == 0:
            raise SettingError(f"model.window={window}: must be odd and at least 1")
        check_range("top", top, at_least=0, at_most=1)
        nc, size = check_dcgan_shape(shape)
        self.repair = Repair(size, nc, nz, ngf)
        self.discriminate = Discriminator(size, nc, ndf)
        self.apply(dcgan_init)
        self.lambda_, self.augment, self.window, self.top = lambda_, augment, window, top
        self.max_defects, self.sides = max_defects, (min_defect, max_defect)
        self.lr, self.betas, self.batch_size, self.epochs = lr, (beta1, 0.999), batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage: discriminator and autoencoder step in turn on every batch."""
        g = adam(self.repair, lr=self.lr, betas=self.betas)
        d = adam(self.discriminate, lr=self.lr, betas=self.betas)

        def step(batch: Batch) -> dict[str, Tensor]:
            x = augmented(batch.x) if self.augment else batch.x
            fake = self.repair(self.with_defects(x))
            l_d = bce(self.discriminate(x)[1], 1) + bce(self.discriminate(fake.detach())[1], 0)
            descend(d, l_d)
            l_gan = bce(self.discriminate(fake)[1], 1)
            l_const = l1_loss(fake.float(), x)
            descend(g, l_gan + self.lambda_ * l_const)
            return detached(discriminator=l_d, adversarial=l_gan, reconstruction=l_const)

        yield Stage("gan", self.epochs, step, (g, d), self.batch_size)

    def with_defects(self, x: Tensor) -> Tensor:
        """Images `[B, C, S, S]`, each with one to `max_defects` blocks of one value a channel painted onto it."""
        blocks, channels, size = self.max_defects, x.shape[1], x.shape[2]
        draw = torch.rand(len(x), blocks, 5 + channels, device=x.device)
        low, high = self.sides
        sides = (low + (high - low) * draw[..., :2]) * size
        starts = draw[..., 2:4] * (size - sides)
        middles = torch.arange(size, device=x.device) + 0.5
        inside = (middles >= starts[..., None]) & (middles < (starts + sides)[..., None])  # [B, blocks, 2, S]
        painted = inside[:, :, 0, :, None] & inside[:, :, 1, None, :]
        exists = draw[:, :1, 4] * blocks < torch.arange(blocks, 0, -1, device=x.device)  # the first always
        painted = painted & exists[..., None, None]
        for block in range(blocks):
            values = 2 * draw[:, block, 5:, None, None] - 1
            x = torch.where(painted[:, block, None], values, x)
        return x

    def compare(self, x: Tensor, repaired: Tensor) -> tuple[Tensor, Tensor]:
        """Score `[N]` and map `[N, S, S]` of images and of what they look like repaired."""
        ours, theirs = patterns(x), patterns(repaired)
        reach = self.window // 2
        around = unfold(pad(theirs[:, None], (reach,) * 4, mode="replicate"), self.window)
        gaps = (around - ours.flatten(1)[:, None]).abs().amin(1)
        highest = gaps.topk(max(1, round(self.top * gaps.shape[1]))).values
        return highest.mean(1), gaps.view_as(ours)

    def score(self, x: Tensor) -> Tensor:
        """Mean of the highest gaps between the patterns of image and repaired image, of 0 to 255, `[N]`."""
        return self.compare(x, self.repair(x))[0]

    def explain(self, x: Tensor) -> Explanation:
        """Score, the map of pattern gaps, the repaired image, and the discriminator's features of the image."""
        repaired = self.repair(x)
        score, gaps = self.compare(x, repaired)
        return Explanation(score, gaps, repaired, self.discriminate(x)[0].flatten(1))


def patterns(x: Tensor) -> Tensor:
    """Local binary patterns, 0 to 255, of the grey values of images `[N, C, H, W]` in [-1, 1], as `[N, H, W]`."""
    grey = ((x.float().mean(1, keepdim=True) + 1) * 127.5).round()
    patches = unfold(pad(grey, (1, 1, 1, 1), mode="replicate"), 3)  # [N, 9, H * W]
    bits = (patches[:, NEIGHBOURS, :] >= patches[:, 4:5]).float()
    weights = 2.0 ** torch.arange(8, device=x.device)
    return (bits * weights[:, None]).sum(1).view(x.shape[0], *x.shape[2:])


def augmented(x: Tensor) -> Tensor:
    """Images `[B, C, H, W]`, each turned by any angle, scaled by 0.5 to 2, and blurred by 0 to 1 pixels."""
    angle, scale, sigma = torch.rand(3, len(x), device=x.device)
    angle, scale = (2 * angle - 1) * math.pi, 2 ** (2 * scale - 1)
    cos, sin, none = angle.cos() / scale, angle.sin() / scale, torch.zeros_like(angle)
    turn = torch.stack([cos, -sin, none, sin, cos, none], 1).view(-1, 2, 3)
    grid = affine_grid(turn, list(x.shape), align_corners=False)
    turned = grid_sample(x, grid, padding_mode="reflection", align_corners=False)
    taps = torch.arange(BLUR_TAPS, device=x.device) - BLUR_TAPS // 2
    kernel = (-(taps**2) / (2 * sigma[:, None].clamp_min(0.1) ** 2)).softmax(1)
    edge = (BLUR_TAPS // 2,) * 4
    windows = pad(turned, edge, mode="replicate").unfold(2, BLUR_TAPS, 1).unfold(3, BLUR_TAPS, 1)
    return torch.einsum("bchwij,bi,bj->bchw", windows, kernel, kernel)
