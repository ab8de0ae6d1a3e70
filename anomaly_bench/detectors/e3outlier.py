"""E3Outlier: Effective End-to-end Unsupervised Outlier Detection via Inlier Priority of Discriminative Network.

Wang, Zeng, Liu, Zhu, Yin, Xu, Kloft, NeurIPS 2019; code: demonzyj56/E3Outlier.

A network learns to say which of K operations was applied to an image, from unlabelled images of which some are
anomalous. The normal ones are more, and pull the weights their way (inlier priority), so that the network grows
surer of them than of the others. How sure it is, over all operations, is the score of the very images it learned.

    p_t(x) = softmax(net(O_t(x)))
    L      = mean over images and operations of -log p_t(x)[t] + weight decay
    A(x)   = - mean over t of p_t(x)[t]                              score_by=pl, pseudo label
           = - mean over t of max_k p_t(x)[k]                        score_by=mp, maximum probability
           = - mean over t of sum_k p_t(x)[k] log2 p_t(x)[k]         score_by=ne, negative entropy

The operations are the 72 of GeoTrans (regular affine), 16 rotations by other multiples of 30 degrees with and
without a flip (irregular affine), and 23 orders of an image's quarters (patch re-arranging). The code has them in
this order; ours has the rotations last, which gives other numbers to the same classes.

What is the code's, where the paper does not say:

- `epochs` are passes over the images, rounded up to whole rounds of all operations: 250 is what the code's
  ceil(250 / 111) = 3 passes over 111 times as many images come to. An image gets its operations in an order of its
  own, one in each pass, so that each is learned once a round but for rows that fill no batch, where the code shuffles
  all pairs.
- `optimizer`: SGD with momentum 0.9 for MNIST and Fashion-MNIST, Adam for the others; learning rate and weight decay
  are the same.
- A corner that a rotation leaves empty is 0, mid-grey: of a digit on black, its corners show the angle.
- 0 log 0 is not a number there; here it is 0.
- The code puts digits and clothes of 28 pixels in the middle of black images of 32; here data are resized.

Of the networks in the paper's ablation, WRN-10-4, its main one, is here; ResNet and DenseNet are not.

When to use it: For small square images, unlabelled and with anomalies among them, and a GPU: 333 passes to
train, and 111 views to score an image. With 10 % of anomalies its paper has an AUROC of .835 on CIFAR-10 and
.941 on MNIST, the error of an autoencoder .559 and .680, and `ssd_if`, a forest on features of the same
network, .640 and .938. `model.operations=ra` makes do with 72 views. Where clean training images are at hand
`geotrans` is the method; neither has a map.

Traps: It scores the very images that it learned, so that there is nothing to choose settings on. Anomalies
must be few: at 20 % the paper's AUROC on MNIST falls to .913. An `accuracy` in `losses.csv` that is soon
close to 1 is a task too easy, as when borders give the operation away; then the AUROC falls, and an operation
that leaves an image as it was, as a turned 0, tells nothing. JPEG files of the size that they are learned at
tell quarter turns by their compression (see `geotrans`). `trainer.max_epochs` below 111 leaves images
without some of their operations, and digits under `data=folder` get Adam where `data=mnist` has SGD. At 10 %
of anomalies a coin has about .9 in the paper's AUPR-in and .1 in its AUPR-out: never put one beside the
other.
"""

import math
from collections.abc import Iterator
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from anomaly_bench.detector import SGD, Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import check_choice
from anomaly_bench.networks.transformations import (
    Transformations,
    next_of,
    random_orders,
    rounds,
)
from anomaly_bench.networks.wide_resnet import WideResNet


class E3Outlier(Detector):
    """E3Outlier on square images `[N, C, S, S]` in [-1, 1].

    Args:
        shape: `(C, S, S)` of one image.
        operations: `ra`, `ra+ia` or `ra+ia+pr`, for which sides are even.
        shift: pixels that images are shifted by; null for a quarter of the side, 0 for no shifts.
        depth, widen_factor, width: of the wide residual network; its first convolution has `width` filters.
        score_by: `ne`, `mp` or `pl`.
        optimizer: `adam` or `sgd`.
        lr, weight_decay: of either.
        eps: of Adam.
        momentum: of SGD.
        batch_size: of one update.
        epochs: passes over the images, rounded up to whole rounds of all operations.
    """

    transductive: ClassVar[bool] = True
    scored_by: ClassVar[tuple[str, ...]] = ("score_by",)

    order: Tensor  # uint8 [N, K], in which each image gets the operations; empty after training
    turn: Tensor  # int64 [N], how many it has had

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        operations: str = "ra+ia+pr",
        shift: int | None = None,
        depth: int = 10,
        widen_factor: int = 4,
        width: int = 16,
        score_by: str = "ne",
        optimizer: str = "adam",
        lr: float = 1e-3,
        eps: float = 1e-7,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        batch_size: int = 128,
        epochs: int = 250,
    ) -> None:
        super().__init__()
        check_choice("score_by", score_by, ("ne", "mp", "pl"))
        check_choice("optimizer", optimizer, ("adam", "sgd"))
        self.transform = Transformations(shape, operations, shift)
        self.kinds = len(self.transform)
        self.net = WideResNet(shape, self.kinds, depth, widen_factor, width)
        self.learned("order", "turn")
        self.score_by = score_by
        self.optimizer = optimizer
        self.lr, self.eps, self.momentum, self.weight_decay = lr, eps, momentum, weight_decay
        self.batch_size, self.epochs = batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage of classification."""
        if self.optimizer == "sgd":
            weights = self.net.parameters()
            optimizer = SGD(weights, self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        else:
            optimizer = adam(self.net, lr=self.lr, eps=self.eps, weight_decay=self.weight_decay)
        self.order = random_orders(len(train), self.kinds, train.device)
        self.turn = torch.zeros(len(train), dtype=torch.int64, device=train.device)

        def step(batch: Batch) -> dict[str, Tensor]:
            t = next_of(self.order, self.turn, batch.index)
            logits = self.net(self.transform(batch.x, t)).float()
            loss = cross_entropy(logits, t)
            descend(optimizer, loss)
            return detached(classification=loss, accuracy=(logits.argmax(1) == t).float().mean())

        yield Stage("classifier", rounds(self.epochs, self.kinds), step, (optimizer,), self.batch_size)
        self.order, self.turn = self.order[:0].clone(), self.turn[:0].clone()

    def log_p(self, x: Tensor) -> Tensor:
        """log p_t(x), `[N, K, K]`: what is said of each operation on images `[N, C, S, S]`."""
        logits = torch.cat([self.net(views) for views in self.transform.views_in_parts(x)])
        return logits.float().log_softmax(1).view(x.shape[0], self.kinds, self.kinds)

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`."""
        log_p = self.log_p(x)
        if self.score_by == "pl":
            return -log_p.diagonal(dim1=1, dim2=2).exp().mean(1)
        if self.score_by == "mp":
            return -log_p.amax(2).exp().mean(1)
        return -(log_p.exp() * log_p / math.log(2)).sum(2).mean(1)

    def represent(self, x: Tensor) -> Tensor:
        """Features of the images as they are, `[N, D]`."""
        return self.net.features(x)

    def explain(self, x: Tensor) -> Explanation:
        """Score, and features of the images as they are."""
        return Explanation(self.score(x), features=self.represent(x))
