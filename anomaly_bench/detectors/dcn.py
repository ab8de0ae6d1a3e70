"""DCN: Towards K-means-friendly Spaces, used for anomaly detection as in the DAGMM paper.

Yang, Fu, Sidiropoulos, Hong, ICML 2017, http://proceedings.mlr.press/v70/yang17b.html; code: boyangumn/DCN-New
(Theano).

An autoencoder whose codes are pulled towards the centroids of k-means. Network, assignments and centroids are
updated in turn. A row whose code lies far from its own centroid is an anomaly (Zong et al., ICLR 2018).

    L    = lambda |x - g(f(x))|^2 + beta/2 |f(x) - m_s(x)|^2,   s(x): the nearest centroid
    m_k -= (m_k - f(x)) / c_k after each update, for each row of the batch; c_k counts the rows of k
    A(x) = |f(x) - m_s(x)|

As in the code, the layers are pretrained one by one, then the autoencoder, then k-means finds the centroids, and
c_k goes on over the epochs. Ours: pretraining by Adam, whose rate in the code is not known to us; c_k starts from
the rows that k-means gave to k; a row's centroid in L is the nearest now, where the code keeps the one of its last
visit. Default sizes are the code's for MNIST; for DAGMM's table take its sizes of each data set.

When to use it: For rows, and small images taken flattened, whose normal kind is several kinds, and where the
clusters are of use themselves. As a detector it is behind DAGMM on all four sets of DAGMM's Table 2, with an
F1 of .776 against .937 on KDD Cup 1999 and .325 against .478 on thyroid. Scoring is one pass of the encoder,
without a map; training is 1,300 epochs by default, 250 for each of four layers, 250 for the autoencoder, and
50 with centroids.

Traps: Where `model.w_cluster` outweighs the reconstruction, codes fall onto centroids and rows score alike:
`cluster` in `losses.csv` goes to 0 while `reconstruction` rises. A row whose code is near a centroid counts
as normal however badly it is rebuilt. `model.k` is not learned, and a centroid that loses its rows stays.
`trainer.max_epochs` bounds each stage, by default six: at 10, 60 epochs are trained. The untrained control is
k-means on the codes of a random network, which is a detector already.
"""

import math
from collections.abc import Iterator, Sequence

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.optim import SGD

from anomaly_bench.detector import Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.networks.mlp import check_sizes, mlp


class DCN(Detector):
    """DCN on rows `[N, D]`, or on images, which it takes flattened.

    Args:
        shape: of one row.
        hidden: layers of the encoder, with ReLU; the decoder has them in reverse.
        code: length of the code.
        k: centroids.
        w_reconstruction, w_cluster: lambda and beta.
        pretrain_epochs: of each layer, and then of the autoencoder; 0 for none.
        pretrain_lr: of Adam in pretraining.
        lr, momentum: of the stochastic gradient descent with centroids.
        batch_size: of all stages.
        epochs: of the stage with centroids.
    """

    centroids: Tensor
    counts: Tensor

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        hidden: Sequence[int] = (500, 500, 2000),
        code: int = 10,
        k: int = 10,
        w_reconstruction: float = 1.0,
        w_cluster: float = 1.0,
        pretrain_epochs: int = 250,
        pretrain_lr: float = 1e-3,
        lr: float = 1e-4,
        momentum: float = 0.9,
        batch_size: int = 256,
        epochs: int = 50,
    ) -> None:
        super().__init__()
        check_sizes(hidden=hidden, code=code, k=k)
        sizes = [math.prod(shape), *hidden, code]
        self.encode, self.decode = mlp(sizes, nn.ReLU), mlp(sizes[::-1], nn.ReLU)
        self.register_buffer("centroids", torch.zeros(k, code))
        self.register_buffer("counts", torch.ones(k))
        self.shape = shape
        self.w_reconstruction, self.w_cluster = w_reconstruction, w_cluster
        self.pretrain_epochs, self.pretrain_lr = pretrain_epochs, pretrain_lr
        self.lr, self.momentum = lr, momentum
        self.batch_size, self.epochs = batch_size, epochs

    def stages(self, train: Rows) -> Iterator[Stage]:
        """Each layer, the autoencoder, and with the centroids of k-means all together."""
        for layer in range(len(self.encode)):
            yield self.layer_stage(layer)
        yield self.autoencoder_stage()
        codes = train.map(lambda x: self.encode(x.flatten(1)))
        k, seed = min(len(self.centroids), len(codes)), int(torch.randint(2**31, ()))
        means = KMeans(k, n_init=10, random_state=seed)  # pyright: ignore[reportArgumentType]
        found = means.fit(codes.cpu().numpy())
        self.centroids[:k] = torch.from_numpy(found.cluster_centers_)
        self.centroids[k:] = self.centroids[0]
        self.counts[:k] = torch.from_numpy(found.labels_).long().bincount(minlength=k).float()
        yield self.cluster_stage()

    def layer_stage(self, layer: int) -> Stage:
        """A layer of the encoder and its mirror learn to rebuild the layer's inputs."""
        below, up, down = self.encode[:layer], self.encode[layer], self.decode[-1 - layer]
        optimizer = adam(up, down, lr=self.pretrain_lr)

        def step(batch: Batch) -> dict[str, Tensor]:
            with torch.no_grad():
                inputs = below(batch.x.flatten(1))
            loss = (down(up(inputs)) - inputs).square().sum(1).mean()
            descend(optimizer, loss)
            return detached(reconstruction=loss)

        name = f"layer {layer + 1}"
        return Stage(name, self.pretrain_epochs, step, (optimizer,), self.batch_size, scorable=False)

    def autoencoder_stage(self) -> Stage:
        """The whole autoencoder, without centroids."""
        optimizer = adam(self.encode, self.decode, lr=self.pretrain_lr)

        def step(batch: Batch) -> dict[str, Tensor]:
            x = batch.x.flatten(1)
            loss = (self.decode(self.encode(x)) - x).square().sum(1).mean()
            descend(optimizer, loss)
            return detached(reconstruction=loss)

        return Stage("autoencoder", self.pretrain_epochs, step, (optimizer,), self.batch_size, scorable=False)

    def cluster_stage(self) -> Stage:
        """Network, then assignments, then centroids, on every batch."""
        parameters = [*self.encode.parameters(), *self.decode.parameters()]
        optimizer = SGD(parameters, lr=self.lr, momentum=self.momentum)

        def step(batch: Batch) -> dict[str, Tensor]:
            x = batch.x.flatten(1)
            code = self.encode(x)
            own = self.centroids[self.nearest(code.detach())]
            reconstruction = (self.decode(code) - x).square().sum(1).mean()
            cluster = (code - own).square().sum(1).mean()
            descend(optimizer, self.w_reconstruction * reconstruction + self.w_cluster / 2 * cluster)
            with torch.no_grad():
                self.move_centroids(self.encode(x).float())
            return detached(reconstruction=reconstruction, cluster=cluster)

        return Stage("clusters", self.epochs, step, (optimizer,), self.batch_size)

    def nearest(self, code: Tensor) -> Tensor:
        """The nearest centroid of each code, int64 `[N]`."""
        return self.distances(code).argmin(1)

    def distances(self, code: Tensor) -> Tensor:
        """Distances of codes from the centroids, `[N, k]`."""
        return (code.float()[:, None] - self.centroids).norm(dim=2)

    def move_centroids(self, code: Tensor) -> None:
        """Each row draws its centroid nearer by 1 / c_k, one after the other: a mean that goes on."""
        member = nn.functional.one_hot(self.nearest(code), len(self.centroids)).to(code.dtype)  # [N, k]
        counts = self.counts + member.sum(0)
        total = self.counts[:, None] * self.centroids + member.T @ code
        # A centroid that k-means left without rows stays where it is until it has one.
        self.centroids.copy_(
            torch.where(counts[:, None] > 0, total / counts.clamp_min(1)[:, None], self.centroids)
        )
        self.counts.copy_(counts)

    def score(self, x: Tensor) -> Tensor:
        """Distance of each code from its centroid, `[N]`."""
        return self.distances(self.encode(x.flatten(1))).amin(1)

    def explain(self, x: Tensor) -> Explanation:
        """Score, reconstruction and code."""
        code = self.encode(x.flatten(1))
        rebuilt = self.decode(code).unflatten(1, self.shape)
        return Explanation(self.distances(code).amin(1), None, rebuilt, code)
