"""DRAE, the discriminative reconstruction autoencoder, scored by its reconstruction error.

Xia, Cao, Wen, Hua, Sun, Learning Discriminative Reconstructions for Unsupervised Outlier Removal, ICCV 2015. The
authors published no code; followed is the re-implementation in E3Outlier (demonzyj56/E3Outlier).

Among unlabelled rows, anomalous ones are rebuilt worse. While it learns, the autoencoder parts the rows at the
threshold that makes both groups of errors compact, rebuilds the better one only, and drives the two apart.

    e_i  = |x_i - x^_i|^2, in ascending order
    h(k) = [scatter(e_1..e_k) + scatter(e_k+1..e_n)] / scatter(e_1..e_n),   scatter: squares about the group's mean
    L    = mean(e_1..e_k) + lambda h(k),   k the one of least h
    A(x) = |x - x^|^2

Errors are summed over a row, not averaged, or lambda would mean something else. k is chosen anew in each batch, as
in that code; the paper parts all rows at once. So do we when all is learned: a row is called anomalous where A(x)
exceeds e_k of the training rows.

When to use it: For training rows with anomalies among them, as the baseline to better methods: it costs what
`ae` costs, has its residual map, and takes rows with `model.network=dense`. With 10 % of anomalies
E3Outlier's paper finds no gain over its plain CAE, an AUROC of .669 against .680 on MNIST and .560 against
.559 on CIFAR-10, where `cae_if` has .855 and .541 and `e3outlier` .941 and .835. On clean training rows `ae`
is ahead too, .794 against .763 in mean in results/autoencoders_mnist.

Traps: `model.lambda_=0.1` is little beside errors summed over pixels: in the records of
results/autoencoders_mnist `reconstruction` falls from over 600 to between 105 and 136, and `separation`,
never above 1, from about .24 to below .09. At least one row of every batch is left out, clean or not, and
many at first: `share` in `losses.csv` is .63 to .75 after one epoch there and .95 to .98 after ten. A batch
has to hold some anomalies to part, so that a small `model.batch_size` with a low `protocol.rho` defeats it.
Published figures are of the rows that it learned; the untrained control is `ae`'s, .536 in mean there.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import check_range
from anomaly_bench.networks.cae import squared_error
from anomaly_bench.networks.pairs import decoder, encoder


class DRAE(Detector):
    """A discriminative autoencoder on images `[N, C, H, W]` in [-1, 1], or rows `[N, D]` with `network=dense`.

    Args:
        shape: of one row.
        network: `conv`, or `dense`.
        code: length of the code.
        width: filters of the first stage of `conv`.
        hidden: units of the layers of `dense`, from the row to the code.
        lambda_: weight of h.
        lr, eps, weight_decay, batch_size, epochs: of Adam.
    """

    threshold: Tensor  # [], e_k of the training rows; infinite until they are parted

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        network: str = "conv",
        code: int = 256,
        width: int = 64,
        hidden: Sequence[int] = (128, 64),
        lambda_: float = 0.1,
        lr: float = 1e-3,
        eps: float = 1e-7,
        weight_decay: float = 5e-4,
        batch_size: int = 128,
        epochs: int = 250,
    ) -> None:
        super().__init__()
        check_range("lambda_", lambda_, at_least=0)
        self.encode = encoder(network, shape, code, width, hidden)
        self.decode = decoder(network, shape, code, width, hidden)
        self.register_buffer("threshold", torch.tensor(torch.inf))
        self.lambda_ = lambda_
        self.lr, self.eps, self.weight_decay = lr, eps, weight_decay
        self.batch_size, self.epochs = batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage of L, each batch parted anew; then all rows are."""
        optimizer = adam(self, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)

        def step(batch: Batch) -> dict[str, Tensor]:
            errors = squared_error(batch.x, self.decode(self.encode(batch.x)))
            low, separation, share = parted(errors)
            descend(optimizer, low + self.lambda_ * separation)
            return detached(reconstruction=low, separation=separation, share=share)

        yield Stage("drae", self.epochs, step, (optimizer,), self.batch_size)
        errors = train.map(self.score).cpu().double()
        share = parted(errors)[2].item()
        self.threshold.copy_(errors.sort().values[round(share * len(errors)) - 1])

    def score(self, x: Tensor) -> Tensor:
        """Squared reconstruction error summed over each row, `[N]`."""
        return squared_error(x, self.decode(self.encode(x)))

    def own_threshold(self) -> float | None:
        """The greatest error of the better group of training rows."""
        return None if self.threshold.isinf() else self.threshold.item()

    def explain(self, x: Tensor) -> Explanation:
        """Score, squared residual map, reconstruction and code."""
        code = self.encode(x)
        rebuilt = self.decode(code)
        return Explanation.of_errors((x - rebuilt).float().square(), x, rebuilt, code)


def parted(errors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Mean of the lower group, h, and the share of rows in that group, each a scalar, of errors `[n]`.

    All splits into two groups are tried at once, by cumulative sums. A single row is a group of its own.
    """
    e, n = errors.sort().values, len(errors)
    if n == 1:
        return e[0], 0 * e[0], torch.ones_like(e[0])
    centred = e - e.mean()  # scatter does not change, and its sums stay small
    k = torch.arange(1, n, device=e.device)
    sums = centred.cumsum(0)[:-1]
    whole = centred.square().sum()
    # The scatter of a group is its squares less its squared sum over its size; both sums are alike but for the sign.
    h = (whole - sums.square() / k - sums.square() / (n - k)) / whole.clamp_min(1e-12)
    best = h.argmin()
    lower = torch.arange(n, device=e.device) <= best
    return (e * lower).sum() / lower.sum(), h[best], lower.to(e.dtype).mean()
