"""GeoTrans: Deep Anomaly Detection Using Geometric Transformations.

Golan, El-Yaniv, NeurIPS 2018, arXiv 1805.10917; code: izikgo/AnomalyDetectionTransformations.

A network learns to say which of 72 flips, shifts and quarter turns was applied to a normal image. To tell them apart
it has to know how normal images look; of an anomalous one, its answers are other than those it gives of the images
it learned. How likely its answers are under a Dirichlet distribution, fitted to those of the training images for
each transformation, is the score.

    p_t(x)  = softmax(net(T_t(x)))
    L       = mean over images and transformations of -log p_t(x)[t] + weight decay
    alpha_t = maximum likelihood of a Dirichlet distribution, given p_t of the training images
    A(x)    = - mean over t of (alpha_t - 1) . log p_t(x)            score_by=dirichlet
            = - mean over t of p_t(x)[t]                             score_by=simple

alpha is found by Minka's fixed point, alpha = psi^-1(psi(sum alpha) + mean log p), and his inverse of psi (Estimating
a Dirichlet distribution, 2000), in float64.

What is the code's, where the paper does not say, or where they differ:

- `score_by`: the paper scores by Dirichlet distributions; the simple score stands in the code, but is commented out.
- `epochs` are passes over the training images, rounded up to whole rounds of all transformations: 200 is what the
  code's ceil(200 / 72) = 3 passes over 72 times as many images come to. An image gets its transformations in an order
  of its own, one in each pass, so that each is learned once a round but for rows that fill no batch, where the code
  shuffles all pairs.
- `shift`: 8 pixels at 32, 16 at 64: a quarter of the side. Without shifts, 8 transformations are left, which are the
  code's SimpleTransformer.
- The network is WRN-10-4; at 64 pixels, for cats and dogs, WRN-16-8 (`depth=16 widen_factor=8`).
- Weight decay, 0.00025 times the squares in Keras, covers batch norm and shifts too, and is 5e-4 here.
- The code takes the logarithm of float32 probabilities, which may be 0; here it is that of float64 logits.
- The code puts digits and clothes of 28 pixels in the middle of black images of 32; here data are resized.

When to use it: On square photographs of objects that have an upright and a left and a right, where
reconstruction fails: the paper's table has a mean AUROC of .860 on CIFAR-10, one class normal, and .620 for
an OC-SVM on pixels. It is meant for a GPU: 216 passes to train, and 72 images through the network for each
one that is scored; `simclr` trains longer and scores by 10. It says nothing of where; for small defects take
`pretrained_patches` or `uninformed_students`, and where training rows hold anomalies `e3outlier`, which
learns the same task from such rows.

Traps: Images that look the same when flipped or turned (a 0, an 8, textures) leave some of the 72 answers to
chance: `accuracy` in `losses.csv` then stays low (a guess has 1/72, a loss of 4.3), and the score has little
to go by. Below 72, `trainer.max_epochs` ends before any image has had all transformations; shorten by whole
rounds, `model.epochs=72`. The Dirichlet distributions are fitted to answers on the very images that were
learned, and the score adds up the logarithms of all 72 answers, most of them next to 0: of a network that is
sure of itself it tells how sure, and hardly whether it is right. `model.score_by=simple` looks at the right
answers only, and `-m model.score_by=dirichlet,simple` trains once for both. The untrained control has such
distributions too, of a random network's answers, so that it need not be near .5. The compression of JPEG
files differs along rows and columns, which tells quarter turns where images are learned at the size of their
files: of 5,000 cats the AUROC, half as wide, is .553 from JPEG files and .705 from lossless ones.
`scripts/even_out_jpeg.py` makes a copy that tells less, and helps little. The paper's classes go from .747
(airplanes) to .957 (automobiles): a flat profile is a sign of a mistake.
"""

from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import check_choice
from anomaly_bench.networks.transformations import (
    VIEWS_AT_ONCE,
    Transformations,
    next_of,
    random_orders,
    rounds,
)
from anomaly_bench.networks.wide_resnet import WideResNet

EULER = 0.5772156649015329
"""-psi(1)."""


class GeoTrans(Detector):
    """GeoTrans on square images `[N, C, S, S]` in [-1, 1].

    Args:
        shape: `(C, S, S)` of one image.
        shift: pixels that images are shifted by; null for a quarter of the side, 0 for no shifts.
        depth, widen_factor, width: of the wide residual network; its first convolution has `width` filters.
        score_by: `dirichlet` or `simple`.
        lr, eps, weight_decay, batch_size: of Adam.
        epochs: passes over the training images, rounded up to whole rounds of all transformations.
    """

    needs_float64: ClassVar[bool] = True
    scored_by: ClassVar[tuple[str, ...]] = ("score_by",)

    alpha: Tensor  # float64 [T, T], a Dirichlet distribution for each transformation
    order: Tensor  # uint8 [N, T], in which each training image gets the transformations; empty after training
    turn: Tensor  # int64 [N], how many it has had

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        shift: int | None = None,
        depth: int = 10,
        widen_factor: int = 4,
        width: int = 16,
        score_by: str = "dirichlet",
        lr: float = 1e-3,
        eps: float = 1e-7,
        weight_decay: float = 5e-4,
        batch_size: int = 128,
        epochs: int = 200,
    ) -> None:
        super().__init__()
        check_choice("score_by", score_by, ("dirichlet", "simple"))
        self.transform = Transformations(shape, "ra", shift)
        self.kinds = len(self.transform)
        self.net = WideResNet(shape, self.kinds, depth, widen_factor, width)
        self.learned("alpha", "order", "turn")
        self.score_by = score_by
        self.lr, self.eps, self.weight_decay = lr, eps, weight_decay
        self.batch_size, self.epochs = batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage of classification; then the Dirichlet distributions are fitted."""
        optimizer = adam(self.net, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)
        self.order = random_orders(len(train), self.kinds, train.device)
        self.turn = torch.zeros(len(train), dtype=torch.int64, device=train.device)

        def step(batch: Batch) -> dict[str, Tensor]:
            t = next_of(self.order, self.turn, batch.index)
            logits = self.net(self.transform(batch.x, t)).float()
            loss = cross_entropy(logits, t)
            descend(optimizer, loss)
            return detached(classification=loss, accuracy=(logits.argmax(1) == t).float().mean())

        passes, scorable = rounds(self.epochs, self.kinds), self.score_by == "simple"
        yield Stage("classifier", passes, step, (optimizer,), self.batch_size, scorable=scorable)
        self.order, self.turn = self.order[:0].clone(), self.turn[:0].clone()
        self.alpha = self.fitted(train)

    def fitted(self, train: Rows) -> Tensor:
        """alpha of the training images, from the means of p and of log p."""
        sums = torch.zeros(2, self.kinds, self.kinds, dtype=torch.float64, device=train.device)
        for batch in train.in_order(max(1, VIEWS_AT_ONCE // self.kinds)):
            log_p = self.log_p(batch.x)
            sums += torch.stack([log_p.exp().sum(0), log_p.sum(0)])
        return dirichlet(*sums / len(train))

    def log_p(self, x: Tensor) -> Tensor:
        """log p_t(x), float64 `[N, T, T]`: what is said of each transformation of images `[N, C, S, S]`."""
        logits = torch.cat([self.net(views) for views in self.transform.views_in_parts(x)])
        return logits.double().log_softmax(1).view(x.shape[0], self.kinds, self.kinds)

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`."""
        log_p = self.log_p(x)
        if self.score_by == "simple":
            return -log_p.diagonal(dim1=1, dim2=2).exp().mean(1)
        return -((self.alpha - 1) * log_p).sum(2).mean(1)

    def represent(self, x: Tensor) -> Tensor:
        """Features of the images as they are, `[N, D]`."""
        return self.net.features(x)

    def explain(self, x: Tensor) -> Explanation:
        """Score, and features of the images as they are."""
        return Explanation(self.score(x), features=self.represent(x))


def dirichlet(mean: Tensor, mean_log: Tensor) -> Tensor:
    """Maximum likelihood of Dirichlet distributions, float64 `[T, K]`, given means of p and of log p `[T, K]`.

    The first guess and the rule to stop are the code's. Rows of p that are all alike have no finite maximum; their
    distributions are as narrow as the iterations make them.
    """
    spread = (mean.xlogy(mean) - mean * mean_log).sum(1, keepdim=True).clamp_min(1e-9)
    alpha = mean * (mean.shape[1] - 1) * EULER / spread
    moving = torch.ones_like(spread, dtype=torch.bool)
    for _ in range(1000):
        better = inverse_digamma(torch.special.digamma(alpha.sum(1, keepdim=True)) + mean_log)
        better = torch.where(moving, better, alpha)
        moving = (better - alpha).norm(dim=1, keepdim=True) >= 1e-9
        alpha = better
        if not moving.any():
            break
    return alpha


def inverse_digamma(y: Tensor) -> Tensor:
    """psi^-1 of any numbers, by five steps of Newton from Minka's first guess."""
    x = torch.where(y >= -2.22, y.exp() + 0.5, -1 / (y + EULER))
    for _ in range(5):
        x = x - (torch.special.digamma(x) - y) / torch.special.polygamma(1, x)
    return x
