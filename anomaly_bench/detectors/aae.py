"""Adversarial autoencoders, plain and constrained, scored by what they cannot rebuild.

Makhzani, Shlens, Jaitly, Goodfellow, Frey, Adversarial Autoencoders, 2015, https://arxiv.org/abs/1511.05644.
Chen, Konukoglu, Unsupervised Detection of Lesions in Brain MRI using Constrained Adversarial Auto-encoders,
MIDL 2018, https://arxiv.org/abs/1806.04972; official code: aubreychen9012/cAAE.

An autoencoder's codes of normal images are made to look like draws from N(0, I) by a critic of codes. The
constraint asks besides that a reconstruction has the code of its image, so that an image with a lesion lands
near its healthy version. What is left between the two is the anomaly.

    x^    = G(E(x)),   z ~ N(0, I)
    L_AE  = mean ||x - x^||_2 + w_code mean ||E(x) - E(x^)||_2^2             w_code = 0: plain AAE
    wgan:   L_D = D(E(x)) - D(z) + lambda_gp (|grad_u D(u)|_2 - 1)^2,        L_E = -D(E(x))
    gan:    L_D = BCE(D(z), 1) + BCE(D(E(x)), 0),                            L_E = BCE(D(E(x)), 1)
    A(x)  = mean |x - x^|,   and |x - x^| is the map

A step is one update of the autoencoder, `n_critic` of the critic, and one of the encoder against the critic.
`constrained_aae` is the code of the second paper, adversary `wgan`, whose first `warmup_epochs` epochs have
`warmup` times as many updates of the critic; `aae` has the adversary of the first paper, `gan`, and no
constraint. Neither paper has our data sets. What differs from the code:

- Its images are brain slices of 200 pixels and more, standardised, out of a linear layer. Here encoder and
  generator are the residual ones of WGAN-GP, with a tanh at the end: its layers, ReLU, where the code has leaky
  ReLU, and first weights, and the code's filters, from 16 on doubling to 256, down to 4 x 4: four blocks, as there,
  at 64 pixels, and three, of up to 128 filters, at 32.
- The updates of the critic on one batch share the codes E(x) and z, and draw u anew, as there. The code of the
  reconstruction runs batch norm in evaluation mode, as there, and its gradient reaches both codes.

When to use it: For square images where a map of what is wrong is wanted: score and map are the absolute
residual, from one pass of encoder and generator. `constrained_aae` is made for small lesions in images that
are otherwise alike; it takes 20 updates of the critic on each batch, and 200 in the first 20 epochs, though
of a small network that sees codes alone, while `aae` takes one. `ae` gives the same kind of score and map for
less: in f-AnoGAN's table of retinal scans an adversarial autoencoder has an AUROC of .865, a plain one .869,
and f-AnoGAN .930.

Traps: `model.lr=2e-5` belongs to 300 epochs: Adam moves a weight by about that much a step, so that short
runs are hardly trained. `trainer.max_epochs` bounds the warm-up and the rest alike: at 20, half of the epochs
of `constrained_aae` are warm-up. The score is the mean over all pixels, in which a small lesion counts
little: look at the map too. In `losses.csv`, with `model.adversary=gan`, `critic` is 2 log 2 = 1.39 where
codes cannot be told from draws, and near 0 where the encoder has left the prior; `constraint` is 0 throughout
with `aae`.
"""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor, nn

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import SettingError, check_choice, check_range
from anomaly_bench.losses import bce, gradient_penalty
from anomaly_bench.networks.bigan import init_weights
from anomaly_bench.networks.dcgan import check_dcgan_shape
from anomaly_bench.networks.resnet import Encoder, Generator

MOST = 16  # times `width`


class CodeCritic(nn.Sequential):
    """Values, or logits of being a draw from the prior, `[N]`, of codes `[N, nz]`; its first weights are N(0, 0.01)."""

    def __init__(self, nz: int) -> None:
        first, second = nn.Linear(nz, 200), nn.Linear(200, 400)
        super().__init__(
            first, nn.LeakyReLU(0.2), second, nn.LeakyReLU(0.2), nn.Linear(400, 1), nn.Flatten(0)
        )
        init_weights(self, partial(nn.init.normal_, std=0.01))


class AAE(Detector):
    """An adversarial autoencoder on square images `[N, C, S, S]` in [-1, 1], S being 16 times a power of two.

    Args:
        shape: `(C, S, S)` of one image.
        nz: length of the code.
        width: filters at the full resolution; the deepest stages have up to 16 times as many.
        w_code: weight of the constraint; 0 for none.
        adversary: `wgan` or `gan`; see above.
        lambda_gp: weight of the gradient penalty, for `wgan`.
        n_critic: updates of the critic on each batch.
        warmup, warmup_epochs: so many times as many in the first epochs.
        lr, beta1, beta2, batch_size: of the three Adams.
        epochs: in all, at least `warmup_epochs`.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        nz: int = 128,
        width: int = 16,
        w_code: float = 0.5,
        adversary: str = "wgan",
        lambda_gp: float = 10.0,
        n_critic: int = 20,
        warmup: int = 10,
        warmup_epochs: int = 20,
        lr: float = 2e-5,
        beta1: float = 0.5,
        beta2: float = 0.9,
        batch_size: int = 64,
        epochs: int = 300,
    ) -> None:
        super().__init__()
        check_choice("adversary", adversary, ("wgan", "gan"))
        if not 0 <= warmup_epochs <= epochs:
            raise SettingError(
                f"model.warmup_epochs={warmup_epochs}: must be from 0 to model.epochs={epochs}"
            )
        check_range("n_critic", n_critic, at_least=1)
        check_range("warmup", warmup, at_least=1)
        nc, size = check_dcgan_shape(shape)
        self.encode = Encoder(size, nc, nz, width, MOST)
        self.generate = Generator(size, nc, nz, width, MOST)
        self.criticise = CodeCritic(nz)
        self.w_code, self.wgan, self.lambda_gp = w_code, adversary == "wgan", lambda_gp
        self.n_critic, self.warmup, self.warmup_epochs = n_critic, warmup, warmup_epochs
        self.lr, self.betas, self.batch_size, self.epochs = lr, (beta1, beta2), batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """Two stages that differ in the updates of the critic alone."""
        a = adam(self.encode, self.generate, lr=self.lr, betas=self.betas)
        d = adam(self.criticise, lr=self.lr, betas=self.betas)
        e = adam(self.encode, lr=self.lr, betas=self.betas)

        def step(batch: Batch, n_critic: int) -> dict[str, Tensor]:
            error, constraint = self.autoencoder_losses(batch.x)
            descend(a, error + self.w_code * constraint)
            codes = self.encode(batch.x)
            fake = codes.detach()
            real = torch.randn_like(fake, dtype=torch.float32)
            l_d = self.critic_loss(real, fake)
            descend(d, l_d)
            for _ in range(n_critic - 1):
                descend(d, self.critic_loss(real, fake))
            values = self.criticise(codes)
            l_e = -values.float().mean() if self.wgan else bce(values, 1)
            descend(e, l_e)
            return detached(reconstruction=error, constraint=constraint, critic=l_d, encoder=l_e)

        def warmup_step(batch: Batch) -> dict[str, Tensor]:
            return step(batch, self.n_critic * self.warmup)

        def later_step(batch: Batch) -> dict[str, Tensor]:
            return step(batch, self.n_critic)

        yield Stage("warmup", self.warmup_epochs, warmup_step, (a, d, e), self.batch_size)
        yield Stage("aae", self.epochs - self.warmup_epochs, later_step, (a, d, e), self.batch_size)

    def autoencoder_losses(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean distance of images `[B, C, S, S]` to their reconstructions, and mean squared one of the codes."""
        z = self.encode(x)
        rebuilt = self.generate(z)
        error = ((x - rebuilt).float().square().flatten(1).sum(1) + 1e-8).sqrt().mean()
        if self.w_code == 0:
            return error, torch.zeros_like(error)
        self.encode.eval()
        z_hat = self.encode(rebuilt)
        self.encode.train()
        return error, (z - z_hat).float().square().sum(1).mean()

    def critic_loss(self, real: Tensor, fake: Tensor) -> Tensor:
        """L_D of codes from the prior and from the encoder, `[B, nz]`."""
        if not self.wgan:
            return bce(self.criticise(real), 1) + bce(self.criticise(fake), 0)
        distance = self.criticise(real).float().mean() - self.criticise(fake).float().mean()
        return self.lambda_gp * gradient_penalty(self.criticise, real, fake) - distance

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`: the mean absolute residual."""
        return self.explain(x).score

    def explain(self, x: Tensor) -> Explanation:
        """Score, absolute residual map, reconstruction and code."""
        z = self.encode(x)
        rebuilt = self.generate(z)
        residual = (x - rebuilt).float().abs().mean(1)
        return Explanation(residual.flatten(1).mean(1), residual, rebuilt, z)
