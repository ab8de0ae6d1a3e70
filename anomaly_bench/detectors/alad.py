"""ALAD: Adversarially Learned Anomaly Detection.

Zenati, Romain, Foo, Lecouat, Chandrasekhar, ICDM 2018, https://arxiv.org/abs/1812.02288; official code:
houssamzenati/Adversarially-Learned-Anomaly-Detection.

EGBAD's bidirectional GAN with two more discriminators, which see to it that encoder E and generator G invert each
other: D_xx tells (x, x) from (x, G(E(x))), D_zz tells (z, z) from (z, E(G(z))). Spectral norm steadies encoder and
discriminators. The features f of D_xx, rather than pixels, say how far a reconstruction is from its row.

    L_xz = BCE(D_xz(x, E(x)), 1) + BCE(D_xz(G(z), z), 0),   z ~ N(0, I)
    L_xx = BCE(D_xx(x, x), 1) + BCE(D_xx(x, G(E(x))), 0)
    L_zz = BCE(D_zz(z, z), 1) + BCE(D_zz(z, E(G(z))), 0)
    L_G  = BCE(D_xz(G(z), z), 1) + C,   L_E = BCE(D_xz(x, E(x)), 0) + C
    C    = BCE(D_xx(x, G(E(x))), 1) + BCE(D_zz(z, E(G(z))), 1)
    A(x) = |f(x, x) - f(x, G(E(x)))|_1            `features`, or in the paper's ablation
           BCE(D_xx(x, G(E(x))), 1)               `logits`
           |x - G(E(x))|_1, |x - G(E(x))|_2       `l1`, `l2`

All follows the official code, of which:

- The discriminators step first, then G and E at once. The code draws another batch and other codes in between;
  here both see the same, which saves their passes. It has BCE(D_xx(x, x), 0) and BCE(D_zz(z, z), 0) in C, which
  G and E cannot change; they are left out.
- Its D_xx puts images on top of each other instead of behind each other (`concat=height`): the concatenation
  along axis 1 takes channels to be there. Here they are channels. Cats of CIFAR-10 have an AUROC of .588 by
  the slip and .499 without (results/alad_cifar10_lossless), ships .662 and .714.
- The networks for rows ignore its switch of spectral norm; so do the configs for rows. Its KDD rows have 121 columns,
  those of `data=kddcup99` 118.
- Scores come from a moving average of the weights (`ema_decay`), which starts at the first weights.
- Stride-2 convolutions of 5 x 5 are padded on both sides, TensorFlow's on one; batch norm has PyTorch's momentum
  and epsilon. Its five optimisers share one count of steps for Adam's correction of the first steps.
- It stops when the score of held-out images has not improved for 10 epochs, and then tests the last weights, not
  the best. Here the number of epochs is fixed.
- It flags the top 20 % (KDD) or 15 % (arrhythmia) of the test scores, and does not take the anomalies out of the
  arrhythmia training rows.

When to use it: For colour images of 32 pixels, and for rows (`alad_kdd`, `alad_arrhythmia`), where a distance
in pixels or columns says too little; `model.score_method=l1` tells whether it does. Scoring is one pass of
encoder and generator and two of a discriminator, and images have a residual map; training has three
discriminators where `egbad` has one. Expect large differences between classes: another's reproduction, with
batch norm in place of spectral norm, has AUROCs on CIFAR-10 from .44 (trucks) to .78 (ships).

Traps: A short run is scored by hardly trained weights, since a share of `ema_decay ** n` of the average is
still the first ones after n updates: 37 % after 1,000 at 0.999; lower `model.ema_decay` for trials. In
`losses.csv`, `d_xz`, `d_xx` and `d_zz` are each 2 log 2 = 1.39 where a discriminator can tell nothing, and
near 0 where it has won. The official code scales KDD's columns only when told to; here `data.scale=minmax`
does, and `data.scale=null` is the other. On KDD Cup 1999 a network can pass for a good detector untrained
(see `dagmm`): compare with the control.
"""

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus
from torch.nn.utils.parametrizations import spectral_norm as with_spectral_norm

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached, map_of
from anomaly_bench.errors import check_choice
from anomaly_bench.losses import bce
from anomaly_bench.networks.bigan import PairDiscriminator, average, averages_of, dense, init_weights
from anomaly_bench.networks.dcgan import check_dcgan_shape


class CycleDiscriminator(nn.Module):
    """Tells (a, a) from (a, a^): features `[N, F]` and logits `[N]` of being the first kind.

    Args:
        body: the two, joined along dimension `along`, to the features.
        features: F.
    """

    def __init__(self, body: nn.Module, features: int, along: int = 1) -> None:
        super().__init__()
        self.body, self.along = body, along
        self.head = nn.Linear(features, 1)

    def forward(self, a: Tensor, again: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of rows or codes `a` with what is made of them, of the same shape."""
        features = self.body(torch.cat([a, again], self.along))
        return features, self.head(features).flatten()


class Networks(NamedTuple):
    """What ALAD trains; E is a body and a last layer, which has no spectral norm."""

    encode: nn.Sequential
    generate: nn.Module
    d_xz: PairDiscriminator
    d_xx: CycleDiscriminator
    d_zz: CycleDiscriminator


class ALAD(Detector):
    """ALAD on square images `[N, C, S, S]` in [-1, 1], S being 16 times a power of two, or on rows `[N, D]`.

    Args:
        shape: `(C, S, S)` or `(D,)`.
        nz: length of the code.
        width: filters of the first stage of the image networks.
        encoder, generator: widths of their hidden layers, for rows.
        d_xz: features of D_xz, for rows.
        d_xx: widths of D_xx's layers, for rows.
        d_zz: widths of D_zz's layers.
        concat: how D_xx sees two images, as `channels` or on top of each other (`height`).
        spectral_norm: on all layers of encoder and discriminators but their last ones.
        score_method: `features`, `logits`, `l1` or `l2`; see above.
        ema_decay: of the averaged weights that score.
        lr, beta1, batch_size, epochs: of all Adams.
    """

    scored_by: ClassVar[tuple[str, ...]] = ("score_method",)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        nz: int = 100,
        width: int = 128,
        encoder: Sequence[int] = (64,),
        generator: Sequence[int] = (64, 128),
        d_xz: int = 128,
        d_xx: Sequence[int] = (128,),
        d_zz: Sequence[int] = (64, 32),
        concat: str = "channels",
        spectral_norm: bool = True,
        score_method: str = "features",
        ema_decay: float = 0.999,
        lr: float = 2e-4,
        beta1: float = 0.5,
        batch_size: int = 32,
        epochs: int = 100,
    ) -> None:
        super().__init__()
        check_choice("concat", concat, ("channels", "height"))
        check_choice("score_method", score_method, ("features", "logits", "l1", "l2"))
        if len(shape) == 1:
            networks = row_networks(shape[0], nz, encoder, generator, d_xz, d_xx, d_zz)
            draw = nn.init.xavier_uniform_
        else:
            networks = image_networks(shape, nz, width, d_zz, concat)
            draw = partial(nn.init.normal_, std=0.01)
        self.encode, self.generate, self.d_xz, self.d_xx, self.d_zz = networks
        init_weights(self, draw)
        if spectral_norm:  # after the first weights are drawn: they are behind the norm from here on
            d_xz_parts = self.d_xz.see_x, self.d_xz.see_z, self.d_xz.join
            for part in (self.encode[0], *d_xz_parts, self.d_xx.body, self.d_zz.body):
                normalise(part)
        self.averages = averages_of(self.encode, self.generate, self.d_xx)
        self.nz, self.score_method, self.ema_decay = nz, score_method, ema_decay
        self.lr, self.betas = lr, (beta1, 0.999)
        self.batch_size, self.epochs = batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage: on every batch the three discriminators step, then generator and encoder."""
        # No loss of one discriminator depends on another: one Adam on their sum takes the steps of three.
        d = adam(self.d_xz, self.d_xx, self.d_zz, lr=self.lr, betas=self.betas)
        # Nor does BCE(D_xz(G(z), z), 1) depend on E, nor BCE(D_xz(x, E(x)), 0) on G.
        ge = adam(self.generate, self.encode, lr=self.lr, betas=self.betas)

        def step(batch: Batch) -> dict[str, Tensor]:
            x = batch.x
            z = torch.randn(len(x), self.nz, device=x.device)
            code, fake = self.encode(x), self.generate(z)
            rebuilt, recoded = self.generate(code), self.encode(fake)

            l_xz = bce(self.d_xz(x, code.detach())[1], 1) + bce(self.d_xz(fake.detach(), z)[1], 0)
            l_xx = bce(self.d_xx(x, x)[1], 1) + bce(self.d_xx(x, rebuilt.detach())[1], 0)
            l_zz = bce(self.d_zz(z, z)[1], 1) + bce(self.d_zz(z, recoded.detach())[1], 0)
            descend(d, l_xz + l_xx + l_zz)

            l_g, l_e = bce(self.d_xz(fake, z)[1], 1), bce(self.d_xz(x, code)[1], 0)
            cycle = bce(self.d_xx(x, rebuilt)[1], 1) + bce(self.d_zz(z, recoded)[1], 1)
            descend(ge, l_g + l_e + cycle)
            average(self.averages, (self.encode, self.generate, self.d_xx), self.ema_decay)
            return detached(d_xz=l_xz, d_xx=l_xx, d_zz=l_zz, generator=l_g, encoder=l_e, cycle=cycle)

        yield Stage("alad", self.epochs, step, (d, ge), self.batch_size)

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`."""
        return self.explain(x).score

    def explain(self, x: Tensor) -> Explanation:
        """Score, absolute residual map of images, reconstruction and code."""
        encode, generate, d_xx = self.averages
        z = encode(x)
        rebuilt = generate(z)
        residual = (x - rebuilt).float()
        if self.score_method == "features":
            score = (d_xx(x, x)[0] - d_xx(x, rebuilt)[0]).float().abs().sum(1)
        elif self.score_method == "logits":
            score = softplus(-d_xx(x, rebuilt)[1].float())
        else:
            score = residual.flatten(1).norm(1 if self.score_method == "l1" else 2, dim=1)
        return Explanation(score, map_of(residual.abs(), x), rebuilt, z)


def normalise(network: nn.Module) -> None:
    """Put spectral norm (Miyato et al. 2018, arXiv 1802.05957) on its convolutions and linear layers."""
    for module in list(network.modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            with_spectral_norm(module)


def image_networks(shape: tuple[int, ...], nz: int, width: int, d_zz: Sequence[int], concat: str) -> Networks:
    """The networks of the paper's CIFAR-10 and SVHN experiments; other sizes have more or fewer halvings."""
    nc, size = check_dcgan_shape(shape)
    widths = [width << stage for stage in range((size // 4).bit_length() - 1)]
    deepest = widths[-1]
    body, see_x, rise = [], [], []
    for number, (before, after) in enumerate(pairwise([nc, *widths])):
        body += [nn.Conv2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.LeakyReLU(0.2)]
        norm = [nn.BatchNorm2d(after)] if number else []
        see_x += [nn.Conv2d(before, after, 4, 2, 1, bias=not number), *norm, nn.LeakyReLU(0.2)]
    for before, after in pairwise(reversed(widths)):
        rise += [nn.ConvTranspose2d(before, after, 4, 2, 1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    encode = nn.Sequential(nn.Sequential(*body), nn.Conv2d(deepest, nz, 4), nn.Flatten())
    generate = nn.Sequential(
        nn.Unflatten(1, (nz, 1, 1)),
        *(nn.ConvTranspose2d(nz, deepest, 4, bias=False), nn.BatchNorm2d(deepest), nn.ReLU()),
        *(*rise, nn.ConvTranspose2d(width, nc, 4, 2, 1), nn.Tanh()),
    )
    # 1 x 1 convolutions of what is flattened are linear layers.
    see_z = nn.Sequential(*dense([nz, 4 * width, 4 * width], 0.2, 0.2))
    join = nn.Sequential(*dense([16 * deepest + 4 * width, 8 * width], 0.2, 0.2))
    d_xz = PairDiscriminator(nn.Sequential(*see_x, nn.Flatten()), see_z, join, 8 * width)
    stacked = concat == "height"
    cycle = nn.Sequential(
        *(nn.Conv2d(nc if stacked else 2 * nc, width // 2, 5, 2, 2), nn.LeakyReLU(0.2), nn.Dropout(0.2)),
        *(nn.Conv2d(width // 2, width, 5, 2, 2), nn.LeakyReLU(0.2), nn.Dropout(0.2), nn.Flatten()),
    )
    places = (size // 4) ** 2 * (2 if stacked else 1)
    d_xx = CycleDiscriminator(cycle, places * width, along=2 if stacked else 1)
    return Networks(encode, generate, d_xz, d_xx, code_discriminator(nz, d_zz))


def row_networks(
    length: int,
    nz: int,
    encoder: Sequence[int],
    generator: Sequence[int],
    d_xz: int,
    d_xx: Sequence[int],
    d_zz: Sequence[int],
) -> Networks:
    """The networks of the paper's KDD and arrhythmia experiments, for rows `[N, length]`."""
    encode = nn.Sequential(nn.Sequential(*dense([length, *encoder], 0.2)), nn.Linear(encoder[-1], nz))
    generate = nn.Sequential(*dense([nz, *generator], 0), nn.Linear(generator[-1], length))
    see_x = nn.Sequential(nn.Linear(length, 128, bias=False), nn.BatchNorm1d(128), nn.LeakyReLU(0.2))
    see_z = nn.Sequential(*dense([nz, 128], 0.2, 0.5))
    join = nn.Sequential(*dense([256, d_xz], 0.2, 0.5))
    cycle = nn.Sequential(*dense([2 * length, *d_xx], 0.2, 0.2))
    return Networks(
        encode,
        generate,
        PairDiscriminator(see_x, see_z, join, d_xz),
        CycleDiscriminator(cycle, d_xx[-1]),
        code_discriminator(nz, d_zz),
    )


def code_discriminator(nz: int, widths: Sequence[int]) -> CycleDiscriminator:
    """D_zz, for codes `[N, nz]`."""
    return CycleDiscriminator(nn.Sequential(*dense([2 * nz, *widths], 0.2, 0.2)), widths[-1])
