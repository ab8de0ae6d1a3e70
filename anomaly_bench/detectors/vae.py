"""Variational autoencoder, scored by its reconstruction, its bound, or its reconstruction probability.

Kingma, Welling, Auto-Encoding Variational Bayes, ICLR 2014, https://arxiv.org/abs/1312.6114. The
reconstruction probability: An, Cho, Variational Autoencoder based Anomaly Detection using Reconstruction
Probability, SNU Data Mining Center, 2015. The weight beta: Higgins and others, beta-VAE, ICLR 2017.

The encoder gives a Gaussian of codes for each row, the decoder a distribution of rows for each code; together
they maximise a lower bound of the likelihood. Anomalous rows are unlikely under the model.

    L         = mean over rows of  E_q[-log p(x|z)] + beta KL(q(z|x) || N(0, I)),  one z from q for each row
    KL        = -1/2 sum(1 + log s^2 - m^2 - s^2),   q(z|x) = N(m, s^2)
    A(x)      = |x - x^|^2 at z = m                               score_by=reconstruction
              = -1/L sum_l log p(x|z_l) + beta KL                 score_by=elbo
              = -1/L sum_l log p(x|z_l)                           score_by=probability

`-log p(x|z)` is summed over the entries of a row, never averaged: with a mean the KL outweighs it and all
codes are N(0, I). The L draws of the score are kept with the weights and shared by all rows, so that a row
has one score. An and Cho's decoder gives mean and variance (`likelihood=gaussian_variance`); `gaussian` has
one fixed variance, `bernoulli` takes the pixels, brought to [0, 1], as probabilities.

When to use it: Where a probability is wanted rather than an error, or codes for another method to stand on
(`represent`); on images, or on rows with `model.network=dense`. As a plain detector it was no gain in
`results/autoencoders_mnist`: a mean AUROC of .690 after 10 passes, where `ae` has .794 and is better on all
five digits. The score decodes ten draws, 219 images a second on two CPU cores against 975 for `ae`
(`results/cost.md`); `model.score_by=reconstruction` decodes once.

Traps: A `kl` near 0 in `losses.csv` is a collapsed posterior: every row is rebuilt as the same one, and the
score is the distance from that. `model.likelihood=gaussian` weighs the squared error by 1 / (2 sigma^2), so
that `model.sigma` settles the balance with the KL as much as `model.beta` does. With learned variances a
pixel that is always black gets a deviation as low as 0.05, so that a single bright one there costs up to 800
nats and decides the score. Scores of `elbo` and `probability` may be negative, and differ by the likelihood:
compare rankings only. pyod's VAE has its KL held at 0 by default, and is no VAE to compare with.
"""

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, softplus

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached, map_of
from anomaly_bench.errors import SettingError, check_choice, check_range
from anomaly_bench.networks.cae import squared_error
from anomaly_bench.networks.pairs import decoder, encoder

LEAST_LOG_VARIANCE = -6.0
"""Of the decoder: a standard deviation of 0.05, where pixels have a range of 2."""


class VAE(Detector):
    """A variational autoencoder on images `[N, C, H, W]` in [-1, 1], or rows `[N, D]` with `network=dense`.

    Args:
        shape: of one row.
        network: `conv`, or `dense`.
        code: length of the code.
        width: filters of the first stage of `conv`.
        hidden: units of the layers of `dense`, from the row to the code.
        likelihood: `gaussian_variance`, `gaussian` or `bernoulli` (images only).
        sigma: standard deviation of `gaussian`.
        beta: weight of the KL; 1 is the bound.
        score_by: `reconstruction`, `elbo` or `probability`.
        samples: L, draws of the code for `elbo` and `probability`.
        lr, batch_size, epochs: of Adam.
    """

    noise: Tensor  # [L, code]

    scored_by: ClassVar[tuple[str, ...]] = ("score_by",)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        network: str = "conv",
        code: int = 32,
        width: int = 64,
        hidden: Sequence[int] = (400,),
        likelihood: str = "gaussian_variance",
        sigma: float = 1.0,
        beta: float = 1.0,
        score_by: str = "probability",
        samples: int = 10,
        lr: float = 1e-3,
        batch_size: int = 128,
        epochs: int = 200,
    ) -> None:
        super().__init__()
        check_choice("likelihood", likelihood, ("gaussian_variance", "gaussian", "bernoulli"))
        if likelihood == "bernoulli" and len(shape) != 3:
            raise SettingError(f"model.likelihood=bernoulli: it needs images, found rows of shape {shape}")
        check_choice("score_by", score_by, ("reconstruction", "elbo", "probability"))
        check_range("sigma", sigma, above=0)
        check_range("samples", samples, at_least=1)
        outputs = (2 * shape[0], *shape[1:]) if likelihood == "gaussian_variance" else shape
        self.encode = encoder(network, shape, 2 * code, width, hidden, bounded=False)
        self.decode = decoder(network, outputs, code, width, hidden, bounded=False)
        self.register_buffer("noise", torch.randn(samples, code))
        self.on_unit = len(shape) == 3
        self.likelihood, self.log_variance, self.beta = likelihood, 2 * math.log(sigma), beta
        self.score_by = score_by
        self.lr, self.batch_size, self.epochs = lr, batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage up the bound."""
        optimizer = adam(self.encode, self.decode, lr=self.lr)

        def step(batch: Batch) -> dict[str, Tensor]:
            m, log_s2 = self.posterior(batch.x)
            z = m + torch.exp(log_s2 / 2) * torch.randn_like(m)
            surprise = self.surprise(batch.x, self.decode(z)).mean()
            divergence = kl(m, log_s2).mean()
            descend(optimizer, surprise + self.beta * divergence)
            return detached(reconstruction=surprise, kl=divergence)

        yield Stage("vae", self.epochs, step, (optimizer,), self.batch_size)

    def posterior(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance of q(z|x), `[N, code]` each, float32."""
        m, log_s2 = self.encode(x).float().chunk(2, dim=1)
        return m, log_s2.clamp(-10, 10)

    def mean(self, decoded: Tensor) -> Tensor:
        """Mean of p(x|z), `[N, *shape]`, of what the decoder gives."""
        decoded = decoded.float()
        if self.likelihood == "bernoulli":
            return 2 * torch.sigmoid(decoded) - 1
        if self.likelihood == "gaussian_variance":
            decoded = decoded.chunk(2, dim=1)[0]
        return torch.tanh(decoded) if self.on_unit else decoded

    def surprise(self, x: Tensor, decoded: Tensor) -> Tensor:
        """-log p(x|z), `[N]`, of what the decoder gives for z, summed over the entries of a row."""
        decoded = decoded.float()
        if self.likelihood == "bernoulli":
            entries = binary_cross_entropy_with_logits(decoded, (x + 1) / 2, reduction="none")
            return entries.flatten(1).sum(1)
        log_variance = x.new_full((), self.log_variance)
        if self.likelihood == "gaussian_variance":
            free = decoded.chunk(2, dim=1)[1]
            log_variance = LEAST_LOG_VARIANCE + softplus(free - LEAST_LOG_VARIANCE)
        entries = (
            (x - self.mean(decoded)).square() / log_variance.exp() + log_variance + math.log(2 * math.pi)
        )
        return entries.flatten(1).sum(1) / 2

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`, as `score_by` has it."""
        return self.score_of(x, *self.posterior(x))

    def score_of(self, x: Tensor, m: Tensor, log_s2: Tensor) -> Tensor:
        """A(x), `[N]`, of rows and of their codes' means and log-variances `[N, code]`."""
        if self.score_by == "reconstruction":
            return squared_error(x, self.mean(self.decode(m)))
        s = torch.exp(log_s2 / 2)
        draws = [self.surprise(x, self.decode(m + s * e)) for e in self.noise]
        total = torch.stack(draws).mean(0)
        return total + self.beta * kl(m, log_s2) if self.score_by == "elbo" else total

    def represent(self, x: Tensor) -> Tensor:
        """The code m, `[N, code]`."""
        return self.posterior(x)[0]

    def explain(self, x: Tensor) -> Explanation:
        """Score, and of the code m its squared residual map, its reconstruction and itself."""
        m, log_s2 = self.posterior(x)
        reconstruction = self.mean(self.decode(m))
        shown = map_of((x - reconstruction).square(), x)
        return Explanation(self.score_of(x, m, log_s2), shown, reconstruction, m)


def kl(m: Tensor, log_s2: Tensor) -> Tensor:
    """KL(N(m, s^2) || N(0, I)), `[N]`, of means and log-variances `[N, code]`."""
    return -0.5 * (1 + log_s2 - m.square() - log_s2.exp()).sum(1)
