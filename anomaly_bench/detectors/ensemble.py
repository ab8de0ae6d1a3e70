"""Several detectors, their ranks averaged.

Aggarwal, Sathe, Theoretical Foundations and Algorithms for Outlier Ensembles, SIGKDD Explorations 17(1), 2015,
https://doi.org/10.1145/2830544.2830549, combine scores of unlike scale by their ranks. The members of `ensemble`, one
shallow method on the features of several autoencoders, are ours: no paper has them.

Each detector errs in its own way, and an average errs less than most. Scores have other units and scales in each, so
each is replaced by its rank among scores of training rows, never of test rows: a row's score does not depend on others.

    A(x)   = mean over members m of r_m(a_m(x)),   a_m the member's score
    r_m(a) = share of the training scores below a, linear from one to the next: 0 at the least, 1 at the greatest
           = 1 + log(1 + (a - greatest) / (greatest - least))        above the greatest
           = - log(1 + (least - a) / (greatest - least))             below the least

Anomalous rows often score above all training rows, where a rank alone would tell none from another. The logarithm lets
them stay in order, and no member, however far it goes, outweighs the others by much.

When to use it: Where no labels say which detector fits the data: none are needed, and no one member decides.
It costs what all members cost, by default three convolutional autoencoders of 200 epochs each, and for each
row scored a search for neighbours in three sets of codes; there is no map. Put unlike members in, as
`+model@model.members.forest=isolation_forest`; for rows give each autoencoder
`model.members.NAME.features.network=dense`.

Traps: Members weigh the same, and one that is at chance pulls all others down: score each alone first. The
default three are the same convolutions of the same rows, and may err alike. Ranks are among scores of
training rows, so that a member that knows these by heart ranks new normal rows high as well.
`trainer.max_epochs` bounds each member's stages, which stand in `losses.csv` under its name. The untrained
control has neighbours in the codes of random networks, which is a detector already.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import ClassVar, cast

import torch
from torch import Tensor, nn

from anomaly_bench.detector import Detector, Explanation, Rows, Stage
from anomaly_bench.errors import SettingError, check_range
from anomaly_bench.features import part

TINY = 1e-30
"""Stands for no difference at all between scores."""


class Ensemble(Detector):
    """The mean rank over detectors that learn one after another, of the same rows.

    Args:
        shape: of one row.
        members: by name, each called as `member(shape=shape)`.
        max_rows: rank among the scores of a random choice of so many training rows.
    """

    needs_float64: ClassVar[bool] = True

    ladder: Tensor  # float64 [members, R], scores of training rows, ascending

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        members: Mapping[str, Callable[..., Detector]],
        max_rows: int = 10_000,
    ) -> None:
        super().__init__()
        if len(members) < 2:
            raise SettingError(f"model.members={list(members)}: an ensemble has at least 2")
        check_range("max_rows", max_rows, at_least=2)
        self.members = nn.ModuleDict(
            {name: part(f"members.{name}", member, shape) for name, member in members.items()}
        )
        self.learned("ladder")
        self.max_rows = max_rows

    def stages(self, train: Rows) -> Iterator[Stage]:
        """The stages of each member in turn; then the training rows are scored."""
        for name, member in self.members.items():
            for stage in cast(Detector, member).stages(train):
                yield replace(stage, name=f"{name}: {stage.name}", scorable=False)
        chosen = torch.randperm(len(train))[: self.max_rows].to(train.device)
        rows = train.subset(chosen)
        scores = torch.cat([self.scores(batch.x) for batch in rows.in_order(256)], 1)
        self.ladder = scores.sort(1).values

    def scores(self, x: Tensor) -> Tensor:
        """The members' scores of rows `[N, *shape]`, float64 `[members, N]`."""
        return torch.stack([cast(Detector, member).score(x).double() for member in self.members.values()])

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`, float64; all 0 before anything was learned."""
        scores = self.scores(x)
        return ranks(scores, self.ladder).mean(0) if self.ladder.numel() else scores.new_zeros(len(x))

    def explain(self, x: Tensor) -> Explanation:
        """Score, and the ranks that the members give, `[N, members]`."""
        if not self.ladder.numel():
            return Explanation(self.score(x))
        found = ranks(self.scores(x), self.ladder)
        return Explanation(found.mean(0), features=found.t())


def ranks(scores: Tensor, ladder: Tensor) -> Tensor:
    """r of scores `[members, N]` among each member's ascending `[members, R]`, as many."""
    steps = ladder.shape[1] - 1
    least, greatest = ladder[:, :1], ladder[:, -1:]
    below = torch.searchsorted(ladder, scores, right=True).sub(1).clamp(0, max(0, steps - 1))
    low, high = ladder.gather(1, below), ladder.gather(1, (below + 1).clamp_max(steps))
    inside = (below + ((scores - low) / (high - low).clamp_min(TINY)).clamp(0, 1)) / max(1, steps)
    spread = (greatest - least).clamp_min(TINY)
    above, under = ((scores - greatest) / spread).clamp_min(0), ((least - scores) / spread).clamp_min(0)
    return inside + above.log1p() - under.log1p()
