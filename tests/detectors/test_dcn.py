import numpy as np
import pytest
import torch
from layers import layers_of
from sklearn.cluster import KMeans
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from steps import batch_of, descend_plainly

from anomaly_bench.detector import Batch, Rows
from anomaly_bench.detectors.dcn import DCN
from anomaly_bench.errors import SettingError
from anomaly_bench.training.trainer import Trainer, Walk


def small(**settings) -> DCN:
    torch.manual_seed(0)
    return DCN((6,), **{"hidden": [5], "code": 2, "k": 3, "batch_size": 20, "lr": 1e-2} | settings)


def rows() -> Rows:
    return Rows(torch.rand(60, 6, generator=torch.Generator().manual_seed(0)))


def test_layers_are_those_of_the_code_for_mnist() -> None:
    detector = DCN((784,))
    assert layers_of(detector.encode) == [
        "linear 784-500, relu",
        "linear 500-500, relu",
        "linear 500-2000, relu",
        "linear 2000-10",
    ]
    assert layers_of(detector.decode) == [
        "linear 10-2000, relu",
        "linear 2000-500, relu",
        "linear 500-500, relu",
        "linear 500-784",
    ]


def test_stages_and_what_they_move() -> None:
    detector, train = small(epochs=15), rows()
    walk, seen = Walk(detector, train), []
    while (stage := walk.next()) is not None:
        before = {name: x.clone() for name, x in detector.state_dict().items()}
        stage.step(Batch(train.x[:20], torch.arange(20)))
        moved = {name for name, x in detector.state_dict().items() if (x != before[name]).any()}
        moved = {name.removesuffix(".weight").removesuffix(".bias") for name in moved} - {"assigned"}
        seen.append((stage.name, moved))
    nets = {"encode.0.0", "encode.1", "decode.0.0", "decode.1"}
    assert seen == [
        ("layer 1", {"encode.0.0", "decode.1"}),
        ("layer 2", {"encode.1", "decode.0.0"}),
        ("autoencoder", nets),
        ("clusters 1", nets | {"centroids", "counts"}),
        ("clusters 2", nets | {"centroids", "counts"}),
    ]
    assert detector.counts.sum() == 3 * 100 + 2 * 20  # they go on


def test_k_means_starts_the_centroids() -> None:
    detector, train = small(), rows()
    walk = Walk(detector, train)
    for _ in range(4):
        walk.next()
    codes = detector.encode(train.x).detach()
    own = torch.cdist(codes, detector.centroids).argmin(1)
    for k in range(3):
        torch.testing.assert_close(detector.centroids[k], codes[own == k].mean(0), rtol=1e-4, atol=1e-5)
    assert detector.assigned.tolist() == own.tolist()
    assert detector.counts.tolist() == [100, 100, 100]


def test_k_means_goes_on_from_the_centroids_after_each_of_the_last_stages() -> None:
    detector, train = small(epochs=20), rows()
    walk = Walk(detector, train)
    for _ in range(4):
        walk.next()
    for _ in range(2):
        detector.centroids.add_(torch.randn(3, 2, generator=torch.Generator().manual_seed(1)) / 50)
        codes, start = detector.encode(train.x).detach(), detector.centroids.clone()
        walk.next()
        expected = KMeans(3, init=start.numpy(), n_init=1).fit(codes.numpy())
        torch.testing.assert_close(detector.centroids, torch.from_numpy(expected.cluster_centers_))
        assert detector.assigned.tolist() == expected.labels_.tolist()
        assert (detector.centroids != start).any()


@pytest.mark.parametrize(("activation", "act"), [("relu", torch.relu), ("tanh", torch.tanh)])
def test_one_update_of_each_pretraining_stage(activation, act) -> None:
    detector, train = small(activation=activation, pretrain_lr=3e-3), rows()
    walk, x = Walk(detector, train), train.x[:20]
    for learning in ([0, 1, 6, 7], [2, 3, 4, 5], list(range(8))):
        stage = walk.next()
        weights = [parameter.detach().clone().requires_grad_() for parameter in detector.parameters()]
        hidden = act(x @ weights[0].T + weights[1])
        if learning == [0, 1, 6, 7]:
            inputs, rebuilt = x, hidden @ weights[6].T + weights[7]
        elif learning == [2, 3, 4, 5]:
            inputs = hidden.detach()
            rebuilt = act((inputs @ weights[2].T + weights[3]) @ weights[4].T + weights[5])
        else:
            code = hidden @ weights[2].T + weights[3]
            inputs, rebuilt = x, act(code @ weights[4].T + weights[5]) @ weights[6].T + weights[7]
        loss = ((rebuilt - inputs) ** 2).sum(1).mean()
        descend_plainly(torch.optim.Adam([weights[i] for i in learning], lr=3e-3), loss)
        assert stage.step(batch_of(x))["reconstruction"].item() == pytest.approx(loss.item(), rel=1e-5)
        for parameter, expected in zip(detector.parameters(), weights, strict=True):
            torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("activation", "act"), [("relu", torch.relu), ("tanh", torch.tanh)])
def test_one_update_of_everything(activation, act) -> None:
    detector, train = small(w_cluster=0.7, w_reconstruction=2.0, momentum=0.9, activation=activation), rows()
    walk = Walk(detector, train)
    stages = [walk.next() for _ in range(4)]
    weights = [parameter.detach().clone().requires_grad_() for parameter in detector.parameters()]
    centroids, counts = detector.centroids.clone().double(), detector.counts.clone()
    x = train.x[:20]
    detector.assigned[:3] = (detector.assigned[:3] + 1) % 3  # of the last visit, not the nearest

    def encode() -> torch.Tensor:
        return act(x @ weights[0].T + weights[1]) @ weights[2].T + weights[3]

    code = encode()
    rebuilt = act(code @ weights[4].T + weights[5]) @ weights[6].T + weights[7]
    own = detector.assigned[:20].tolist()
    reconstruction = ((rebuilt - x) ** 2).sum(1).mean()
    cluster = ((code - centroids[own].float()) ** 2).sum(1).mean()
    (2.0 * reconstruction + 0.7 / 2 * cluster).backward()
    losses = stages[-1].step(Batch(x, torch.arange(20)))
    assert losses["reconstruction"].item() == pytest.approx(reconstruction.item(), rel=1e-5)
    assert losses["cluster"].item() == pytest.approx(cluster.item(), rel=1e-4)
    with torch.no_grad():
        for weight, parameter in zip(weights, detector.parameters(), strict=True):
            rate = 1e-2 if weight.dim() == 2 else 2e-2
            weight -= rate * (1 + 0.9) * weight.grad  # Nesterov's first
            torch.testing.assert_close(parameter, weight, rtol=0, atol=1e-5)
        code = encode().double()
        own = [int(((row - centroids) ** 2).sum(1).argmin()) for row in code]
        for row, k in zip(code, own, strict=True):  # one after the other, as the code does
            counts[k] += 1
            centroids[k] -= (centroids[k] - row) / counts[k]
    torch.testing.assert_close(detector.centroids.double(), centroids, rtol=0, atol=1e-5)
    assert torch.equal(detector.counts, counts)
    assert detector.assigned[:20].tolist() == own


def test_score_is_the_distance_from_the_own_centroid() -> None:
    detector = small()
    detector.centroids.copy_(torch.tensor([[0.0, 0], [1, 1], [50, 50]]))
    x = torch.rand(9, 6)
    code = detector.encode(x).detach().numpy()
    expected = [min(np.linalg.norm(row - m) for m in detector.centroids.numpy()) for row in code]
    np.testing.assert_allclose(detector.score(x).detach(), expected, rtol=1e-5)


def test_more_centroids_than_rows_and_rows_all_alike() -> None:
    detector = small(k=9, epochs=3, pretrain_epochs=1)
    Trainer(device="cpu", precision="fp32").learn(detector, Rows(torch.rand(4, 6)), seed=0)
    assert detector.score(torch.rand(5, 6)).isfinite().all()
    detector.move_centroids(torch.full((20, 2), 3.0))
    assert detector.centroids.isfinite().all()


def test_beats_its_untrained_copy_on_digits() -> None:
    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels / 16).float()
    train = np.flatnonzero((labels != 0) & (np.arange(len(labels)) % 2 == 0))
    held = np.flatnonzero((labels == 0) | (np.arange(len(labels)) % 2 == 1))
    areas = {}
    for epochs in (0, 8):
        torch.manual_seed(0)
        settings = {"hidden": [64], "code": 10, "k": 9, "pretrain_epochs": epochs, "epochs": epochs}
        detector = DCN((64,), **settings, pretrain_lr=5e-3, lr=1e-3, batch_size=50)
        Trainer(device="cpu", precision="fp32").learn(detector, Rows(x[train]), seed=0)
        areas[epochs] = roc_auc_score(labels[held] == 0, detector.eval().score(x[held]).detach())
    assert areas[8] > areas[0] + 0.05, areas


def test_refusals() -> None:
    with pytest.raises(SettingError, match=r"model\.k=0"):
        small(k=0)
    with pytest.raises(SettingError, match=r"model\.activation=gelu: allowed are relu, tanh"):
        small(activation="gelu")
    with pytest.raises(SettingError, match=r"model\.refit_every=0: must be at least 1"):
        small(refit_every=0)
