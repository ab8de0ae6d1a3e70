"""Stacked denoising autoencoder, scored by its reconstruction error.

Vincent, Larochelle, Lajoie, Bengio, Manzagol, Stacked Denoising Autoencoders, JMLR 11, 2010,
https://www.jmlr.org/papers/v11/vincent10a.html.

One denoising autoencoder a layer: each learns to rebuild the codes of the layers below it from corrupted ones.
Then encoders and decoders are unrolled into one deep network, and fine-tuned.

    layer l   h = s(W h~ + b),  g = s(W' h + c),  h~ the masked code of layer l - 1,  L = mean over rows of d(g, code)
    whole     L = mean over rows of d(x^, x), nothing corrupted
    A(x)      = |x - x^|^2

d is the cross-entropy summed over units, whose values lie in (0, 1), or for rows of numbers, in the first layer,
the squared error with a decoder that is linear. Only the input of the layer that is learning is corrupted, and
only while it learns: what reaches it comes clean through the layers below. Weights are tied while a layer learns,
as in the paper, and stay so. The paper fine-tunes with labels; detectors have none, and rebuild.

When to use it: On rows of numbers or small aligned images where a deep dense autoencoder is wanted: layers
are learned one at a time, each from a shallow start. In `results/autoencoders_mnist` it has a mean AUROC of
.681, `ae_dense` .651 with a quarter of the passes, and `dae`, which is convolutional, .803: for images take
that. Passes are cheap (6,491 training images a second on two CPU cores, `ae` 229, `results/cost.md`), but
there are 250 of them by default. It has a residual map.

Traps: `trainer.max_epochs` bounds each layer and the fine-tuning, so that 10 is 40 passes for three layers.
`reconstruction` in `losses.csv` is of other units in each stage, and a cross-entropy of values between 0 and
1 does not end at 0: compare within a stage. Masking sets entries to 0, which is black: on mostly black images
`model.nu` corrupts few of them. Look at each class beside its control: on digit 4 the untrained network has
.635, the trained one .537.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, linear

from anomaly_bench.detector import Adam, Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import SettingError, check_range
from anomaly_bench.networks.dense import SigmoidAutoencoder, from_unit, to_unit


class SDAE(Detector):
    """A stacked denoising autoencoder on images `[N, C, H, W]` in [-1, 1], flattened, or rows `[N, D]`.

    Args:
        shape: of one row.
        layers: units of each layer, the code last.
        nu: probability of an entry to be set to 0, in [0, 1).
        lr, batch_size: of Adam.
        epochs: of each layer.
        tuning_epochs: of the whole.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        layers: Sequence[int] = (500, 250, 100),
        nu: float = 0.25,
        lr: float = 1e-3,
        batch_size: int = 128,
        epochs: int = 50,
        tuning_epochs: int = 100,
    ) -> None:
        super().__init__()
        if not layers:
            raise SettingError("model.layers=[]: needed is one at least")
        check_range("nu", nu, at_least=0, below=1)
        self.net = SigmoidAutoencoder(shape, layers)
        self.nu = nu
        self.lr, self.batch_size, self.epochs, self.tuning_epochs = lr, batch_size, epochs, tuning_epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage for each layer, from the lowest, then one for the whole."""
        for layer in range(len(self.net.weights)):
            yield self.layer_stage(layer)
        optimizer = adam(self.net, lr=self.lr)

        def step(batch: Batch) -> dict[str, Tensor]:
            y = to_unit(batch.x)
            loss = self.distance(self.net.decode_linear(self.net.encode(y)), y, 0)
            descend(optimizer, loss)
            return detached(reconstruction=loss)

        yield Stage("fine-tuning", self.tuning_epochs, step, (optimizer,), self.batch_size)

    def layer_stage(self, layer: int) -> Stage:
        """Denoising by one layer, the layers below it held fast."""
        weight, up, down = self.net.weights[layer], self.net.up[layer], self.net.down[layer]
        optimizer = Adam([weight, up, down], lr=self.lr, fused=True)

        def step(batch: Batch) -> dict[str, Tensor]:
            with torch.no_grad():
                clean = self.net.encode(to_unit(batch.x), layer).float()
            corrupted = torch.where(torch.rand_like(clean) < self.nu, 0.0, clean)
            code = torch.sigmoid(linear(corrupted, weight, up))
            loss = self.distance(linear(code, weight.t(), down), clean, layer)
            descend(optimizer, loss)
            return detached(reconstruction=loss)

        return Stage(f"layer {layer + 1}", self.epochs, step, (optimizer,), self.batch_size)

    def distance(self, logits: Tensor, target: Tensor, layer: int) -> Tensor:
        """d, a scalar, of what a decoder gives before its sigmoid and the values `[N, units]` below `layer`."""
        if layer == 0 and not self.net.on_unit:
            return (logits.float() - target).square().sum(1).mean()
        return binary_cross_entropy_with_logits(logits.float(), target, reduction="none").sum(1).mean()

    def score(self, x: Tensor) -> Tensor:
        """Squared reconstruction error, of pixels on [0, 1], summed over each row, `[N]`."""
        return self.explain(x).score

    def explain(self, x: Tensor) -> Explanation:
        """Score, squared residual map, reconstruction and code."""
        y = to_unit(x)
        code = self.net.encode(y)
        rebuilt = self.net.decode(code)
        return Explanation.of_errors((y - rebuilt).square(), x, from_unit(rebuilt, x.shape), code)
