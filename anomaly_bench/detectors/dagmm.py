"""DAGMM: Deep Autoencoding Gaussian Mixture Model for Unsupervised Anomaly Detection, and its ablations.

Zong, Song, Min, Cheng, Lumezanu, Cho, Chen, ICLR 2018, https://openreview.net/forum?id=BJJLHbb0-. There is no
official code.

An autoencoder (the compression network) brings a row down to a very short code, to which two measures of its
reconstruction error are added. A second network (the estimation network) says how likely each of K Gaussians is
to have made this vector z, and so makes a mixture of a whole batch. Both learn together to rebuild the rows and
to make them likely; an unlikely row is an anomaly.

    z       = [z_c, |x - x'| / |x|, x.x' / (|x| |x'|)],  x' = g(z_c),  z_c = f(x)              (1)-(3)
    gamma   = softmax(MLN(z)),  phi_k = mean gamma_k,  mu_k, Sigma_k: means and covariances
              weighted by gamma_k                                                              (4), (5)
    E(z)    = -log sum_k phi_k N(z; mu_k, Sigma_k)                                                  (6)
    L       = mean |x - x'|^2 + lambda_1 mean E(z) + lambda_2 sum_k sum_j 1 / Sigma_kjj             (7)
    A(x)    = E(z) with phi, mu, Sigma of the whole training set

|x - x'|^2 is summed over the columns. Code that others have published averages it over them, takes the square root
of a determinant twice, scores by the mixture of the last batch, or cuts the loss from its graph, so that nothing
learns; none of that is followed here. The paper does not say how a singular covariance is met: here `jitter` (and
1e-12 of its trace) is added to its diagonal, and energies are computed in float64 by Cholesky factors. A row of zeros
has no direction and no relative error; its length counts as 1e-6.

The ablations of Table 2 are settings:

    dagmm_p      `pretrain_epochs`: layer by layer, as denoising autoencoders (Vincent et al., 2010), then as above
    dagmm_nvi    `mixture=variational`: in (7), E is its upper bound sum_k gamma_k (log gamma_k - log phi_k N_k(z))
    gmm_en       `w_reconstruction=0`
    pae          `mixture=none`: the pretrained autoencoder alone, scored by |x - x'|^2
    e2e_ae       the same without pretraining
    pae_gmm      `joint=false`: the pretrained autoencoder, then the estimation network alone on its z
    pae_gmm_em   `mixture=em`: a mixture fitted by expectation-maximisation to its z

On images (`network=conv`) f and g are the convolutional autoencoder of GeoTrans' paper, as in its table, and
|x - x'|^2 is averaged over the pixels, as in its code (izikgo/AnomalyDetectionTransformations), which scores by the
mixture of the last batch. E3Outlier's table has the same with other weights (demonzyj56/E3Outlier).

    dagmm_conv   GeoTrans' sizes, weights and Adam
    dagmm_cae    E3Outlier's

A pass leaves out the rows that fill no batch, other ones each time: with the paper's batches it is one update on
arrhythmia (128 of some 190 rows) and on thyroid (1024 of some 1,840), and the paper's epochs there are as many
updates. The paper gives neither the epochs of the pretraining nor the share of entries it sets to 0; ours are
settings. That of dagmm_nvi is its bound as we read it.

When to use it: For rows of numbers, from a few columns to a few hundred: networks are tiny and a score is one
pass, but the paper's schedules are long, 20,000 epochs on thyroid. Hardly for images: GeoTrans' paper has a
mean AUROC of .531 on CIFAR-10. Run `pae_gmm` and `pae_gmm_em` beside it, where the mixture comes after the
autoencoder: on thyroid the paper's F1 is .469 and .464, that of DAGMM .478, and what learning both together
gains is mostly on KDD Cup 1999, .732 and .725 against .937, and on its reversed copy.

Traps: KDD Cup 1999 does not show that training works: an F1 of .944 was reported of danieltan07/dagmm without
any. Nor does thyroid: over 20 seeds in `results/dagmm_thyroid` the F1 is .453 with a deviation of .192, the
paper's .478, and that of the untrained control .385, so look at both, at the AUROC, and at many seeds. The
threshold of F1 is the known share of anomalies among the test rows. The paper does not say how columns are
scaled (`data.scale`), and users of public copies found longer codes (`model.code`) worse. In `losses.csv`, an
`energy` that falls while `penalty` grows is a mixture that shrinks to a point, which only
`model.w_covariance` and the reconstruction hold up; `gmm_en` lacks the latter.
The paper's own check, an error |x - x'|^2 of .26 on KDD Cup 1999, is not met: the last `reconstruction` in
`losses.csv` of `results/dagmm_*`, averaged over the seeds, is 1.357 there, .166 on thyroid, 6.320 on arrhythmia
(dagmm_p .625, .159, 5.988; pae .040, .029, 4.243), where the columns' means would leave 3.24, .072, 5.37. On
rows scaled to [0, 1] the joint loss gives the reconstruction up: with one as good as that of pae, relative
error and cosine hardly vary, and the weighted `penalty` is 29, 11, 12 (pae_gmm), more than rebuilding can win.
"""

import math
from collections.abc import Iterator, Sequence
from typing import ClassVar, NamedTuple

import torch
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import SettingError, check_choice, check_range
from anomaly_bench.networks import pairs
from anomaly_bench.networks.mlp import check_sizes, length_of, mlp

MIXTURES = ("estimation", "variational", "em", "none")
LEAST_LENGTH = 1e-6
LEAST_WEIGHT = 1e-12


class Mixture(NamedTuple):
    """A Gaussian mixture, float64: shares `[K]`, means `[K, D]`, lower Cholesky factors `[K, D, D]`."""

    phi: Tensor
    mu: Tensor
    factor: Tensor

    def log_joint(self, z: Tensor) -> Tensor:
        """log phi_k N(z; mu_k, Sigma_k), `[N, K]`, of vectors `[N, D]`."""
        offset = (z.double() - self.mu[:, None]).transpose(1, 2)  # [K, D, N]
        white = torch.linalg.solve_triangular(self.factor, offset, upper=False)
        log_det = 2 * self.factor.diagonal(dim1=1, dim2=2).log().sum(1)  # [K]
        log_normal = -0.5 * (white.square().sum(1).T + log_det + z.shape[1] * math.log(2 * math.pi))
        return self.phi.clamp_min(LEAST_WEIGHT).log() + log_normal

    def energy(self, z: Tensor) -> Tensor:
        """Equation 6, `[N]`."""
        return -self.log_joint(z).logsumexp(1)


def mixture_of(z: Tensor, gamma: Tensor, jitter: float) -> tuple[Mixture, Tensor]:
    """The mixture (5) of vectors `[N, D]` with memberships `[N, K]`, and its variances `[K, D]`."""
    z, gamma = z.double(), gamma.double()
    weight = gamma / gamma.sum(0).clamp_min(LEAST_WEIGHT)
    mu = weight.T @ z
    offset = z - mu[:, None]  # [K, N, D]
    sigma = regular((weight.T[:, :, None] * offset).transpose(1, 2) @ offset, jitter)
    return Mixture(gamma.mean(0), mu, cholesky(sigma)), sigma.diagonal(dim1=1, dim2=2)


def regular(sigma: Tensor, jitter: float) -> Tensor:
    """Covariances `[K, D, D]` with `jitter` on the diagonal, and a little of their size, so that none is singular."""
    trace = sigma.diagonal(dim1=1, dim2=2).sum(1)
    added = jitter + 1e-12 * trace
    return sigma + added[:, None, None] * torch.eye(sigma.shape[1], dtype=sigma.dtype, device=sigma.device)


def cholesky(sigma: Tensor) -> Tensor:
    """Lower factors of regular covariances `[K, D, D]`, without a look at whether they are, which would wait."""
    return torch.linalg.cholesky_ex(sigma).L


class DAGMM(Detector):
    """DAGMM on rows `[N, D]`, or images `[N, C, H, W]` in [-1, 1].

    Args:
        shape: `(D,)`, or `(C, H, W)`, whose sides are multiples of 8, from 64 pixels on of 16.
        network: `dense` for rows, `conv` for images.
        hidden: layers of the encoder of `dense`, with tanh; the decoder has them in reverse.
        width: filters of the first convolution of `conv`, twice as many after each halving.
        code: length of z_c.
        estimation: layers of the estimation network, with tanh, each with `dropout` after it.
        k: Gaussians of the mixture.
        w_reconstruction, w_energy, w_covariance: weights of (7): 1, lambda_1 and lambda_2.
        mixture: `estimation`, `variational`, `em` or `none`; see above.
        joint: both networks learn together; else the autoencoder learns first and is then left alone.
        pretrain_epochs: of each layer of the autoencoder before all else; 0 for none.
        corruption: share of a layer's inputs that its pretraining sets to 0.
        jitter: added to each variance.
        lr, batch_size, epochs: of Adam, and of each stage that is not pretraining.
    """

    needs_float64: ClassVar[bool] = True

    phi: Tensor
    mu: Tensor
    factor: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        network: str = "dense",
        hidden: Sequence[int] = (60, 30, 10),
        width: int = 64,
        code: int = 1,
        estimation: Sequence[int] = (10,),
        k: int = 4,
        dropout: float = 0.5,
        w_reconstruction: float = 1.0,
        w_energy: float = 0.1,
        w_covariance: float = 0.005,
        mixture: str = "estimation",
        joint: bool = True,
        pretrain_epochs: int = 0,
        corruption: float = 0.25,
        jitter: float = 1e-6,
        lr: float = 1e-4,
        batch_size: int = 1024,
        epochs: int = 200,
    ) -> None:
        super().__init__()
        check_choice("mixture", mixture, MIXTURES)
        estimated = mixture in ("estimation", "variational")
        if joint and not estimated:
            raise SettingError(f"model.joint=true: model.mixture={mixture} has no network to learn with")
        check_range("dropout", dropout, at_least=0, below=1)
        check_range("corruption", corruption, at_least=0, below=1)
        check_range("jitter", jitter, above=0)
        pairs.check(network, shape)
        check_sizes(hidden=hidden, width=width, code=code, estimation=estimation, k=k)
        if network == "dense":
            d = length_of(shape)
            self.encode = mlp([d, *hidden, code], nn.Tanh)
            self.decode = mlp([code, *reversed(hidden), d], nn.Tanh)
        else:
            if pretrain_epochs:
                raise SettingError(
                    f"model.pretrain_epochs={pretrain_epochs}: layer by layer learns model.network=dense alone"
                )
            self.encode = pairs.encoder("conv", shape, code, width, (), bounded=False)
            self.decode = pairs.decoder("conv", shape, code, width, ())
        sizes = [code + 2, *estimation, k]
        self.estimate = (
            mlp(sizes, lambda: nn.Sequential(nn.Tanh(), nn.Dropout(dropout))) if estimated else None
        )
        self.register_buffer("phi", torch.full((k,), 1 / k, dtype=torch.float64))
        self.register_buffer("mu", torch.zeros(k, code + 2, dtype=torch.float64))
        self.register_buffer("factor", torch.eye(code + 2, dtype=torch.float64).repeat(k, 1, 1))
        self.w_reconstruction, self.w_energy, self.w_covariance = w_reconstruction, w_energy, w_covariance
        self.mixture, self.joint = mixture, joint
        self.pretrain_epochs, self.corruption, self.jitter = pretrain_epochs, corruption, jitter
        self.lr, self.batch_size, self.epochs = lr, batch_size, epochs

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Vectors z `[N, code + 2]` and reconstructions, as long or as large as the rows, both float32."""
        with torch.autocast(x.device.type, enabled=False):
            code = self.encode(x)
            rebuilt = self.decode(code)
            flat, flat_rebuilt = x.flatten(1), rebuilt.flatten(1)
            length = flat.norm(dim=1).clamp_min(LEAST_LENGTH)
            distance = (flat - flat_rebuilt).norm(dim=1) / length
            cosine = (flat * flat_rebuilt).sum(1) / (
                length * flat_rebuilt.norm(dim=1).clamp_min(LEAST_LENGTH)
            )
            return torch.cat([code, distance[:, None], cosine[:, None]], 1), rebuilt

    def stages(self, train: Rows) -> Iterator[Stage]:
        """Pretraining layer by layer, the autoencoder, the mixture: as many of them as the settings have."""
        if self.pretrain_epochs:
            for layer in range(len(self.encode)):
                yield self.layer_stage(layer)
        if not self.joint:
            yield self.autoencoder_stage()
        if self.estimate is not None:
            yield self.mixture_stage(self.estimate)
        if self.mixture != "none":
            fitted = self.fitted(train.map(lambda x: self(x)[0]))
            self.phi, self.mu, self.factor = fitted

    def layer_stage(self, layer: int) -> Stage:
        """A layer of the encoder and its mirror learn to rebuild the layer's inputs from corrupted ones."""
        below, up, down = self.encode[:layer], self.encode[layer], self.decode[-1 - layer]
        optimizer = adam(up, down, lr=self.lr)

        def step(batch: Batch) -> dict[str, Tensor]:
            with torch.no_grad():
                inputs = below(batch.x)
                kept = torch.rand_like(inputs) >= self.corruption
            loss = mse_loss(down(up(inputs * kept)), inputs, reduction="sum") / len(inputs)
            descend(optimizer, loss)
            return detached(reconstruction=loss)

        name = f"layer {layer + 1}"
        return Stage(name, self.pretrain_epochs, step, (optimizer,), self.batch_size, scorable=False)

    def autoencoder_stage(self) -> Stage:
        """The compression network learns alone, by the first term of (7)."""
        optimizer = adam(self.encode, self.decode, lr=self.lr)

        def step(batch: Batch) -> dict[str, Tensor]:
            loss = squared_error(batch.x, self(batch.x)[1]).mean()
            descend(optimizer, loss)
            return detached(reconstruction=loss)

        alone = self.mixture == "none"
        return Stage("autoencoder", self.epochs, step, (optimizer,), self.batch_size, scorable=alone)

    def mixture_stage(self, estimate: nn.Module) -> Stage:
        """Both networks learn together by (7), or the estimation network alone by its last two terms."""
        learning = [self.encode, self.decode, estimate] if self.joint else [estimate]
        optimizer = adam(*learning, lr=self.lr)

        def step(batch: Batch) -> dict[str, Tensor]:
            with torch.set_grad_enabled(self.joint):
                z, rebuilt = self(batch.x)
            gamma = memberships(estimate, z)
            mixture, variances = mixture_of(z, gamma, self.jitter)
            if self.mixture == "variational":
                bound = gamma * (gamma.clamp_min(LEAST_WEIGHT).log() - mixture.log_joint(z))
                energy = bound.sum(1).mean()
            else:
                energy = mixture.energy(z).mean()
            reconstruction = squared_error(batch.x, rebuilt).mean()
            penalty = (1 / variances).sum()
            loss = self.w_energy * energy + self.w_covariance * penalty
            descend(optimizer, loss + self.w_reconstruction * reconstruction if self.joint else loss)
            return detached(reconstruction=reconstruction, energy=energy, penalty=penalty)

        return Stage("mixture", self.epochs, step, (optimizer,), self.batch_size, scorable=False)

    def fitted(self, z: Tensor) -> Mixture:
        """The mixture of the vectors `[N, code + 2]` of all training rows."""
        if self.estimate is not None:
            return mixture_of(z, memberships(self.estimate, z), self.jitter)[0]
        seed = int(torch.randint(2**31, ()))
        em = GaussianMixture(min(len(self.phi), len(z)), reg_covar=self.jitter, n_init=3, random_state=seed)
        em.fit(z.double().cpu().numpy())
        phi, mu, sigma = (torch.from_numpy(part) for part in (em.weights_, em.means_, em.covariances_))
        missing = len(self.phi) - len(phi)
        chosen = torch.cat([torch.arange(len(phi)), torch.zeros(missing, dtype=torch.int64)])
        phi = torch.cat([phi, phi.new_zeros(missing)])
        factor = cholesky(regular(sigma, 0.0))  # scikit-learn has added the jitter
        return Mixture(*(part.to(z.device) for part in (phi, mu[chosen], factor[chosen])))

    def score(self, x: Tensor) -> Tensor:
        """Energy of each row, `[N]` float64; without a mixture its squared reconstruction error."""
        return self.explain(x).score

    def explain(self, x: Tensor) -> Explanation:
        """Score, reconstruction and z."""
        z, rebuilt = self(x)
        if self.mixture == "none":
            return Explanation(squared_error(x, rebuilt), None, rebuilt, z)
        return Explanation(Mixture(self.phi, self.mu, self.factor).energy(z), None, rebuilt, z)


def memberships(estimate: nn.Module, z: Tensor) -> Tensor:
    """Equation 4: gamma, `[N, K]` float64, of vectors `[N, D]`."""
    with torch.autocast(z.device.type, enabled=False):
        return estimate(z).double().softmax(1)


def squared_error(x: Tensor, rebuilt: Tensor) -> Tensor:
    """Summed over the columns of rows, averaged over the pixels of images, `[N]`."""
    squared = (x - rebuilt).square().flatten(1)
    return squared.sum(1) if x.dim() == 2 else squared.mean(1)
