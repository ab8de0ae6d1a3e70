"""Deep SVDD: Deep One-Class Classification.

Ruff, Vandermeulen, Goernitz, Deecke, Siddiqui, Binder, Mueller, Kloft, ICML 2018,
http://proceedings.mlr.press/v80/ruff18a.html; code: lukasruff/Deep-SVDD (the paper's, Theano) and
lukasruff/Deep-SVDD-PyTorch.

A network phi learns to map normal rows close to a fixed centre c, the mean of what it made of them after
pretraining as an autoencoder. How far from the centre a row ends is its score. The network has no biases and no
bounded last layer, with which it could map everything to the centre.

    one-class       L = mean |phi(x) - c|^2 + weight decay                                          (4)
    soft-boundary   L = R^2 + 1/nu mean max(0, |phi(x) - c|^2 - R^2) + weight decay                  (3)
    A(x) = |phi(x) - c|^2, less R^2 with a soft boundary

Images have their mean subtracted and are divided by their mean absolute value (global contrast normalisation), and
then scaled by the minimum and maximum of all pixels of the training images. Rows of numbers are taken as they
come; for them, the paper has no network, and ours are linear layers without biases.

We follow the PyTorch code: R is 0 for 10 epochs and then, after each step, the (1 - nu) quantile of the batch's
distances. The Theano code solves for R on all training rows every 5 epochs, and starts its first filters from a
dictionary of patches. First weights are torch's, but for the convolutions of CIFAR-10's autoencoder (three
`channels`), Xavier's in that code; its network for CIFAR-10 without pretraining has torch's throughout. Rows that do
not fill a batch wait for another epoch; that code trains on them too, on 34 batches of a digit 1 where we have 33.

When to use it: For small square images of one kind, where a number for each is enough: the network has two or
three convolutions, a score is one pass, and there is no map. On photographs `geotrans` is worth its 72 views:
its paper has a mean AUROC of .860 on CIFAR-10, beside .648 of Deep SVDD and .620 of a one-class SVM on
pixels, whose settings were chosen by the test labels. `deep_svdd_soft` brings a threshold of its own, and
lets a share `model.nu` of the training rows lie outside. For rows take it as an experiment, since the paper
has no such network.

Traps: Contrast normalisation removes the brightness and contrast of an image, so that anomalies that differ
in nothing else cannot be seen. Collapse to the centre shows as `svdd` near 0 in `losses.csv` while scores
hardly differ; a run warns where fewer than 10 % of them are distinct. Users of the PyTorch code found
CIFAR-10 worse without pretraining (`model.pretrain_epochs=0`) and hard to match with it, and another's copy
is up to 12 points below the paper there. `trainer.max_epochs` bounds each of four stages, of five with the soft
boundary: at 10, 40 or 50 epochs are trained.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from anomaly_bench.detector import Adam, Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import check_choice, check_range
from anomaly_bench.networks.lenet import SLOPE, LeNetDecoder, LeNetEncoder, xavier
from anomaly_bench.networks.mlp import check_sizes, length_of, mlp

LEAST = 0.1
"""Entries of the centre that are nearer to 0 are moved this far from it."""


class DeepSVDD(Detector):
    """Deep SVDD on square images `[N, C, S, S]` or rows `[N, D]`.

    Args:
        shape: of one row.
        objective: `one-class` or `soft-boundary`.
        nu: upper bound of the share of training rows outside, in (0, 1); for the soft boundary.
        channels: filters of the convolutions, for images.
        hidden: layers of the network for rows of numbers.
        rep: length of phi(x).
        pretrain_epochs, pretrain_milestone, pretrain_decay: of the autoencoder; its epochs, after how many of
            them the learning rate is a tenth, and its weight decay.
        epochs, milestone, weight_decay: the same of phi.
        warm_up: epochs with a soft boundary before its radius is set.
        lr, batch_size: of both Adams.
    """

    centre: Tensor
    radius: Tensor
    low: Tensor
    high: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        objective: str = "one-class",
        nu: float = 0.1,
        channels: Sequence[int] = (8, 4),
        hidden: Sequence[int] = (32, 16),
        rep: int = 32,
        pretrain_epochs: int = 150,
        pretrain_milestone: int = 50,
        pretrain_decay: float = 5e-4,
        epochs: int = 150,
        milestone: int = 50,
        weight_decay: float = 5e-7,
        warm_up: int = 10,
        lr: float = 1e-4,
        batch_size: int = 200,
    ) -> None:
        super().__init__()
        check_choice("objective", objective, ("one-class", "soft-boundary"))
        check_range("nu", nu, above=0, below=1)
        self.images = len(shape) == 3
        if self.images:
            self.embed, self.rebuild = (net(shape, channels, rep) for net in (LeNetEncoder, LeNetDecoder))
            if len(channels) > 2 and pretrain_epochs:
                self.apply(xavier)
        else:
            sizes = [length_of(shape), *hidden, rep]
            check_sizes(hidden=hidden, rep=rep)
            leaky = partial(nn.LeakyReLU, SLOPE)
            self.embed, self.rebuild = mlp(sizes, leaky, bias=False), mlp(sizes[::-1], leaky, bias=False)
        self.register_buffer("centre", torch.zeros(rep))
        self.register_buffer("radius", torch.zeros(()))
        self.register_buffer("low", torch.zeros(()))
        self.register_buffer("high", torch.ones(()))
        self.soft, self.nu = objective == "soft-boundary", nu
        self.pretrain_epochs, self.pretrain_milestone = pretrain_epochs, pretrain_milestone
        self.pretrain_decay, self.weight_decay = pretrain_decay, weight_decay
        self.epochs, self.milestone, self.warm_up = epochs, milestone, warm_up
        self.lr, self.batch_size = lr, batch_size

    def prepare(self, x: Tensor) -> Tensor:
        """What the networks are given of rows `[N, *shape]`: of images their contrast, about [0, 1]."""
        return (contrast(x) - self.low) / (self.high - self.low) if self.images else x

    def stages(self, train: Rows) -> Iterator[Stage]:
        """The autoencoder, then the network alone; each slower after a milestone."""
        if self.images:
            pixels = train.map(contrast)
            self.low = pixels.amin()
            self.high = torch.maximum(pixels.amax(), self.low + 1e-6)
        autoencoder = adam(self.embed, self.rebuild, lr=self.lr, weight_decay=self.pretrain_decay)

        def pretrain(batch: Batch) -> dict[str, Tensor]:
            x = self.prepare(batch.x)
            loss = (self.rebuild(self.embed(x)) - x).float().square().flatten(1).sum(1).mean()
            descend(autoencoder, loss)
            return detached(reconstruction=loss)

        parts = parted(self.pretrain_epochs, self.pretrain_milestone)
        yield from self.slowing("autoencoder", parts, autoencoder, pretrain)

        self.centre = away_from_zero(train.map(lambda x: self.embed(self.prepare(x))).mean(0))
        optimizer = adam(self.embed, lr=self.lr, weight_decay=self.weight_decay)

        def step(batch: Batch, set_radius: bool = False) -> dict[str, Tensor]:
            distance = self.distance(batch.x)
            loss = self.objective(distance)
            descend(optimizer, loss)
            if set_radius:
                self.radius.copy_(distance.detach().sqrt().quantile(1 - self.nu))
            return detached(svdd=loss)

        parts = parted(self.epochs, self.milestone)
        if not self.soft:
            yield from self.slowing("sphere", parts, optimizer, step)
            return
        warm_up = min(self.warm_up, parts[0])
        yield Stage("sphere, no radius yet", warm_up, step, (optimizer,), self.batch_size)
        parts = parts[0] - warm_up, parts[1]
        yield from self.slowing("sphere", parts, optimizer, lambda batch: step(batch, set_radius=True))

    def slowing(
        self, name: str, parts: tuple[int, int], optimizer: Adam, step: Callable[[Batch], dict[str, Tensor]]
    ) -> Iterator[Stage]:
        """A stage, and the same with a tenth of the learning rate."""
        scorable = name != "autoencoder"
        yield Stage(name, parts[0], step, (optimizer,), self.batch_size, scorable=scorable)
        for group in optimizer.param_groups:
            group["lr"] = self.lr / 10
        yield Stage(f"{name}, slower", parts[1], step, (optimizer,), self.batch_size, scorable=scorable)

    def distance(self, x: Tensor) -> Tensor:
        """|phi(x) - c|^2, `[N]`."""
        return (self.embed(self.prepare(x)) - self.centre).float().square().sum(1)

    def objective(self, distance: Tensor) -> Tensor:
        """The loss (4), or (3), without its weight decay, which is the optimiser's."""
        if not self.soft:
            return distance.mean()
        squared = self.radius.square()
        return squared + (distance - squared).clamp_min(0).mean() / self.nu

    def score(self, x: Tensor) -> Tensor:
        """Squared distance from the centre, `[N]`, less the squared radius with a soft boundary."""
        return self.explain(x).score

    def own_threshold(self) -> float | None:
        """With a soft boundary, 0: the boundary."""
        return 0.0 if self.soft else None

    def explain(self, x: Tensor) -> Explanation:
        """Score and phi(x)."""
        features = self.embed(self.prepare(x))
        score = (features - self.centre).float().square().sum(1) - self.radius.square()
        return Explanation(score, features=features)


def contrast(x: Tensor) -> Tensor:
    """Images less their mean, over their mean absolute value; images of one colour are 0."""
    offset = x - x.mean((1, 2, 3), keepdim=True)
    spread = offset.abs().mean((1, 2, 3), keepdim=True)
    return torch.where(spread > 1e-6, offset / spread.clamp_min(1e-6), 0)


def away_from_zero(centre: Tensor) -> Tensor:
    """A centre whose entries other than 0 are at least 0.1 from it."""
    return torch.where(centre.abs() < LEAST, LEAST * centre.sign(), centre)


def parted(epochs: int, milestone: int) -> tuple[int, int]:
    """Epochs before and after the milestone."""
    return min(epochs, milestone), max(0, epochs - milestone)
