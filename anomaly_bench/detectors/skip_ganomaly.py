"""Skip-GANomaly: Skip Connected and Adversarially Trained Encoder-Decoder Anomaly Detection.

Akcay, Atapour-Abarghouei, Breckon, IJCNN 2019, https://arxiv.org/abs/1901.08954; official code:
samet-akcay/skip-ganomaly.

A U-Net rebuilds normal images; its skip connections carry their detail past the narrow code. A discriminator
keeps the rebuilt images like real ones, and its last features f are the latent space: what differs between an
image and its reconstruction, in pixels and in f, is the anomaly score.

    L_adv = BCE(D(x^), 1),   L_con = |x - x^|_1,   L_lat = |f(x) - f(x^)|^2,   x^ = G(x)
    L_G   = w_adv L_adv + w_con L_con + w_lat L_lat
    L_D   = BCE(D(x), 1) + BCE(D(x^), 0)
    A(x)  = lambda |x - x^|^2 + (1 - lambda) |f(x) - f(x^)|^2        all norms are means over their entries

All follows the official code, of which:

- `w_con` is 50; the paper is said to have 40.
- It adds w_lat L_lat to L_D too, so that its discriminator makes f tell less; `d_lat=true` does the same.
- `reinit_below`: it gives the discriminator new weights when L_D falls below 1e-5. 0 turns it off. `losses.csv`
  keeps the share of steps where it happened.
- It scales the scores by the smallest and largest of the test images, which changes no AUROC; here they are not
  scaled.
- It tests with batch norm in training mode, on test batches of one kind after the other, and reports its best
  test epoch; `evaluation=as_published` does the same.
- Its generator takes x plus a noise that its code never fills in; here there is none.

When to use it: To reproduce its table, or beside `ganomaly` on images of 32 or 64 pixels whose fine detail a
narrow code would blur, X-rays being the authors' case. A score is one pass of the U-Net and two of the
discriminator, without a search, with a residual map. Not for photographs: airplane, bird and ship of CIFAR-10 have
.463 .386 .386 after ten epochs, untrained .498 .375 .485, and .705 .393 .611 tested as its code does
(results/skip_ganomaly_cifar10_jpeg).

Traps: Published numbers lean on three things at once: batch norm with statistics of test batches, these of
one kind each, and the best test epoch. Users of its code saw airplanes at .975 and .989 after the first two
epochs, then .73 to .79, and the AUROC fall far when test images were shuffled. The skip connections can carry
an anomaly through as well as any detail: `con` in `losses.csv` near 0 says that G copies, and then only the
tenth that `model.lambda_` leaves to the features is left to tell. A `reinit` above 0 there means a
discriminator that won and was thrown away, while its Adam went on; with `model.d_lat=true` a `lat` that goes
to 0 may be the discriminator's doing, and tells little of G.
"""

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import l1_loss, mse_loss

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, agreed, descend, detached
from anomaly_bench.errors import check_range
from anomaly_bench.losses import bce
from anomaly_bench.networks.dcgan import Encoder, check_dcgan_shape, dcgan_init, reinitialised


class UNet(nn.Module):
    """The U-Net of pix2pix: images `[N, nc, size, size]` to images in (-1, 1), by way of 1 x 1.

    Every level halves the image; widths are ngf, 2, 4 and 8 ngf, and 8 ngf from there on.
    """

    def __init__(self, size: int, nc: int, ngf: int) -> None:
        super().__init__()
        widths = [ngf * min(2**level, 8) for level in range(size.bit_length() - 1)]
        down: list[nn.Module] = [nn.Conv2d(nc, ngf, 4, 2, 1, bias=False)]
        last = nn.ConvTranspose2d(2 * ngf, nc, 4, 2, 1)
        nn.init.zeros_(last.get_parameter("bias"))
        up: list[nn.Module] = [nn.Sequential(nn.ReLU(), last, nn.Tanh())]
        for level, (outer, inner) in enumerate(pairwise(widths), 2):
            innermost = level == len(widths)
            norm = nn.Identity() if innermost else nn.BatchNorm2d(inner)
            down.append(nn.Sequential(nn.LeakyReLU(0.2), nn.Conv2d(outer, inner, 4, 2, 1, bias=False), norm))
            rise = nn.ConvTranspose2d(inner if innermost else 2 * inner, outer, 4, 2, 1, bias=False)
            up.append(nn.Sequential(nn.ReLU(), rise, nn.BatchNorm2d(outer)))
        self.down, self.up = nn.ModuleList(down), nn.ModuleList(reversed(up))

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions `[N, nc, size, size]`."""
        skips = [x := down(x) for down in self.down]
        x = self.up[0](skips.pop())
        for up in self.up[1:]:
            x = up(torch.cat([skips.pop(), x], 1))
        return x


class Discriminator(Encoder):
    """Features `[N, nz, 1, 1]` of images `[N, nc, size, size]`, and logits `[N]` of being real."""

    def __init__(self, size: int, nc: int, nz: int, ndf: int) -> None:
        super().__init__(size, nc, nz, ndf)
        self.classify = nn.Conv2d(nz, 1, 3, 1, 1, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Features and logits."""
        features = super().forward(x)
        return features, self.classify(features).flatten()


class SkipGANomaly(Detector):
    """Skip-GANomaly on square images `[N, C, S, S]` in [-1, 1], S being 16 times a power of two.

    Args:
        shape: `(C, S, S)` of one image.
        nz: length of the discriminator's features f.
        ngf, ndf: filters of the first level of generator and discriminator.
        w_adv, w_con, w_lat: weights of the generator's losses.
        d_lat: add w_lat L_lat to the discriminator's loss, as the official code; see above.
        reinit_below: the discriminator starts anew when its loss is below this; 0 for never.
        lambda_: share of the pixels in the score, in [0, 1]; the features have the rest.
        lr, beta1, batch_size, epochs: of both Adams.
    """

    splits = True

    scored_by: ClassVar[tuple[str, ...]] = ("lambda_",)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        nz: int = 100,
        ngf: int = 64,
        ndf: int = 64,
        w_adv: float = 1.0,
        w_con: float = 50.0,
        w_lat: float = 1.0,
        d_lat: bool = False,
        reinit_below: float = 1e-5,
        lambda_: float = 0.9,
        lr: float = 2e-4,
        beta1: float = 0.5,
        batch_size: int = 64,
        epochs: int = 15,
    ) -> None:
        super().__init__()
        check_range("lambda_", lambda_, at_least=0, at_most=1)
        nc, size = check_dcgan_shape(shape)
        self.generate = UNet(size, nc, ngf)
        self.discriminate = Discriminator(size, nc, nz, ndf)
        self.apply(dcgan_init)
        self.w_adv, self.w_con, self.w_lat, self.d_lat = w_adv, w_con, w_lat, d_lat
        self.reinit_below, self.lambda_ = reinit_below, lambda_
        self.lr, self.betas = lr, (beta1, 0.999)
        self.batch_size, self.epochs = batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage: generator and discriminator step in turn on every batch."""
        g = adam(self.generate, lr=self.lr, betas=self.betas)
        d = adam(self.discriminate, lr=self.lr, betas=self.betas)
        fresh = copy.deepcopy(self.discriminate).apply(dcgan_init)

        def step(batch: Batch) -> dict[str, Tensor]:
            x = batch.x
            fake = self.generate(x)
            real_features, real = self.discriminate(x)
            fake_features, fooled = self.discriminate(fake)
            l_adv, l_con, l_lat = bce(fooled, 1), l1_loss(fake, x), mse_loss(fake_features, real_features)
            l_d = bce(real, 1) + bce(fooled, 0) + (self.w_lat * l_lat if self.d_lat else 0)
            descend(g, self.w_adv * l_adv + self.w_con * l_con + self.w_lat * l_lat, keep_graph=True)
            descend(d, l_d)
            reinit = reinitialised(self.discriminate, fresh, agreed(l_d) < self.reinit_below)
            return detached(adv=l_adv, con=l_con, lat=l_lat, d=l_d, reinit=reinit)

        yield Stage("gan", self.epochs, step, (g, d), self.batch_size)

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`."""
        return self.explain(x).score

    def explain(self, x: Tensor) -> Explanation:
        """Score, absolute residual map, reconstruction, and the discriminator's features f(x)."""
        fake = self.generate(x)
        features, rebuilt = self.discriminate(x)[0].flatten(1), self.discriminate(fake)[0].flatten(1)
        residual = (x - fake).float()
        pixels, latent = residual.square().flatten(1).mean(1), (features - rebuilt).float().square().mean(1)
        score = self.lambda_ * pixels + (1 - self.lambda_) * latent
        return Explanation(score, residual.abs().mean(1), fake, features)
