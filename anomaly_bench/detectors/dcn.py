"""DCN: Towards K-means-friendly Spaces, used for anomaly detection as in the DAGMM paper.

Yang, Fu, Sidiropoulos, Hong, ICML 2017, http://proceedings.mlr.press/v70/yang17b.html; code: boyangumn/DCN-New
(Theano).

An autoencoder whose codes are pulled towards the centroids of k-means. Network, assignments and centroids are
updated in turn. A row whose code lies far from its own centroid is an anomaly (Zong et al., ICLR 2018).

    L    = lambda |x - g(f(x))|^2 + beta/2 |f(x) - m_s(x)|^2,   s(x): the nearest centroid at x's last visit
    m_k -= (m_k - f(x)) / c_k after each update, for each row of the batch; c_k counts the rows of k, from 100
    A(x) = |f(x) - m_s(x)|,                                     s(x): the nearest

As in the code, the layers are pretrained one by one, then the autoencoder, then k-means finds the centroids; the
last stages are Nesterov's with twice the rate for biases, c_k goes on over all of them, and after every ten epochs,
the last too, k-means goes on from the centroids over all codes. Ours: pretraining by Adam, where the code has
gradient descent with momentum, at rates for pixels times 5.1, which it has throughout; weights are not tied and begin
as torch's. The code has no half in L. Default sizes are the code's for MNIST; DAGMM's table has its sizes of each data
set, and its tanh.

When to use it: For rows, and small images taken flattened, whose normal kind is several kinds, and where the
clusters are of use themselves. As a detector it is behind DAGMM on all four sets of DAGMM's Table 2, with an
F1 of .776 against .937 on KDD Cup 1999 and .325 against .478 on thyroid. Scoring is one pass of the encoder,
without a map; training is 1,300 epochs by default, 250 for each of four layers, 250 for the autoencoder, and
50 with centroids.

Traps: A code of one unit finds the direction of the largest spread, which the scaling of columns decides: on
thyroid F1 is .050 with columns on [0, 1] (`results/dagmm_thyroid`) and .618 with `data.scale=standard`
(`results/dagmm_standard_scaled`). Where `model.w_cluster` outweighs the reconstruction, codes fall onto
centroids and rows score alike: `cluster` in `losses.csv` goes to 0 while `reconstruction` rises. A row whose
code is near a centroid counts as normal however badly it is rebuilt. `model.k` is not learned, and a centroid
that loses its rows stays. `trainer.max_epochs` bounds each stage, by default ten: at 5, 50 epochs are trained.
The untrained control is k-means on the codes of a random network, which is a detector already.
"""

import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn
from torch.optim import Optimizer

from anomaly_bench.detector import SGD, Batch, Detector, Explanation, Rows, Stage, adam, descend, detached
from anomaly_bench.errors import check_choice, check_range
from anomaly_bench.networks.mlp import check_sizes, mlp

ACTIVATIONS = {"relu": nn.ReLU, "tanh": nn.Tanh}


class DCN(Detector):
    """DCN on rows `[N, D]`, or on images, which it takes flattened.

    Args:
        shape: of one row.
        hidden: layers of the encoder; the decoder has them in reverse.
        activation: `relu` or `tanh`, after each layer but the last.
        code: length of the code.
        k: centroids.
        w_reconstruction, w_cluster: lambda and beta.
        pretrain_epochs: of each layer, and then of the autoencoder; 0 for none.
        pretrain_lr: of Adam in pretraining.
        lr, momentum: of the stochastic gradient descent with centroids.
        batch_size: of all stages.
        epochs: of the stages with centroids, all together.
        refit_every: epochs from one k-means over all codes to the next.
    """

    centroids: Tensor  # [k, code]
    counts: Tensor  # [k]
    assigned: Tensor  # [N], each training row's centroid

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        hidden: Sequence[int] = (500, 500, 2000),
        activation: str = "relu",
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
        refit_every: int = 10,
    ) -> None:
        super().__init__()
        check_sizes(hidden=hidden, code=code, k=k)
        check_choice("activation", activation, ACTIVATIONS)
        check_range("refit_every", refit_every, at_least=1)
        sizes = [math.prod(shape), *hidden, code]
        self.encode, self.decode = (mlp(s, ACTIVATIONS[activation]) for s in (sizes, sizes[::-1]))
        self.register_buffer("centroids", torch.zeros(k, code))
        self.register_buffer("counts", torch.full((k,), 100.0))
        self.learned("assigned")
        self.shape = shape
        self.w_reconstruction, self.w_cluster = w_reconstruction, w_cluster
        self.pretrain_epochs, self.pretrain_lr = pretrain_epochs, pretrain_lr
        self.lr, self.momentum = lr, momentum
        self.batch_size, self.epochs, self.refit_every = batch_size, epochs, refit_every

    def stages(self, train: Rows) -> Iterator[Stage]:
        """Each layer, the autoencoder, and all together with the centroids of k-means, which is fitted between."""
        for layer in range(len(self.encode)):
            yield self.layer_stage(layer)
        yield self.autoencoder_stage()
        seed = int(torch.randint(2**31, ()))
        self.cluster(train, n_init=10, random_state=seed)
        weights = [p for p in self.parameters() if p.dim() > 1]
        biases = [p for p in self.parameters() if p.dim() == 1]
        groups = [{"params": weights}, {"params": biases, "lr": 2 * self.lr}]
        optimizer = SGD(groups, lr=self.lr, momentum=self.momentum, nesterov=self.momentum > 0)
        for done in range(0, self.epochs, self.refit_every):
            epochs = min(self.refit_every, self.epochs - done)
            yield self.cluster_stage(f"clusters {done // self.refit_every + 1}", epochs, optimizer)
            self.cluster(train, init=self.centroids[: len(train)].cpu().numpy(), n_init=1)

    def cluster(self, train: Rows, **settings: Any) -> None:
        """Centroids and assignments by k-means over the codes of all rows."""
        codes = train.map(lambda x: self.encode(x.flatten(1))).float()
        k = min(len(self.centroids), len(codes))
        found = KMeans(k, **settings).fit(codes.cpu().numpy())
        self.centroids[:k] = torch.from_numpy(found.cluster_centers_)
        self.centroids[k:] = self.centroids[0]
        self.assigned = torch.from_numpy(found.labels_).long().to(self.centroids.device)

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

    def cluster_stage(self, name: str, epochs: int, optimizer: Optimizer) -> Stage:
        """Network, then assignments, then centroids, on every batch."""

        def step(batch: Batch) -> dict[str, Tensor]:
            x = batch.x.flatten(1)
            code = self.encode(x)
            own = self.centroids[self.assigned[batch.index]]
            reconstruction = (self.decode(code) - x).square().sum(1).mean()
            cluster = (code - own).square().sum(1).mean()
            descend(optimizer, self.w_reconstruction * reconstruction + self.w_cluster / 2 * cluster)
            with torch.no_grad():
                self.assigned[batch.index] = self.move_centroids(self.encode(x).float())
            return detached(reconstruction=reconstruction, cluster=cluster)

        return Stage(name, epochs, step, (optimizer,), self.batch_size)

    def nearest(self, code: Tensor) -> Tensor:
        """The nearest centroid of each code, int64 `[N]`."""
        return self.distances(code).argmin(1)

    def distances(self, code: Tensor) -> Tensor:
        """Distances of codes from the centroids, `[N, k]`."""
        return (code.float()[:, None] - self.centroids).norm(dim=2)

    def move_centroids(self, code: Tensor) -> Tensor:
        """Each row draws its centroid, which is given, nearer by 1 / c_k, one after the other: a mean that goes on."""
        nearest = self.nearest(code)
        member = nn.functional.one_hot(nearest, len(self.centroids)).to(code.dtype)  # [N, k]
        counts = self.counts + member.sum(0)
        total = self.counts[:, None] * self.centroids + member.T @ code
        self.centroids.copy_(total / counts[:, None])
        self.counts.copy_(counts)
        return nearest

    def score(self, x: Tensor) -> Tensor:
        """Distance of each code from its centroid, `[N]`."""
        return self.distances(self.encode(x.flatten(1))).amin(1)

    def explain(self, x: Tensor) -> Explanation:
        """Score, reconstruction and code."""
        code = self.encode(x.flatten(1))
        rebuilt = self.decode(code).unflatten(1, self.shape)
        return Explanation(self.distances(code).amin(1), None, rebuilt, code)
