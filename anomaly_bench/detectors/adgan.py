"""ADGAN: Image Anomaly Detection with Generative Adversarial Networks.

Deecke, Vandermeulen, Ruff, Mandt, Kloft, ECML PKDD 2018, https://doi.org/10.1007/978-3-030-10925-7_1. There is
no official code; this follows the one of the GeoTrans paper, izikgo/AnomalyDetectionTransformations.

A Wasserstein GAN learns to generate normal images. For each test image, a few steps of gradient descent look
for a code whose generated image is near it, from several first codes. Other than in AnoGAN, the generator may
change a little on the way, a copy of its own for each image and first code. What distance is left is the score.

    z_0 ~ N(0, I),  theta_0 = theta,   l(z, theta) = |x - G_theta(z)|^2 / n
    z_t     = z_{t-1}     - z_lr Adam(grad_z l(z_{t-1}, theta_{t-1}))
    theta_t = theta_{t-1} - g_lr Adam(grad_theta l(z_t, theta_{t-1}))
    A(x) = mean over the first codes of l(z_k, theta_k)

Where this and the code differ:

- `critic_norm`: its critic has batch norm, against which the gradient penalty has no meaning, as it is of each
  row alone; `batch` is that critic, `none`, the default, and `layer` are not.
- Its updates of theta run batch norm in training mode, on a batch of one, where what the first layer makes of z
  is normalised away. Here the search is in evaluation mode.
- The first codes are drawn once, when the detector is made, and are the same for every image: a score must not
  depend on what else is in its batch. There, they are drawn anew for each image.
- It makes what the critic compares with real images by batch norm in evaluation mode; here it is in training mode, as
  for the generator's own update.
- It scores 5,000 of the test images; here all are scored.
- It counts training in batches of the generator, 100 epochs of 100; `generator_steps` is their product, rounded
  up to whole passes over the training rows.
- At 64 pixels, its generator has 256, 128, 64 and 64 filters, ours 512, 256, 128 and 64.
- Stride-2 convolutions are padded on both sides, Keras' on one; first weights, and batch norm's momentum and epsilon,
  are PyTorch's. Its critic and generator share one count of steps for Adam's correction of the first steps.

When to use it: For small sets of images of about 32 pixels of which the nearest normal image and a map are
worth waiting for. An image costs 8 searches of 5 steps, and each step a gradient for the code and one for all
weights of a copy of the generator; `anogan` takes 500 steps for the code alone, and `f_anogan` gives the same
kind of residual in one pass. Not for photographs: GeoTrans' paper gives it a mean AUROC of .553 on CIFAR-10,
a one-class SVM on pixels .620 (its settings chosen by the test labels), and GeoTrans .860.

Traps: A run searches three times, for the test rows, for their untrained control, and for up to 1,024
training rows, from whose scores the threshold is taken: keep `data.limit` small. Every step of `model.g_lr`
brings the generator nearer to whatever image it is given, an anomalous one too, so that more
`model.descent_steps` are not simply better. Training is 10,000 updates of the generator however few the rows,
but `trainer.max_epochs` cuts them. Scores start from the same `model.n_seeds=8` codes, so that another seed
of the run moves them even where the generator has learned alike.
"""

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import conv_transpose2d

from anomaly_bench.detector import Adam, Batch, Detector, Explanation, Rows, Stage, adam, descend
from anomaly_bench.errors import check_choice, check_range
from anomaly_bench.networks.cae import ConvDecoder, stages_for
from anomaly_bench.wgan import wgan_gp_step

COPIES = 16
"""Copies of the generator that are descended at once; with the state of Adam, one of 32 pixels is 23 MB."""

NORMS = {
    "none": lambda _: nn.Identity(),
    "layer": lambda channels: nn.GroupNorm(1, channels),
    "batch": nn.BatchNorm2d,
}


class Critic(nn.Sequential):
    """Values `[N]` of images `[N, C, H, W]`, by 3 x 3 stride-2 stages of 64, 128, 256, ... filters."""

    def __init__(self, shape: tuple[int, ...], width: int, norm: str) -> None:
        layers: list[nn.Module] = []
        stages, channels = stages_for(shape), shape[0]
        for stage in range(stages):
            filters = width << stage
            layers += [nn.Conv2d(channels, filters, 3, 2, 1), NORMS[norm](filters), nn.ReLU()]
            channels = filters
        pixels = (shape[1] >> stages) * (shape[2] >> stages)
        super().__init__(*layers, nn.Flatten(), nn.Linear(channels * pixels, 1), nn.Flatten(0))


class ADGAN(Detector):
    """ADGAN on images `[N, C, H, W]` in [-1, 1].

    Args:
        shape: `(C, H, W)`; sides are multiples of 8, from 64 pixels on of 16.
        nz: length of the code.
        width: filters of the first stage of the critic and the last of the generator.
        critic_norm: `none`, `layer` or `batch`; see above.
        n_critic: updates of the critic for each of the generator.
        lambda_gp: weight of the gradient penalty.
        lr, beta1, beta2: of generator's and critic's Adam.
        batch_size: of one update; a step takes `n_critic` times as many rows.
        generator_steps: updates of the generator in training, rounded up to whole epochs.
        n_seeds: first codes of each search.
        descent_steps: of code and generator each, in a search.
        z_lr, g_lr: of the search's Adams; their beta1 is 0.5.
    """

    foldable = False
    scored_by: ClassVar[tuple[str, ...]] = ("descent_steps", "z_lr", "g_lr")
    start: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        nz: int = 256,
        width: int = 64,
        critic_norm: str = "none",
        n_critic: int = 2,
        lambda_gp: float = 20.0,
        lr: float = 1e-4,
        beta1: float = 0.0,
        beta2: float = 0.9,
        batch_size: int = 128,
        generator_steps: int = 10_000,
        n_seeds: int = 8,
        descent_steps: int = 5,
        z_lr: float = 0.25,
        g_lr: float = 5e-5,
    ) -> None:
        super().__init__()
        check_choice("critic_norm", critic_norm, NORMS)
        check_range("n_critic", n_critic, at_least=1)
        check_range("n_seeds", n_seeds, at_least=1)
        self.generate = ConvDecoder(shape, nz, width)
        self.criticise = Critic(shape, width, critic_norm)
        self.register_buffer("start", torch.randn(n_seeds, nz))
        self.nz, self.n_critic, self.lambda_gp = nz, n_critic, lambda_gp
        self.lr, self.betas, self.batch_size = lr, (beta1, beta2), batch_size
        self.generator_steps = generator_steps
        self.descent_steps, self.z_lr, self.g_lr = descent_steps, z_lr, g_lr

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage: the Wasserstein GAN."""
        g = adam(self.generate, lr=self.lr, betas=self.betas)
        d = adam(self.criticise, lr=self.lr, betas=self.betas)

        def step(batch: Batch) -> dict[str, Tensor]:
            return wgan_gp_step(
                batch.x, self.prior, self.generate, self.criticise, g, d, self.n_critic, self.lambda_gp
            )

        rows = self.batch_size * self.n_critic
        yield Stage("gan", math.ceil(self.generator_steps / train.steps(rows)), step, (g, d), rows)

    def prior(self, x: Tensor) -> Tensor:
        """As many codes from N(0, I), `[B, nz]`, as there are images."""
        return torch.randn(len(x), self.nz, device=x.device)

    def search(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """What is left of images `[N, C, H, W]` from each first code, `[N, n_seeds]`, and the best image of each."""
        # The search takes steps of 5e-5, which half precision would lose.
        with torch.inference_mode(False), torch.enable_grad(), torch.autocast(x.device.type, enabled=False):
            images = x.repeat_interleave(len(self.start), 0)
            z = self.start.repeat(len(x), 1).requires_grad_()
            copies = {
                name: torch.stack([weight.detach()] * len(z)).requires_grad_()
                for name, weight in self.generate.named_parameters()
            }
            z_adam = Adam([z], lr=self.z_lr, betas=(0.5, 0.999), eps=1e-7)
            g_adam = Adam(copies.values(), lr=self.g_lr, betas=(0.5, 0.999), eps=1e-7, fused=True)
            for _ in range(self.descent_steps):
                descend(z_adam, distance(images, generated_by_each(self.generate, copies, z)).sum())
                descend(g_adam, distance(images, generated_by_each(self.generate, copies, z)).sum())
            with torch.no_grad():
                fakes = generated_by_each(self.generate, copies, z)
        left = distance(images, fakes).view(len(x), -1)
        best = torch.arange(len(x), device=x.device) * len(self.start) + left.argmin(1)
        return left, fakes[best]

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`: the mean over the first codes of the mean squared error that the search leaves."""
        return self.explain(x).score

    @torch.no_grad()
    def explain(self, x: Tensor) -> Explanation:
        """Score, and the absolute residual map and image of the best of each row's searches."""
        parts = [self.search(part) for part in x.split(max(1, COPIES // len(self.start)))]
        left, nearest = (torch.cat(part) for part in zip(*parts, strict=True))
        return Explanation(left.mean(1), (x - nearest).float().abs().mean(1), nearest)


def distance(x: Tensor, fake: Tensor) -> Tensor:
    """Mean squared error of each image, `[N]`."""
    return (x - fake).float().square().flatten(1).mean(1)


def generated_by_each(generate: nn.Sequential, copies: dict[str, Tensor], z: Tensor) -> Tensor:
    """Images `[M, C, H, W]` of codes `[M, nz]`, each by a generator with weights of its own, in evaluation mode.

    Args:
        generate: has the layers, and the statistics of batch norm.
        copies: its parameters by name, those of all copies stacked, `[M, ...]`.
    """
    x, copy_count, statistics = z, len(z), dict(generate.named_buffers())
    for number, layer in generate.named_children():
        weight, bias = copies.get(f"{number}.weight"), copies.get(f"{number}.bias")
        match layer, weight, bias:
            case nn.Linear(), Tensor(), None:
                x = torch.einsum("moi,mi->mo", weight, x)
            case nn.ConvTranspose2d(), Tensor(), _:
                together = conv_transpose2d(
                    x.reshape(1, -1, *x.shape[2:]),
                    weight.flatten(0, 1),
                    None if bias is None else bias.flatten(),
                    layer.stride,  # pyright: ignore[reportArgumentType]
                    layer.padding,  # pyright: ignore[reportArgumentType]
                    layer.output_padding,  # pyright: ignore[reportArgumentType]
                    groups=copy_count,
                )
                x = together.view(copy_count, -1, *together.shape[2:])
            case nn.BatchNorm1d() | nn.BatchNorm2d(), Tensor(), Tensor():
                scale = weight * (statistics[f"{number}.running_var"] + layer.eps).rsqrt()
                shift = bias - statistics[f"{number}.running_mean"] * scale
                each = (copy_count, -1, *[1] * (x.dim() - 2))
                x = x * scale.view(each) + shift.view(each)
            case _:
                x = layer(x)
    return x
