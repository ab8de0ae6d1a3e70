"""An autoencoder, scored by its reconstruction error.

Rumelhart, Hinton, Williams, 1986; Hinton, Salakhutdinov, Science 2006. Layers and training are those of the
baseline in GeoTrans (Golan, El-Yaniv, NeurIPS 2018; code: izikgo/AnomalyDetectionTransformations).

A narrow code keeps only what the training rows share; a row that lacks it comes back with a larger error.

    L    = mean over pixels of (x - x^)^2,   A(x) = sum over pixels of (x - x^)^2           loss=l2
         = mean over pixels of |x - x^|,            sum over pixels of |x - x^|             loss=l1
         = 1 - mean over pixels of SSIM(x, x^),     the same, of one image                  loss=ssim

Structural similarity as a loss: Bergmann and others, VISAPP 2019, https://arxiv.org/abs/1807.02011. The
baseline of E3Outlier is `model=cae`. The reference pads its stride-2 convolutions on one side, as Keras does; here they
are padded on both. It trains on the last, partial batch too, which is left out here, and pads MNIST to 32 pixels, where
ours is resized. At 64 pixels its decoder begins with 256 filters and has 128, 64 and 64; ours mirrors the encoder, with
512, 256, 128 and 64.

When to use it: The first thing to try on small images, with sides that are multiples of 8 (of 16 from 64
pixels on), and as `ae_dense` on rows: one pass scores a row, the residual is the map, and the rest of the
family has to beat it. In results/autoencoders_mnist (few images, ten epochs, one seed) its mean AUROC over
five digits is .794, that of `ae_l1` the same, of `ae_ssim` .738, of `ae_dense` .651, and of `dae_gaussian`,
the same network with noise on its inputs, .838. Dense layers train tens of times faster (results/cost.md).
Not for photographs, nor for training rows with anomalies among them: with 10 % of those E3Outlier's paper
gives its CAE (`cae`) an AUROC of .559 on CIFAR-10 and .680 on MNIST, and its own method .835 and .941.

Traps: With a wide `model.code` and many epochs the network copies whatever it is given, and simple images, as
a 1 among digits, come back better than normal ones: an AUROC below .5, of which `reconstruction` in
`losses.csv`, small as ever, tells nothing. The untrained control is not at .5 either: by `ae_ssim` it has
.865 for the digit 0, trained .786, and by `ae_dense` .643 for the digit 4, trained .499
(results/autoencoders_mnist). The score of rows sums over columns, so that one in larger units outweighs the
others (`data.scale`). Pixels outside of [-1, 1], by another `data.mean` or `data.std`, are beyond the reach
of the decoder's tanh.
"""

from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.nn.functional import l1_loss, mse_loss

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached, map_of
from anomaly_bench.errors import SettingError, check_choice
from anomaly_bench.losses import ssim
from anomaly_bench.networks.pairs import decoder, encoder


class Autoencoder(Detector):
    """An autoencoder on images `[N, C, H, W]` in [-1, 1], or rows `[N, D]` with `network=dense`.

    Args:
        shape: of one row; with `conv`, sides are multiples of 8, from 64 pixels on of 16.
        network: `conv`, or `dense`.
        code: length of the code, in (-1, 1) with `conv`.
        width: filters of the first stage of `conv`.
        hidden: units of the layers of `dense`, from the row to the code.
        loss: `l2`, `l1` or `ssim` (images only).
        lr, eps, weight_decay, batch_size, epochs: of Adam.
    """

    splits = True

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        network: str = "conv",
        code: int = 256,
        width: int = 64,
        hidden: Sequence[int] = (128, 64),
        loss: str = "l2",
        lr: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        batch_size: int = 128,
        epochs: int = 200,
    ) -> None:
        super().__init__()
        check_choice("loss", loss, ("l2", "l1", "ssim"))
        if loss == "ssim" and (len(shape) != 3 or min(shape[1:]) < 6):
            raise SettingError(f"model.loss=ssim: it needs images of 6 pixels and more, found shape {shape}")
        self.encode = encoder(network, shape, code, width, hidden)
        self.decode = decoder(network, shape, code, width, hidden)
        self.loss = loss
        self.lr, self.eps, self.weight_decay = lr, eps, weight_decay
        self.batch_size, self.epochs = batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage of plain reconstruction."""
        optimizer = adam(self, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)

        def step(batch: Batch) -> dict[str, Tensor]:
            loss = self.distance(batch.x, self.decode(self.encode(batch.x)))
            descend(optimizer, loss)
            return detached(reconstruction=loss)

        yield Stage("autoencoder", self.epochs, step, (optimizer,), self.batch_size)

    def distance(self, x: Tensor, rebuilt: Tensor) -> Tensor:
        """L, a scalar, of rows and their reconstructions."""
        if self.loss == "ssim":
            return 1 - ssim(x, rebuilt).mean()
        return l1_loss(rebuilt.float(), x) if self.loss == "l1" else mse_loss(rebuilt.float(), x)

    def residual(self, x: Tensor, rebuilt: Tensor) -> Tensor:
        """What the score sums or averages, `[N, *shape]`."""
        if self.loss == "ssim":
            return 1 - ssim(x, rebuilt)
        difference = (x - rebuilt).float()
        return difference.abs() if self.loss == "l1" else difference.square()

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`: the error summed over a row's entries, or 1 minus its mean structural similarity."""
        return self.explain(x).score

    def represent(self, x: Tensor) -> Tensor:
        """The code, `[N, code]`."""
        return self.encode(x)

    def explain(self, x: Tensor) -> Explanation:
        """Score, residual map, reconstruction and code."""
        code = self.encode(x)
        rebuilt = self.decode(code)
        residual = self.residual(x, rebuilt)
        entries = residual.flatten(1)
        score = entries.mean(1) if self.loss == "ssim" else entries.sum(1)
        return Explanation(score, map_of(residual, x), rebuilt, code)
