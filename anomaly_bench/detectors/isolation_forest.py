"""Isolation forest, on rows and pixels or on the features of another detector.

Liu, Ting, Zhou, Isolation Forest, ICDM 2008, https://doi.org/10.1109/ICDM.2008.17. Fitted by scikit-learn.

Each tree takes a small random sample of the training rows, and parts it by random thresholds of random columns
until every row is alone. Anomalous rows are few and different, so they are alone after few steps.

    A(x) = 2^(-h(x) / c(psi)),   h the mean depth of x over the trees,
    c(n) = 2 (ln(n - 1) + 0.5772...) - 2 (n - 1) / n, the mean depth in a tree of n rows

100 trees of 256 rows are the paper's. Its trees stop growing at depth log2(psi), and so do scikit-learn's; a leaf
that is left with n rows then adds c(n) to their depth.

When to use it: As a first number for rows of numbers, clean or with some anomalies among them: there are no
epochs, nothing to tune, and a tree costs the same whatever the number of rows, as it sees 256. Splits lie
between the smallest and the largest value of a column, so that units and `data.scale` do not matter, as they
do in `knn`, `ocsvm` and `mahalanobis`. On pixels it is a weak baseline: RDA's authors print a best F1 of .37
for it on fours among other digits, and .64 for RDA. It has no map; on learned features it is `cae_if` and
`ssd_if`, or takes `+features@model.features=backbone`.

Traps: Where one-hot columns are many, most splits hit columns that tell nothing. Splits never lie outside the
range of a tree's sample, so that a value far beyond it counts no more than one just beyond. Learned features
need not help: in `results/autoencoders_mnist` the forest on codes of a trained autoencoder (`cae_if`) has a
mean AUROC of .563, on those of an untrained one .681. What scikit-learn calls contamination only moves a
threshold; here that is `evaluation.quantile` of the training scores. Trees are random, so compare over
several `seed`.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar

from torch import Tensor

from anomaly_bench.detector import Detector, Explanation, Rows, Stage
from anomaly_bench.features import part, stages_of, vectors_of
from anomaly_bench.networks.forest import Forest


class IsolationForest(Detector):
    """Isolation forest on rows of any shape, flattened.

    Args:
        shape: of one row.
        trees: how many.
        max_samples: psi, the training rows of one tree; all of them where there are fewer.
        features: called as `features(shape=shape)`, gives the detector whose features take the rows' place;
            it learns first. None for the rows themselves.
    """

    needs_float64: ClassVar[bool] = True

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        trees: int = 100,
        max_samples: int = 256,
        features: Callable[..., Detector] | None = None,
    ) -> None:
        super().__init__()
        self.features = part("features", features, shape) if features else None
        self.forest = Forest(trees, max_samples)

    def stages(self, train: Rows) -> Iterator[Stage]:
        """The stages of `features`, if there are any; the forest itself has none."""
        yield from stages_of(self.features, train)
        self.forest.fit(train.map(self.embed))

    def embed(self, x: Tensor) -> Tensor:
        """What stands for rows `[N, *shape]`, `[N, D]`."""
        return vectors_of(self.features, x)

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]` in (0, 1]; all 1 before the forest is grown."""
        return self.forest(self.embed(x))

    def explain(self, x: Tensor) -> Explanation:
        """Score, and what the forest was given."""
        rows = self.embed(x)
        return Explanation(self.forest(rows), features=rows)
