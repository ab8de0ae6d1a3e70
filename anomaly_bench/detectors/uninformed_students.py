"""Uninformed Students: Student-Teacher Anomaly Detection with Discriminative Latent Embeddings.

Bergmann, Fauser, Sattlegger, Steger, CVPR 2020, arXiv 1911.02357; no official code. Beside the paper we read
denguir/student-teacher-anomaly-detection and LuyaooChen/uninformed-students-pytorch.

A teacher describes the patch around each pixel by a vector. Students, which only see normal images, learn to say the
same of them. Where they say something else, or do not agree, the pixel is anomalous.

    y       = (T(x) - mu) / sigma                 mu, sigma of each entry over the training images
    L_S     = mean over pixels of |S(x) - y|^2, summed over the M students                      (7)
    e       = |mean_i S_i(x) - y|^2                                                              (9)
    v       = mean_i |S_i(x)|^2 - |mean_i S_i(x)|^2                                             (10)
    map     = (e - e_mu) / e_sigma + (v - v_mu) / v_sigma, averaged over the patch sizes    (11, 12)
    A(x)    = the largest value of the map, or its mean

    L_T     = L_k + lambda_c L_c    with `features`,        L_m + lambda_c L_c    without        (6)
    L_k     = |D(T(p)) - P(p)|^2    P: pooled features of a pretrained network, D: a linear layer (1)
    L_m     = max(0, delta + |a - a+|^2 - min(|a - a-|^2, |a+ - a-|^2))   a, a+, a- = T(p, p+, p-)  (2-4)
    L_c     = sum_{i != j} c_ij^2   correlations of the teacher's entries over the batch; in (5) not squared

Where ours differs from the paper, or the paper does not say:

- **The teacher.** The paper's is distilled from a ResNet-18 on patches of ImageNet, and never sees the data. Here
  there is no ImageNet: patches are of the normal training images, as are those of denguir's teacher. With `features`,
  a pretrained network, L_k distils that, patches being enlarged to its size. Without, the default, which needs no
  weights, the teacher learns by the paper's own self-supervised loss L_m, which it found second best. Numbers of
  neither are the paper's.
- `compactness`: the paper prints the sum of the correlations, which negative ones make smaller. Its least value, -d, is
  that of entries which cancel, and a teacher that learns alone goes there: the digit 0 as the normal one has an AUROC
  of .767, with `squares` of .965 (`results/uninformed_students_mnist_by_pixel`). These, the default, sum the squares,
  as denguir does (over other axes) and as the words of the paper have it.
- p+ is p moved by up to p // 8 pixels, brighter or darker by up to a tenth, with noise; p- is a patch of another image.
- The paper standardises e and v on validation images. Every tenth training image is kept from the students for that.
- Images have a black frame, so that a patch is around every pixel. The one row and column of pixels that a patch of 33
  does not use: `networks/patch.py`.
- `whole`, the default on the small images of classes: an image is one patch, zoomed to p pixels, and has one vector,
  one score and no map. Of the paper's experiments on MNIST and CIFAR-10 we read notes only; they say of its baseline
  1-NN that every single training vector can be stored, and taikiinoue45/STAD that whole images are the input. The
  teacher's patches are then whole images too.
- Elsewhere the paper has no score of a whole image. `image_score` is the maximum of the map, or its mean.
- Its number of epochs, 100, and one image a batch are those for MVTec; a batch of 64 small images has as many pixels.

When to use it: For small defects in images of which only good ones are known, when a map of where is the aim:
the paper's PRO on MVTec AD is .914 with patches of three sizes and .857 to .900 with one, where an
autoencoder has .790 and a VAE .639. It is meant for a GPU: 50,000 updates of a teacher for each patch size,
then 100 passes of three to five students, and all of these at every pixel for a score. `pretrained_patches`
gives a map without any training, where ImageNet features will do; where only whole images are to be judged,
`model.image_score=mean` asks for more than one odd pixel.

Traps: The printed numbers have a teacher that knows ImageNet; without `model.features` it has learned to
tell apart only what differs among the normal images. A `metric` that stays at `model.delta` in `losses.csv`
is a teacher that says the same of all patches, and a `compactness` of -d one whose entries cancel, as
`model.compactness=sum` allows. A patch of 33 pixels is as large as a 32-pixel image, which has a map that
says where with `model.whole=false model.patch_sizes=[17]` only. With `model.students=1` nobody disagrees and v is 0.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from typing import ClassVar, Self

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import SettingError, check_choice, check_range
from anomaly_bench.features import part, stages_of, vectors_of
from anomaly_bench.networks.parts import in_parts
from anomaly_bench.networks.patch import PatchNetwork, moved, patches_at, random_pixels, varied
from anomaly_bench.networks.shapes import check_images

HELD_OUT = 10
"""Of so many training rows, the last is kept from the students."""

AT_ONCE = 2**15
"""Pixels that are described at once."""

ON_A_CPU = 2**12
"""As many on a CPU, whose caches then hold what a layer makes of them."""


class Scale(nn.Module):
    """Teacher and students of one patch size, and what standardises them."""

    mean: Tensor  # [d], mu of the teacher
    std: Tensor  # [d], sigma
    usual: Tensor  # [2, 2], mean and deviation of e, and of v, on normal images that no student saw

    def __init__(
        self,
        p: int,
        channels: int,
        width: int,
        d: int,
        students: int,
        features: Callable[..., Detector] | None = None,
        whole: bool = False,
    ) -> None:
        super().__init__()
        self.whole = whole
        self.features = part("features", features, (channels, p, p)) if features else None
        self.teacher = PatchNetwork(p, channels, width, d)
        self.students = nn.ModuleList(PatchNetwork(p, channels, width, d) for _ in range(students))
        self.decode = nn.Linear(d, length_of(self.features, (channels, p, p))) if self.features else None
        self.register_buffer("mean", torch.zeros(d))
        self.register_buffer("std", torch.ones(d))
        self.register_buffer("usual", torch.tensor([[0.0, 1.0], [0.0, 1.0]]))

    def train(self, mode: bool = True) -> Self:
        """Set the mode of all but the features, which stay in evaluation: nothing of them learns."""
        super().train(mode)
        if self.features is not None:
            self.features.eval()
        return self

    def target(self, x: Tensor) -> Tensor:
        """y of images `[N, C, H, W]`, `[N, d, H, W]`."""
        return (self.vectors(self.teacher, x).float() - self.mean[:, None, None]) / self.std[:, None, None]

    def answers(self, x: Tensor) -> Tensor:
        """What the students say of images `[N, C, H, W]`, `[M, N, d, H, W]`."""
        return torch.stack([self.vectors(student, x).float() for student in self.students])  # pyright: ignore

    def vectors(self, network: nn.Module, x: Tensor) -> Tensor:
        """What a network says of images `[N, C, H, W]`: `[N, d, H, W]`, of `whole` ones `[N, d, 1, 1]`."""
        assert isinstance(network, PatchNetwork)
        return network(zoomed(x, network.p))[:, :, None, None] if self.whole else network.dense(x)

    def patches(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images `[B, C, H, W]`, zoomed where seen whole, and row and column, `[B]`, of a pixel to take a patch at."""
        if not self.whole:
            return x, *random_pixels(x)
        x = zoomed(x, self.teacher.p)
        middle = torch.full((len(x),), self.teacher.p // 2, device=x.device)
        return x, middle, middle

    def error_and_variance(self, x: Tensor) -> Tensor:
        """e and v, equations (9) and (10), of the pixels of images `[N, C, H, W]`, `[N, 2, H, W]`."""
        answers = self.answers(x)
        mean = answers.mean(0)
        error = (mean - self.target(x)).square().sum(1)
        variance = (answers - mean).square().sum(2).mean(0)
        return torch.stack([error, variance], 1)

    def forward(self, x: Tensor) -> Tensor:
        """Equation (11), the map `[N, H, W]` of images `[N, C, H, W]`."""
        mean, std = self.usual.T[:, :, None, None]
        return ((self.error_and_variance(x) - mean) / std).sum(1)


class UninformedStudents(Detector):
    """Uninformed Students on images `[N, C, H, W]` in [-1, 1] of any size.

    Args:
        shape: `(C, H, W)` of one image.
        patch_sizes: of 17, 33 and 65; a teacher and its students for each.
        students: M.
        width, d: filters of the networks' first convolution, and length of the vectors.
        features: called as `features(shape=(C, p, p))`, gives the pretrained detector whose pooled features of
            patches the teacher learns to say; None for a teacher that learns alone.
        lambda_c: weight of L_c.
        compactness: `squares` of the correlations, or their `sum`; see above.
        delta: margin of L_m.
        teacher_lr, teacher_batch_size: of the teacher's Adam.
        teacher_steps: its updates, rounded up to whole epochs.
        image_score: `max` or `mean` of the map.
        whole: each image is one patch, and has no map.
        lr, batch_size, epochs: of the students' Adam.
        weight_decay: of both.
    """

    scored_by: ClassVar[tuple[str, ...]] = ("image_score",)

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        patch_sizes: Sequence[int] = (33,),
        students: int = 3,
        width: int = 128,
        d: int = 128,
        features: Callable[..., Detector] | None = None,
        lambda_c: float = 1.0,
        compactness: str = "squares",
        delta: float = 1.0,
        teacher_lr: float = 2e-4,
        teacher_batch_size: int = 64,
        teacher_steps: int = 50_000,
        image_score: str = "max",
        whole: bool = False,
        lr: float = 1e-4,
        weight_decay: float = 1e-5,
        batch_size: int = 1,
        epochs: int = 100,
    ) -> None:
        super().__init__()
        check_choice("compactness", compactness, ("sum", "squares"))
        check_choice("image_score", image_score, ("max", "mean"))
        check_range("students", students, at_least=1)
        if not patch_sizes or len(set(patch_sizes)) < len(patch_sizes):
            raise SettingError(f"model.patch_sizes={list(patch_sizes)}: must be one or more, each once")
        check_images(shape)
        self.scales = nn.ModuleList(
            Scale(p, shape[0], width, d, students, features, whole) for p in patch_sizes
        )
        self.whole = whole
        self.pixels = max(patch_sizes) ** 2 if whole else math.prod(shape[1:])
        self.lambda_c, self.compactness, self.delta = lambda_c, compactness, delta
        self.teacher_lr, self.teacher_batch_size = teacher_lr, teacher_batch_size
        self.teacher_steps = teacher_steps
        self.image_score = image_score
        self.lr, self.weight_decay, self.batch_size, self.epochs = lr, weight_decay, batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """For each patch size the teacher, then all students at once; after each, what standardises it."""
        if len(train) < 2:
            raise SettingError(f"model: it takes at least 2 training rows, found {len(train)}")
        held = held_out(torch.arange(len(train), device=train.device), len(train))
        for scale in self.scales:
            assert isinstance(scale, Scale)
            name = f"_{scale.teacher.p}" if len(self.scales) > 1 else ""
            yield from stages_of(scale.features, train)
            yield self.teacher_stage(f"teacher{name}", scale, train)
            scale.mean, scale.std = self.described(scale, train, ~held)
            yield self.student_stage(f"students{name}", scale, len(train))
            scale.usual = self.measured(scale, train, held)

    def teacher_stage(self, name: str, scale: Scale, train: Rows) -> Stage:
        """The teacher on random patches, by features if there are any."""
        teacher, decode, features = scale.teacher, scale.decode, scale.features
        trained = [teacher] if decode is None else [teacher, decode]
        optimizer = adam(*trained, lr=self.teacher_lr, weight_decay=self.weight_decay)

        def distilled(batch: Batch) -> dict[str, Tensor]:
            assert decode is not None
            assert features is not None
            patches = patches_at(*scale.patches(batch.x), teacher.p)
            described = teacher(patches)
            with torch.no_grad():
                wanted = features.represent(patches)
            l_k = (decode(described) - wanted).float().square().sum(1).mean()
            l_c = self.compactness_loss(described)
            descend(optimizer, l_k + self.lambda_c * l_c)
            return detached(distillation=l_k, compactness=l_c)

        def alone(batch: Batch) -> dict[str, Tensor]:
            near, far, l_c = self.compared(scale, batch.x)
            l_m = (self.delta + near - far).relu().mean()
            descend(optimizer, l_m + self.lambda_c * l_c)
            return detached(metric=l_m, compactness=l_c)

        epochs = math.ceil(self.teacher_steps / train.steps(self.teacher_batch_size))
        step = alone if features is None else distilled
        return Stage(name, epochs, step, (optimizer,), self.teacher_batch_size, scorable=False)

    def compared(self, scale: Scale, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Squared distances to p+ and to p-, `[B]`, of a patch of each of images `[B, C, H, W]`; and L_c."""
        teacher = scale.teacher
        images, top, left = scale.patches(x)
        anchor = patches_at(images, top, left, teacher.p)
        positive = varied(patches_at(images, *moved(images, top, left, teacher.p // 8), teacher.p))
        negative = patches_at(*scale.patches(x.roll(1, 0)), teacher.p)
        a, b, c = teacher(torch.cat([anchor, positive, negative])).float().chunk(3)
        far = torch.minimum((a - c).square().sum(1), (b - c).square().sum(1))
        return (a - b).square().sum(1), far, self.compactness_loss(a)

    def compactness_loss(self, described: Tensor) -> Tensor:
        """Equation (5), of vectors `[B, d]`."""
        described = described.float()
        std, mean = torch.std_mean(described, 0, correction=0)
        standard = (described - mean) / std.clamp_min(1e-6)
        with torch.autocast(described.device.type, enabled=False):
            correlations = standard.T @ standard / len(described)
        if self.compactness == "squares":
            correlations = correlations.square()
        return correlations.sum() - correlations.diagonal().sum()

    def student_stage(self, name: str, scale: Scale, rows: int) -> Stage:
        """All students of a scale, equation (7), by one Adam."""
        optimizer = adam(scale.students, lr=self.lr, weight_decay=self.weight_decay)

        def step(batch: Batch) -> dict[str, Tensor]:
            with torch.no_grad():
                target = scale.target(batch.x)
                # A batch of held-out rows alone still moves by Adam's momentum: every tenth, where batches are of one.
                learned = (~held_out(batch.index, rows)).float()
            each = (scale.answers(batch.x) - target).square().sum(2).mean((2, 3))  # [M, B]
            loss = (each.sum(0) * learned).sum() / learned.sum().clamp_min(1)
            descend(optimizer, loss)
            return detached(regression=loss)

        return Stage(name, self.epochs, step, (optimizer,), self.batch_size, scorable=False)

    def described(self, scale: Scale, train: Rows, chosen: Tensor) -> tuple[Tensor, Tensor]:
        """mu and sigma of the teacher over all pixels of the chosen rows (bool `[N]`), each `[d]`."""
        parts = []
        for index in self.in_parts(chosen.nonzero()[:, 0]):
            vectors = scale.vectors(scale.teacher, train.take(index))
            parts.append(torch.var_mean(vectors, (2, 3), correction=0))
        variances, means = (torch.cat(part) for part in zip(*parts, strict=True))
        variance, mean = torch.var_mean(means, 0, correction=0)
        return mean, (variance + variances.mean(0)).sqrt().clamp_min(1e-6)

    def measured(self, scale: Scale, train: Rows, chosen: Tensor) -> Tensor:
        """Mean and deviation of e and of v over all pixels of the chosen rows (bool `[N]`), `[2, 2]`."""
        seen = torch.cat(
            [scale.error_and_variance(train.take(index)) for index in self.in_parts(chosen.nonzero()[:, 0])]
        )
        std, mean = torch.std_mean(seen, (0, 2, 3), correction=0)
        return torch.stack([mean, std.clamp_min(1e-6)], 1)

    def in_parts(self, rows: Tensor) -> tuple[Tensor, ...]:
        """Images, or indices of some, in parts that are described at once."""
        return in_parts(rows, AT_ONCE // self.pixels, ON_A_CPU // self.pixels)

    def score(self, x: Tensor) -> Tensor:
        """A(x), `[N]`."""
        return self.explain(x).score

    def explain(self, x: Tensor) -> Explanation:
        """Score, and the map of equation (12)."""
        parts = self.in_parts(x)
        maps = torch.cat([torch.stack([scale(part) for scale in self.scales]).mean(0) for part in parts])
        flat = maps.flatten(1)
        score = flat.amax(1) if self.image_score == "max" else flat.mean(1)
        return Explanation(score, None if self.whole else maps)


def zoomed(x: Tensor, p: int) -> Tensor:
    """Images `[N, C, H, W]` in p x p pixels."""
    if x.shape[2:] == (p, p):
        return x
    return interpolate(x, (p, p), mode="bilinear", antialias=True)


def held_out(index: Tensor, rows: int) -> Tensor:
    """Which of the training rows `index` `[B]` no student learns, bool `[B]`: every tenth, and at least one."""
    every = min(HELD_OUT, rows)
    return index % every == every - 1


def length_of(features: Detector, shape: tuple[int, ...]) -> int:
    """How many pooled features there are of a patch of that shape."""
    with torch.no_grad():
        return vectors_of(features.eval(), torch.zeros(1, *shape)).shape[1]
