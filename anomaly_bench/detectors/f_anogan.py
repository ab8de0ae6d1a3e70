"""f-AnoGAN: Fast unsupervised anomaly detection with generative adversarial networks.

Schlegl, Seeböck, Waldstein, Langs, Schmidt-Erfurth, Medical Image Analysis 54, 2019,
https://doi.org/10.1016/j.media.2019.01.010; official code: https://github.com/tSchlegl/f-AnoGAN.

A Wasserstein GAN learns to generate normal images. With generator and critic frozen, an encoder then learns
to invert the generator, which AnoGAN does by a search for every image. What the pair cannot rebuild, in
pixels and in the critic's features f, is the anomaly score.

    L_D    = D(G(z)) - D(x) + lambda_gp (|grad_u D(u)|_2 - 1)^2,   L_G = -D(G(z)),   z ~ N(0, I)
    izi    : |x - G(E(x))|^2 / n
    ziz    : |z - E(G(z))|^2 / d
    izi_f  : izi + kappa |f(x) - f(G(E(x)))|^2 / n_f
    A(x)   = |x - G(E(x))|^2 / n + kappa |f(x) - f(G(E(x)))|^2 / n_f

All follows the official code, of which:

- Epochs of the first stage are counted in batches of the critic. One step here is `n_critic` critic batches,
  one after the other, and then one update of the generator.
- The encoder ends in tanh, as in the paper, although that leaves about a third of N(0, 1) out of its reach in
  each entry of z; `encoder_output=none` is the paper's unconstrained encoder.
- `ziz` is in the paper alone and sees no training image.
- The encoder's RMSProp is TensorFlow's, whose mean squares begin at one, so that its first steps are short, where
  PyTorch's are the longest.
- Half of the training images are mirrored left to right (`flip`).
- The code also prints the code distance |E(x) - E(G(E(x)))|^2 / d; the paper does not score by it, nor do we.
- Batch norm has PyTorch's momentum, and its running statistics follow each pass of the generator, also those for the
  critic's updates; the code's, the generator's own update alone.
- It leaves the last test images out where they do not fill a batch; here all are scored.

When to use it: For square images of one kind, as patches of retinal scans: one pass of encoder, generator and
critic gives the score, a residual map, and the normal image that is nearest. In its paper the AUROC is .930,
that of AnoGAN's search through the same GAN .911, and that of an autoencoder .869; `ae` is a cheaper first
try, since here a Wasserstein GAN is trained with five updates of the critic for each of the generator, and
then the encoder for 50,000 updates however few the images.

Traps: `model.epochs=7` is little where images are few: 6,000 of them make 126 updates of the generator.
`trainer.max_epochs` cuts the encoder's stage too. `model.flip=true` suits retinal scans; letters and all
else that is not normal any more when mirrored want `model.flip=false`, which the sets of digits have without
being told. Where the GAN rebuilds badly the score is worth nothing: near or below chance was reported of
A03ki/f-AnoGAN on carpets, bottles and DAGM, and mode collapse on CIFAR-10 of the official code, so look at the
reconstructions in `figures/` before the AUROC.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from anomaly_bench.detector import Batch, Detector, Explanation, RMSProp, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import check_choice, check_range
from anomaly_bench.networks.dcgan import check_dcgan_shape
from anomaly_bench.networks.resnet import Critic, Encoder, Generator
from anomaly_bench.wgan import wgan_gp_step


class FAnoGAN(Detector):
    """f-AnoGAN on square images `[N, C, S, S]` in [-1, 1], S being 16 times a power of two.

    Args:
        shape: `(C, S, S)` of one image.
        nz: length of the code.
        width: filters at the full resolution; the deepest stages have up to eight times as many.
        n_critic: updates of the critic for each of the generator.
        lambda_gp: weight of the gradient penalty.
        lr, beta1, beta2: of generator's and critic's Adam.
        batch_size: of one update; a step of the first stage takes `n_critic` times as many rows.
        epochs: of the first stage, in critic batches.
        flip: mirror half of the training images left to right, in both stages.
        encoder_training: `izi`, `ziz` or `izi_f`; see above.
        encoder_output: `tanh` or `none`.
        kappa: weight of the features' term.
        encoder_lr: of the encoder's RMSProp.
        encoder_steps: updates of the encoder, rounded up to whole epochs.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        nz: int = 128,
        width: int = 64,
        n_critic: int = 5,
        lambda_gp: float = 10.0,
        lr: float = 1e-4,
        beta1: float = 0.0,
        beta2: float = 0.9,
        batch_size: int = 64,
        epochs: int = 7,
        flip: bool = True,
        encoder_training: str = "izi_f",
        encoder_output: str = "tanh",
        kappa: float = 1.0,
        encoder_lr: float = 5e-5,
        encoder_steps: int = 50_000,
    ) -> None:
        super().__init__()
        check_choice("encoder_training", encoder_training, ("izi", "ziz", "izi_f"))
        check_choice("encoder_output", encoder_output, ("tanh", "none"))
        check_range("n_critic", n_critic, at_least=1)
        nc, size = check_dcgan_shape(shape)
        self.generate = Generator(size, nc, nz, width)
        self.criticise = Critic(size, nc, width)
        bound = nn.Tanh() if encoder_output == "tanh" else nn.Identity()
        self.encode = nn.Sequential(Encoder(size, nc, nz, width), bound)
        self.nz, self.n_critic, self.lambda_gp = nz, n_critic, lambda_gp
        self.lr, self.betas, self.batch_size, self.epochs = lr, (beta1, beta2), batch_size, epochs
        self.flip = flip
        self.encoder_training, self.kappa = encoder_training, kappa
        self.encoder_lr, self.encoder_steps = encoder_lr, encoder_steps

    def forward(self, x: Tensor) -> Tensor:
        """Reconstructions G(E(x)) `[N, C, S, S]` of images `[N, C, S, S]`."""
        return self.generate(self.encode(x))

    def stages(self, train: Rows) -> Iterator[Stage]:
        """Two stages: the Wasserstein GAN, then the encoder alone."""
        g = adam(self.generate, lr=self.lr, betas=self.betas)
        d = adam(self.criticise, lr=self.lr, betas=self.betas)

        def gan_step(batch: Batch) -> dict[str, Tensor]:
            x = self.mirrored(batch.x)
            return wgan_gp_step(
                x, self.prior, self.generate, self.values, g, d, self.n_critic, self.lambda_gp
            )

        rows = self.batch_size * self.n_critic
        yield Stage("gan", self.epochs, gan_step, (g, d), rows, scorable=False)

        e = RMSProp(self.encode.parameters(), lr=self.encoder_lr)

        def encoder_step(batch: Batch) -> dict[str, Tensor]:
            self.generate.eval()
            loss = self.encoder_loss(self.mirrored(batch.x))
            descend(e, loss)
            return detached(encoder=loss)

        epochs = math.ceil(self.encoder_steps / train.steps(self.batch_size))
        yield Stage("encoder", epochs, encoder_step, (e,), self.batch_size)

    def values(self, x: Tensor) -> Tensor:
        """The critic's D(x), `[N]`."""
        return self.criticise(x)[1]

    def encoder_loss(self, x: Tensor) -> Tensor:
        """The loss that `encoder_training` names, of images `[B, C, S, S]`, a scalar."""
        if self.encoder_training == "ziz":
            z = self.prior(x)
            with torch.no_grad():
                image = self.generate(z)
            return mse_loss(self.encode(image).float(), z)
        fake = self(x)
        loss = mse_loss(fake.float(), x)
        if self.encoder_training == "izi":
            return loss
        with torch.no_grad():
            features = self.criticise(x)[0]
        return loss + self.kappa * mse_loss(self.criticise(fake)[0].float(), features.float())

    def prior(self, x: Tensor) -> Tensor:
        """As many codes from N(0, I), `[B, nz]`, as there are images."""
        return torch.randn(len(x), self.nz, device=x.device)

    def mirrored(self, x: Tensor) -> Tensor:
        """Each image mirrored left to right with probability 1/2, or none if `flip` is off."""
        if not self.flip:
            return x
        chosen = torch.rand(len(x), 1, 1, 1, device=x.device) < 0.5
        return torch.where(chosen, x.flip(3), x)

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`: mean squared residual of the pixels plus kappa times that of the critic's features."""
        return self.explain(x).score

    def explain(self, x: Tensor) -> Explanation:
        """Score, absolute residual map, reconstruction, and the critic's features f(x)."""
        fake = self(x)
        features, rebuilt = self.criticise(x)[0], self.criticise(fake)[0]
        a_r = (x - fake).float().square().flatten(1).mean(1)
        a_d = (features - rebuilt).float().square().mean(1)
        return Explanation(a_r + self.kappa * a_d, (x - fake).float().abs().mean(1), fake, features)
