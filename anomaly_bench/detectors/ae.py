"""A convolutional autoencoder, scored by its reconstruction error.

Rumelhart, Hinton, Williams, 1986; Hinton, Salakhutdinov, Science 2006. Layers and training are those of the
baseline in GeoTrans (Golan, El-Yaniv, NeurIPS 2018; code: izikgo/AnomalyDetectionTransformations).

A narrow code keeps only what the training images share; an image that lacks it comes back with a larger
error.

    L    = mean over pixels of (x - x^)^2
    A(x) = sum over pixels of (x - x^)^2

The reference pads its stride-2 convolutions on one side, as Keras does; here they are padded on both.
"""

from collections.abc import Iterator

from torch import Tensor
from torch.nn.functional import mse_loss

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.networks.cae import ConvDecoder, ConvEncoder, squared_error


class Autoencoder(Detector):
    """A convolutional autoencoder on images `[N, C, H, W]` in [-1, 1].

    Args:
        shape: `(C, H, W)`; sides are multiples of 8, from 64 pixels on of 16.
        code: length of the code, in (-1, 1).
        width: filters of the first stage.
        lr, batch_size, epochs: of Adam.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        code: int = 256,
        width: int = 64,
        lr: float = 1e-3,
        batch_size: int = 128,
        epochs: int = 200,
    ) -> None:
        super().__init__()
        self.encode = ConvEncoder(shape, code, width)
        self.decode = ConvDecoder(shape, code, width)
        self.lr, self.batch_size, self.epochs = lr, batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage of plain reconstruction."""
        optimizer = adam(self, lr=self.lr)

        def step(batch: Batch) -> dict[str, Tensor]:
            loss = mse_loss(self.decode(self.encode(batch.x)), batch.x)
            descend(optimizer, loss)
            return detached(reconstruction=loss)

        yield Stage("autoencoder", self.epochs, step, (optimizer,), self.batch_size)

    def score(self, x: Tensor) -> Tensor:
        """Squared reconstruction error summed over the pixels, `[N]`."""
        return squared_error(x, self.decode(self.encode(x)))

    def explain(self, x: Tensor) -> Explanation:
        """Score, squared residual map, reconstruction and code."""
        code = self.encode(x)
        reconstruction = self.decode(code)
        residual = (x - reconstruction).float().square()
        return Explanation(residual.flatten(1).sum(1), residual.mean(1), reconstruction, code)
