"""An isolation forest in tensors: fitted by scikit-learn, kept and scored by torch."""

import math

import numpy as np
import torch
from sklearn.ensemble import IsolationForest
from torch import Tensor, nn

from anomaly_bench.errors import check_range


class Forest(nn.Module):
    """Isolation forest: Liu, Ting, Zhou, Isolation Forest, ICDM 2008, https://doi.org/10.1109/ICDM.2008.17.

    Random splits isolate an anomalous row in few steps. With the mean depth h over the trees,

        s(x) = 2^(-h(x) / c(psi)),   c(n) = 2 (ln(n - 1) + 0.5772...) - 2 (n - 1) / n

    where a leaf of n training rows adds c(n) to its depth. Before `fit`, every row ends in the roots.

    Args:
        trees: how many.
        max_samples: psi, the training rows of one tree; all of them where there are fewer.
    """

    feature: Tensor  # int64 [trees, nodes], what a node looks at; 0 at leaves
    threshold: Tensor  # float32 [trees, nodes], at most of which a row goes left; infinite at leaves
    left: Tensor  # int64 [trees, nodes], a leaf's is itself
    right: Tensor  # the same
    length: Tensor  # float32 [trees, nodes], depth of a leaf plus c of its rows
    normal_length: Tensor  # c(psi)

    def __init__(self, trees: int = 100, max_samples: int = 256) -> None:
        super().__init__()
        check_range("trees", trees, at_least=1)
        check_range("max_samples", max_samples, at_least=2)
        self.trees, self.max_samples = trees, max_samples
        size = (trees, 2 * max_samples - 1)  # nodes of a tree with max_samples leaves
        for name in ("feature", "left", "right"):
            self.register_buffer(name, torch.zeros(size, dtype=torch.int64))
        self.register_buffer("threshold", torch.full(size, torch.inf))
        self.register_buffer("length", torch.zeros(size))
        self.register_buffer("normal_length", torch.tensor(1.0))

    def fit(self, x: Tensor) -> None:
        """Grow the trees on rows `[N, D]`, N at least 2, by a seed drawn from torch's random state."""
        seed = int(torch.randint(2**31, ()))
        psi = min(self.max_samples, len(x))
        forest = IsolationForest(n_estimators=self.trees, max_samples=psi, random_state=seed)  # pyright: ignore[reportArgumentType]
        self.take(forest.fit(x.float().cpu().numpy()))

    def take(self, forest: IsolationForest) -> None:
        """Copy a fitted forest of as many trees, grown on all features."""
        for row, tree in enumerate(estimator.tree_ for estimator in forest.estimators_):
            n, leaf = tree.node_count, tree.children_left < 0
            own = np.arange(n)
            # scikit-learn compares float32 values with float64 thresholds: rounded down, they decide the same.
            rounded = tree.threshold.astype(np.float32)
            rounded = np.where(rounded > tree.threshold, np.nextafter(rounded, np.float32(-np.inf)), rounded)
            for name, values in (
                ("feature", np.where(leaf, 0, tree.feature)),
                ("threshold", np.where(leaf, np.inf, rounded)),
                ("left", np.where(leaf, own, tree.children_left)),
                ("right", np.where(leaf, own, tree.children_right)),
                ("length", depths(tree) + mean_length(tree.n_node_samples)),
            ):
                kept = getattr(self, name)
                kept[row, :n] = torch.from_numpy(values).to(kept)
        self.normal_length.fill_(float(mean_length(np.array([forest.max_samples_]))[0]))

    def forward(self, x: Tensor) -> Tensor:
        """s(x), `[N]` in (0, 1], of rows `[N, D]`, which are walked down all trees at once."""
        x = x.float()
        node = torch.zeros(self.trees, x.shape[0], dtype=torch.int64, device=x.device)
        for _ in range(math.ceil(math.log2(self.max_samples))):  # as deep as trees grow
            value = x.t()[self.feature.gather(1, node), torch.arange(x.shape[0], device=x.device)]
            goes_left = value <= self.threshold.gather(1, node)
            node = torch.where(goes_left, self.left.gather(1, node), self.right.gather(1, node))
        depth = self.length.gather(1, node).double().mean(0)  # in float32 the place in a batch rounds
        return torch.exp2(-depth / self.normal_length).float()


def depths(tree: object) -> np.ndarray:
    """Steps from the root to each node, `[nodes]`; a node comes after its parent."""
    left, right = tree.children_left, tree.children_right  # pyright: ignore[reportAttributeAccessIssue]
    found = np.zeros(len(left))
    for node in np.flatnonzero(left >= 0):
        found[[left[node], right[node]]] = found[node] + 1
    return found


def mean_length(n: np.ndarray) -> np.ndarray:
    """c(n): the mean depth at which n rows are isolated, `[...]`; 0 for one, 1 for two."""
    more = np.maximum(n, 3)
    c = 2 * (np.log(more - 1) + np.euler_gamma) - 2 * (more - 1) / more
    return np.where(n > 2, c, np.where(n == 2, 1.0, 0.0))
