"""Fence GAN: Towards Better Anomaly Detection.

Ngo, Winarto, Kou, Park, Akram, Lee, ICTAI 2019, https://arxiv.org/abs/1904.01209; official code:
phuccuongngo99/Fence_GAN.

A generator that has learned well puts its rows where the data are, and so a GAN's discriminator tells nothing of
anomalies. Here the generator is drawn to where the discriminator's output is alpha, the border of the data, and
kept spread along it; the discriminator then tightens around the data, and its output is the anomaly score.

    L_G  = encirclement + beta * dispersion,   z ~ N(0, I)
    encirclement = BCE(D(G(z)), alpha)               `losses=code`
                   mean log |alpha - D(G(z))|        `losses=paper`
    dispersion   = 1 / mean |G(z) - mu|_2            mu: the mean of the batch of G(z)
    L_D  = BCE(D(x), 1) + gamma BCE(D(G(z)), 0)
    A(x) = 1 - D(x)

All follows the official code, of which:

- `losses=code`: the discriminator takes two steps a batch, down BCE(D(x), 1) and then down gamma BCE(D(G(z)), 0).
  With `paper` it takes one, down L_D, and the encirclement is the paper's.
- Scores are the log-odds log(A / (1 - A)), which order the rows as A does: float32 rounds A to 1 for all rows that
  the discriminator is sure of, and could not tell them apart.
- For `pretrain` epochs the discriminator learns alone, against the untrained generator.
- Its generator makes the discriminator's rows with batch norm in evaluation mode, and others for its own update;
  here both updates see the same rows, made in training mode. Batches are drawn without replacement.
- `networks`: `mnist` or `cifar10`, for images; any size and colour of images goes through either.
- Stride-2 convolutions of 5 x 5 are padded on both sides, TensorFlow's on one; batch norm has PyTorch's momentum
  and epsilon.
- `d_decay`: the discriminator's learning rate is `d_lr / (1 + d_decay * t)` at its t-th step; CIFAR-10 has 1e-5.
- `d_l2`: an option of the code for CIFAR-10, 0 unless told.
- KDD99: the code's settings are in an archive that was not to be had. The layers are those of another's copy of the
  method, without its dropout; alpha, beta and gamma are those of the code's two-dimensional example.
- Its MNIST run trains on 80 % of the normal images, tests 15 % of them and 75 % of the anomalous ones, and validates by
  the rest; under `leave_one_class_out` all of the rest is tested.
- It reports the test images at the epoch with the best AUPRC or AUROC on validation images, with anomalies among
  them; here it is the last epoch. Its AUPRC has the normal images as the positive ones.

When to use it: For images and rows of which a score is all that is wanted, and cheaply: the discriminator
alone gives it in one pass, with no reconstruction and no map; where it has to be seen what is wrong,
`ganomaly` or `f_anogan` has a residual. `fence_gan` is for grey images (`data.image_size=28`),
`fence_gan_cifar10` for colour ones of 32 pixels. The tables of its paper were not to be had, so that a run
can be held against its control and other methods only.

Traps: Its published AUPRC, of normal rows, is higher than one of anomalous rows would be, and not to be put
beside EGBAD's. Dispersion is that of one batch, in units of the rows, so that `model.batch_size` and
`data.scale` move what `model.beta` weighs. In `losses.csv`, a `dispersion` that grows is a generator that
draws together, and `encirclement` (`model.losses=code`) has a floor, .33 for `model.alpha=0.1` and .69 for
0.5: far above it the generator is not where the discriminator says alpha. `model.d_lr=1e-5` moves a weight by
about that much a step, so that short runs are hardly trained.
"""

from collections.abc import Iterator
from functools import partial
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import check_choice, check_range
from anomaly_bench.losses import bce
from anomaly_bench.networks.bigan import dense, init_weights
from anomaly_bench.networks.shapes import check_multiple


class FenceGAN(Detector):
    """Fence GAN on images `[N, C, H, W]` in [-1, 1], their sides multiples of 4 or 16, or on rows `[N, D]`.

    Args:
        shape: `(C, H, W)` or `(D,)`.
        nz: length of the code.
        networks: `mnist` (sides are multiples of 4) or `cifar10` (of 16), for images.
        width: filters of the first convolution; 64 in the `mnist` networks, 32 in the others.
        hidden: width of the dense layers of the `mnist` networks.
        alpha: output of the discriminator where the generator is drawn to, in (0, 1).
        beta: weight of the dispersion.
        gamma: weight of the generated rows in the discriminator's loss.
        losses: `code` or `paper`; see above.
        d_lr, d_decay: learning rate of the discriminator, and how fast it falls.
        d_l2: weight of the squares of its convolutions' kernels in each of its losses.
        g_lr, beta1: learning rate of the generator, and of both Adams the first beta.
        pretrain: epochs of the discriminator alone.
        batch_size, epochs: of the GAN.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        nz: int = 200,
        networks: str = "mnist",
        width: int = 64,
        hidden: int = 1024,
        alpha: float = 0.1,
        beta: float = 30.0,
        gamma: float = 0.1,
        losses: str = "code",
        d_lr: float = 1e-5,
        d_decay: float = 0.0,
        d_l2: float = 0.0,
        g_lr: float = 2e-5,
        beta1: float = 0.5,
        pretrain: int = 15,
        batch_size: int = 200,
        epochs: int = 100,
    ) -> None:
        super().__init__()
        check_choice("networks", networks, ("mnist", "cifar10"))
        check_choice("losses", losses, ("code", "paper"))
        check_range("alpha", alpha, above=0, below=1)
        if len(shape) == 1:
            self.generate, self.discriminate = row_networks(shape[0], nz)
            draw = nn.init.xavier_normal_
        elif networks == "mnist":
            self.generate, self.discriminate = mnist_networks(shape, nz, width, hidden)
            draw = partial(nn.init.normal_, std=0.02)
        else:
            self.generate, self.discriminate = cifar10_networks(shape, nz, width)
            draw = nn.init.xavier_normal_
        init_weights(self, draw)
        self.nz, self.alpha, self.beta, self.gamma, self.losses = nz, alpha, beta, gamma, losses
        self.d_lr, self.d_decay, self.d_l2 = d_lr, d_decay, d_l2
        self.g_lr, self.betas = g_lr, (beta1, 0.999)
        self.pretrain, self.batch_size, self.epochs = pretrain, batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """Two stages: the discriminator alone, then discriminator and generator in turn on every batch."""
        d = adam(self.discriminate, lr=self.d_lr, betas=self.betas)
        g = adam(self.generate, lr=self.g_lr, betas=self.betas)

        def pretrain_step(batch: Batch) -> dict[str, Tensor]:
            with torch.no_grad():
                fake = self.generate(self.prior(batch.x))
            l_real, l_fake = self.tighten(d, batch.x, fake)
            return detached(real=l_real, fake=l_fake)

        yield Stage("pretrain", self.pretrain, pretrain_step, (d,), self.batch_size)

        def step(batch: Batch) -> dict[str, Tensor]:
            fake = self.generate(self.prior(batch.x))
            l_real, l_fake = self.tighten(d, batch.x, fake.detach())
            encirclement, spread = self.encirclement(self.discriminate(fake)), dispersion(fake)
            descend(g, encirclement + self.beta * spread)
            return detached(real=l_real, fake=l_fake, encirclement=encirclement, dispersion=spread)

        yield Stage("gan", self.epochs, step, (d, g), self.batch_size)

    def prior(self, x: Tensor) -> Tensor:
        """As many codes from N(0, I), `[B, nz]`, as there are rows."""
        return torch.randn(len(x), self.nz, device=x.device)

    def tighten(self, d: Optimizer, x: Tensor, fake: Tensor) -> tuple[Tensor, Tensor]:
        """Update the discriminator on rows and generated rows `[B, *shape]`; gives the two terms of L_D."""
        if self.losses == "paper":
            l_real, l_fake = bce(self.discriminate(x), 1), self.gamma * bce(self.discriminate(fake), 0)
            self.descend_slower(d, l_real + l_fake)
            return l_real, l_fake
        l_real = bce(self.discriminate(x), 1)
        self.descend_slower(d, l_real)
        l_fake = self.gamma * bce(self.discriminate(fake), 0)
        self.descend_slower(d, l_fake)
        return l_real, l_fake

    def descend_slower(self, d: Optimizer, loss: Tensor) -> None:
        """One step of the discriminator, and a smaller one next time.

        The rate of the next step comes from that of this one, since the optimiser's settings are what is kept.
        """
        if self.d_l2:
            kernels = (weight for weight in self.discriminate.parameters() if weight.dim() == 4)
            loss = loss + self.d_l2 * sum(kernel.square().sum() for kernel in kernels)
        descend(d, loss)
        if not self.d_decay:
            return
        for group in d.param_groups:
            group["lr"] = 1 / (1 / group["lr"] + self.d_decay / self.d_lr)

    def encirclement(self, logits: Tensor) -> Tensor:
        """How far D(G(z)), given as logits `[B]`, is from alpha, a scalar."""
        if self.losses == "paper":
            return (self.alpha - logits.float().sigmoid()).abs().clamp_min(1e-6).log().mean()
        return bce(logits, self.alpha)

    def score(self, x: Tensor) -> Tensor:
        """The log-odds of A(x) = 1 - D(x), `[N]`."""
        return -self.discriminate(x).float()

    def explain(self, x: Tensor) -> Explanation:
        """Score, and the discriminator's last features."""
        body, head = self.discriminate[:-2], self.discriminate[-2:]
        features = body(x)
        return Explanation(-head(features).float(), features=features)


def dispersion(fake: Tensor) -> Tensor:
    """One over the mean distance of generated rows `[B, *shape]` from their mean, a scalar."""
    rows = fake.float().flatten(1)
    return 1 / (rows - rows.mean(0)).norm(dim=1).mean()


def mnist_networks(
    shape: tuple[int, ...], nz: int, width: int, hidden: int
) -> tuple[nn.Module, nn.Sequential]:
    """Generator and discriminator of the paper's MNIST experiment; the latter ends in features, logits `[N]`."""
    channels, height, side = check_multiple(shape, 4)
    corner = height // 4, side // 4
    places = corner[0] * corner[1]
    start = places * 2 * width
    generate = nn.Sequential(
        *(nn.Linear(nz, hidden), nn.ReLU(), nn.BatchNorm1d(hidden)),
        *(nn.Linear(hidden, start), nn.ReLU(), nn.BatchNorm1d(start)),
        nn.Unflatten(1, (2 * width, *corner)),
        *(nn.ConvTranspose2d(2 * width, width, 4, 2, 1), nn.ReLU(), nn.BatchNorm2d(width)),
        *(nn.ConvTranspose2d(width, channels, 4, 2, 1), nn.Tanh()),
    )
    discriminate = nn.Sequential(
        *(nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.1)),
        *(nn.Conv2d(width, width, 4, 2, 1), nn.LeakyReLU(0.1)),
        *(nn.Flatten(), nn.Linear(places * width, hidden), nn.LeakyReLU(0.1)),
        *(nn.Linear(hidden, 1), nn.Flatten(0)),
    )
    return generate, discriminate


def cifar10_networks(shape: tuple[int, ...], nz: int, width: int) -> tuple[nn.Module, nn.Sequential]:
    """Generator and discriminator of the paper's CIFAR-10 experiment."""
    channels, height, side = check_multiple(shape, 16)
    corner = height // 16, side // 16
    widths = [width, 2 * width, 4 * width, 8 * width]
    start = corner[0] * corner[1] * widths[-1]
    rise, fall = [], []
    for before, after in pairwise(reversed(widths)):
        rise += [nn.ConvTranspose2d(before, after, 5, 2, 2, output_padding=1, bias=False)]
        rise += [nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    for before, after in pairwise([channels, *widths[:-1]]):
        fall += [nn.Conv2d(before, after, 5, 2, 2, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
    generate = nn.Sequential(
        *(nn.Linear(nz, start, bias=False), nn.Unflatten(1, (widths[-1], *corner))),
        *(nn.BatchNorm2d(widths[-1]), nn.LeakyReLU(0.2)),
        *(*rise, nn.ConvTranspose2d(width, channels, 5, 2, 2, output_padding=1), nn.Tanh()),
    )
    discriminate = nn.Sequential(
        *(*fall, nn.Conv2d(widths[-2], widths[-1], 5, 2, 2), nn.LeakyReLU(0.2)),
        *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(start, 1), nn.Flatten(0)),
    )
    return generate, discriminate


def row_networks(length: int, nz: int) -> tuple[nn.Module, nn.Sequential]:
    """Generator and discriminator for rows `[N, length]`."""
    generate = nn.Sequential(*dense([nz, 64, 128], 0), nn.Linear(128, length))
    discriminate = nn.Sequential(*dense([length, 256, 128, 64], 0.1), nn.Linear(64, 1), nn.Flatten(0))
    return generate, discriminate
