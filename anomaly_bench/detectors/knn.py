"""Nearest neighbours, of rows and pixels, of the features of another detector, or of patches.

Ramaswamy, Rastogi, Shim, SIGMOD 2000, https://doi.org/10.1145/342009.335437; in features of a pretrained network as
in DN2 (Bergman, Cohen, Hoshen, 2020) and SPADE (Cohen, Hoshen, 2020), see `pretrained.py`.

Normal rows have training rows close by, anomalous ones have none.

    A(x) = sum over the k nearest training rows b of |f(x) - f(b)|^2                    DN2: k = 2
    A(x) = max over places p of A(f(x)_p), b any place of a training image              where features are maps

A training row is not its own neighbour, nor are its places those of any other of its places, so that its score is of
the kind that other rows get, and thresholds on training scores mean something. It is known by its values, and a row
with the very same values is taken for it. `max_patches` bounds the places that are kept. Candidates are found by
products of matrices, block by block; no distance between all pairs is ever held.

When to use it: Where normal rows are of many kinds (nine digits, several products), which one Gaussian would
blur, and vectors are good, such as the features under `pretrained` and `pretrained_patches`; of these,
patches give a map of where. Nothing is trained, but a score compares with all training rows, which are kept
with the model: both grow with them, and `mahalanobis` keeps one Gaussian instead. On raw pixels it compares
images place by place, so that they have to be aligned.

Traps: Anomalies among the training rows hide each other: k + 1 of them that are alike find one another, and
score as if normal; `model.k` has to be larger than such a group. The column with the widest range decides, so
leave `data.scale` on. `model.max_patches` bounds places of maps alone, plain rows are all kept; of 5,000
images it leaves two places each, too few to know a rare but normal detail. `data=folder` shrinks images to 64
pixels before a pretrained network enlarges them again: set `data.image_size=224`. The control is fitted to
noise, or has random weights under pretrained features.
"""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn.functional import interpolate, normalize

from anomaly_bench.detector import Detector, Explanation, Rows, Stage
from anomaly_bench.errors import SettingError, check_range
from anomaly_bench.features import part, stages_of
from anomaly_bench.networks.parts import in_parts
from anomaly_bench.rows import numbers_of

AT_ONCE = 1 << 24
"""Distances that are held at once."""


class KNN(Detector):
    """Sum of squared distances to the k nearest training rows, flattened, or to the k nearest places.

    Args:
        shape: of one row.
        k: how many.
        normalise: give all vectors the length 1 first.
        max_patches: of maps, keep a random choice of so many places, as many of each image.
        features: called as `features(shape=shape)`, gives the detector whose features take the rows' place;
            it learns first. None for the rows themselves.
    """

    centre: Tensor  # [D], of what is kept
    bank: Tensor  # [M, D], from there
    owner: Tensor  # int64 [M], the training row that each is of
    known: Tensor  # int64 [N], fingerprints of the training rows, ascending
    number: Tensor  # int64 [N], which rows these are

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        k: int = 2,
        normalise: bool = False,
        max_patches: int = 10_000,
        features: Callable[..., Detector] | None = None,
    ) -> None:
        super().__init__()
        check_range("k", k, at_least=1)
        check_range("max_patches", max_patches, at_least=1)
        self.features = part("features", features, shape) if features else None
        self.learned("centre", "bank", "owner", "known", "number")
        self.k, self.normalise, self.max_patches = k, normalise, max_patches

    def stages(self, train: Rows) -> Iterator[Stage]:
        """The stages of `features`, if there are any; then the rows are kept."""
        yield from stages_of(self.features, train)
        each = -(-self.max_patches // len(train))
        bank, owner = [], []
        for batch in train.in_order(512):
            vectors = places_of(self.embed(batch.x))
            drawn = torch.rand(vectors.shape[:2]).argsort(1)[:, :each].to(vectors.device)
            bank.append(vectors.take_along_dim(drawn[:, :, None], 1).flatten(0, 1))
            owner.append(batch.index.repeat_interleave(drawn.shape[1]))
        self.bank, self.owner = torch.cat(bank), torch.cat(owner)
        self.known, self.number = train.fingerprints()
        if vectors.shape[1] > 1 and len(self.bank) > self.max_patches:
            kept = torch.randperm(len(self.bank))[: self.max_patches].to(vectors.device)
            self.bank, self.owner = self.bank[kept], self.owner[kept]
        self.centre = self.bank.mean(0)
        self.bank = (
            self.bank - self.centre
        )  # products of long vectors would lose the digits of short distances
        others = len(self.bank) - int(self.owner.bincount().max())
        if others < self.k:
            raise SettingError(f"model.k={self.k}: a training row has {others} others to be compared with")

    def embed(self, x: Tensor) -> Tensor:
        """What stands for rows `[N, *shape]`, float32: `[N, D]`, or `[N, D, h, w]` where the features are maps."""
        found = (x.flatten(1) if self.features is None else self.features.represent(x)).float()
        return normalize(found) if self.normalise else found

    def distances(self, x: Tensor, found: Tensor) -> Tensor:
        """Sums of squared distances, `[N, places]`, of rows and what stands for them."""
        vectors = places_of(found)
        if not len(self.bank):
            return vectors.new_zeros(vectors.shape[:2])
        vectors = vectors - self.centre
        own = numbers_of(x, self.known, self.number).repeat_interleave(vectors.shape[1])
        size = AT_ONCE // len(self.bank)
        parts = zip(in_parts(vectors.flatten(0, 1), size), in_parts(own, size), strict=True)
        return torch.cat([self.nearest(part, row) for part, row in parts]).view(vectors.shape[:2])

    def nearest(self, vectors: Tensor, own: Tensor) -> Tensor:
        """Sum of the k smallest squared distances, `[n]`, of vectors `[n, D]` from all but those of rows `own`."""
        with torch.autocast(vectors.device.type, enabled=False):
            order = torch.addmm(self.bank.square().sum(1), vectors, self.bank.t(), alpha=-2)
        order.masked_fill_(self.owner == own[:, None], torch.inf)
        near = self.bank[order.topk(self.k, largest=False).indices]
        return (near - vectors[:, None]).square().sum((1, 2))  # more digits than the order has

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`; all 0 before anything was learned."""
        return self.distances(x, self.embed(x)).amax(1)

    def explain(self, x: Tensor) -> Explanation:
        """Score, features, and where these are maps the anomaly map."""
        found = self.embed(x)
        distances = self.distances(x, found)
        if found.dim() == 2:
            return Explanation(distances[:, 0], features=found)
        coarse = distances.view(x.shape[0], 1, *found.shape[2:])
        shown = interpolate(coarse, x.shape[2:], mode="bilinear", antialias=True)[:, 0]
        return Explanation(distances.amax(1), shown, features=found.mean((2, 3)))


def places_of(found: Tensor) -> Tensor:
    """Vectors `[N, places, D]` of `[N, D]`, which is one place, or of maps `[N, D, h, w]`."""
    return found[:, None] if found.dim() == 2 else found.flatten(2).transpose(1, 2)
