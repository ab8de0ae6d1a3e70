"""A detector whose stages a test dictates."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from anomaly_bench.detector import Batch, Detector, Rows, Stage, adam, descend, detached


@dataclass
class Plan:
    """One stage as a test wants it; `seen` collects the row numbers of each batch."""

    name: str = "only"
    epochs: int = 3
    batch_size: int = 4
    until: Callable[[dict[str, float]], bool] | None = None
    scorable: bool = True
    loss: Callable[[int], float] | None = None  # in place of the true one in the report, by step from 1
    seen: list[list[int]] = field(default_factory=list)


class Dictated(Detector):
    """Rebuilds rows of four numbers through batch norm and dropout."""

    def __init__(self, *plans: Plan) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.2), nn.Linear(8, 4))
        self.plans = plans

    def stages(self, train: Rows) -> Iterator[Stage]:
        for plan in self.plans:
            yield self.stage(plan)

    def stage(self, plan: Plan) -> Stage:
        optimizer = adam(self.net, lr=1e-2)

        def step(batch: Batch) -> dict[str, Tensor]:
            plan.seen.append(batch.index.tolist())
            loss = mse_loss(self.net(batch.x).float(), batch.x)
            descend(optimizer, loss)
            told = loss if plan.loss is None else torch.tensor(plan.loss(len(plan.seen)))
            return detached(error=told, half=told / 2)

        return Stage(
            plan.name, plan.epochs, step, (optimizer,), plan.batch_size, plan.until, scorable=plan.scorable
        )

    def score(self, x: Tensor) -> Tensor:
        return (x - self.net(x)).float().square().sum(1)


def dictated(*plans: Plan, seed: int = 0) -> Dictated:
    """With the first weights of `seed`."""
    torch.manual_seed(seed)
    return Dictated(*plans or (Plan(),))


def rows(n: int = 18) -> Rows:
    """Rows of four numbers; 18 make four batches of 4, and 2 rows left over."""
    return Rows(torch.randn(n, 4, generator=torch.Generator().manual_seed(1)))
