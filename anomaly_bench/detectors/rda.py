"""RDA, the robust deep autoencoder: robust PCA with an autoencoder in place of the low rank.

Zhou, Paffenroth, Anomaly Detection with Robust Deep Autoencoders, KDD 2017,
https://doi.org/10.1145/3097983.3098052; code: zc8340311/RobustAutoencoder.

The rows are split into a part that the autoencoder rebuilds well and a sparse one. What is noise, or a whole
anomalous row, moves into the sparse part, and the autoencoder learns from what is left.

    min |L - D(E(L))| + lambda R(S)   such that X = L + S

    S = 0;  in each round  L = X - S,  learn from L,  S = prox(X - D(E(L)))

    R(S)                              prox(a)                                   threshold t
    sum of the norms of rows          a_i max(0, 1 - t / |a_i|)                 lambda N           penalty=rows
    sum of the norms of columns       the same of columns                       lambda N           penalty=columns
    sum of |S_ij|                     sign(a) max(|a| - t, 0)                   lambda 4 mean|X|   penalty=l1

    A(x_i) = |x_i - D(E(x_i - S_i))|  for a row that was learned, S_i of the round before the last
    A(x)   = |x - D(E(x))|            for any other

With `rows`, A(x_i) is `|S_i| + t` where S_i is not 0 (the paper's verdict of an anomaly) and tells the other rows
apart as well. A row is known again by its bits. Pixels are on [0, 1].

Where paper and code differ, and what is followed: the class l21 of the code shrinks columns, which are pixels;
only the other one, rows, finds anomalous instances, and is the default here. The code's threshold of l1 takes the
largest column sum for the entrywise norm of X that the formula names: ours is entrywise, so that the code's
lambdas of l1 do not carry over. Network and Adam start anew in each round, as in the code's experiment on
outliers (`reinit`). The code multiplies the squared error by 200, which Adam does not see but beside a weight
decay (with one, `dense` collapses to a constant), and does not shuffle; its first biases are uniform in [-0.1, 0.1],
ours 0. Of its 39 batches of 5,124 rows the last is not full; here it is left out, and its rows wait for another epoch.
Its first rule to stop early concerns l1 alone; here rounds are always counted.

The column RDAE of E3Outlier took the minimum where the proximal operator has a maximum and left N out of t, so that
its S was 0 where it mattered: its numbers are those of `model=cae` after 20 epochs. `model=rdae` has its network,
rounds and one Adam for all of them, with the operator, t and score of above; its pixels are on [-1, 1], ours on
[0, 1], and it scores |x_i - S_i - D(E(x_i - S_i))|.

When to use it: On some thousand rows or small grey images that hold their own anomalies unlabelled
(`protocol=contaminated`): `model.penalty=rows` for whole rows, `columns` for a pixel or sensor that is wrong
throughout, `l1` for single entries. The 1,000 passes in `results/rda_mnist` (20 rounds of 50 over 5,124
images) took three minutes on a CPU core, in bf16; a score is one pass, with a residual map. Where training rows are
clean it gains nothing: .642 in `results/autoencoders_mnist`, `ae_dense` .651. `rpca` is the same idea with
linear parts and no networks.

Traps: With `rows` and `columns` the threshold is lambda times the number of rows, so that `model.lambda_`
carries over to no other size: .00095 means 4.9 at the paper's 5,124 rows and 0.7 at 720. Too small, and all
is called anomalous: with .0003 `results/rda_mnist` has a recall of 1.000 and a precision of .050, while the
AUROC of the same scores is .945; too large, and S stays 0 and this is an autoencoder. The default is the best
F1 of the authors' sweep, chosen by labels, as are the .64 that they print. Without `model.reinit`, outliers
that an early round has memorised stay so. Scores of learned rows leave S out of what the network is given,
those of new rows cannot: do not mix the two.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss
from torch.optim import Optimizer

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached, map_of
from anomaly_bench.errors import check_choice, check_range
from anomaly_bench.networks import pairs
from anomaly_bench.networks.dense import SigmoidAutoencoder, from_unit, to_unit
from anomaly_bench.rows import of_known_rows


class RDA(Detector):
    """A robust deep autoencoder on images `[N, C, H, W]` in [-1, 1], or rows `[N, D]` with `network=dense`.

    Args:
        shape: of one row.
        network: `dense`, sigmoids with tied weights, or `conv`.
        layers: units of the layers of `dense`, the code last.
        code, width: of `conv`: length of the code, filters of the first stage.
        penalty: `rows`, `columns` or `l1`.
        lambda_: its weight.
        rounds: how often learning and splitting alternate.
        epochs: of learning in each round.
        reinit: learn from first weights, with a new Adam, in each round.
        lr, eps, weight_decay, batch_size: of Adam.
    """

    S: Tensor  # [N, D]
    known: Tensor  # [N], ascending fingerprints
    errors: Tensor  # [N], A(x_i) in the order of `known`
    t: Tensor  # [], the threshold of the proximal operator

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        network: str = "dense",
        layers: Sequence[int] = (400, 200),
        code: int = 256,
        width: int = 64,
        penalty: str = "rows",
        lambda_: float = 0.00095,
        rounds: int = 20,
        epochs: int = 50,
        reinit: bool = True,
        lr: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        batch_size: int = 133,
    ) -> None:
        super().__init__()
        pairs.check(network, shape)
        check_choice("penalty", penalty, ("rows", "columns", "l1"))
        check_range("lambda_", lambda_, at_least=0)
        check_range("rounds", rounds, at_least=1)
        if network == "dense":
            self.net = SigmoidAutoencoder(shape, layers)
        else:
            self.net = Convolutional(shape, code, width)
        self.learned("S", "known", "errors")
        self.register_buffer("t", torch.zeros(()))
        self.penalty, self.lambda_, self.rounds, self.reinit = penalty, lambda_, rounds, reinit
        self.lr, self.eps, self.weight_decay = lr, eps, weight_decay
        self.epochs, self.batch_size = epochs, batch_size

    def stages(self, train: Rows) -> Iterator[Stage]:
        """A stage for each round, S between them."""
        y = train.map(to_unit)
        self.S = torch.zeros_like(y)
        self.t.fill_(self.lambda_ * (4 * y.abs().mean() if self.penalty == "l1" else len(y)))
        optimizer = self.optimizer()
        for number in range(self.rounds):
            if self.reinit and number:
                self.net.apply(begin_anew)
                optimizer = self.optimizer()
            yield self.learning(number, optimizer)
            rest = torch.cat([to_unit(b.x) - self.net(self.L(b)).float() for b in train.in_order(512)])
            self.S = prox(rest, self.t, self.penalty)
        self.known, order = train.fingerprints()
        self.errors = rest.norm(dim=1)[order]

    def optimizer(self) -> Optimizer:
        """Adam, as it begins."""
        return adam(self.net, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)

    def learning(self, number: int, optimizer: Optimizer) -> Stage:
        """Reconstruction of L in one round."""

        def step(batch: Batch) -> dict[str, Tensor]:
            low = self.L(batch)
            loss = mse_loss(self.net(low).float(), low)
            descend(optimizer, loss)
            return detached(reconstruction=loss)

        return Stage(f"round {number + 1}", self.epochs, step, (optimizer,), self.batch_size)

    def L(self, batch: Batch) -> Tensor:
        """The part of training rows that is to be rebuilt, X - S, `[B, D]`."""
        return to_unit(batch.x) - self.S[batch.index]

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`."""
        return self.explain(x).score

    def own_threshold(self) -> float | None:
        """With `rows`, what A exceeds where S_i is not 0."""
        return self.t.item() if self.penalty == "rows" else None

    def explain(self, x: Tensor) -> Explanation:
        """Score, squared residual map and reconstruction of x itself, code."""
        y = to_unit(x)
        code = self.net.encode(y)
        rebuilt = self.net.decode(code).float()
        residual = y - rebuilt
        score = of_known_rows(x, self.known, self.errors, residual.norm(dim=1))
        return Explanation(score, map_of(residual.square(), x), from_unit(rebuilt, x.shape), code)


def prox(a: Tensor, t: Tensor | float, penalty: str) -> Tensor:
    """The proximal operator of t R at `a` `[N, D]`."""
    if penalty == "l1":
        return a.sign() * (a.abs() - t).clamp_min(0)
    norms = a.norm(dim=1 if penalty == "rows" else 0, keepdim=True)
    return a * (1 - t / norms.clamp_min(1e-12)).clamp_min(0)


class Convolutional(nn.Module):
    """The convolutional autoencoder, given and giving pixels on [0, 1] as rows `[N, D]`."""

    def __init__(self, shape: tuple[int, ...], code: int, width: int) -> None:
        super().__init__()
        self.shape = shape
        self.down = pairs.encoder("conv", shape, code, width, ())
        self.up = pairs.decoder("conv", shape, code, width, ())

    def encode(self, y: Tensor) -> Tensor:
        """Codes `[N, code]`."""
        return self.down(from_unit(y, (len(y), *self.shape)))

    def decode(self, code: Tensor) -> Tensor:
        """Rows `[N, D]` of codes."""
        return to_unit(self.up(code))

    def forward(self, y: Tensor) -> Tensor:
        """Rows rebuilt."""
        return self.decode(self.encode(y))


def begin_anew(module: nn.Module) -> None:
    """First weights again, for `module.apply`."""
    if isinstance(module, SigmoidAutoencoder):
        module.reset()
    elif isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.modules.batchnorm._BatchNorm):
        module.reset_parameters()
