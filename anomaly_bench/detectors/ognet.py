"""OGNet: Old is Gold, Redefining the Adversarially Learned One-Class Classifier Training Paradigm.

Zaheer, Lee, Astrid, Lee, CVPR 2020, https://arxiv.org/abs/2004.07657; official code: xaggi/OGNet.

A denoising autoencoder G and a discriminator D first train against each other on normal images; how G was
early on is kept. In a short second phase, D alone learns to tell good reconstructions from bad ones: those of
the old G, and those of images that are two images at once. It then needs no luck with the moment at which the
first phase ends.

    phase 1:  L_D = (BCE(D(G(x~)), 1) + BCE(D(x), 0)) / 2,   x~ = x + eta
              L_G = (1 - w_adv) |x - G(x~)|^2 / n + w_adv BCE(D(G(x~)), 0)
    phase 2:  x^low    = G_old(x),   x^pseudo = G((G_old(x_i) + G_old(x_j)) / 2)
              L_D = w_old BCE(D(x^low), 1) + (1 - w_old) BCE(D(x^pseudo), 1)
                  + w_new BCE(D(G(x)), 0) + (1 - w_new) BCE(D(x), 0)
    A(x) = D(G(x))

D says 1 for what is not real. Its weights of phase 2 are alpha = 1 - w_new and beta = w_old in some texts, the
other way round in others. All follows the official code, except:

- Its phase 2 starts after three epochs, and then anew after every iteration of phase 1, each time judged on the
  test set. Here phase 1 has `epochs` epochs and phase 2 runs once.
- In its phase 1, G's adversarial loss is D's answer from before D's step, whose graph newer versions of torch
  refuse to go back through. Here D steps on its own loss first, and then G through the new D.
- Its noise has the square of `sigma` as standard deviation, 0.81; `sigma` here is that standard deviation.
- The images x_i and x_j of a pair come from two further batches, as there: a step of phase 2 takes three times
  `batch_size` rows. It ends after `finetune_steps` steps; those left of an epoch change nothing.
- Its test reports the F1 at the equal error rate; the score is the same.

Scores are logits: the same order as the probabilities, also where these are all 0 or all 1.

When to use it: On small images of one kind (the paper has digits, Caltech-256 and patches of video, at
`data.image_size=45`), where `alocc` would do but its result hangs on the epoch at which training stops. A
score is one pass through both networks. G never halves the image: by its layers an image of 45 pixels takes
16 GFLOP to rebuild, one of 32 takes 5, where GANomaly scores one of 32 with 0.1 (`results/benchmarks`), so
that this is no method for large images, nor for a CPU. It has no map of its own score, only the residual of
G.

Traps: `model.old_epochs` and `model.epochs` count passes, not updates: with 720 images a pass has 11 updates,
the old G is all but random and the final one little better; raise both. In phase 2, `pseudo` near .69 and
`good` near .62 in `losses.csv` are what a D that guesses has. The official code judges phase 2 on the test
set after every iteration, and its F1 takes its threshold from test labels; `evaluation=as_published` imitates
neither and scores as `clean` does. In phase 2 each batch that D sees is of one kind, but scores use running
statistics of all four kinds: see whether `evaluation.batch_norm=batch` moves the number.
"""

import copy
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import SettingError
from anomaly_bench.losses import bce
from anomaly_bench.networks.shapes import check_images


class Generator(nn.Sequential):
    """G: images `[N, C, H, W]` to reconstructions in (-1, 1), by unpadded 5 x 5 convolutions and their mirror."""

    def __init__(self, channels: int, width: int) -> None:
        super().__init__(
            nn.Conv2d(channels, width, 5),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, 2 * width, 5),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            nn.Conv2d(2 * width, 4 * width, 5),  # from here on, the code has the activation first
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(4 * width),
            nn.Conv2d(4 * width, 8 * width, 5),
            nn.ReLU(inplace=True),
            nn.BatchNorm2d(8 * width),
            nn.ConvTranspose2d(8 * width, 4 * width, 5),
            nn.BatchNorm2d(4 * width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(4 * width, 2 * width, 5),
            nn.BatchNorm2d(2 * width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(2 * width, width, 5),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.ConvTranspose2d(width, channels, 5),
            nn.Tanh(),
        )


class Discriminator(nn.Module):
    """D: logits `[N]` of not being real, of images `[N, C, H, W]`, by four 5 x 5 stride-2 stages."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        channels, height, breadth = shape
        layers: list[nn.Module] = []
        for inputs, outputs in ((channels, width), (width, 2 * width), (2 * width, 4 * width)):
            layers += [
                nn.Conv2d(inputs, outputs, 5, 2, 2),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
        layers += [nn.Conv2d(4 * width, 8 * width, 5, 2, 2), nn.ReLU(inplace=True), nn.Flatten()]
        pixels = math.ceil(height / 16) * math.ceil(breadth / 16)
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(8 * width * pixels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        return self.head(self.features(x)).flatten()


class OGNet(Detector):
    """OGNet on images `[N, C, H, W]` in [-1, 1] of at least 17 pixels a side.

    Args:
        shape: `(C, H, W)` of one image.
        width: filters of the first stages; the deepest have eight times as many.
        sigma: standard deviation of the noise in phase 1; noisy images are clamped to [-1, 1].
        w_adv: weight of the adversarial loss of G; the reconstruction has the rest.
        lr_g, lr_d, batch_size: of phase 1.
        old_epochs: after so many epochs the old G is kept.
        epochs: of phase 1 in all, more than `old_epochs`.
        w_old: weight of the old G's images; pseudo-anomalies have the rest.
        w_new: weight of good reconstructions; real images have the rest.
        finetune_lr, finetune_steps: of phase 2.
    """

    finetuned: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 64,
        sigma: float = 0.81,
        w_adv: float = 0.5,
        lr_g: float = 1e-3,
        lr_d: float = 1e-4,
        batch_size: int = 64,
        old_epochs: int = 1,
        epochs: int = 3,
        w_old: float = 0.001,
        w_new: float = 0.9,
        finetune_lr: float = 5e-5,
        finetune_steps: int = 75,
    ) -> None:
        super().__init__()
        check_shape(shape)
        if not 0 < old_epochs < epochs:
            raise SettingError(
                f"model.old_epochs={old_epochs}: must be at least 1 and below model.epochs={epochs}"
            )
        self.rebuild = Generator(shape[0], width)
        self.rebuild_old = copy.deepcopy(self.rebuild).requires_grad_(False)
        self.discriminate = Discriminator(shape, width)
        self.register_buffer("finetuned", torch.zeros((), dtype=torch.int64))
        self.sigma, self.w_adv = sigma, w_adv
        self.lr_g, self.lr_d, self.batch_size = lr_g, lr_d, batch_size
        self.old_epochs, self.epochs = old_epochs, epochs
        self.w_old, self.w_new = w_old, w_new
        self.finetune_lr, self.finetune_steps = finetune_lr, finetune_steps

    def stages(self, train: Rows) -> Iterator[Stage]:
        """Phase 1 up to the old generator, the rest of it, and phase 2."""
        g, d = adam(self.rebuild, lr=self.lr_g), adam(self.discriminate, lr=self.lr_d)

        def gan_step(batch: Batch) -> dict[str, Tensor]:
            x = batch.x
            rebuilt = self.rebuild((x + self.sigma * torch.randn_like(x)).clamp(-1, 1))
            l_d = (bce(self.discriminate(rebuilt.detach()), 1) + bce(self.discriminate(x), 0)) / 2
            descend(d, l_d)
            error = mse_loss(rebuilt.float(), x)
            adversarial = bce(self.discriminate(rebuilt), 0)
            descend(g, (1 - self.w_adv) * error + self.w_adv * adversarial)
            return detached(discriminator=l_d, reconstruction=error, adversarial=adversarial)

        yield Stage("old", self.old_epochs, gan_step, (g, d), self.batch_size)
        self.rebuild_old.load_state_dict(self.rebuild.state_dict())
        yield Stage("gan", self.epochs - self.old_epochs, gan_step, (g, d), self.batch_size)

        fine = adam(self.discriminate, lr=self.finetune_lr)

        def finetune_step(batch: Batch) -> dict[str, Tensor]:
            self.rebuild.eval()
            self.rebuild_old.eval()
            kept = [tensor.clone() for tensor in self.discriminate.state_dict().values()]
            losses = self.finetune_losses(*thirds(batch.x))
            descend(fine, torch.stack(list(losses.values())).sum())
            self.undo_if_over(kept)
            return detached(**losses)

        rows = 3 * self.batch_size
        epochs = math.ceil(self.finetune_steps / train.steps(rows))
        yield Stage("finetune", epochs, finetune_step, (fine,), rows)

    def finetune_losses(self, x: Tensor, first: Tensor, second: Tensor) -> dict[str, Tensor]:
        """The four weighted terms of phase 2, of images and of as many pairs of images `[B, C, H, W]`.

        The discriminator's averages of batch norm depend on the order, which is the code's.
        """
        with torch.no_grad():
            low, good = self.rebuild_old(x), self.rebuild(x)
            pseudo = self.rebuild((self.rebuild_old(first) + self.rebuild_old(second)) / 2)
        return {
            "old": self.w_old * bce(self.discriminate(low), 1),
            "good": self.w_new * bce(self.discriminate(good), 0),
            "real": (1 - self.w_new) * bce(self.discriminate(x), 0),
            "pseudo": (1 - self.w_old) * bce(self.discriminate(pseudo), 1),
        }

    @torch.no_grad()
    def undo_if_over(self, kept: list[Tensor]) -> None:
        """Count a step of phase 2, and put the discriminator back as it was `kept` if that was one too many.

        Decided on the device, so that nothing waits for the count.
        """
        counts = self.finetuned < self.finetune_steps
        for tensor, before in zip(self.discriminate.state_dict().values(), kept, strict=True):
            tensor.copy_(torch.where(counts, tensor, before))
        self.finetuned += counts

    def score(self, x: Tensor) -> Tensor:
        """logit D(G(x)), `[N]`."""
        return self.discriminate(self.rebuild(x)).float()

    def explain(self, x: Tensor) -> Explanation:
        """Score, absolute residual map, reconstruction, and the discriminator's last features of it."""
        rebuilt = self.rebuild(x)
        features = self.discriminate.features(rebuilt)
        score = self.discriminate.head(features).flatten().float()
        return Explanation(score, (x - rebuilt).float().abs().mean(1), rebuilt, features)


def check_shape(shape: tuple[int, ...]) -> None:
    """Refuse what the unpadded convolutions leave nothing of."""
    check_images(shape)
    if min(shape[1:]) < 17:
        raise SettingError(
            f"data.image_size: found images of {shape[1]} x {shape[2]}; this network takes sides of 17 pixels or more"
        )


def thirds(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Three equal parts of rows `[B, ...]`, or three times the same where there are not three rows."""
    size = len(x) // 3
    return (x[:size], x[size : 2 * size], x[2 * size : 3 * size]) if size else (x, x, x)
