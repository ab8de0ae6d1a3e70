"""AnoGAN: Unsupervised Anomaly Detection with Generative Adversarial Networks to Guide Marker Discovery.

Schlegl, Seeböck, Waldstein, Schmidt-Erfurth, Langs, IPMI 2017, https://arxiv.org/abs/1703.05921; there is no
official code.

A DCGAN learns to generate normal images. For each test image, gradient descent searches the code whose
generated image is nearest, in pixels and in the discriminator's features f. What distance is left is the
anomaly score.

    L_D  = BCE(D(x), 1) + BCE(D(G(z)), 0),   L_G = BCE(D(G(z)), 1),   z ~ U(-1, 1)
    R(x, z) = sum |x - G(z)|                  residual loss
    D(x, z) = sum |f(x) - f(G(z))|            discrimination loss, on features
    A(x) = (1 - lambda) R(x, z*) + lambda D(x, z*),   z* what gradient descent on the same sum ends at

With `gan=wgan_gp` (`model=wgan_anogan`) the GAN is f-AnoGAN's (tSchlegl/f-AnoGAN): residual networks, trained
with the Wasserstein distance and a gradient penalty, and z ~ N(0, I), but no training image is mirrored. That
paper compares itself with this search, there called iterative.

    L_D  = D(G(z)) - D(x) + lambda_gp (|grad_u D(u)|_2 - 1)^2,   L_G = -D(G(z))

What the paper leaves open, and what is done here:

- f: the discriminator's last feature maps, after their activation; those of `wgan_gp` have none after the last.
- The search's learning rate. Adam moves an entry of z by about `z_lr` a step at the most: 500 steps of 1e-3,
  a common choice, cannot cross the prior's range from where they start; 1e-2 reaches all of it.
- The first z is drawn once, when the detector is made, and is the same for every image: a score must not
  depend on what else is in its batch. `restarts` draws several and keeps each image's best; the paper has 1.
- `learned_start`: an encoder E learns to undo the frozen generator, down the mean of (z - E(G(z)))^2, and the
  search begins at E(x), with `restarts` there and at the codes drawn. The paper has no such thing.
- First weights, optimiser and activations of the GAN are DCGAN's (https://arxiv.org/abs/1511.06434); biases of
  convolutions begin as PyTorch draws them, DCGAN's at 0.

The search runs with frozen networks in evaluation mode, and every image has its own state of Adam.

When to use it: As the baseline of the papers after it, and for a few images of which the nearest generated
one is to be looked at: training is a plain DCGAN's, but an image costs 500 steps through generator and
discriminator, 7.1 s in GANomaly's paper against 2.7 ms of GANomaly's. Otherwise take `f_anogan`, whose
encoder replaces the search; its paper gives it an AUROC of .930 on retinal scans, and the search through the
same Wasserstein GAN .911. Not for photographs: GANomaly's paper has it below chance on CIFAR-10, a mean AUROC
of .434.

Traps: A run searches three times, for the test rows, for their untrained control, and for up to 1,024
training rows, from whose scores the threshold is taken: keep `data.limit` small. R sums over pixels and D
over features, so that `model.lambda_=0.1` means something else at another size or `model.ndf`. A GAN that
makes one digit only was reported of LeeDoYup/AnoGAN-tf: look at the images found, in `figures/`, and for a
`discriminator` near 0 in `losses.csv`. Being long, the search amplifies rounding: where a device rounds
otherwise for another batch size, scores follow.
"""

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from anomaly_bench.detector import Adam, Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import check_choice, check_range
from anomaly_bench.losses import bce
from anomaly_bench.networks import resnet
from anomaly_bench.networks.dcgan import Encoder, check_dcgan_shape, dcgan_init
from anomaly_bench.wgan import wgan_gp_step


class Generator(nn.Sequential):
    """Codes `[N, nz, 1, 1]` to images `[N, nc, size, size]` in (-1, 1), by 5 x 5 transposed convolutions."""

    def __init__(self, size: int, nc: int, nz: int, ngf: int) -> None:
        width, side = ngf * size // 8, 4
        layers: list[nn.Module] = [nn.ConvTranspose2d(nz, width, 4, bias=False)]
        while side < size // 2:
            layers += [
                nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.ConvTranspose2d(width, width // 2, 5, 2, 2, output_padding=1, bias=False),
            ]
            width, side = width // 2, 2 * side
        last = nn.ConvTranspose2d(width, nc, 5, 2, 2, output_padding=1)
        super().__init__(*layers, nn.BatchNorm2d(width), nn.ReLU(inplace=True), last, nn.Tanh())


class Discriminator(nn.Module):
    """Features `[N, ndf * size / 8, 4, 4]` and logits `[N]` of being real, by strided 5 x 5 convolutions."""

    def __init__(self, size: int, nc: int, ndf: int) -> None:
        super().__init__()
        layers: list[nn.Module] = [nn.Conv2d(nc, ndf, 5, 2, 2), nn.LeakyReLU(0.2, inplace=True)]
        width, side = ndf, size // 2
        while side > 4:
            layers += [
                nn.Conv2d(width, 2 * width, 5, 2, 2, bias=False),
                nn.BatchNorm2d(2 * width),
                nn.LeakyReLU(0.2, inplace=True),
            ]
            width, side = 2 * width, side // 2
        self.features = nn.Sequential(*layers)
        self.head = nn.Conv2d(width, 1, 4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Features and logits of images `[N, nc, size, size]`."""
        features = self.features(x)
        return features, self.head(features).flatten()


class AnoGAN(Detector):
    """AnoGAN on square images `[N, C, S, S]` in [-1, 1], S being 16 times a power of two.

    Args:
        shape: `(C, S, S)` of one image.
        gan: `dcgan` or `wgan_gp`; see above.
        nz: length of the code.
        ngf, ndf: filters of generator and discriminator at half the size, twice as many at each halving; with
            `wgan_gp` at the full size, and at most eight times as many.
        lr, beta1, beta2: of the GAN's Adams.
        batch_size: of one update; a step of `wgan_gp` takes `n_critic` times as many rows.
        epochs: of the GAN; with `wgan_gp` in critic batches.
        n_critic, lambda_gp: updates of the critic for each of the generator, and weight of the penalty, with
            `wgan_gp`.
        lambda_: weight of the discrimination loss, in [0, 1]; the residual loss has the rest.
        descent_steps: of the search for z.
        z_lr: of the search's Adam.
        restarts: searches for each image, of which the best counts.
        learned_start: the first search begins at the code of an encoder.
        start_steps: updates of that encoder, by Adam as the GAN's, rounded up to whole epochs.
    """

    foldable = False
    scored_by: ClassVar[tuple[str, ...]] = ("lambda_", "descent_steps", "z_lr")
    start: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        gan: str = "dcgan",
        nz: int = 100,
        ngf: int = 64,
        ndf: int = 64,
        lr: float = 2e-4,
        beta1: float = 0.5,
        beta2: float = 0.999,
        batch_size: int = 64,
        epochs: int = 20,
        n_critic: int = 5,
        lambda_gp: float = 10.0,
        lambda_: float = 0.1,
        descent_steps: int = 500,
        z_lr: float = 1e-2,
        restarts: int = 1,
        learned_start: bool = False,
        start_steps: int = 10_000,
    ) -> None:
        super().__init__()
        check_choice("gan", gan, ("dcgan", "wgan_gp"))
        check_range("lambda_", lambda_, at_least=0, at_most=1)
        check_range("restarts", restarts, at_least=1)
        check_range("n_critic", n_critic, at_least=1)
        nc, size = check_dcgan_shape(shape)
        self.wgan = gan == "wgan_gp"
        if self.wgan:
            self.generate = nn.Sequential(nn.Flatten(), resnet.Generator(size, nc, nz, ngf))
            self.discriminate = resnet.Critic(size, nc, ndf)
        else:
            self.generate = Generator(size, nc, nz, ngf)
            self.discriminate = Discriminator(size, nc, ndf)
            self.apply(dcgan_init)
        self.encode = Encoder(size, nc, nz, ngf).apply(dcgan_init) if learned_start else None
        self.nz = nz
        self.register_buffer("start", self.prior(torch.empty(restarts)))
        self.lr, self.betas, self.batch_size, self.epochs = lr, (beta1, beta2), batch_size, epochs
        self.n_critic, self.lambda_gp, self.start_steps = n_critic, lambda_gp, start_steps
        self.lambda_, self.descent_steps, self.z_lr = lambda_, descent_steps, z_lr

    def stages(self, train: Rows) -> Iterator[Stage]:
        """The GAN, and the encoder that finds a start if there is one."""
        g = adam(self.generate, lr=self.lr, betas=self.betas)
        d = adam(self.discriminate, lr=self.lr, betas=self.betas)

        def dcgan_step(batch: Batch) -> dict[str, Tensor]:
            fake = self.generate(self.prior(batch.x))
            l_d = bce(self.discriminate(batch.x)[1], 1) + bce(self.discriminate(fake.detach())[1], 0)
            descend(d, l_d)
            l_g = bce(self.discriminate(fake)[1], 1)
            descend(g, l_g)
            return detached(discriminator=l_d, generator=l_g)

        def wgan_step(batch: Batch) -> dict[str, Tensor]:
            def criticise(x: Tensor) -> Tensor:
                return self.discriminate(x)[1]

            return wgan_gp_step(
                batch.x, self.prior, self.generate, criticise, g, d, self.n_critic, self.lambda_gp
            )

        step, rows = dcgan_step, self.batch_size
        if self.wgan:
            step, rows = wgan_step, self.batch_size * self.n_critic
        yield Stage("gan", self.epochs, step, (g, d), rows, scorable=self.encode is None)
        if self.encode is not None:
            yield self.start_stage(self.encode, train)

    def start_stage(self, encode: nn.Module, train: Rows) -> Stage:
        """The encoder learns the codes of generated images; the rows only give the number of them."""
        e = adam(encode, lr=self.lr, betas=self.betas)

        def step(batch: Batch) -> dict[str, Tensor]:
            self.generate.eval()
            z = self.prior(batch.x)
            with torch.no_grad():
                image = self.generate(z)
            loss = mse_loss(encode(image).float(), z)
            descend(e, loss)
            return detached(start=loss)

        epochs = math.ceil(self.start_steps / train.steps(self.batch_size))
        return Stage("start", epochs, step, (e,), self.batch_size)

    def prior(self, x: Tensor) -> Tensor:
        """As many codes of the GAN's prior, `[B, nz, 1, 1]`, as there are rows."""
        shape = (len(x), self.nz, 1, 1)
        return (
            torch.randn(shape, device=x.device) if self.wgan else torch.rand(shape, device=x.device) * 2 - 1
        )

    def distance(self, x: Tensor, features: Tensor, fake: Tensor) -> Tensor:
        """(1 - lambda) R + lambda D between images with their features, and generated images, `[N]`."""
        residual = (x - fake).float().abs().flatten(1).sum(1)
        discrimination = (features - self.discriminate(fake)[0]).float().abs().flatten(1).sum(1)
        return (1 - self.lambda_) * residual + self.lambda_ * discrimination

    def invert(self, x: Tensor) -> Tensor:
        """The codes z* `[N, nz, 1, 1]` of images `[N, C, S, S]`."""
        restarts = len(self.start)
        with torch.inference_mode(False), torch.enable_grad():
            z = self.first_codes(x).requires_grad_()
            images = x.repeat_interleave(restarts, 0)
            features = self.discriminate(images)[0].detach()
            optimizer = Adam([z], lr=self.z_lr)
            for _ in range(self.descent_steps):
                descend(optimizer, self.distance(images, features, self.generate(z)).sum())
        with torch.no_grad():
            left = self.distance(images, features, self.generate(z)).view(-1, restarts)
        best = torch.arange(len(x), device=x.device) * restarts + left.argmin(1)
        return z.detach()[best]

    @torch.no_grad()
    def first_codes(self, x: Tensor) -> Tensor:
        """Where the searches for images begin, `[N * restarts, nz, 1, 1]`."""
        first = self.start.repeat(len(x), 1, 1, 1)
        if self.encode is not None:
            first[:: len(self.start)] = self.encode(x).to(first.dtype)
        return first

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`: what the search leaves of the weighted sum of absolute residuals."""
        return self.explain(x).score

    @torch.no_grad()
    def explain(self, x: Tensor) -> Explanation:
        """Score, absolute residual map, nearest generated image, and the discriminator's features f(x)."""
        fake = self.generate(self.invert(x))
        features = self.discriminate(x)[0]
        residual = (x - fake).float().abs()
        return Explanation(self.distance(x, features, fake), residual.mean(1), fake, features.flatten(1))
