"""DSEBM: Deep Structured Energy Based Models for Anomaly Detection.

Zhai, Cheng, Lu, Zhang, ICML 2016, http://proceedings.mlr.press/v48/zhai16.html. There is no official code.

A network gives each row an energy, and score matching makes it low where rows are common: one step down the
energy's slope must take a noisy row back to what it was, as a denoising autoencoder's output does. Anomalous rows
have a high energy, or a steep slope.

    E(x) = 1/2 |x - b'|^2 - sum_j h_j(x),   h: the last layer
    x^   = x~ - grad E(x~),   x~ = x + sigma eps
    L    = mean |x - x^|^2
    A(x) = E(x) (DSEBM-e), or |grad E(x)|^2 (DSEBM-r)

x^ is written by automatic differentiation, with all its second derivatives, in place of a decoder with tied
weights. All layers are softplus, as the paper's. What else images have is of GeoTrans' code: the geometry of its
autoencoder, rate, epochs and batches; `version=geotrans` has its batch norm and ReLU too. The last, partial batch is
left out. ALAD's code adds the last layer of the decoder to its energy, and has a b' for each place of a
batch, which is not followed. GeoTrans has sigma = 0.5 for images on [-1, 1], ALAD 1 for rows.

When to use it: For rows and small images, as a density where `dae` has a reconstruction: the energy is one
pass, though training differentiates gradients and so costs more a step. Take the energy rather than its slope
(`dsebm_r`): in DAGMM's Table 2 they have an F1 of .460 and .151 on arrhythmia, and of .132 and .040 on
thyroid. On CIFAR-10 GeoTrans' paper gives it a mean AUROC of .609, between DAGMM (.531) and GeoTrans (.860).
The map is the squared step down the energy.

Traps: |x - b'|^2 rules the energy of images, so that unusually bright ones look anomalous, and an untrained
network, whose b' is 0, ranks them by |x| almost alone: compare with the control. `model.sigma` is in units of
the rows: 1 is as much as the whole range of columns of `data.scale=minmax`. In `losses.csv`, a `matching` of
sigma^2 times the number of entries is that of a network that gives its noisy rows back. Two versions of
DAGMM's table differ in its KDD Cup 1999 figures, for DSEBM-r an F1 of .733 and .199, so that neither is one
to reach.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached, map_of
from anomaly_bench.errors import SettingError, check_choice, check_range
from anomaly_bench.networks.cae import bottom, stages_for
from anomaly_bench.networks.mlp import check_sizes, length_of, mlp


class DSEBM(Detector):
    """DSEBM on images `[N, C, H, W]` in [-1, 1] or rows `[N, D]`.

    Args:
        shape: of one row; sides of images are multiples of 8, from 64 pixels on of 16.
        score_by: `energy` or `reconstruction`.
        version: `paper` or `geotrans`, which is for images.
        sigma: of the noise, in units of the rows.
        width: filters of the first convolution, twice as many after each halving; for images.
        code: units of the last layer; for images.
        hidden: layers, the last one h; for rows of numbers.
        lr, batch_size, epochs: of Adam.
    """

    scored_by: ClassVar[tuple[str, ...]] = ("score_by",)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        score_by: str = "energy",
        version: str = "paper",
        sigma: float = 0.5,
        width: int = 64,
        code: int = 256,
        hidden: Sequence[int] = (128, 512),
        lr: float = 1e-3,
        batch_size: int = 128,
        epochs: int = 200,
    ) -> None:
        super().__init__()
        check_choice("score_by", score_by, ("energy", "reconstruction"))
        check_choice("version", version, ("paper", "geotrans"))
        if version == "geotrans" and len(shape) != 3:
            raise SettingError(f"model.version=geotrans: it needs images, found rows of shape {shape}")
        check_range("sigma", sigma, above=0)
        check_sizes(width=width, code=code, hidden=hidden)
        if len(shape) == 3:
            normed, activation = version == "geotrans", nn.ReLU if version == "geotrans" else nn.Softplus
            features = convolutions(shape, width, activation, normed)
            self.h = nn.Sequential(*features, nn.Linear(math.prod(bottom(shape, width)), code), activation())
        else:
            self.h = nn.Sequential(mlp([length_of(shape), *hidden], nn.Softplus), nn.Softplus())
        self.b = nn.Parameter(torch.zeros(shape))
        self.score_by, self.sigma = score_by, sigma
        self.lr, self.batch_size, self.epochs = lr, batch_size, epochs

    def energy(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """E `[N]` and h `[N, code]` of rows `[N, *shape]`, in float32."""
        with torch.autocast(x.device.type, enabled=False):
            h = self.h(x)
            return 0.5 * (x - self.b).square().flatten(1).sum(1) - h.sum(1), h

    def rebuilt(self, x: Tensor, create_graph: bool = False) -> Tensor:
        """x^: one step down the energy from rows `[N, *shape]`."""
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.energy(x)[0].sum(), x, create_graph=create_graph)
            return x - slope

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage of score matching."""
        optimizer = adam(self, lr=self.lr)

        def step(batch: Batch) -> dict[str, Tensor]:
            noisy = batch.x + self.sigma * torch.randn_like(batch.x)
            offset = batch.x - self.rebuilt(noisy, create_graph=True)
            loss = offset.square().flatten(1).sum(1).mean()
            descend(optimizer, loss)
            return detached(matching=loss)

        yield Stage("energy", self.epochs, step, (optimizer,), self.batch_size)

    def score(self, x: Tensor) -> Tensor:
        """The energy, or the squared length of its slope, `[N]`."""
        if self.score_by == "energy":
            return self.energy(x)[0]
        return (x - self.rebuilt(x)).detach().square().flatten(1).sum(1)

    def explain(self, x: Tensor) -> Explanation:
        """Score, x^, of images the squared step down the energy, and h."""
        rebuilt = self.rebuilt(x).detach()
        residual = (x - rebuilt).square()
        energy, h = self.energy(x)
        score = energy if self.score_by == "energy" else residual.flatten(1).sum(1)
        return Explanation(score, map_of(residual, x), rebuilt, h)


def convolutions(
    shape: tuple[int, ...], width: int, activation: Callable[[], nn.Module], normed: bool
) -> list[nn.Module]:
    """Stride-2 convolutions with an activation, `normed` by batch, flattened at the end."""
    layers: list[nn.Module] = []
    channels = shape[0]
    for stage in range(stages_for(shape)):
        filters = width << stage
        layers.append(nn.Conv2d(channels, filters, 3, 2, 1, bias=not normed))
        layers += [nn.BatchNorm2d(filters), activation()] if normed else [activation()]
        channels = filters
    return [*layers, nn.Flatten()]
