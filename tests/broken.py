"""Small healthy detectors of rows, one of each kind, and copies of them that are each broken in one way."""

import copy
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import batch_norm, mse_loss

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import SettingError


def length_of(shape: tuple[int, ...]) -> int:
    """The length of rows; anything else is refused."""
    if len(shape) != 1:
        raise SettingError(f"model: it takes rows of numbers, found rows of shape {shape}")
    return shape[0]


# ------------------------------------------------------------------------------ healthy


class Rebuilding(Detector):
    """By gradients: an autoencoder, scored by its squared error."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        d = length_of(shape)
        self.encode = nn.Sequential(nn.Linear(d, 16), nn.BatchNorm1d(16), nn.Tanh(), nn.Linear(16, 2))
        self.decode = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, d))

    def rebuilt(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))

    def stage(self, name: str = "rebuilding") -> Stage:
        optimizer = adam(self.encode, self.decode, lr=5e-3)

        def step(batch: Batch) -> dict[str, Tensor]:
            loss = mse_loss(self.rebuilt(batch.x), batch.x)
            descend(optimizer, loss)
            return detached(error=loss)

        return Stage(name, 20, step, (optimizer,), batch_size=16)

    def stages(self, train: Rows) -> Iterator[Stage]:
        yield self.stage()

    def score(self, x: Tensor) -> Tensor:
        return (x - self.rebuilt(x)).square().sum(1)

    def explain(self, x: Tensor) -> Explanation:
        return Explanation(self.score(x), reconstruction=self.rebuilt(x), features=self.encode(x))


class Following(Rebuilding):
    """In stages, the last with noise: after an autoencoder, a follower learns the codes that it had before."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.teacher = copy.deepcopy(self.encode)
        self.follow = nn.Linear(length_of(shape), 2)

    def stages(self, train: Rows) -> Iterator[Stage]:
        yield self.stage()
        self.teacher.load_state_dict(self.encode.state_dict())
        yield self.following(self.teacher)

    def following(self, teacher: nn.Module) -> Stage:
        optimizer = adam(self.follow, self.encode, lr=5e-3)

        def step(batch: Batch) -> dict[str, Tensor]:
            x = batch.x + 0.1 * self.noise(batch.x)
            loss = mse_loss(self.follow(x), teacher.eval()(batch.x).detach()) + mse_loss(
                self.rebuilt(x), batch.x
            )
            descend(optimizer, loss)
            return detached(error=loss)

        return Stage("following", 20, step, (optimizer,), batch_size=16)

    def noise(self, x: Tensor) -> Tensor:
        return torch.randn_like(x)


class Centred(Detector):
    """Without gradients: the distance from the mean, in units of the deviation."""

    centre: Tensor
    deviation: Tensor

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        length_of(shape)
        self.learned("centre", "deviation")

    def stages(self, train: Rows) -> Iterator[Stage]:
        x = train.map(nn.Identity())
        self.centre, self.deviation = x.mean(0), x.std(0)
        yield from ()

    def score(self, x: Tensor) -> Tensor:
        return ((x - self.centre) / self.deviation).square().sum(1)


# ------------------------------------------------------------------------------ broken: scores


class NeverInEvaluationMode(Rebuilding):
    """Normalises by the batch that it scores."""

    def score(self, x: Tensor) -> Tensor:
        return batch_norm(super().score(x)[:, None], None, None, training=True)[:, 0]


class Drawing(Rebuilding):
    """Scores with a draw from the shared random state."""

    def rebuilt(self, x: Tensor) -> Tensor:
        return super().rebuilt(x) + (0 if self.training else 0.1 * torch.randn_like(x))


class Collapsed(Rebuilding):
    """Gives every row the same score."""

    def score(self, x: Tensor) -> Tensor:
        return 0 * super().score(x) + 1


class Coarse(Rebuilding):
    """Gives rows one of two scores."""

    def score(self, x: Tensor) -> Tensor:
        return (super().score(x) > 1.5).float()


class Flipped(Rebuilding):
    """Scores normal rows higher."""

    def score(self, x: Tensor) -> Tensor:
        return -super().score(x)


class Contradicting(Rebuilding):
    """Explains another score than it gives."""

    def explain(self, x: Tensor) -> Explanation:
        return super().explain(x)._replace(score=self.score(x).sqrt())


class ReadingBetween(Rebuilding):
    """Shows what is between a convolution and its activation, which are one when it scores."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        widen, narrow = nn.Conv2d(length_of(shape), 16, 1), nn.Conv2d(16, 2, 1)
        self.encode = nn.Sequential(
            nn.Unflatten(1, (-1, 1, 1)), widen, nn.LeakyReLU(0.2), narrow, nn.Flatten()
        )

    def explain(self, x: Tensor) -> Explanation:
        return super().explain(x)._replace(features=self.encode[:2](x).flatten(1))


class Overwriting(Rebuilding):
    """Clips the rows that it is given in place."""

    def score(self, x: Tensor) -> Tensor:
        return super().score(x.clamp_(-1, 1))


class InFloat64(Rebuilding):
    """Sums its errors in float64 and does not say so."""

    def score(self, x: Tensor) -> Tensor:
        return (x - self.rebuilt(x)).square().double().sum(1).float()


class LeavingGradients(Rebuilding):
    """Looks for the steepest direction, and leaves gradients on the weights."""

    def score(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            score = super().score(x)
            score.sum().backward()
        return score.detach()


# ------------------------------------------------------------------------------ broken: learning


class CutOff(Rebuilding):
    """No gradient reaches the encoder."""

    def stage(self, name: str = "rebuilding") -> Stage:
        optimizer = adam(self.decode, lr=5e-3)

        def step(batch: Batch) -> dict[str, Tensor]:
            loss = mse_loss(self.decode(self.encode(batch.x).detach()), batch.x)
            descend(optimizer, loss)
            return detached(error=loss)

        return Stage(name, 20, step, (optimizer,), batch_size=16)


class Counting(Rebuilding):
    """Counts the rows that it has scored."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.register_buffer("seen", torch.tensor(0))

    def score(self, x: Tensor) -> Tensor:
        self.seen += len(x)
        return super().score(x)


class OwnRandomState(Following):
    """Draws from a random state of its own, in training and in scoring, that nobody keeps."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        self.generator = torch.Generator().manual_seed(0)

    def noise(self, x: Tensor) -> Tensor:
        return torch.randn(x.shape, generator=self.generator)

    def score(self, x: Tensor) -> Tensor:
        return super().score(x) + 1e-9 * self.noise(x).mean()


class CountingInAList(Rebuilding):
    """Learns in every second step only, by a count that a recorded step does not see."""

    def stage(self, name: str = "rebuilding") -> Stage:
        stage, seen = super().stage(name), []

        def step(batch: Batch) -> dict[str, Tensor]:
            seen.append(len(batch.x))
            if len(seen) % 2:
                return stage.step(batch)
            return detached(error=mse_loss(self.rebuilt(batch.x), batch.x))

        return replace(stage, step=step)


class LocalAcrossAYield(Following):
    """Follows a network that only a local variable holds."""

    def stages(self, train: Rows) -> Iterator[Stage]:
        first = copy.deepcopy(self.encode)
        yield self.stage()
        self.teacher.load_state_dict(self.encode.state_dict())
        yield self.following(first)


class AsManyStagesAsItTakes(Rebuilding):
    """Yields stages until the error is small."""

    enough = 1.5

    def stages(self, train: Rows) -> Iterator[Stage]:
        for number in range(9):
            if train.map(self.score).mean() < self.enough:
                return
            yield self.stage(f"round {number}")


class KeptOutside(Centred):
    """Keeps its centre where no checkpoint looks."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        del self.centre
        self.centre = torch.zeros(shape)


class KeptNowhere(Centred):
    """Has its centre only once it has learned."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        del self.centre


# ------------------------------------------------------------------------------ broken: shapes


class Endless(Rebuilding):
    """Halves until it meets 1, which odd lengths never do."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        side = length_of(shape)
        while side > 1:
            if side % 2 == 0:
                side //= 2


class Crashing(Rebuilding):
    """Refuses odd lengths with an error that is not for users."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__(shape)
        if shape[0] % 2:
            raise RuntimeError("sizes do not match")
