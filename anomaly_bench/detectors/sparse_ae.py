"""Sparse autoencoder, scored by its reconstruction error.

Ng, Sparse Autoencoder, lecture notes CS294A, Stanford 2011; Lee, Ekanadham, Ng, NeurIPS 2007.

The code may be longer than the row, but each of its units is to be active for few rows. Its mean activation
over a batch is compared with a small target, and the weights decay.

    L    = mean over rows of 1/2 |x - x^|^2 + beta sum_j KL(rho || rho^_j) + lambda / 2 |W|^2
    KL   = rho log(rho / rho^) + (1 - rho) log((1 - rho) / (1 - rho^)),   rho^_j the mean of unit j
    A(x) = |x - x^|^2

One layer of sigmoids up and one down, weights not tied, biases not decayed. The notes fit all rows at once by
L-BFGS; here rho^ is that of a batch, and Adam takes the steps. Images are brought to [0, 1], which the last
sigmoid reaches; for rows of numbers the last layer is linear. beta = 0 leaves plain weight decay.

When to use it: As a reference for what sparsity does, on rows of numbers or small images: one layer up and
one down, 2,182 training images a second on two CPU cores where `ae` has 229 (`results/cost.md`), and a
residual map. As a detector it is the last but one of fifteen by rank in `results/autoencoders_mnist`, with a
mean AUROC of .610 after 10 passes against .651 of `ae_dense` and .794 of `ae`, so take those first.
`model.beta=0` is a wide autoencoder with weight decay, to see whether the penalty helps at all.

Traps: The KL is summed over the units, so that its weight grows with `model.code`: at 1,024 it outweighs the
reconstruction at first. In the records of `results/autoencoders_mnist`, `reconstruction` falls from 69 to 34
in two passes and is back at 52 after ten, while `sparsity` falls from 407 to 1: units became sparse at the
cost of the image, so see that `reconstruction` has fallen again before trusting a number, or lower
`model.beta`. `model.batch_size` below 128 makes the mean activation noisy, and with it the penalty. On digit
4 the trained network has .397 and the untrained one .644: look at each class beside its control.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import check_range
from anomaly_bench.networks.dense import from_unit, to_unit
from anomaly_bench.networks.mlp import check_sizes


class SparseAE(Detector):
    """A sparse autoencoder on images `[N, C, H, W]` in [-1, 1], flattened, or rows `[N, D]`.

    Args:
        shape: of one row.
        code: units of the code.
        rho: mean activation that each unit is to have, in (0, 1).
        beta: weight of the KL, which is summed over the units.
        lambda_: weight of the decay of the weights.
        lr, batch_size, epochs: of Adam.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        code: int = 1024,
        rho: float = 0.05,
        beta: float = 3.0,
        lambda_: float = 1e-4,
        lr: float = 1e-3,
        batch_size: int = 128,
        epochs: int = 200,
    ) -> None:
        super().__init__()
        check_range("rho", rho, above=0, below=1)
        check_range("beta", beta, at_least=0)
        check_range("lambda_", lambda_, at_least=0)
        check_sizes(code=code)
        size = math.prod(shape)
        self.up, self.down = nn.Linear(size, code), nn.Linear(code, size)
        for layer in (self.up, self.down):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        self.on_unit = len(shape) == 3
        self.rho, self.beta, self.lambda_ = rho, beta, lambda_
        self.lr, self.batch_size, self.epochs = lr, batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage of reconstruction with the three terms of L."""
        optimizer = adam(self, lr=self.lr)

        def step(batch: Batch) -> dict[str, Tensor]:
            y = to_unit(batch.x)
            code = self.encode(y)
            reconstruction = (y - self.decode(code)).square().sum(1).mean() / 2
            sparsity = kl(self.rho, code.mean(0)).sum()
            decay = (self.up.weight.square().sum() + self.down.weight.square().sum()) / 2
            descend(optimizer, reconstruction + self.beta * sparsity + self.lambda_ * decay)
            return detached(reconstruction=reconstruction, sparsity=sparsity, decay=decay)

        yield Stage("sparse", self.epochs, step, (optimizer,), self.batch_size)

    def encode(self, y: Tensor) -> Tensor:
        """Codes `[N, code]` in (0, 1) of rows `[N, D]`."""
        return torch.sigmoid(self.up(y).float())

    def decode(self, code: Tensor) -> Tensor:
        """Rows `[N, D]` of codes."""
        y = self.down(code).float()
        return torch.sigmoid(y) if self.on_unit else y

    def score(self, x: Tensor) -> Tensor:
        """Squared reconstruction error, of pixels on [0, 1], summed over each row, `[N]`."""
        return self.explain(x).score

    def explain(self, x: Tensor) -> Explanation:
        """Score, squared residual map, reconstruction and code."""
        y = to_unit(x)
        code = self.encode(y)
        rebuilt = self.decode(code)
        return Explanation.of_errors((y - rebuilt).square(), x, from_unit(rebuilt, x.shape), code)


def kl(rho: float, mean: Tensor) -> Tensor:
    """KL of a coin of probability `rho` from coins of probabilities `mean`, of any shape, kept off 0 and 1."""
    mean = mean.clamp(1e-6, 1 - 1e-6)
    return rho * torch.log(rho / mean) + (1 - rho) * torch.log((1 - rho) / (1 - mean))
