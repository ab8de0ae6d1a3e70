"""REPEN: Learning Representations of Ultrahigh-dimensional Data for Random Distance-based Outlier Detection.

Pang, Cao, Chen, Liu, KDD 2018, arXiv 1806.04808; code: GuansongPang/deep-outlier-detection (Keras).

A cheap detector by random distances calls some training rows outliers. A single layer then learns a short
representation in which these lie farther from inliers than inliers do from each other, and the same detector
scores rows in it.

    LeSiNN(x) = mean over 50 subsamples of 8 rows of the distance of x to the nearest of them
    outlier:    LeSiNN(x) > mean + sqrt(3) std (Cantelli: at most a quarter of them false); if none is, the 10 highest
    triplet:    an inlier a, drawn by (sum of the inliers' scores - its own); another inlier p; an outlier n, drawn
                by its score
    L         = mean max(0, margin - (|f(a) - f(n)|^2 - |f(a) - f(p)|^2)),   f(x) = ReLU(W x + b)
    A(x)      = LeSiNN(f(x))

The paper's loss has a set of inliers in place of p; the code has one, as here. The code keeps the weights of the
epoch with the lowest training loss, we those of the last. It scores the rows that it has learned from; the
subsamples of the score are kept here, so that any row can be scored. Passes are of whole batches, of no more triplets
than there are rows. Memory grows with the rows times what a batch holds, never with pairs of rows. The margin of 1000
is meant for inputs on [0, 1]. First weights are those of Keras: W uniform after Glorot, b 0.

When to use it: On rows of numbers with very many columns and unlabelled anomalies among them, when few
dimensions are wanted in the end, to look at or to search in: one layer of 20 units, 30 passes, and a score by
400 kept rows whatever the training set. `rdp` makes 46,320 updates of 30 pairs of layers, and is behind on 9
of 20 sets in OptIForest's runs of both (IJCAI 2023). With clean training rows there is nothing to take for
outliers but the oddest normal rows; then `knn` or `mahalanobis` are simpler.

Traps: The margin is absolute: on inputs in [0, 1] the loss never reaches 0 and the map only expands, and with
other units it means something else, so leave `data.scale=minmax`. A `triplet` in `losses.csv` that stays at
`model.margin` is a layer whose units are all dead: the embeddings are one point and the AUROC .5. Few rows
mean few updates: 193 rows are one a pass, 30 in all; ADBench found 30 passes too few on small sets and takes
1,000 (`model.epochs`). All hangs on the first scores: what LeSiNN misses in the raw columns is learned as
normal. The paper's deviation is of ten runs from one vector of first scores, so that the chance in these is
not in it, as it is over `seed` here.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor, nn

from anomaly_bench.detector import Adadelta, Batch, Detector, Explanation, Rows, Stage, descend, detached
from anomaly_bench.errors import SettingError, check_range
from anomaly_bench.networks.mlp import check_sizes, length_of

FALLBACK = 10
"""Rows that count as outliers where no score is high enough."""


class REPEN(Detector):
    """REPEN on rows `[N, D]`.

    Args:
        shape: `(D,)`.
        rep: length of the representation.
        ensemble, subsample: how many subsamples LeSiNN has, and of how many rows.
        margin: of the loss, in squared units of the representation.
        lr, rho: of Adadelta.
        batch_size, epochs: triplets of one update, and passes of as many triplets as there are rows.
    """

    needs_float64: ClassVar[bool] = True

    inliers: Tensor  # [N - M] row numbers
    outliers: Tensor  # [M]
    inlier_sums: Tensor  # their weights, summed up from the first
    outlier_sums: Tensor
    pool: Tensor  # [ensemble, subsample, rep]

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        rep: int = 20,
        ensemble: int = 50,
        subsample: int = 8,
        margin: float = 1000.0,
        lr: float = 1.0,
        rho: float = 0.95,
        batch_size: int = 256,
        epochs: int = 30,
    ) -> None:
        super().__init__()
        check_sizes(rep=rep, ensemble=ensemble, subsample=subsample)
        check_range("margin", margin, above=0)
        layer = nn.Linear(length_of(shape), rep)
        nn.init.xavier_uniform_(layer.weight)
        nn.init.zeros_(layer.bias)
        self.embed = nn.Sequential(layer, nn.ReLU())
        self.learned("inliers", "outliers", "inlier_sums", "outlier_sums", "pool")
        self.ensemble, self.subsample, self.margin = ensemble, subsample, margin
        self.lr, self.rho, self.batch_size, self.epochs = lr, rho, batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """LeSiNN on the rows, the representation, LeSiNN on it."""
        if len(train) < 3:
            raise SettingError(f"data: {len(train)} training rows; two inliers and an outlier are the least")
        raw = train.take(self.drawn(train).flatten()).unflatten(0, (self.ensemble, -1))
        self.take_sides(train.map(lambda x: nearest(x, raw, fast=True)).double())
        optimizer = Adadelta(self.parameters(), lr=self.lr, rho=self.rho, eps=1e-7)

        def step(batch: Batch) -> dict[str, Tensor]:
            a, p, n = (self.embed(train.take(index)).float() for index in self.triplets(len(batch.x)))
            gap = (a - n).square().sum(1) - (a - p).square().sum(1)
            loss = (self.margin - gap).clamp_min(0).mean()
            descend(optimizer, loss)
            return detached(triplet=loss)

        yield Stage("triplets", self.epochs, step, (optimizer,), self.batch_size, scorable=False)
        drawn = train.take(self.drawn(train).flatten())
        self.pool = self.embed(drawn).float().unflatten(0, (self.ensemble, -1))

    def drawn(self, train: Rows) -> Tensor:
        """Row numbers of the subsamples, `[ensemble, subsample]`, none twice in one of them."""
        size = min(self.subsample, len(train))
        rows = [distinct(len(train), size) for _ in range(self.ensemble)]
        return torch.stack(rows).to(train.device)

    def take_sides(self, score: Tensor) -> None:
        """Part the training rows by their first scores `[N]`, and sum up what they are drawn by."""
        bound = score.mean() + 3**0.5 * score.std(unbiased=False)
        fewest = score.topk(min(FALLBACK, len(score) - 2)).values[-1]
        outlying = torch.where((score > bound).any(), score > bound, score >= fewest)
        # Rows that are all alike are all the highest; the last ones then are the outliers.
        if (~outlying).sum() < 2:
            outlying = torch.arange(len(score), device=score.device) >= len(score) - min(
                FALLBACK, len(score) - 2
            )
        self.inliers, self.outliers = (~outlying).nonzero()[:, 0], outlying.nonzero()[:, 0]
        inlying = score[self.inliers]
        self.inlier_sums = (inlying.sum() - inlying).clamp_min(1e-12).cumsum(0)
        self.outlier_sums = score[self.outliers].clamp_min(1e-12).cumsum(0)

    def triplets(self, number: int) -> tuple[Tensor, Tensor, Tensor]:
        """Row numbers of anchors, other inliers and outliers, `[number]` each."""
        anchor = by_weight(self.inlier_sums, number)
        # Any inlier but the anchor: so many places further on, around the end.
        step = 1 + (torch.rand(number, device=anchor.device) * (len(self.inliers) - 1)).long()
        other = (anchor + step) % len(self.inliers)
        outlier = by_weight(self.outlier_sums, number)
        return self.inliers[anchor], self.inliers[other], self.outliers[outlier]

    def score(self, x: Tensor) -> Tensor:
        """LeSiNN in the representation, `[N]`."""
        return self.explain(x).score

    def explain(self, x: Tensor) -> Explanation:
        """Score and representation."""
        features = self.embed(x).float()
        return Explanation(nearest(features, self.pool), features=features)


def nearest(x: Tensor, pool: Tensor, fast: bool = False) -> Tensor:
    """Mean over subsamples `[E, S, D]` of the distance to their nearest row, `[N]` of rows `[N, D]`.

    `fast` multiplies matrices, which loses digits where distances are short.
    """
    mode = "use_mm_for_euclid_dist" if fast else "donot_use_mm_for_euclid_dist"
    distances = torch.cdist(x, pool.flatten(0, 1), compute_mode=mode)
    return distances.unflatten(1, pool.shape[:2]).amin(2).mean(1)


def distinct(n: int, size: int) -> Tensor:
    """`size` of `n` numbers, none twice."""
    if n <= 10_000:
        return torch.randperm(n)[:size]
    chosen = torch.randint(n, (size,))
    while len(chosen.unique()) < size:
        chosen = torch.randint(n, (size,))
    return chosen


def by_weight(sums: Tensor, number: int) -> Tensor:
    """Places drawn by weights `[M]`, given their running sums; a draw takes log M."""
    drawn = torch.rand(number, device=sums.device, dtype=sums.dtype) * sums[-1]
    return torch.searchsorted(sums, drawn, right=True).clamp_max(len(sums) - 1)
