import numpy as np
import pytest
import torch
from layers import layers_of
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import nn

from anomaly_bench.detector import Batch, Rows
from anomaly_bench.detectors.repen import REPEN, by_weight, distinct, nearest
from anomaly_bench.errors import SettingError
from anomaly_bench.training.trainer import Trainer, Walk


def small(**settings) -> REPEN:
    torch.manual_seed(0)
    return REPEN(
        (5,), **{"rep": 3, "ensemble": 4, "subsample": 3, "margin": 2.0, "batch_size": 16} | settings
    )


def rows(n: int = 60) -> Rows:
    x = torch.rand(n, 5, generator=torch.Generator().manual_seed(0))
    x[:3] += 4
    return Rows(x)


@pytest.mark.parametrize("fast", [False, True])
def test_random_distances(fast: bool) -> None:
    x, pool = torch.rand(30, 5), torch.rand(4, 3, 5)
    expected = [
        np.mean([min(np.linalg.norm(row - other) for other in part) for part in pool.numpy()])
        for row in x.numpy()
    ]
    np.testing.assert_allclose(nearest(x, pool, fast), expected, rtol=1e-3)


def test_sides_by_cantellis_bound() -> None:
    detector = small()
    score = torch.cat([torch.linspace(1, 2, 57), torch.tensor([9.0, 8.0, 7.0])]).double()
    detector.take_sides(score)
    bound = score.numpy().mean() + np.sqrt(3) * score.numpy().std()
    assert detector.outliers.tolist() == np.flatnonzero(score.numpy() > bound).tolist() == [57, 58, 59]
    assert detector.inliers.tolist() == list(range(57))
    inlying = score[:57].numpy()
    np.testing.assert_allclose(detector.inlier_sums, np.cumsum(inlying.sum() - inlying))
    np.testing.assert_allclose(detector.outlier_sums, [9, 17, 24])


def test_without_high_scores_the_ten_highest_are_outliers() -> None:
    detector = small()
    detector.take_sides(torch.linspace(1, 2, 40).double())
    assert detector.outliers.tolist() == list(range(30, 40))
    detector.take_sides(torch.ones(40).double())  # all alike
    assert (len(detector.inliers), len(detector.outliers)) == (30, 10)


def test_triplets() -> None:
    detector = small()
    detector.take_sides(torch.cat([torch.linspace(1, 2, 57), torch.tensor([9.0, 8.0, 7.0])]).double())
    torch.manual_seed(0)
    a, p, n = detector.triplets(20_000)
    assert (a != p).all()
    assert a.max() < 57
    assert p.unique().tolist() == list(range(57))
    shares = n.bincount(minlength=60)[57:] / 20_000
    np.testing.assert_allclose(shares, np.array([9, 8, 7]) / 24, atol=0.02)


def test_draws_by_weight() -> None:
    torch.manual_seed(0)
    drawn = by_weight(torch.tensor([1.0, 0.0, 3.0]).double().cumsum(0), 10_000).bincount(minlength=3) / 10_000
    np.testing.assert_allclose(drawn, [0.25, 0, 0.75], atol=0.02)
    assert len(distinct(50_000, 8).unique()) == 8


def test_the_representation_is_one_layer_of_20_units() -> None:
    assert layers_of(REPEN((5,)).embed) == ["linear 5-20, relu"]


def test_first_weights_are_those_of_keras() -> None:
    """Glorot's uniform, up to sqrt(6 / (D + M)), where torch's are up to sqrt(1 / D); the shift is 0."""
    torch.manual_seed(0)
    weight, bias = REPEN((180,), rep=20).parameters()
    bound = (6 / 200) ** 0.5
    assert bound * 0.99 < weight.abs().max().item() <= bound
    assert weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.03)
    assert not bias.any()


def test_one_update() -> None:
    detector, train = small(), rows()
    stage = Walk(detector, train).next()
    weight, bias = (parameter.detach().clone().requires_grad_() for parameter in detector.parameters())
    torch.manual_seed(7)
    a, p, n = (torch.relu(train.x[index] @ weight.T + bias) for index in detector.triplets(16))
    loss = torch.relu(2.0 - (((a - n) ** 2).sum(1) - ((a - p) ** 2).sum(1))).mean()
    optimizer = torch.optim.Adadelta([weight, bias], lr=1.0, rho=0.95, eps=1e-7)
    loss.backward()
    optimizer.step()
    torch.manual_seed(7)
    assert stage is not None
    assert stage.step(Batch(train.x[:16], torch.arange(16)))["triplet"].item() == pytest.approx(
        loss.item(), rel=1e-5
    )
    for parameter, expected in zip(detector.parameters(), (weight, bias), strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-6)


def test_the_score_is_by_50_subsamples_of_8_embedded_training_rows() -> None:
    detector, train = REPEN((5,)), rows(60)
    for _ in Walk(detector, train):
        nn.init.uniform_(detector.embed[0].weight)  # what training would change, and the score has to follow
    x = torch.rand(7, 5)
    with torch.no_grad():
        embedded, queries, score = detector.embed(train.x), detector.embed(x), detector.score(x)
    assert detector.pool.shape == (50, 8, 20)
    for subsample in detector.pool:
        same = torch.isclose(subsample[:, None], embedded).all(2)
        assert (same.sum(1) == 1).all()
        assert same.any(0).sum() == 8  # none twice
    distances = np.linalg.norm(queries.numpy()[:, None, None] - detector.pool.numpy(), axis=3)
    np.testing.assert_allclose(score, distances.min(2).mean(1), rtol=1e-5)


def test_beats_its_untrained_copy_on_digits() -> None:
    """A contaminated set, scored as it is learned: ones among zeros."""
    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels / 16).float()
    noise = torch.rand(len(x), 200, generator=torch.Generator().manual_seed(0))
    x = torch.cat([x, noise], 1)  # most columns say nothing
    kept = np.concatenate([np.flatnonzero(labels == 0), np.flatnonzero(labels == 1)[:20]])
    areas = {0: [], 15: []}
    for seed in range(2):
        for epochs, found in areas.items():
            torch.manual_seed(seed)
            detector = REPEN((264,), epochs=epochs, batch_size=32)
            Trainer(device="cpu", precision="fp32").learn(detector, Rows(x[kept]), seed=seed)
            found.append(roc_auc_score(labels[kept] == 1, detector.eval().score(x[kept]).detach()))
    assert np.mean(areas[15]) > 0.97, areas
    assert np.mean(areas[0]) < 0.9, areas


def test_few_rows() -> None:
    detector = small()
    Trainer(device="cpu", precision="fp32", max_epochs=2).learn(detector, Rows(torch.rand(3, 5)), seed=0)
    assert detector.score(torch.rand(4, 5)).isfinite().all()
    with pytest.raises(SettingError, match="2 training rows"):
        Walk(small(), Rows(torch.rand(2, 5))).next()


def test_many_columns() -> None:
    detector = REPEN((20_000,))
    Trainer(device="cpu", precision="fp32", max_epochs=1).learn(
        detector, Rows(torch.rand(300, 20_000)), seed=0
    )
    assert detector.score(torch.rand(4, 20_000)).isfinite().all()


@pytest.mark.parametrize("settings", [{"rep": 0}, {"margin": 0}, {"subsample": 0}])
def test_refusals(settings: dict) -> None:
    (name,) = settings
    with pytest.raises(SettingError, match=rf"model\.{name}=0"):
        small(**settings)
