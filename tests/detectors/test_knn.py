from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from autoencoding import auroc, digits, learn
from scipy.spatial.distance import cdist
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, interpolate

from anomaly_bench.detector import Detector, Rows, Stage
from anomaly_bench.detectors import knn
from anomaly_bench.detectors.ae import Autoencoder
from anomaly_bench.detectors.knn import KNN
from anomaly_bench.errors import SettingError


def taken(rows: Rows) -> Tensor:
    return rows.take(torch.arange(len(rows)))


class Maps(Detector):
    """Places of images: means and differences of 4 x 4 pixels."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.pad = nn.ZeroPad2d((0, 1, 0, 0))

    def stages(self, train: Rows) -> Iterator[Stage]:
        return iter(())

    def represent(self, x: Tensor) -> Tensor:
        mean = avg_pool2d(x, 4)
        return torch.cat([mean, avg_pool2d(x.square(), 4), self.pad(mean.diff(dim=3))], 1)

    def score(self, x: Tensor) -> Tensor:
        raise NotImplementedError


@pytest.mark.parametrize("k", [1, 2, 5])
@pytest.mark.parametrize("normalise", [False, True])
def test_scores_are_sums_of_squared_distances_and_training_rows_leave_themselves_out(
    k, normalise, monkeypatch
):
    monkeypatch.setattr(knn, "AT_ONCE", 1000)  # several blocks of 8 rows
    train, test, _ = digits(size=8)
    detector = learn(KNN(train.shape, k=k, normalise=normalise), train)
    a, b = (taken(rows).flatten(1).double().numpy() for rows in (train, test))
    if normalise:
        a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    expected = np.sort(cdist(b, a) ** 2)[:, :k].sum(1)
    np.testing.assert_allclose(detector.score(taken(test)).numpy(), expected, rtol=1e-5)
    own = cdist(a, a) ** 2
    np.fill_diagonal(own, np.inf)
    expected = np.sort(own)[:, :k].sum(1)
    np.testing.assert_allclose(detector.score(taken(train)).numpy(), expected, rtol=1e-5)
    shuffled = torch.randperm(len(train))
    np.testing.assert_allclose(
        detector.score(taken(train)[shuffled]).numpy(), expected[shuffled.numpy()], rtol=1e-5
    )


def test_a_row_that_comes_twice_has_its_twin_next_to_it():
    x = torch.randn(6, 3)
    rows = Rows(torch.cat([x, x[:1]]))
    detector = learn(KNN((3,), k=1), rows)
    scores = detector.score(rows.x)
    assert scores[[0, 6]].tolist() == [0, 0]
    assert (scores[1:6] > 0).all()


def test_distances_far_from_the_origin_keep_their_digits():
    x = 1000 + torch.randn(50, 4) / 100
    detector = learn(KNN((4,), k=2), Rows(x[:40]))
    expected = np.sort(cdist(x[40:].double(), x[:40].double()) ** 2)[:, :2].sum(1)
    with torch.autocast("cpu", torch.bfloat16):
        scores = detector.score(x[40:]).numpy()
    np.testing.assert_allclose(scores, expected, rtol=0.02)  # pixels themselves have no more digits here


def test_maps_are_compared_place_by_place():
    train, test, _ = digits(size=16)
    detector = learn(KNN(train.shape, k=2, features=Maps), train)
    assert detector.bank.shape == (120 * 16, 3)
    a, b = (
        detector.features.represent(taken(rows)).flatten(2).transpose(1, 2).double() for rows in (train, test)
    )
    expected = np.sort(cdist(b.flatten(0, 1), a.flatten(0, 1)) ** 2)[:, :2].sum(1).reshape(-1, 4, 4)
    explained = detector.explain(taken(test))
    np.testing.assert_allclose(explained.score.numpy(), expected.max((1, 2)), rtol=1e-4, atol=1e-6)
    assert torch.equal(explained.score, detector.score(taken(test)))
    upsampled = interpolate(torch.from_numpy(expected)[:, None], (16, 16), mode="bilinear")[:, 0]
    np.testing.assert_allclose(explained.map.numpy(), upsampled.numpy(), rtol=1e-4, atol=1e-5)
    assert explained.features.shape == (len(test), 3)
    # of a training image, all places are left out
    own = cdist(a.flatten(0, 1), a.flatten(0, 1)) ** 2
    own[np.arange(120).repeat(16)[:, None] == np.arange(120).repeat(16)] = np.inf
    expected = np.sort(own)[:, :2].sum(1).reshape(-1, 16).max(1)
    np.testing.assert_allclose(detector.score(taken(train)).numpy(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(("most", "kept"), [(7, 7), (250, 250), (1920, 1920), (9999, 1920)])
def test_places_are_bounded_by_a_random_choice_that_the_seed_decides(most, kept):
    train, _, _ = digits(size=16)
    detector, again = (learn(KNN(train.shape, k=1, max_patches=most, features=Maps), train) for _ in range(2))
    assert len(detector.bank) == len(detector.owner) == kept
    assert torch.equal(detector.bank, again.bank)
    everything = detector.features.represent(taken(train)).flatten(2).transpose(1, 2) - detector.centre
    for vector, row in zip(detector.bank[:20], detector.owner[:20], strict=False):
        assert (everything[row] == vector).all(1).any()
    if most == 250:
        assert detector.owner.bincount(minlength=120).max() <= 3  # each image has its share


def test_it_tells_a_digit_from_others_better_than_untrained():
    train, test, anomalous = digits(normal=3, size=8)
    detector = KNN(train.shape)
    assert auroc(detector, test, anomalous) == 0.5
    assert auroc(learn(detector, train), test, anomalous) > 0.95


def test_features_learn_first_and_are_what_is_kept():
    train, test, _ = digits(size=32)
    torch.manual_seed(0)
    detector = KNN(train.shape, features=partial(Autoencoder, code=6, width=2, batch_size=30))
    stage = next(iter(detector.stages(train)))
    assert (stage.name, stage.scorable) == ("autoencoder", False)
    learn(detector, train, max_epochs=1)
    with torch.no_grad():
        torch.testing.assert_close(detector.bank + detector.centre, detector.features.encode(taken(train)))
        x = taken(test)
        assert torch.equal(detector.explain(x).features, detector.features.encode(x))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"k": 0}, r"model\.k=0: must be at least 1"),
        ({"max_patches": 0}, r"model\.max_patches=0: must be at least 1"),
        ({"k": 5}, r"model\.k=5: a training row has 4 others"),
    ],
)
def test_refusals(settings, said):
    with pytest.raises(SettingError, match=said):
        learn(KNN((3,), **settings), Rows(torch.randn(5, 3)))
