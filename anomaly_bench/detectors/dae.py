"""Denoising autoencoder, scored by its reconstruction error.

Vincent, Larochelle, Bengio, Manzagol, Extracting and Composing Robust Features with Denoising Autoencoders,
ICML 2008, https://doi.org/10.1145/1390156.1390294; the other corruptions: JMLR 11, 2010.

The input is corrupted, the clean one is to be rebuilt, so that copying is no solution; what the network learns
is the way back to where the data lie.

    x~   = x where b = 1, else the empty value; each entry's b is 0 with probability nu     corruption=masking
         = x where b = 1, else the least or the greatest value, as a coin falls            corruption=salt_pepper
         = x + sigma e,  e ~ N(0, I)                                                       corruption=gaussian
    L    = mean over entries of (x - D(E(x~)))^2
    A(x) = |x - D(E(x))|^2, of the uncorrupted x

Corruption is drawn anew in every step, and there is none in a score. An entry is emptied to 0 in the paper,
whose pixels are on [0, 1]: here black, -1 for images, and 0 for rows; the greatest value is 1. The paper
rebuilds binary pixels by cross-entropy with one sigmoid layer; the networks and the squared error here are
those of the baselines that detectors are compared with, `ae`'s, so that the corruption is all that differs.

When to use it: In place of `ae`: network, cost and residual map are the same, and noise on the inputs is all
that is added. `dae_gaussian` has the best average rank of fifteen in results/autoencoders_mnist, with a mean
AUROC over five digits of .838; masking has .803, `ae` .794, and five digits of one seed tell the best from
three of the others only. `model.network=dense` takes rows; `dsebm` has the same idea as a density.

Traps: What masking empties is black: on a black ground it changes strokes alone, on photographs it is a mark
of its own, and in rows of `data.scale=minmax` 0 is the least value of a column, like any other.
`model.sigma=0.5` is in units of the rows, a quarter of the range of images but half of that of such columns.
`model.nu=0` or `model.sigma=0` is `ae`. `reconstruction` in `losses.csv` is that of corrupted rows, not to be
compared with `ae`'s, and the rows that are scored, being clean, are of a kind that was hardly ever an input.
The untrained control is `ae`'s, .536 in mean there.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import mse_loss

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import check_choice, check_range
from anomaly_bench.networks.cae import squared_error
from anomaly_bench.networks.pairs import decoder, encoder


class DAE(Detector):
    """A denoising autoencoder on images `[N, C, H, W]` in [-1, 1], or rows `[N, D]` with `network=dense`.

    Args:
        shape: of one row.
        network: `conv`, or `dense`.
        code: length of the code.
        width: filters of the first stage of `conv`.
        hidden: units of the layers of `dense`, from the row to the code.
        corruption: `masking`, `salt_pepper` or `gaussian`.
        nu: probability of an entry to be replaced by `masking` or `salt_pepper`, in [0, 1).
        sigma: standard deviation of `gaussian`.
        lr, batch_size, epochs: of Adam.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        network: str = "conv",
        code: int = 256,
        width: int = 64,
        hidden: Sequence[int] = (128, 64),
        corruption: str = "masking",
        nu: float = 0.25,
        sigma: float = 0.5,
        lr: float = 1e-3,
        batch_size: int = 128,
        epochs: int = 200,
    ) -> None:
        super().__init__()
        check_choice("corruption", corruption, ("masking", "salt_pepper", "gaussian"))
        check_range("nu", nu, at_least=0, below=1)
        check_range("sigma", sigma, at_least=0)
        self.encode = encoder(network, shape, code, width, hidden)
        self.decode = decoder(network, shape, code, width, hidden)
        self.corruption, self.nu, self.sigma = corruption, nu, sigma
        self.empty = -1.0 if len(shape) == 3 else 0.0
        self.lr, self.batch_size, self.epochs = lr, batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage of reconstruction of the clean rows."""
        optimizer = adam(self, lr=self.lr)

        def step(batch: Batch) -> dict[str, Tensor]:
            loss = mse_loss(self.decode(self.encode(self.corrupted(batch.x))).float(), batch.x)
            descend(optimizer, loss)
            return detached(reconstruction=loss)

        yield Stage("denoising", self.epochs, step, (optimizer,), self.batch_size)

    def corrupted(self, x: Tensor) -> Tensor:
        """x~, `[N, *shape]`: each entry replaced with probability nu, or with Gaussian noise added."""
        if self.corruption == "gaussian":
            return x + self.sigma * torch.randn_like(x)
        replaced = torch.rand_like(x) < self.nu
        if self.corruption == "masking":
            return torch.where(replaced, self.empty, x)
        pepper = torch.rand_like(x) < 0.5
        return torch.where(replaced, torch.where(pepper, self.empty, 1.0), x)

    def score(self, x: Tensor) -> Tensor:
        """Squared reconstruction error of the uncorrupted row, summed over its entries, `[N]`."""
        return squared_error(x, self.decode(self.encode(x)))

    def represent(self, x: Tensor) -> Tensor:
        """The code, `[N, code]`."""
        return self.encode(x)

    def explain(self, x: Tensor) -> Explanation:
        """Score, squared residual map, reconstruction and code."""
        code = self.encode(x)
        reconstruction = self.decode(code)
        return Explanation.of_errors((x - reconstruction).float().square(), x, reconstruction, code)
