"""GANomaly: Semi-Supervised Anomaly Detection via Adversarial Training.

Akcay, Atapour-Abarghouei, Breckon, ACCV 2018, arXiv 1805.06725; official code: samet-akcay/ganomaly.

An encoder-decoder-encoder generator learns to rebuild normal images and to encode what it rebuilt. A
discriminator keeps the rebuilt images like real ones. The distance between the code of an image and the code
of its reconstruction is the anomaly score: of an anomaly, the generator rebuilds something normal.

    z = G_E(x),  x^ = G_D(z),  z^ = E(x^)
    L_adv = |f(x) - f(x^)|   f: the discriminator's features                             (1)
    L_con = |x - x^|_1                                                                    (2)
    L_enc = |z - z^|_2                                                                    (3)
    L_G   = w_adv L_adv + w_con L_con + w_enc L_enc                                       (4)
    A(x)  = |G_E(x) - E(G(x))|                                                            (5)

Where paper and official code differ, we follow the code at its head unless told otherwise:

- `losses`. `head`: the norms of (1) and (3) are mean squares, the discriminator's loss is the mean of both
  cross-entropies, the generator steps first. `first`: the code of the paper's year; the discriminator steps
  first, on the sum of both cross-entropies, and L_adv is the cross-entropy of D(x^) against "real".
  `paper`: (1) and (3) as printed, with Euclidean norms. (2) is a mean over pixels in all three.
- `lr`: 2e-4 in all versions of the code, 2e-3 in the paper.
- `reinit_below`: the code gives the discriminator new weights when its loss falls below 1e-5; the paper does
  not mention it. Here these are drawn once, there each time. 0 turns it off. `losses.csv` keeps the share of steps
  where it happened.
- `score_norm`: `l2` is the code's mean square of z - z^, `l1` the paper's norm (5), over nz. Scores are not put on
  [0, 1] by the least and the largest of the test set, which orders them as before.
- `nz`: 100 in both, but the paper's own Figure 5 suggests that its main MNIST figures were made with 32.
- The official code tests with batch norm in training mode, on CIFAR-10 with the normal test images first, so that
  batches are of one kind, and reports its best test epoch; `evaluation=as_published` does the same.

When to use it: For square grey images of one kind, digits or X-ray patches of 32 or 64 pixels, where scoring
must be fast: one pass of two encoders and a decoder, 2.7 ms in its paper against 7.1 s of AnoGAN. On MNIST
little training does, and more harms: a mean AUROC of .774 after one epoch (results/ganomaly_mnist) and .683 after
the paper's fifteen (results/ganomaly_mnist_full_length), its own being .781.
Not for photographs: three classes of CIFAR-10 have a mean of .514 after ten epochs, untrained .520
(results/ganomaly_cifar10_jpeg_longer); `geotrans` is made for those. The map is the residual of pixels while
the score is that of codes, so that the two may disagree.

Traps: Read no number without its control: the digit 1 has .967 untrained, .463 after four epochs
(results/ganomaly_mnist_both_evaluations) and .326 after ten (results/ganomaly_mnist_digit_1_longer). Batch
statistics and the best test epoch make .567 of those .514 on CIFAR-10, and a user of the official code
reports .579 for birds with them and .410 without batch statistics. `reinit` above 0 in `losses.csv` is a
discriminator that had won and was replaced. `model.w_enc` must stay small, .942 at 1 and .747 at 90 for the
digit 2 (results/ganomaly_hyperparameters), where `model.w_adv` hardly matters, .914 at 90. With the official
`data.mean` and `data.std` of MNIST, pixels reach 2.82 and the decoder's tanh only 1, which leaves a floor
under `con`.
"""

import copy
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, agreed, descend, detached
from anomaly_bench.errors import check_choice, check_range
from anomaly_bench.losses import bce
from anomaly_bench.networks.dcgan import (
    Decoder,
    Discriminator,
    Encoder,
    check_dcgan_shape,
    dcgan_init,
    reinitialised,
)


class GANomaly(Detector):
    """GANomaly on square images `[N, C, S, S]` in [-1, 1], S being 16 times a power of two.

    Args:
        shape: `(C, S, S)` of one image.
        nz: length of the code.
        ngf, ndf: filters of the first stage of the generator's networks and of the discriminator.
        extralayers: convolutions that keep the size, behind the first stage of encoders and discriminator and
            before the decoder's last.
        w_adv, w_con, w_enc: weights of the losses (4).
        losses: `head`, `first` or `paper`; see above.
        reinit_below: the discriminator starts anew when its loss is below this; 0 for never.
        score_norm: `l2` or `l1`; see above.
        lr, beta1, batch_size, epochs: of both Adams.
    """

    scored_by: ClassVar[tuple[str, ...]] = ("score_norm",)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        nz: int = 100,
        ngf: int = 64,
        ndf: int = 64,
        extralayers: int = 0,
        w_adv: float = 1.0,
        w_con: float = 50.0,
        w_enc: float = 1.0,
        losses: str = "head",
        reinit_below: float = 1e-5,
        score_norm: str = "l2",
        lr: float = 2e-4,
        beta1: float = 0.5,
        batch_size: int = 64,
        epochs: int = 15,
    ) -> None:
        super().__init__()
        check_choice("losses", losses, ("head", "first", "paper"))
        check_choice("score_norm", score_norm, ("l1", "l2"))
        check_range("extralayers", extralayers, at_least=0)
        nc, size = check_dcgan_shape(shape)
        self.encode = Encoder(size, nc, nz, ngf, extralayers)
        self.decode = Decoder(size, nc, nz, ngf, extralayers)
        self.reencode = Encoder(size, nc, nz, ngf, extralayers)
        self.discriminate = Discriminator(size, nc, ndf, extralayers)
        self.apply(dcgan_init)
        self.w_adv, self.w_con, self.w_enc = w_adv, w_con, w_enc
        self.losses = losses
        self.splits = losses != "paper"  # there, features are compared with the mean of a batch
        self.reinit_below = reinit_below
        self.score_norm = score_norm
        self.lr, self.betas = lr, (beta1, 0.999)
        self.batch_size, self.epochs = batch_size, epochs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Code `[N, nz, 1, 1]`, reconstruction `[N, C, S, S]` and its code, of images `[N, C, S, S]`."""
        z = self.encode(x)
        fake = self.decode(z)
        return z, fake, self.reencode(fake)

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage: generator and discriminator step in turn on every batch."""
        g = adam(self.encode, self.decode, self.reencode, lr=self.lr, betas=self.betas)
        d = adam(self.discriminate, lr=self.lr, betas=self.betas)
        fresh = copy.deepcopy(self.discriminate).apply(dcgan_init)

        def step(batch: Batch) -> dict[str, Tensor]:
            x = batch.x
            z, fake, z_hat = self(x)
            real_features, real = self.discriminate(x)
            fake_features, fooled = self.discriminate(fake)
            l_adv = self.adversarial_loss(real_features.detach(), fake_features)
            l_con = l1_loss(fake, x)
            l_enc = self.encoder_loss(z, z_hat)
            l_d = (bce(real, 1) + bce(fooled, 0)) / 2
            descend(g, self.w_adv * l_adv + self.w_con * l_con + self.w_enc * l_enc, keep_graph=True)
            descend(d, l_d)
            reinit = reinitialised(self.discriminate, fresh, agreed(l_d) < self.reinit_below)
            return detached(adv=l_adv, con=l_con, enc=l_enc, d=l_d, reinit=reinit)

        def step_of_2018(batch: Batch) -> dict[str, Tensor]:
            x = batch.x
            z, fake, z_hat = self(x)
            l_real = bce(self.discriminate(x)[1], 1)
            l_fake = bce(self.discriminate(fake.detach())[1], 0)
            descend(d, l_real + l_fake)
            l_adv = bce(self.discriminate(fake)[1], 1)
            l_con = l1_loss(fake, x)
            l_enc = mse_loss(z_hat, z)
            descend(g, self.w_adv * l_adv + self.w_con * l_con + self.w_enc * l_enc)
            least = torch.minimum(agreed(l_real), agreed(l_fake))
            reinit = reinitialised(self.discriminate, fresh, least < self.reinit_below)
            return detached(adv=l_adv, con=l_con, enc=l_enc, d=l_real + l_fake, reinit=reinit)

        of_year = step_of_2018 if self.losses == "first" else step
        yield Stage("gan", self.epochs, of_year, (g, d), self.batch_size)

    def adversarial_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """Equation (1): feature matching, features `[N, F, 4, 4]`."""
        if self.losses == "paper":
            return (real - fake.mean(0)).float().flatten(1).norm(dim=1).mean()
        return mse_loss(fake, real)

    def encoder_loss(self, z: Tensor, z_hat: Tensor) -> Tensor:
        """Equation (3), codes `[N, nz, 1, 1]`; its gradient reaches both codes."""
        if self.losses == "paper":
            return (z - z_hat).float().flatten(1).norm(dim=1).mean()
        return mse_loss(z_hat, z)

    def score(self, x: Tensor) -> Tensor:
        """Equation (5), `[N]`."""
        z, _, z_hat = self(x)
        return self.distance(z, z_hat)

    def distance(self, z: Tensor, z_hat: Tensor) -> Tensor:
        """Mean over the entries of two codes `[N, nz, 1, 1]` of their squared or absolute difference, `[N]`."""
        gap = (z - z_hat).float().flatten(1)
        return gap.square().mean(1) if self.score_norm == "l2" else gap.abs().mean(1)

    def explain(self, x: Tensor) -> Explanation:
        """Score, residual map, reconstruction, and the discriminator's features as in the paper's Figure 6."""
        z, fake, z_hat = self(x)
        features = self.discriminate(x)[0].flatten(1)
        return Explanation(self.distance(z, z_hat), (x - fake).abs().mean(1), fake, features)
