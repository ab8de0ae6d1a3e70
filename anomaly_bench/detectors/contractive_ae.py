"""Contractive autoencoder, scored by its reconstruction error.

Rifai, Vincent, Muller, Glorot, Bengio, Contractive Auto-Encoders: Explicit Invariance During Feature
Extraction, ICML 2011.

The code is kept from moving when the input does, and the reconstruction asks for what has to move all the
same: the directions along which the data vary.

    L       = mean over rows of  d(x, x^) + lambda |J(x)|_F^2,   J = d code / d x
    |J|_F^2 = sum_j (h_j (1 - h_j))^2 sum_i W_ji^2                                  for one layer of sigmoids
            = E |v J|^2,  v ~ N(0, I)                                               for several: Hutchinson
    A(x)    = |x - x^|^2

d is the cross-entropy, summed over the pixels on [0, 1], or the squared error of rows. Layers are sigmoids with
tied weights, as in the paper: untied, the decoder could undo what the encoder contracts. The paper stacks such
layers and contracts each; with `hidden` the code's Jacobian through all layers is contracted at once, its norm
estimated from `probes` random directions, which is exact in the mean.

When to use it: For rows, and for small images, which it takes flattened: trained and scored about ten times
as fast as `ae` (results/cost.md), with a residual map. In results/autoencoders_mnist its mean AUROC over five
digits, .748, is above the other dense ones, `sdae` .681, `ae_dense` .651 and `sparse_ae` .610, and below the
convolutional `ae` and `dae`, .794 and .803. The layer has a weight for each pixel and each unit of the code,
so that large images want convolutions.

Traps: `model.lambda_` stands beside a cross-entropy summed over the pixels, or an error summed over the
columns, so that 0.1 weighs less the more there are: watch `contraction` beside `reconstruction` in
`losses.csv`. Where the code is about as long as the row or longer, as the default is for grey images of 32
pixels, nothing but this term forbids copying. Pixels outside of [-1, 1], by another `data.mean` or
`data.std`, make no cross-entropy. With `model.hidden` the norm is a noisy estimate, from `model.probes=1`
direction, and takes second derivatives. The untrained control is far from .5: .199 for the digit 0, and .605
for the digit 4, where training comes to .577 (results/autoencoders_mnist).
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import check_range
from anomaly_bench.networks.dense import SigmoidAutoencoder, from_unit, to_unit


class ContractiveAE(Detector):
    """A contractive autoencoder on images `[N, C, H, W]` in [-1, 1], flattened, or rows `[N, D]`.

    Args:
        shape: of one row.
        code: units of the code.
        hidden: units of layers between row and code; none for the paper's one layer.
        lambda_: weight of the norm of the Jacobian.
        probes: random directions of the estimate, where there are hidden layers.
        lr, batch_size, epochs: of Adam.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        code: int = 1000,
        hidden: Sequence[int] = (),
        lambda_: float = 0.1,
        probes: int = 1,
        lr: float = 1e-3,
        batch_size: int = 128,
        epochs: int = 200,
    ) -> None:
        super().__init__()
        check_range("lambda_", lambda_, at_least=0)
        check_range("probes", probes, at_least=1)
        self.net = SigmoidAutoencoder(shape, [*hidden, code])
        self.lambda_, self.probes = lambda_, probes
        self.lr, self.batch_size, self.epochs = lr, batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage of reconstruction and contraction."""
        optimizer = adam(self.net, lr=self.lr)

        def step(batch: Batch) -> dict[str, Tensor]:
            y = to_unit(batch.x)
            code, norm = self.contraction(y)
            logits = self.net.decode_linear(code)
            reconstruction, contraction = self.distance(y, logits).mean(), norm.mean()
            descend(optimizer, reconstruction + self.lambda_ * contraction)
            return detached(reconstruction=reconstruction, contraction=contraction)

        yield Stage("contractive", self.epochs, step, (optimizer,), self.batch_size)

    def distance(self, y: Tensor, logits: Tensor) -> Tensor:
        """d(x, x^), `[N]`, of rows `[N, D]` and the decoder's last layer before its sigmoid."""
        if not self.net.on_unit:
            return (y - logits).square().sum(1)
        return binary_cross_entropy_with_logits(logits, y, reduction="none").sum(1)

    def contraction(self, y: Tensor) -> tuple[Tensor, Tensor]:
        """Codes `[N, code]` of `y`, and the squared norm of their Jacobian `[N]`, exact or estimated."""
        if len(self.net.weights) == 1:
            h = self.net.encode(y).float()
            return h, (h * (1 - h)).square() @ self.net.weights[0].square().sum(1)
        with torch.autocast(y.device.type, enabled=False):  # second derivatives are taken in float32
            y = y.detach().requires_grad_()
            h = self.net.encode(y)
            norms = []
            for _ in range(self.probes):
                (product,) = torch.autograd.grad(h, y, torch.randn_like(h), create_graph=True)
                norms.append(product.square().sum(1))
        return h, torch.stack(norms).mean(0)

    def score(self, x: Tensor) -> Tensor:
        """Squared reconstruction error, of pixels on [0, 1], summed over each row, `[N]`."""
        return self.explain(x).score

    def explain(self, x: Tensor) -> Explanation:
        """Score, squared residual map, reconstruction and code."""
        y = to_unit(x)
        code = self.net.encode(y)
        rebuilt = self.net.decode(code)
        return Explanation.of_errors((y - rebuilt).square(), x, from_unit(rebuilt, x.shape), code)
