"""EGBAD: Efficient GAN-Based Anomaly Detection.

Zenati, Foo, Lecouat, Manek, Chandrasekhar, ICLR 2018 workshop, https://arxiv.org/abs/1802.06222; official code:
houssamzenati/Efficient-GAN-Anomaly-Detection. The GAN is BiGAN (Donahue, Krähenbühl, Darrell, ICLR 2017,
https://arxiv.org/abs/1605.09782).

A generator G learns to make rows of codes and an encoder E to make codes of rows, both against a discriminator D
of pairs. To fool it they must invert each other, and so the encoder gives in one pass the code that AnoGAN
searches for. What G(E(x)) lacks of x, and what D notices of it, is the anomaly score.

    L_D = BCE(D(x, E(x)), 1) + BCE(D(G(z), z), 0),   z ~ N(0, I)
    L_G = BCE(D(G(z), z), 1),   L_E = BCE(D(x, E(x)), 0)
    A(x) = (1 - w) |x - G(E(x))|_1 + w L(x)
    L(x) = |f(x, E(x)) - f(G(E(x)), E(x))|_1       `fm`, feature matching; f: the features of D's last layer
    L(x) = BCE(D(G(E(x)), E(x)), 1)                `cross-e`, cross-entropy

All follows the official code, of which:

- D steps first, then G and E at once. The code draws another batch and other codes in between; here both updates
  see the same, which saves a pass of E and of G.
- Scores come from a moving average of all weights (`ema_decay`), which starts at the first weights.
- `first_activation`: E's first convolution on images has an activation, as in the code from November 2018 on; before,
  by a slip, it had none. False is the code of the paper's time.
- `dropout`: at the time of the paper its code had that of images switched off, by a slip mended in June 2018, and that
  of rows on. 0 is the code of then, for images; null is the code's now, 0.5 for images and 0.2 for rows.
- Stride-2 convolutions are padded on both sides, TensorFlow's on one, and batch norm has PyTorch's momentum and
  epsilon.
- Images of 28 pixels and rows have the code's layers, and so has any other shape: images are halved twice. Its KDD rows
  have 121 columns, those of `data=kddcup99` 118. The code has
  none for photographs, and GANomaly's paper does not say which its EGBAD had on CIFAR-10.
- Its shuffles for training and test differ, so that images of the one are among the other; its KDD loader
  computes a scaling and drops it. Neither is done here.
- It flags the top 20 % of the KDD test scores, the share that is known to be anomalous.

When to use it: For grey images of 28 pixels (`data.image_size=28`) and rows (`egbad_kdd`), where AnoGAN's
score is wanted in one pass: GANomaly's paper has it at 8.9 ms an image, AnoGAN at 7.1 s, and GANomaly at 2.7
ms and ahead of it on X-ray baggage, with an AUROC of .643 against .597. Images have a residual map. `alad`
adds discriminators so that encoder and generator invert each other better. Not for photographs: that paper
has it below chance on CIFAR-10, a mean AUROC of .462.

Traps: A short run is scored by hardly trained weights, since a share of `ema_decay ** n` of the average is
still the first ones after n updates: at the 0.9999 of `egbad_kdd` 5 % after 30,000; lower `model.ema_decay`
for trials. The digit 2 of MNIST has an AUPRC of .648 after 60 epochs as the code is, and from .340 to .602
with fewer images, narrower or faster (results/egbad_mnist; the paper .670). More epochs are no cure: with
`model.score_method=cross-e`, a user of the official code reports an F1 of .951 on KDD after 100 epochs and
.324 after 100 more. Its MNIST figures are AUPRCs, from test images that were partly trained on; GANomaly's
figure prints them beside its own AUROCs. `discriminator` in `losses.csv` is 2 log 2 = 1.39 where pairs cannot
be told, and near 0 where it has won.
"""

from collections.abc import Iterator
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import softplus

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached, map_of
from anomaly_bench.errors import SettingError, check_choice, check_range
from anomaly_bench.losses import bce
from anomaly_bench.networks.bigan import PairDiscriminator, average, averages_of, dense, init_weights
from anomaly_bench.networks.shapes import check_multiple


class EGBAD(Detector):
    """EGBAD on images `[N, C, H, W]` in [-1, 1], their sides multiples of 4, or on rows `[N, D]`.

    Args:
        shape: `(C, H, W)` or `(D,)`.
        nz: length of the code.
        hidden: features of the discriminator; the other dense layers have as many or half of it.
        width: filters of the convolutions, of the encoder's half and twice as many too.
        score_method: `fm` or `cross-e`; see above.
        w: share of the discriminator's term in the score, in [0, 1].
        ema_decay: of the averaged weights that score.
        dropout: of the discriminator; null for 0.5 on images and 0.2 on rows.
        first_activation: whether the encoder of images has one after its first convolution.
        lr, beta1, batch_size, epochs: of all Adams.
    """

    scored_by: ClassVar[tuple[str, ...]] = ("score_method", "w")

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        nz: int = 200,
        hidden: int = 1024,
        width: int = 64,
        score_method: str = "fm",
        w: float = 0.1,
        ema_decay: float = 0.999,
        dropout: float | None = None,
        first_activation: bool = True,
        lr: float = 1e-5,
        beta1: float = 0.5,
        batch_size: int = 100,
        epochs: int = 100,
    ) -> None:
        super().__init__()
        check_choice("score_method", score_method, ("fm", "cross-e"))
        check_range("w", w, at_least=0, at_most=1)
        if dropout is not None and not 0 <= dropout < 1:
            raise SettingError(f"model.dropout={dropout}: must be from 0 to below 1, or null")
        if len(shape) == 1:
            self.encode, self.generate, self.discriminate = row_networks(
                shape[0], nz, hidden, 0.2 if dropout is None else dropout
            )
            init_weights(self, nn.init.xavier_uniform_)
        else:
            self.encode, self.generate, self.discriminate = image_networks(
                shape, nz, hidden, width, 0.5 if dropout is None else dropout, first_activation
            )
            init_weights(self, partial(nn.init.normal_, std=0.02))
        self.averages = averages_of(self.encode, self.generate, self.discriminate)
        self.nz, self.score_method, self.w, self.ema_decay = nz, score_method, w, ema_decay
        self.lr, self.betas = lr, (beta1, 0.999)
        self.batch_size, self.epochs = batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage: on every batch the discriminator steps, then generator and encoder."""
        d = adam(self.discriminate, lr=self.lr, betas=self.betas)
        # L_G does not depend on E, nor L_E on G: one Adam on their sum takes the steps of two.
        ge = adam(self.generate, self.encode, lr=self.lr, betas=self.betas)

        def step(batch: Batch) -> dict[str, Tensor]:
            x = batch.x
            z = torch.randn(len(x), self.nz, device=x.device)
            fake, code = self.generate(z), self.encode(x)
            l_d = bce(self.discriminate(x, code.detach())[1], 1)
            l_d = l_d + bce(self.discriminate(fake.detach(), z)[1], 0)
            descend(d, l_d)
            l_g, l_e = bce(self.discriminate(fake, z)[1], 1), bce(self.discriminate(x, code)[1], 0)
            descend(ge, l_g + l_e)
            average(self.averages, (self.encode, self.generate, self.discriminate), self.ema_decay)
            return detached(discriminator=l_d, generator=l_g, encoder=l_e)

        yield Stage("bigan", self.epochs, step, (d, ge), self.batch_size)

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`."""
        return self.explain(x).score

    def explain(self, x: Tensor) -> Explanation:
        """Score, absolute residual map of images, reconstruction and code."""
        encode, generate, discriminate = self.averages
        z = encode(x)
        fake = generate(z)
        residual = (x - fake).float().abs()
        rebuilt, logits = discriminate(fake, z)
        if self.score_method == "fm":
            noticed = (discriminate(x, z)[0] - rebuilt).float().abs().sum(1)
        else:
            noticed = softplus(-logits.float())
        score = (1 - self.w) * residual.flatten(1).sum(1) + self.w * noticed
        return Explanation(score, map_of(residual, x), fake, z)


def image_networks(
    shape: tuple[int, ...], nz: int, hidden: int, width: int, dropout: float, first_activation: bool
) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Encoder, generator and discriminator of the paper's MNIST experiment."""
    channels, height, side = check_multiple(shape, 4)
    corner = height // 4, side // 4
    places = corner[0] * corner[1]
    encode = nn.Sequential(
        nn.Conv2d(channels, width // 2, 3, 1, 1),
        *([nn.LeakyReLU(0.1)] if first_activation else []),
        *(nn.Conv2d(width // 2, width, 3, 2, 1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(0.1)),
        *(nn.Conv2d(width, 2 * width, 3, 2, 1, bias=False), nn.BatchNorm2d(2 * width), nn.LeakyReLU(0.1)),
        *(nn.Flatten(), nn.Linear(places * 2 * width, nz)),
    )
    start = places * 2 * width
    generate = nn.Sequential(
        *(nn.Linear(nz, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU()),
        *(nn.Linear(hidden, start, bias=False), nn.BatchNorm1d(start), nn.ReLU()),
        nn.Unflatten(1, (2 * width, *corner)),
        *(nn.ConvTranspose2d(2 * width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.ConvTranspose2d(width, channels, 4, 2, 1), nn.Tanh()),
    )
    see_x = nn.Sequential(
        *(nn.Conv2d(channels, width, 4, 2, 1), nn.LeakyReLU(0.1), nn.Dropout(dropout)),
        *(nn.Conv2d(width, width, 4, 2, 1, bias=False), nn.BatchNorm2d(width), nn.LeakyReLU(0.1)),
        *(nn.Dropout(dropout), nn.Flatten()),
    )
    see_z = nn.Sequential(*dense([nz, hidden // 2], 0.1, dropout))
    join = nn.Sequential(*dense([places * width + hidden // 2, hidden], 0.1, dropout))
    return encode, generate, PairDiscriminator(see_x, see_z, join, hidden)


def row_networks(length: int, nz: int, hidden: int, dropout: float) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Encoder, generator and discriminator of the paper's KDD experiment, for rows `[N, length]`."""
    encode = nn.Sequential(*dense([length, hidden // 2], 0.1), nn.Linear(hidden // 2, nz))
    generate = nn.Sequential(*dense([nz, hidden // 2, hidden], 0), nn.Linear(hidden, length))
    see_x = nn.Sequential(*dense([length, hidden], 0.1, dropout))
    see_z = nn.Sequential(*dense([nz, hidden], 0.1, dropout))
    join = nn.Sequential(*dense([2 * hidden, hidden], 0.1, dropout))
    return encode, generate, PairDiscriminator(see_x, see_z, join, hidden)
