"""ALOCC: Adversarially Learned One-Class Classifier for Novelty Detection.

Sabokrou, Khalooei, Fathy, Adeli, CVPR 2018, https://arxiv.org/abs/1802.09088; official code:
khalooei/ALOCC-CVPR2018.

A denoising autoencoder R and a discriminator D train against each other on normal images. R learns to refine
what is normal and, knowing nothing else, spoils what is not; D then tells the two apart more easily after R
than before.

    x~  = x + eta,  eta ~ N(0, sigma^2 I), in training only
    L_D = BCE(D(x), 1) + BCE(D(R(x~)), 0)
    L_R = BCE(D(R(x~)), 1) + lambda |x - R(x~)|^2 / n
    A(x) = 1 - D(R(x))   (OCC2, the paper's choice),   or 1 - D(x)   (OCC1)

Pixels are taken to [0, 1] first, R ends in a sigmoid. Where paper and official code differ:

- The reconstruction is the paper's: squared error against the clean image, its weight 0.4. The code takes the
  cross-entropy of tanh outputs, as if they were logits, against the noisy image, with 0.2.
- The schedule is the code's: one update of D and two of R on each batch, with one draw of the noise, and
  TensorFlow's RMSProp, whose mean squares begin at one, so that its first steps are short.
  The code draws the noise of every image once for all epochs; here it is drawn anew, as the paper's formula.
- The layers are the code's. The paper has 64, 128, 256, 512 filters, which `width=64` gives to D; the code's R
  has one stage less than the paper's.
- `rho`: training ends when the mean reconstruction error of an epoch falls below it. The paper has this rule
  and leaves the value to judgement; the code has none, and 0 is never.
- `score`: the code tests D(x), the paper recommends D(R(x)).
- The code takes its batches in one order; here they are shuffled.
- The code tests with batch norm in training mode; `evaluation=as_published` does the same.
- Biases of convolutions begin as PyTorch draws them, the code's at 0, and batch norm's scales at N(1, 0.02), the
  code's at 1.

Scores are the logits of these probabilities, -log(D / (1 - D)): the same order, and no two of them collapse
where D is sure of itself.

When to use it: For images and patches of any size where scoring must be fast: one pass of two small networks.
It bears some contamination: on patches of UCSD Ped2, 10 % of anomalous training rows cost the paper about 1.3
points of equal error rate. `ognet` is such a pair with a second phase against the instability below; prefer
it where no labels say when to stop. The map is what R changed in the image, which the score does not use.

Traps: The result hangs on when training stops, as users of the official code report: in
`results/alocc_mnist_by_epoch` the AUROC of the first four epochs is .54, .65, .39 and .86 with the digit 4 left
out, and .30, .54, .64 and .42 with 8. `trainer.eval_every=1` shows it, but the best is chosen by test labels.
D(R(x)) is often worse than D(x) in their hands, while the paper has it ahead on Caltech-256 (AUROC .942 against
.932 with one category): run `model.score=plain` too. A discriminator that has won shows in `losses.csv` as
`discriminator` near 0 with `adversarial` growing. The paper's MNIST result is a curve of F1 alone, so that
there is no AUROC to hold a run against, and users report that the digit 2 fails.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from anomaly_bench.detector import Batch, Detector, Explanation, RMSProp, Rows, Stage, descend, detached
from anomaly_bench.errors import check_choice, check_range
from anomaly_bench.losses import bce
from anomaly_bench.networks.dcgan import dcgan_init
from anomaly_bench.networks.shapes import check_images


def halved(side: int, times: int) -> int:
    """A side after so many stride-2 convolutions."""
    return -(-side // 2**times)


class Refiner(nn.Sequential):
    """R: images `[N, C, H, W]` to refined ones on (0, 1), by three 5 x 5 stride-2 stages and their mirror."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        channels, height, breadth = shape
        filters = [channels, 2 * width, 4 * width, 8 * width]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(filters):
            layers += [
                nn.Conv2d(inputs, outputs, 5, 2, 2),
                nn.BatchNorm2d(outputs),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        for inputs, outputs, times in (
            (8 * width, 2 * width, 2),
            (2 * width, width, 1),
            (width, channels, 0),
        ):
            # Sides 2 n and 2 n - 1 both halve to n; one pixel more gives back the even one.
            more = (1 - halved(height, times) % 2, 1 - halved(breadth, times) % 2)
            layers += [nn.ConvTranspose2d(inputs, outputs, 5, 2, 2, output_padding=more)]
            layers += [nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)] if times else [nn.Sigmoid()]
        super().__init__(*layers)


class Discriminator(nn.Module):
    """D: logits `[N]` of being real, of images `[N, C, H, W]`, by four 5 x 5 stride-2 stages."""

    def __init__(self, shape: tuple[int, ...], width: int) -> None:
        super().__init__()
        channels, height, breadth = shape
        layers: list[nn.Module] = [nn.Conv2d(channels, width, 5, 2, 2), nn.LeakyReLU(0.2, inplace=True)]
        for inputs in (width, 2 * width, 4 * width):
            layers += [
                nn.Conv2d(inputs, 2 * inputs, 5, 2, 2),
                nn.BatchNorm2d(2 * inputs),
                nn.LeakyReLU(0.2, inplace=True),
            ]
        whole = (halved(height, 4), halved(breadth, 4))
        self.features = nn.Sequential(*layers)
        self.head = nn.Conv2d(8 * width, 1, whole)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of images."""
        return self.head(self.features(x)).flatten()


class ALOCC(Detector):
    """ALOCC on images `[N, C, H, W]` in [-1, 1] of any size.

    Args:
        shape: `(C, H, W)` of one image.
        width: filters of D's first stage; the others have 2, 4 and 8 times as many.
        sigma: standard deviation of the noise, of pixels on [0, 1].
        lambda_: weight of the reconstruction.
        refiner_steps: updates of R on each batch.
        score: `refined` for D(R(x)), `plain` for D(x).
        rho: mean squared error, of pixels on [0, 1], below which training ends; 0 for never.
        lr, batch_size, epochs: of both RMSProps.
    """

    scored_by: ClassVar[tuple[str, ...]] = ("score",)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 16,
        sigma: float = 0.155,
        lambda_: float = 0.4,
        refiner_steps: int = 2,
        score: str = "refined",
        rho: float = 0.0,
        lr: float = 2e-3,
        batch_size: int = 128,
        epochs: int = 40,
    ) -> None:
        super().__init__()
        check_images(shape)
        check_choice("score", score, ("refined", "plain"))
        check_range("refiner_steps", refiner_steps, at_least=1)
        self.refine = Refiner(shape, width)
        self.discriminate = Discriminator(shape, width)
        self.apply(dcgan_init)
        self.sigma, self.lambda_, self.refiner_steps = sigma, lambda_, refiner_steps
        self.refined, self.rho = score == "refined", rho
        self.lr, self.batch_size, self.epochs = lr, batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage: on every batch the discriminator steps once and the refiner `refiner_steps` times."""
        r, d = (RMSProp(network.parameters(), lr=self.lr) for network in (self.refine, self.discriminate))

        def step(batch: Batch) -> dict[str, Tensor]:
            x = unit(batch.x)
            noisy = x + self.sigma * torch.randn_like(x)
            refined = self.refine(noisy)
            l_d = bce(self.discriminate(x), 1) + bce(self.discriminate(refined.detach()), 0)
            descend(d, l_d)
            adversarial, error = self.refiner_update(r, x, refined)
            for _ in range(self.refiner_steps - 1):
                adversarial, error = self.refiner_update(r, x, self.refine(noisy))
            return detached(discriminator=l_d, adversarial=adversarial, reconstruction=error)

        yield Stage(
            "gan",
            self.epochs,
            step,
            (r, d),
            self.batch_size,
            lambda means: means["reconstruction"] < self.rho,
        )

    def refiner_update(
        self, optimizer: torch.optim.Optimizer, x: Tensor, refined: Tensor
    ) -> tuple[Tensor, Tensor]:
        """One step down L_R on clean and refined images `[B, C, H, W]`; gives its two terms."""
        adversarial = bce(self.discriminate(refined), 1)
        error = mse_loss(refined.float(), x)
        descend(optimizer, adversarial + self.lambda_ * error)
        return adversarial, error

    def score(self, x: Tensor) -> Tensor:
        """-logit D(R(x)), or -logit D(x), `[N]`."""
        x = unit(x)
        return -self.discriminate(self.refine(x) if self.refined else x).float()

    def explain(self, x: Tensor) -> Explanation:
        """Score, absolute residual map, refined image, and the discriminator's last features of it."""
        refined = self.refine(unit(x))
        judged = refined if self.refined else unit(x)
        features = self.discriminate.features(judged)
        score = -self.discriminate.head(features).flatten().float()
        reconstruction = 2 * refined - 1
        residual = (x - reconstruction).float().abs().mean(1)
        return Explanation(score, residual, reconstruction, features.flatten(1))


def unit(x: Tensor) -> Tensor:
    """Pixels on [-1, 1] as pixels on [0, 1]."""
    return (x + 1) / 2
