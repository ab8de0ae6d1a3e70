"""Robust PCA: the rows as a matrix of low rank plus a sparse one, scored by the sparse part.

Candès, Li, Ma, Wright, Robust Principal Component Analysis?, Journal of the ACM 58(3), 2011,
https://doi.org/10.1145/1970392.1970395; solved by the inexact augmented Lagrangian of Lin, Chen, Ma,
https://arxiv.org/abs/1009.5055, algorithm 5.

Normal rows share few directions; what a row has outside them, in few entries, is its anomaly. If the rank is low
and the entries are few, the two parts are found exactly, however large the entries are.

    min |L|_* + lambda |S|_1   such that X = L + S,   lambda = 1 / sqrt(max(n, d)), X the rows less their mean
    L  <- U (s - 1/mu)+ V',   U s V' = X - S + Y/mu
    S  <- soft(X - L + Y/mu, lambda/mu),   soft(a, t) = sign(a) max(|a| - t, 0)
    Y  <- Y + mu (X - L - S),   mu <- 1.5 mu,   until |X - L - S|_F < 1e-7 |X|_F
    A(x_i) = |S_i|               for a row that was in X
    A(x)   = |x - x V V'|        for any other, V the directions of L

Norms of matrices without a name are entrywise. The method is fitted to the very rows it judges; for other rows the
residual outside the directions of L takes the place of S. A row is known again by its bits.

When to use it: On a table or on aligned images whose normal rows share few directions, with anomalies among
them that touch few entries; nothing is trained, there is no seed, and it has a residual map. Each iteration
decomposes the whole matrix, so that it is for some thousand rows or columns: 720 images of 32 x 32 took 12 to
14 seconds in `results/autoencoders_mnist`, where its mean AUROC of .658 is about that of a dense autoencoder
(.651) and below that of a convolutional one (.794). For rows that are anomalous as a whole, `rda` fits better.

Traps: A residual, the score of new rows, is never longer than the |S_i| that a fitted row with the same
residual has, so that a threshold from training scores (`evaluation.quantile`) is too high for them, if
anything. `model.lambda_` well above 1 leaves S empty and L with all directions of the rows: new rows then
have residuals near 0; well below 1, S takes all. Columns are centred, not scaled: the widest decide. The
codes dganguli/robust-pca and RDA's take the largest column sum for the entrywise norm, so that their settings
mean something else. The control is fitted to noise, and is not near .5 on every class: .217 to .626 in
`results/autoencoders_mnist`.
"""

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor

from anomaly_bench.detector import Detector, Explanation, Rows, Stage, map_of
from anomaly_bench.errors import check_range
from anomaly_bench.rows import fingerprints, of_known_rows


class RPCA(Detector):
    """Robust PCA of rows of any shape, flattened. Every iteration has a singular value decomposition of all rows.

    Args:
        shape: of one row.
        lambda_: weight of the sparse part, in units of 1 / sqrt(max(n, d)).
        tolerance: of |X - L - S| relative to |X|.
        iterations: at most.
    """

    needs_float64: ClassVar[bool] = True

    mean: Tensor  # [D]
    directions: Tensor  # [D, rank]
    known: Tensor  # [N], ascending fingerprints
    norms: Tensor  # [N], of S, in the order of `known`

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        lambda_: float = 1.0,
        tolerance: float = 1e-7,
        iterations: int = 1000,
    ) -> None:
        super().__init__()
        check_range("lambda_", lambda_, above=0)
        check_range("tolerance", tolerance, above=0)
        check_range("iterations", iterations, above=0)
        self.learned("mean", "directions", "known", "norms")
        self.lambda_, self.tolerance, self.iterations = lambda_, tolerance, iterations

    def stages(self, train: Rows) -> Iterator[Stage]:
        """None; the decomposition is computed here, in float64."""
        rows = train.map(lambda x: x.flatten(1))
        self.known, order = fingerprints(rows).sort()
        x = rows.double()
        self.mean = x.mean(0)
        _low, sparse, self.directions = pursue(
            x - self.mean, self.lambda_ / math.sqrt(max(x.shape)), self.tolerance, self.iterations
        )
        self.norms = sparse.norm(dim=1)[order]
        yield from ()

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`, float64; all 0 before anything was learned."""
        return self.explain(x).score

    def explain(self, x: Tensor) -> Explanation:
        """Score, and of the projection on the directions of L its squared residual map, itself and coordinates."""
        rows = x.flatten(1).double()
        if not self.mean.numel():
            return Explanation(rows.new_zeros(rows.shape[0]))
        coordinates = (rows - self.mean) @ self.directions
        rebuilt = self.mean + coordinates @ self.directions.t()
        residual = rows - rebuilt
        score = of_known_rows(x, self.known, self.norms, residual.norm(dim=1))
        return Explanation(score, map_of(residual.square(), x), rebuilt.view(x.shape), coordinates)


def pursue(x: Tensor, lambda_: float, tolerance: float, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    """L, S `[N, D]` and the right singular vectors of L `[D, rank]` by the inexact augmented Lagrangian."""
    spectral = torch.linalg.matrix_norm(x, 2).item()
    low, sparse, directions = torch.zeros_like(x), torch.zeros_like(x), x.new_zeros(x.shape[1], 0)
    if spectral == 0:
        return low, sparse, directions
    y = x / max(spectral, x.abs().max().item() / lambda_)
    mu = 1.25 / spectral
    most, bound = 1e7 * mu, tolerance * x.norm().item()
    for _ in range(iterations):
        u, s, v = torch.linalg.svd(x - sparse + y / mu, full_matrices=False)
        rank = int((s > 1 / mu).sum())
        directions = v[:rank].t()
        low = (u[:, :rank] * (s[:rank] - 1 / mu)) @ v[:rank]
        sparse = soft(x - low + y / mu, lambda_ / mu)
        gap = x - low - sparse
        y += mu * gap
        mu = min(1.5 * mu, most)
        if gap.norm().item() < bound:
            break
    return low, sparse, directions.contiguous()


def soft(a: Tensor, t: float) -> Tensor:
    """Soft threshold, the proximal operator of `t |.|_1`."""
    return a.sign() * (a.abs() - t).clamp_min(0)
