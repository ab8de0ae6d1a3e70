"""One-class SVM, on pixels or on the features of another detector.

Schölkopf, Platt, Shawe-Taylor, Smola, Williamson, Estimating the Support of a High-Dimensional Distribution,
Neural Computation 13(7), 2001, https://doi.org/10.1162/089976601750264965. Fitted by scikit-learn.

In the feature space of an RBF kernel, a hyperplane parts the training rows from the origin with the largest
margin, at most a share `nu` of them on the wrong side. How far on the wrong side a row lies is its anomaly
score.

    min_a 1/2 sum a_i a_j k(x_i, x_j),   0 <= a_i <= 1,   sum a_i = nu N,   k(x, y) = exp(-gamma |x - y|^2)
    A(x) = rho - sum a_i k(x_i, x)

These a_i are scikit-learn's, nu N times the paper's. The columns "OC-SVM" of GeoTrans and Deep SVDD choose
gamma and nu by the test labels; here gamma is 1 / (d var), which needs none. `evaluation.hindsight=true` tries
GeoTrans' 90 pairs as well and puts the best of them beside, as `auroc_hindsight`. DROC (Sohn and others, ICLR 2021)
takes ten times that gamma, of features of length 1: `gamma_factor` and `unit`. Deep SVDD reduces pixels to the
principal components that keep 95 % of the variance, our default, of images whose contrast is normalised first, which
ours is not; GeoTrans takes all pixels (`pca=null`).

What scikit-learn fits is copied into buffers and scored by torch on any device that has float64: sums of
thousands of kernel values then agree with scikit-learn's to rounding, whatever the batch.

When to use it: On some thousand rows of numbers, or on short features, when a boundary is wanted without
training: `model.nu` bounds the share of training rows outside, so that a guess of how many of them are
anomalous goes there. A fit grows with the square of the rows, a score with the support vectors, of which
there are at least nu N. On raw photographs it is weak: GeoTrans' table has a mean of .620 on CIFAR-10 for
pixels, .624 for codes (`ocsvm_ae`), .860 for itself; DROC reaches .890 with it on contrastive features
(`simclr_ocsvm`). It has no map.

Traps: Printed numbers mostly peek: the best of 90 fits by test AUROC in GeoTrans, by the AUROC on a tenth of
the test set in Deep SVDD, which is why .620 comes close to Deep SVDD's .648; what to hold against them is
`auroc_hindsight`, not `auroc`. What differs from normal rows only outside the kept components is not seen at
all: try `model.pca=null`. `model.gamma=scale` takes one variance of all columns, so that without `data.scale`
the widest column decides. Far from all support vectors every kernel value is 0 and the score rho, so that all
far anomalies tie, the sooner the larger gamma is, and where `model.standardise=true` stretches columns that hardly
differ among training rows. The control is fitted to noise, or has untrained features.
"""

from collections.abc import Callable, Iterator
from typing import ClassVar

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from torch import Tensor
from torch.nn.functional import normalize

from anomaly_bench.detector import Detector, Explanation, Rows, Stage
from anomaly_bench.errors import SettingError, check_range
from anomaly_bench.features import part, stages_of, vectors_of

GAMMAS = [2.0**power for power in range(-7, 3)]
NUS = [tenths / 10 for tenths in range(1, 10)]
"""What GeoTrans chooses from by the test labels."""


class OCSVM(Detector):
    """One-class SVM with an RBF kernel on rows of any shape, flattened.

    Args:
        shape: of one row.
        nu: upper bound of the share of training rows outside, in (0, 1).
        gamma: of the kernel; `scale` for 1 / (d var) of what the SVM is given.
        pca: principal components that keep this share of the variance, in (0, 1); None for no reduction.
        gamma_factor: `scale` times so much, where gamma is `scale`.
        unit: scale each row to length 1, before anything else.
        standardise: take from each column its mean and divide by its deviation, before components.
        max_rows: fit on a random choice of so many training rows, as time grows with their square.
        features: called as `features(shape=shape)`, gives the detector whose features take the rows' place;
            it learns first. None for the rows themselves.
    """

    needs_float64: ClassVar[bool] = True

    centre: Tensor  # [D], and the deviations, where standardised
    spread: Tensor
    mean: Tensor  # [D]
    components: Tensor  # [D, K]
    support: Tensor  # [S, K]
    weights: Tensor  # [S], the a_i
    rho: Tensor
    gamma: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        nu: float = 0.1,
        gamma: float | str = "scale",
        gamma_factor: float = 1.0,
        unit: bool = False,
        standardise: bool = False,
        pca: float | None = 0.95,
        max_rows: int = 10_000,
        features: Callable[..., Detector] | None = None,
    ) -> None:
        super().__init__()
        check_range("nu", nu, above=0, below=1)
        if gamma != "scale" and (isinstance(gamma, str) or gamma <= 0):
            raise SettingError(f"model.gamma={gamma}: must be a number above 0, or scale")
        check_range("gamma_factor", gamma_factor, above=0)
        if pca is not None and not 0 < pca < 1:
            raise SettingError(f"model.pca={pca}: must be between 0 and 1, or null")
        check_range("max_rows", max_rows, at_least=2)
        self.features = part("features", features, shape) if features else None
        self.learned("mean", "components", "support", "weights", "rho", "gamma")
        if standardise:
            self.learned("centre", "spread")
        self.nu, self.pca, self.max_rows = nu, pca, max_rows
        self.unit, self.standardise = unit, standardise
        self.wanted_gamma, self.gamma_factor = gamma, gamma_factor

    def stages(self, train: Rows) -> Iterator[Stage]:
        """The stages of `features`, if there are any; the SVM itself has none."""
        yield from stages_of(self.features, train)
        chosen = torch.randperm(len(train))[: self.max_rows].sort().values.to(train.device)
        x = train.subset(chosen).map(self.embed).double()
        self.fit(x.cpu().numpy())

    def fit(self, x: np.ndarray) -> None:
        """Fit scaler, PCA and SVM to float64 rows `[N, D]`, and copy what they learn into the buffers.

        Raises:
            SettingError: the rows are all alike, so that they have neither components nor a variance.
        """
        if (x == x[0]).all():
            raise SettingError(
                f"data: all training rows are alike ({len(x)} of them); nothing can be learned"
            )
        if self.standardise:
            scaler = StandardScaler().fit(x)
            self.centre, self.spread = (
                self.buffer(np.asarray(found)) for found in (scaler.mean_, scaler.scale_)
            )
            x = np.asarray(scaler.transform(x))
        if self.pca is not None:
            solver = "covariance_eigh" if len(x) > x.shape[1] else "full"
            pca = PCA(self.pca, svd_solver=solver).fit(x)
            self.mean = self.buffer(pca.mean_)
            self.components = self.buffer(pca.components_.T)  # pyright: ignore[reportOptionalMemberAccess]
            x = pca.transform(x)
        scale = self.gamma_factor / (x.shape[1] * x.var())
        gamma = scale if isinstance(self.wanted_gamma, str) else self.wanted_gamma
        svm = OneClassSVM(nu=self.nu, gamma=gamma).fit(x)  # pyright: ignore[reportArgumentType]
        self.support, self.weights = self.buffer(svm.support_vectors_), self.buffer(svm.dual_coef_[0])
        self.rho, self.gamma = self.buffer(svm.offset_[0]), self.buffer(gamma)

    def in_hindsight(self, train: Rows, test: Rows) -> Iterator[tuple[dict[str, float], Tensor]]:
        """GeoTrans' 90 fits; features and principal components stay as they are learned."""
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        some = train.subset(order[: self.max_rows].to(train.device))
        x, tests = (self.reduced(rows.map(self.embed)).cpu() for rows in (some, test))
        between, across = (torch.cdist(rows, x).square() for rows in (x, tests))
        for gamma in GAMMAS:
            kernel, others = (torch.exp(-gamma * squares).numpy() for squares in (between, across))
            for nu in NUS:
                svm = OneClassSVM(kernel="precomputed", nu=nu).fit(kernel)
                yield {"gamma": gamma, "nu": nu}, torch.from_numpy(-svm.decision_function(others))

    def buffer(self, values: np.ndarray | float) -> Tensor:
        """The values as float64 on the detector's device."""
        return torch.tensor(values, dtype=torch.float64, device=self.rho.device)

    def embed(self, x: Tensor) -> Tensor:
        """What stands for rows `[N, *shape]` before any reduction, `[N, D]`."""
        return self.scaled(vectors_of(self.features, x))

    def scaled(self, rows: Tensor) -> Tensor:
        """Rows `[N, D]` of length 1, where that is wanted."""
        return normalize(rows, dim=1) if self.unit else rows

    def reduced(self, rows: Tensor) -> Tensor:
        """What the SVM is given of such vectors, float64 `[N, K]`."""
        rows = rows.double()
        if self.standardise:
            rows = (rows - self.centre) / self.spread
        return rows if self.pca is None else (rows - self.mean) @ self.components

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`, float64: rho minus the weighted kernel values; all 0 before anything was learned."""
        return self.explain(x).score

    def explain(self, x: Tensor) -> Explanation:
        """Score, and what the SVM was given, `[N, K]`."""
        rows = self.embed(x).double()
        if not self.support.numel():
            return Explanation(rows.new_zeros(rows.shape[0]), features=rows)
        rows = self.reduced(rows)
        total = rows.new_zeros(rows.shape[0])
        for support, weights in zip(self.support.split(4096), self.weights.split(4096), strict=True):
            distances = torch.cdist(rows, support, compute_mode="use_mm_for_euclid_dist")
            total += torch.exp(-self.gamma * distances.square()) @ weights
        return Explanation(self.rho - total, features=rows)
