"""RDP: Unsupervised Representation Learning by Predicting Random Distances.

Wang, Pang, Shen, Ma, IJCAI 2020, arXiv 1912.12186; code: billhhh/RDP.

A random, frozen layer eta projects rows and so says how alike any two of them are. A layer phi learns to predict
both, projections and likeness; rows for which it predicts badly are anomalous. A tree trains a pair of layers on
a sample, drops the rows with the highest scores, and trains a new pair on the rest, level by level; the last pairs
of many trees score together.

    L    = mean |phi(x) - eta(x)|^2 / M + mean (<eta^(x), eta^(x')> - <phi^(x), phi^(x')>)^2
    A(x) = mean over trees and the M outputs of
           (phi(x) - eta(x))^2 + (eta^(x) eta^(x') - phi^(x) phi^(x'))^2,   ^: over the L1 norm

The paper's likeness is the plain inner product; as in the code, it is that of vectors over their L1 norms, in L as
a sum and in A entry by entry. The code pairs each row with another of a shuffled data set when it scores, so that a
row has another score each time; here each tree keeps one training row x' to score by. Of the code's modes we follow
`last_layer`, its author's choice. An update draws no more rows than there are, the code's a whole batch. All trees
learn side by side, each with its own rows and its own clipped gradient. Memory: trees x (batch_size + 4 M) x D numbers.

When to use it: On rows of numbers, also some hundred columns of them, unlabelled and with anomalies inside;
published numbers are of such rows, learned and scored alike. It takes `model.levels` times `model.steps`
updates, 46,320 by default, of single layers, all trees at once; a score is one pass without neighbours to be
kept. Against `repen` it is a draw: in OptIForest's runs of both (IJCAI 2023) it is better on 11 of 20 sets,
by much on Donors (.962 to .832), and far worse on others (KDD Cup 99: .410 to .959), so run both.

Traps: Seven drops of 5 % leave a tree 70 % of its rows, whether or not there were anomalies among them: where
training rows are clean (`protocol=tabular_half`) that takes away rare normal rows, and `model.levels=1` keeps
them at an eighth of the cost. Inputs have to be on [0, 1], which `data.scale=minmax` gives; `model.lr` and
`model.clip` belong together. The gap of two random layers grows with the length of a row, so that the
untrained control already ranks long rows high: a number counts by what it has above that. `loss` in
`losses.csv` is a mean over trees and starts anew at each level. DeepOD's RDP starts its predictor as a copy
of the target, and learns nothing: do not compare with it.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, leaky_relu, normalize

from anomaly_bench.detector import SGD, Batch, Detector, Explanation, Rows, Stage, detached
from anomaly_bench.errors import check_range
from anomaly_bench.networks.mlp import check_sizes, length_of

SLOPE_ETA, SLOPE_PHI = 0.25, 0.2


class RDP(Detector):
    """RDP on rows `[N, D]`.

    Args:
        shape: `(D,)`.
        out: M, outputs of eta and phi.
        trees, levels: of the forest; `levels=1` is random distances without filtering (RND).
        subsample: rows that a tree draws, with replacement, however few there are.
        filter_ratio: share of a tree's rows dropped between two levels.
        dropout: on the outputs of phi, in training.
        lr, momentum, clip: of the stochastic gradient descent, and the largest norm of a tree's gradient.
        batch_size: rows that a tree draws for one update, with replacement.
        steps: updates of each level, rounded to whole epochs.
    """

    eta: Tensor  # [trees, D, M]
    eta_bias: Tensor  # [trees, 1, M]
    members: Tensor  # [trees, R], row numbers
    partner_eta: Tensor  # [trees, 1, M], of the rows x'
    partner_phi: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        out: int = 50,
        trees: int = 30,
        levels: int = 8,
        subsample: int = 10_000,
        filter_ratio: float = 0.05,
        dropout: float = 0.1,
        lr: float = 0.1,
        momentum: float = 0.9,
        clip: float = 0.1,
        batch_size: int = 192,
        steps: int = 5790,
    ) -> None:
        super().__init__()
        check_sizes(out=out, trees=trees, levels=levels, subsample=subsample, steps=steps)
        check_range("filter_ratio", filter_ratio, at_least=0, below=1)
        check_range("dropout", dropout, at_least=0, below=1)
        d = length_of(shape)
        self.phi = nn.Parameter(torch.empty(trees, d, out))
        self.phi_bias = nn.Parameter(torch.empty(trees, 1, out))
        self.register_buffer("eta", torch.empty(trees, d, out))
        self.register_buffer("eta_bias", torch.empty(trees, 1, out))
        self.register_buffer("partner_eta", torch.zeros(trees, 1, out))
        self.register_buffer("partner_phi", torch.zeros(trees, 1, out))
        self.learned("members")
        self.trees, self.levels, self.subsample = trees, levels, subsample
        self.filter_ratio, self.dropout = filter_ratio, dropout
        self.lr, self.momentum, self.clip = lr, momentum, clip
        self.batch_size, self.steps = batch_size, steps
        self.renew()

    @torch.no_grad()
    def renew(self) -> None:
        """New first weights of all pairs: Kaiming-normal, with biases of 0, as in the code."""
        for weight, bias in ((self.eta, self.eta_bias), (self.phi, self.phi_bias)):
            weight.normal_(0, (2 / weight.shape[1]) ** 0.5)
            bias.zero_()

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """eta and phi, `[trees, B, M]` each, of rows `[B, D]`, or of rows `[trees, B, D]` of each tree's own."""
        eta = leaky_relu(x @ self.eta + self.eta_bias, SLOPE_ETA)
        phi = leaky_relu(x @ self.phi + self.phi_bias, SLOPE_PHI)
        return eta.float(), dropout(phi.float(), self.dropout, self.training)

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage a level, in which all trees learn; rows are dropped in between."""
        self.members = torch.randint(len(train), (self.trees, self.subsample)).to(train.device)
        epochs = max(1, round(self.steps / train.steps(self.batch_size)))
        for level in range(self.levels):
            if level:
                self.drop_highest(train)
                self.renew()
            yield self.level_stage(train, level, epochs)
        partners = self.draw(train, 1)
        self.partner_eta, self.partner_phi = self.project(partners)

    def level_stage(self, train: Rows, level: int, epochs: int) -> Stage:
        """Every step draws the rows of each tree anew."""
        parameters = [self.phi, self.phi_bias]
        optimizer = SGD(parameters, lr=self.lr, momentum=self.momentum)

        def step(batch: Batch) -> dict[str, Tensor]:
            eta, phi = self.project(self.draw(train, len(batch.x)))
            loss = distances(eta, phi)
            gradients = torch.autograd.grad(loss.sum(), parameters)
            norm = sum(gradient.square().sum((1, 2), keepdim=True) for gradient in gradients) ** 0.5
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient * (self.clip / (norm + 1e-6)).clamp_max(1)
            optimizer.step()
            return detached(loss=loss.mean())

        scorable = False  # the partners of the score are drawn at the end
        return Stage(f"level {level + 1}", epochs, step, (optimizer,), self.batch_size, scorable=scorable)

    def draw(self, train: Rows, number: int) -> Tensor:
        """So many of each tree's rows, with replacement, `[trees, number, D]`."""
        places = torch.randint(self.members.shape[1], (self.trees, number), device=train.device)
        return train.take(self.members.gather(1, places).flatten()).unflatten(0, (self.trees, number))

    def drop_highest(self, train: Rows) -> None:
        """Leave each tree its rows with the lowest scores, paired with others of its rows."""
        partners = self.project(self.draw(train, 1))
        scores = torch.stack(
            [
                torch.cat([self.errors(rows, partners, tree) for rows in self.own_rows(train, tree)])
                for tree in range(self.trees)
            ]
        )
        left = max(1, scores.shape[1] - int(self.filter_ratio * scores.shape[1]))
        lowest = scores.topk(left, largest=False).indices.sort(1).values
        self.members = self.members.gather(1, lowest)

    def own_rows(self, train: Rows, tree: int) -> Iterator[Tensor]:
        """A tree's rows, some at a time."""
        return (train.take(index) for index in self.members[tree].split(512))

    def errors(self, x: Tensor, partners: tuple[Tensor, Tensor], tree: int) -> Tensor:
        """A(x) of rows `[B, D]` by one tree, `[B]`."""
        eta = leaky_relu(x @ self.eta[tree] + self.eta_bias[tree], SLOPE_ETA).float()
        phi = leaky_relu(x @ self.phi[tree] + self.phi_bias[tree], SLOPE_PHI).float()
        return errors(eta, phi, partners[0][tree], partners[1][tree])

    def score(self, x: Tensor) -> Tensor:
        """Mean of the trees' prediction errors, `[N]`."""
        return self.explain(x).score

    def explain(self, x: Tensor) -> Explanation:
        """Score, and the first tree's phi(x)."""
        eta, phi = self.project(x)
        return Explanation(errors(eta, phi, self.partner_eta, self.partner_phi).mean(0), features=phi[0])


def distances(eta: Tensor, phi: Tensor) -> Tensor:
    """L of each tree, `[trees]`, of projections `[trees, B, M]`; x' is the next row of the batch."""
    gap = (phi - eta).square().mean((1, 2))
    eta, phi = normalize(eta, 1, 2), normalize(phi, 1, 2)
    likeness, predicted = ((part * part.roll(1, 1)).sum(2) for part in (eta, phi))
    return gap + (likeness - predicted).square().mean(1)


def errors(eta: Tensor, phi: Tensor, partner_eta: Tensor, partner_phi: Tensor) -> Tensor:
    """A(x), `[..., B]`, of projections `[..., B, M]`, given those of x'."""
    gap = (phi - eta).square().mean(-1)
    likeness = normalize(eta, 1, -1) * normalize(partner_eta, 1, -1)
    predicted = normalize(phi, 1, -1) * normalize(partner_phi, 1, -1)
    return gap + (likeness - predicted).square().mean(-1)
