"""Mahalanobis distance from one Gaussian, of rows and pixels or of the features of another detector.

Mahalanobis, 1936; in features of a pretrained network: Rippel, Mertens, Merhof, ICPR 2020,
https://arxiv.org/abs/2005.14140. The covariance is that of Ledoit, Wolf, Journal of Multivariate Analysis 88(2), 2004,
https://doi.org/10.1016/S0047-259X(03)00096-4, as scikit-learn has it.

    A(x) = (f(x) - mu)^T S^-1 (f(x) - mu),   S = (1 - d) C + d (tr C / D) I

With fewer rows than features the covariance C of the training rows has no inverse; d in (0, 1] is what they say
themselves of how far to shrink it. C is kept as its axes and variances, of which there are no more than rows: along
all other directions S has the same variance, d tr C / D.

When to use it: On rows or features that form one cloud, above all pooled features of a pretrained network for
one kind of object (`pretrained_mahalanobis`), and where columns go together, so that a value is odd only
beside another. There is nothing to choose; the fit is one singular value decomposition, a score takes the
same time whatever the number of training rows, and fewer rows than features are no obstacle. Where normal
rows are of several kinds, as under `protocol=leave_one_class_out`, one Gaussian covers what lies between them
too: take `knn`. It has no map.

Traps: Anomalies among the training rows enter mean and covariance with full weight, and widen S along just
the directions in which they lie; `rpca` and `rda` take them apart first. A column that never moves in
training (arrhythmia has 17) has only the variance d tr C / D, which is tiny where rows are many: one stray
value there outweighs all others, so drop such columns. Shrinking pulls all columns towards one variance, so
that their units count, the more the fewer rows there are: leave `data.scale` on. The control is fitted to
noise, or has random weights under pretrained features, and is not an untrained Gaussian.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar

import torch
from sklearn.covariance import ledoit_wolf_shrinkage
from torch import Tensor

from anomaly_bench.detector import Detector, Explanation, Rows, Stage
from anomaly_bench.features import part, stages_of, vectors_of


class Mahalanobis(Detector):
    """Mahalanobis distance of rows of any shape, flattened, in float64.

    Args:
        shape: of one row.
        features: called as `features(shape=shape)`, gives the detector whose features take the rows' place;
            it learns first. None for the rows themselves.
    """

    needs_float64: ClassVar[bool] = True

    mean: Tensor  # [D]
    axes: Tensor  # [D, R], of C
    variance: Tensor  # [R], of S along them
    rest: Tensor  # the variance of S along any other direction

    def __init__(self, shape: tuple[int, ...], *, features: Callable[..., Detector] | None = None) -> None:
        super().__init__()
        self.features = part("features", features, shape) if features else None
        self.learned("mean", "axes", "variance", "rest")

    def stages(self, train: Rows) -> Iterator[Stage]:
        """The stages of `features`, if there are any; the Gaussian itself has none."""
        yield from stages_of(self.features, train)
        x = train.map(self.embed).double()
        self.mean = x.mean(0)
        x = x - self.mean
        shrunk = float(ledoit_wolf_shrinkage(x.cpu().numpy(), assume_centered=True))
        _, lengths, axes = torch.linalg.svd(x, full_matrices=False)
        variance = lengths.square() / len(x)
        self.axes = axes.t().contiguous()
        self.rest = (shrunk * variance.sum() / x.shape[1]).clamp_min(1e-12)  # of rows that are all alike
        self.variance = (1 - shrunk) * variance + self.rest

    def embed(self, x: Tensor) -> Tensor:
        """What stands for rows `[N, *shape]`, `[N, D]`."""
        return vectors_of(self.features, x)

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`, float64; all 0 before anything was learned."""
        return self.explain(x).score

    def explain(self, x: Tensor) -> Explanation:
        """Score, and what the Gaussian is of."""
        rows = self.embed(x)
        if not len(self.mean):
            return Explanation(rows.new_zeros(len(rows)), features=rows)
        x = rows.double() - self.mean
        along = (x @ self.axes).square()
        beside = (x.square().sum(1) - along.sum(1)).clamp_min(0)
        return Explanation((along / self.variance).sum(1) + beside / self.rest, features=rows)
