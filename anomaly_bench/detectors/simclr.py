"""SimCLR as a detector: contrastive learning of normal images, the baseline of CSI.

Chen, Kornblith, Norouzi, Hinton, A Simple Framework for Contrastive Learning of Visual Representations, ICML 2020,
arXiv 2002.05709; as a detector in Tack, Mo, Jeong, Shin, CSI, NeurIPS 2020, arXiv 2007.08176, code: alinlab/CSI.

Two random views of an image are drawn together, and away from those of all others, in the direction of their
embeddings. An image is anomalous if its embedding points elsewhere than those of all training images, or is short.

    z(x) = head(features(view of x))
    L    = NT-Xent of the z of two views of each image                        `losses.nt_xent`
    A(x) = - max_m cos(z(x), z(x_m)) |z(x)|      over the training images x_m; z is a mean over views here

`explain` also gives the features of the image itself, for other detectors: `configs/model/simclr_ocsvm.yaml`.

What is the code's, and where ours is another:

- LARS of base rate 0.1 grows tenfold in the first 10 epochs, then falls as a half cosine, of a period of `epochs` after
  the warm-up; after fewer passes the rate has not fallen yet.
- `batch_size`: 512 images in all, its README says, so 1024 views. Rows that do not fill a batch wait for another epoch:
  9 updates of 5,000 images, where its loader gives 10.
- While scoring, the code draws the colours of each view anew for each image; a score would then depend on the image's
  place in its batch. Here the 10 views are the same 10 for every image, drawn once and kept with the weights.
- Hues are computed exactly, the code's are off by up to a degree.
- A training image is not its own neighbour, so that its score is of the kind that other images get. The code, which
  scores no training image, has nothing to say of that. It is known by its pixels.
- `shifts=rotations` adds the quarter turns of every image to its batch as images of their own: the distribution
  augmentation of Sohn and others, ICLR 2021. The shift classifier of CSI itself is not here.

When to use it: On colour images of objects of one kind, thousands of them, with a GPU: 1,000 passes of a
ResNet-18 over two views of each image, then 10 passes for a score. Printed means on CIFAR-10, one class
normal: .879 for this, .890 with an OC-SVM on the features and .925 with rotations besides (DROC;
`model=simclr_ocsvm`, `model.features.shifts=rotations`), .860 for GeoTrans, .943 for CSI, which is not here.
It has no map; what lies in a small part of the image, or in brightness and colour alone, the network learns
to overlook: for defects take `pretrained_patches`.

Traps: `trainer.max_epochs` stops the schedule on its way, below 10 passes while the rate still rises; to
train less set `model.epochs`. An `nt_xent` that stays at ln(2 `model.batch_size` - 1), 6.9 by default, means
that all embeddings are one; with fewer images than a batch there is one update a pass. `model.flip` is on for
all data but mnist, svhn and digits, so turn it off where left and right differ; rotations hurt where objects
look alike when turned, as they count as other images.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, descend, detached
from anomaly_bench.errors import SettingError, check_choice, check_range
from anomaly_bench.lars import LARS
from anomaly_bench.losses import nt_xent
from anomaly_bench.networks.augmentations import DRAWS, augment
from anomaly_bench.networks.mlp import check_sizes
from anomaly_bench.networks.resnet18 import ResNet18
from anomaly_bench.networks.shapes import check_images
from anomaly_bench.rows import numbers_of


class SimCLR(Detector):
    """SimCLR on images `[N, C, H, W]` in [-1, 1].

    Args:
        shape: `(C, H, W)` of one image.
        width: filters of the ResNet-18's first convolution.
        simclr_dim: length of the embeddings.
        tau: temperature of the loss.
        flip: whether views may be mirrored.
        shifts: `none` or `rotations`; see above.
        views: whose mean embeds an image that is scored; 0 for the image itself.
        resize_factor: share of the image that such a view shows.
        lr, warm_up, momentum, weight_decay: of LARS; `warm_up` in epochs.
        batch_size: images; each counts twice, and eight times with rotations.
        epochs: passes over the training images.
    """

    draws: Tensor  # [views, DRAWS], what the views of a score are made of
    steps: Tensor  # int64, updates so far
    bank: Tensor  # [M, simclr_dim], the directions of the training images' embeddings
    known: Tensor  # int64 [M], fingerprints of these images, ascending
    number: Tensor  # int64 [M], which of them each is

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        width: int = 64,
        simclr_dim: int = 128,
        tau: float = 0.5,
        flip: bool = True,
        shifts: str = "none",
        views: int = 10,
        resize_factor: float = 0.54,
        lr: float = 0.1,
        warm_up: int = 10,
        momentum: float = 0.9,
        weight_decay: float = 1e-6,
        batch_size: int = 512,
        epochs: int = 1000,
    ) -> None:
        super().__init__()
        check_images(shape)
        check_choice("shifts", shifts, ("none", "rotations"))
        if shifts == "rotations" and shape[1] != shape[2]:
            raise SettingError(
                f"data.image_size: found images of {shape[1]} x {shape[2]}; model.shifts=rotations takes square ones"
            )
        check_range("tau", tau, above=0)
        check_range("resize_factor", resize_factor, above=0, at_most=1)
        check_range("views", views, at_least=0)
        check_range("warm_up", warm_up, at_least=0)
        check_sizes(simclr_dim=simclr_dim)
        self.features = ResNet18(shape[0], width)
        length = self.features.out_features
        self.head = nn.Sequential(nn.Linear(length, length), nn.ReLU(), nn.Linear(length, simclr_dim))
        always = torch.Generator().manual_seed(0)
        self.register_buffer("draws", torch.rand(views, DRAWS, generator=always))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.learned("bank", "known", "number")
        self.simclr_dim = simclr_dim
        self.tau, self.flip, self.shifts, self.resize_factor = tau, flip, shifts, resize_factor
        self.lr, self.warm_up, self.momentum, self.weight_decay = lr, warm_up, momentum, weight_decay
        self.batch_size, self.epochs = batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage of contrastive learning; then the training images are embedded."""
        rate = torch.zeros((), device=train.device)
        optimizer = LARS(
            [*self.features.parameters(), *self.head.parameters()],
            rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        per_epoch = train.steps(self.batch_size)

        def step(batch: Batch) -> dict[str, Tensor]:
            rate.copy_(self.rate(self.steps / per_epoch))
            self.steps += 1
            loss = nt_xent(self.head(self.features(self.two_views(batch.x))), self.tau)
            descend(optimizer, loss)
            return detached(nt_xent=loss, rate=rate.clone())

        yield Stage("contrastive", self.epochs, step, (optimizer,), self.batch_size, scorable=False)
        self.bank = normalize(train.map(self.embed), dim=1)
        self.known, self.number = train.fingerprints()

    def rate(self, epoch: Tensor) -> Tensor:
        """The learning rate after so many epochs, a scalar as they are."""
        warming = self.lr * (1 + 9 * epoch / max(self.warm_up, 1))
        falling = 5 * self.lr * (1 + torch.cos(math.pi * (epoch - self.warm_up) / max(self.epochs, 1)))
        return torch.where(epoch < self.warm_up, warming, falling)

    def two_views(self, x: Tensor) -> Tensor:
        """One view of each of images `[B, C, H, W]` and of their rotations, if any; then another of each."""
        if self.shifts == "rotations":
            x = torch.cat([x.rot90(turns, (2, 3)) for turns in range(4)])
        pairs = torch.cat([x, x])
        with torch.no_grad():
            return augment(pairs, torch.rand(len(pairs), DRAWS, device=x.device), flip=self.flip)

    def embed(self, x: Tensor) -> Tensor:
        """z of images `[N, C, H, W]`, the mean over the views of a score, `[N, simclr_dim]`."""
        if not len(self.draws):
            return self.head(self.features(x)).float()
        area = self.resize_factor, self.resize_factor
        total = torch.zeros(x.shape[0], self.simclr_dim, device=x.device)
        for draws in self.draws:
            view = augment(x, draws.expand(x.shape[0], -1), flip=False, area=area)
            total += self.head(self.features(view)).float()
        return total / len(self.draws)

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`; all 0 before anything was learned."""
        if not len(self.bank):
            return x.new_zeros(len(x))
        z = self.embed(x)
        with torch.autocast(z.device.type, enabled=False):
            alike = z @ self.bank.T
        own = numbers_of(x, self.known, self.number)
        itself = torch.arange(len(self.bank), device=x.device) == own[:, None]
        return -alike.masked_fill(itself, -torch.inf).amax(1)

    def explain(self, x: Tensor) -> Explanation:
        """Score, and the features of the images as they are, `[N, 8 * width]`."""
        return Explanation(self.score(x), features=self.features(x).float())
