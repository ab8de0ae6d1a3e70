"""MemAE: an autoencoder that rebuilds from a few remembered codes.

Gong, Liu, Le, Saha, Mansour, Venkatesh, van den Hengel, Memorizing Normality to Detect Anomaly, ICCV 2019,
https://arxiv.org/abs/1904.02639; code (video only): donggong1/memae-anomaly-detection.

The code is replaced by a sparse convex mix of N learned items before it is decoded. What the items cannot
mix, they rebuild as something normal, so anomalous rows come back with a larger error.

    w_i  = softmax_i d(z, m_i)                                     equations 3 to 5, d the cosine
    w'_i = max(w_i - lambda, 0) w_i / (|w_i - lambda| + eps),  then w' / |w'|_1            equations 6, 7
    L    = mean (x - x^)^2 + alpha mean sum_i -w'_i log w'_i                               equation 9
    A(x) = |x - x^|^2,   x^ decoded from z^ = sum_i w'_i m_i

An item stands for the whole code of an image (`query=code`) or for one position of its feature map
(`query=position`): the paper has both, its code only the second, for video. No official code says which it was
for images. Where paper and code differ: d is the cosine in the paper and the dot product in the code
(`similarity=dot`). Cosines lie in [-1, 1], so that their softmax is close to 1/N and a lambda above it removes
every item; hence lambda = 1/N, the least of the paper's range, where the code has 5/N for N = 2000. The first
convolution has a kernel of 1, as re-implementations agree; its mirror would leave three of four pixels without
input, so every kernel of the decoder is 3. Neither says how long images are learned; ours is the video code's.

The other rows of the paper's Table 1 are settings, as we read them:

    memae_ae        `memory=0`: the same autoencoder without a memory
    memae_nonspar   `shrink=0 alpha=0`: a memory whose weights nothing makes sparse

When to use it: On small images of one normal class where a plain autoencoder rebuilds anomalies too: after 20
epochs of a digit's images (`results/memae_mnist_all_rows`) it has a mean AUROC of .958 and its own autoencoder
.794. Another, `ae`, is no worse on a tenth of them (`results/memae_mnist`): .924 of .932, which a signed rank
test does not tell from chance (p .375); with nine normal digits (`results/autoencoders_mnist`) .744 and .794,
lost on the 8 (.585 against .898). Training and scoring are cheap, five to nine times as many images a second as
`ae` (`results/cost.md`). Rows of numbers take `memae_kdd`.

Traps: With cosines, `model.shrink` above 1 removes all items at the start: every row is rebuilt as the same
one, and `entropy` in `losses.csv` is 0. At 1 the mix is hardly sparse: `entropy` ends near 3.6 in the records
of `results/memae_mnist`, of ln 100 = 4.6 at most, which is about 37 items for an image. The autoencoder without
the memory falls as it learns, from .849 on 600 images to .794 on 6,000, where the paper's has .962: that may
be shorter training or another network. The untrained control has a mean of .500 there, but from .007 to .749
for single digits: look at each. A number says little without `model.query`, which the paper leaves open
for images, as it does the rule for its threshold on KDD Cup 99.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import SettingError, check_choice, check_range
from anomaly_bench.networks import pairs
from anomaly_bench.networks.cae import squared_error
from anomaly_bench.networks.dense import DenseDecoder, DenseEncoder
from anomaly_bench.networks.mlp import check_sizes

EPSILON = 1e-12


class MemAE(Detector):
    """A memory-augmented autoencoder on images `[N, C, H, W]` of any size, or rows `[N, D]` with `network=dense`.

    Args:
        shape: of one row.
        network: `conv`, or `dense`.
        channels, kernels: of the stages of `conv`, each of stride 2.
        hidden, code: units of the tanh layers of `dense`, from the row down, and of its linear code.
        memory: N, the number of items; 0 for none, so that the code itself is decoded.
        shrink: lambda in units of 1/N; 0 for none.
        similarity: `cosine` or `dot`.
        query: `code` or `position`, what one item stands for; `position` needs `conv`.
        alpha: weight of the entropy.
        lr, batch_size, epochs: of Adam.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        network: str = "conv",
        channels: Sequence[int] = (16, 32, 64),
        kernels: Sequence[int] = (1, 3, 3),
        hidden: Sequence[int] = (60, 30, 10),
        code: int = 3,
        memory: int = 100,
        shrink: float = 1.0,
        similarity: str = "cosine",
        query: str = "code",
        alpha: float = 2e-4,
        lr: float = 1e-4,
        batch_size: int = 10,
        epochs: int = 100,
    ) -> None:
        super().__init__()
        pairs.check(network, shape)
        check_choice("similarity", similarity, ("cosine", "dot"))
        check_choice("query", query, ("code", "position"))
        check_range("shrink", shrink, at_least=0)
        if memory:
            check_sizes(memory=memory)
        if network == "conv":
            code_shape = self.build_conv(shape, channels, kernels)
        else:
            if query == "position":
                raise SettingError("model.query=position: it needs model.network=conv; use code")
            self.encode = DenseEncoder(shape, code, hidden, nn.Tanh)
            self.decode = DenseDecoder(shape, code, hidden, nn.Tanh)
            code_shape = (code,)
        length = math.prod(code_shape[: 1 if query == "position" else None])
        bound = 1 / math.sqrt(length)
        self.memory = nn.Parameter(torch.empty(memory, length).uniform_(-bound, bound)) if memory else None
        self.shrink, self.similarity = shrink / max(1, memory), similarity
        self.query, self.alpha = query, alpha
        self.lr, self.batch_size, self.epochs = lr, batch_size, epochs

    def build_conv(
        self, shape: tuple[int, ...], channels: Sequence[int], kernels: Sequence[int]
    ) -> tuple[int, ...]:
        """The convolutional pair; gives the shape of the feature map between them."""
        check_sizes(channels=channels)
        if len(kernels) != len(channels) or any(kernel % 2 == 0 for kernel in kernels):
            raise SettingError(f"model.kernels={kernels}: needed is an odd number for each of model.channels")
        widths, sides = [shape[0], *channels], [shape[1:]]
        down: list[nn.Module] = []
        up: list[nn.Module] = []
        for stage, (channel, kernel) in enumerate(zip(channels, kernels, strict=True)):
            height, width = sides[-1]
            sides.append(((height + 1) // 2, (width + 1) // 2))
            # On some CPUs torch 2.15 corrupts memory in 1 x 1 convolutions of stride 2: they pick pixels first.
            pick, stride = ([nn.MaxPool2d(1, 2)], 1) if kernel == 1 else ([], 2)
            convolution = nn.Conv2d(widths[stage], channel, kernel, stride, kernel // 2, bias=False)
            down += [*pick, convolution, nn.BatchNorm2d(channel), nn.ReLU()]
            odd = (1 - height % 2, 1 - width % 2)  # what a side loses when it is halved
            back = nn.ConvTranspose2d(channel, widths[stage], 3, 2, 1, output_padding=odd, bias=not stage)
            up = [back, *([nn.BatchNorm2d(widths[stage]), nn.ReLU()] if stage else []), *up]
        self.encode, self.decode = nn.Sequential(*down), nn.Sequential(*up)
        return channels[-1], *sides[-1]

    def stages(self, train: Rows) -> Iterator[Stage]:
        """One stage, of networks and memory together."""
        optimizer = adam(self, lr=self.lr)

        def step(batch: Batch) -> dict[str, Tensor]:
            rebuilt, weights = self(batch.x)
            reconstruction = mse_loss(rebuilt.float(), batch.x)
            if self.memory is None:
                descend(optimizer, reconstruction)
                return detached(reconstruction=reconstruction)
            entropy = -(weights * torch.log(weights + EPSILON)).sum(1).mean()
            descend(optimizer, reconstruction + self.alpha * entropy)
            return detached(reconstruction=reconstruction, entropy=entropy)

        yield Stage("memae", self.epochs, step, (optimizer,), self.batch_size)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Reconstructions `[N, *shape]` and weights `[Q, memory]` of the queries, Q = N or N times positions.

        Without a memory the codes `[N, length]` in place of the weights.
        """
        z = self.encode(x)
        if self.memory is None:
            return self.decode(z), z.flatten(1)
        if self.query == "code":
            weights = self.address(z.flatten(1), self.memory)
            return self.decode((weights @ self.memory).view(z.shape)), weights
        queries = z.movedim(1, -1)
        weights = self.address(queries.flatten(0, -2), self.memory)
        return self.decode((weights @ self.memory).view(queries.shape).movedim(-1, 1)), weights

    def address(self, z: Tensor, items: Tensor) -> Tensor:
        """Weights w' `[Q, memory]` of the items for queries `[Q, length]`, in float32, each row's sum 1."""
        with torch.autocast(z.device.type, enabled=False):
            z = z.float()
            if self.similarity == "cosine":
                z, items = normalize(z, dim=1), normalize(items, dim=1)
            w = torch.softmax(z @ items.t(), dim=1)
            above = w - self.shrink
            shrunk = torch.relu(above) * w / (above.abs() + EPSILON)
            return normalize(shrunk, p=1, dim=1, eps=EPSILON)

    def score(self, x: Tensor) -> Tensor:
        """Squared error summed over each row, `[N]`."""
        return squared_error(x, self(x)[0])

    def explain(self, x: Tensor) -> Explanation:
        """Score, squared residual map, reconstruction, and the weights of the items, averaged over positions."""
        rebuilt, weights = self(x)
        weights = weights.view(x.shape[0], -1, weights.shape[1]).mean(1)
        return Explanation.of_errors((x - rebuilt).float().square(), x, rebuilt, weights)
