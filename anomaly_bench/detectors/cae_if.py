"""CAE-IF: an isolation forest on the codes of a convolutional autoencoder.

A baseline of E3Outlier: Wang and others, NeurIPS 2019 (code: demonzyj56/E3Outlier). Isolation forest: Liu, Ting,
Zhou, ICDM 2008, https://doi.org/10.1109/ICDM.2008.17, fitted by scikit-learn and scored as tensors.

The autoencoder learns first, by its squared error; then random trees part its codes, and a row whose code is
parted from all others in few steps is anomalous. The forest tells the autoencoder nothing.

    L    = mean over pixels of (x - D(E(x)))^2
    A(x) = 2^(-h(E(x)) / c(psi)),   h the mean depth of a code over the trees

The code of E3Outlier scores by scikit-learn's decision function, which is an offset minus A.

When to use it: For training rows with anomalies among them: with 10 % of those on MNIST, E3Outlier's paper
gives it an AUROC of .855, and the reconstruction error of the same network .680. It trains as long as `cae`
and scores faster, as the decoder is not needed; `model.network=dense` takes rows; there is no map. Not for
clean training rows, where it is the last of fifteen in results/autoencoders_mnist, with a mean AUROC of .563
(`ae` .794), nor for photographs: .541 on CIFAR-10 in that paper.

Traps: Training can do harm: a forest on the codes of an untrained network has a mean AUROC of .681 in
results/autoencoders_mnist, after training .563, so that no run should be read without its control. Nothing in
`losses.csv` is about the forest; `reconstruction` can fall while the codes get worse for it. A tree of
`model.max_samples=256` rows is at most 8 splits deep and parts one entry of a code at a time, so that it sees
few of `model.code=256` entries.
"""

from collections.abc import Iterator, Sequence
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import mse_loss

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.networks.forest import Forest
from anomaly_bench.networks.pairs import decoder, encoder


class CAEIF(Detector):
    """Isolation forest on codes of images `[N, C, H, W]` in [-1, 1], or of rows `[N, D]` with `network=dense`.

    Args:
        shape: of one row.
        network: `conv`, or `dense`.
        code: length of the code.
        width: filters of the first stage of `conv`.
        hidden: units of the layers of `dense`, from the row to the code.
        trees, max_samples: of the forest, and psi, the rows of one tree.
        lr, eps, weight_decay, batch_size, epochs: of Adam.
    """

    needs_float64: ClassVar[bool] = True

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        network: str = "conv",
        code: int = 256,
        width: int = 64,
        hidden: Sequence[int] = (128, 64),
        trees: int = 100,
        max_samples: int = 256,
        lr: float = 1e-3,
        eps: float = 1e-7,
        weight_decay: float = 5e-4,
        batch_size: int = 128,
        epochs: int = 250,
    ) -> None:
        super().__init__()
        self.encode = encoder(network, shape, code, width, hidden)
        self.decode = decoder(network, shape, code, width, hidden)
        self.forest = Forest(trees, max_samples)
        self.lr, self.eps, self.weight_decay = lr, eps, weight_decay
        self.batch_size, self.epochs = batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage of plain reconstruction; then the forest is grown."""
        optimizer = adam(self.encode, self.decode, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)

        def step(batch: Batch) -> dict[str, Tensor]:
            loss = mse_loss(self.decode(self.encode(batch.x)).float(), batch.x)
            descend(optimizer, loss)
            return detached(reconstruction=loss)

        yield Stage("autoencoder", self.epochs, step, (optimizer,), self.batch_size, scorable=False)
        self.forest.fit(train.map(self.encode))

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]` in (0, 1]; all 1 before the forest is grown."""
        return self.forest(self.encode(x))

    def explain(self, x: Tensor) -> Explanation:
        """Score, reconstruction and code."""
        code = self.encode(x)
        return Explanation(self.forest(code), reconstruction=self.decode(code), features=code)
