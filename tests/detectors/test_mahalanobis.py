from functools import partial

import numpy as np
import pytest
import torch
from autoencoding import auroc, digits, learn

from anomaly_bench.detector import Rows
from anomaly_bench.detectors.ae import Autoencoder
from anomaly_bench.detectors.mahalanobis import Mahalanobis


def ledoit_wolf(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of rows, the paper's lemma 3.2 to 3.5 transcribed."""
    n, d = x.shape
    x = x - (mean := x.mean(0))
    sample = x.T @ x / n
    target = np.trace(sample) / d * np.eye(d)
    distance = ((sample - target) ** 2).sum() / d
    noise = sum(((np.outer(row, row) - sample) ** 2).sum() for row in x) / (n**2 * d)
    share = min(noise, distance) / distance
    return mean, share * target + (1 - share) * sample


def flat(rows: Rows) -> np.ndarray:
    return rows.take(torch.arange(len(rows))).flatten(1).double().numpy()


@pytest.mark.parametrize("number", [40, 120])  # fewer rows than the 64 pixels, and more
def test_scores_are_the_papers(number):
    train, test, _ = digits(size=8)
    train = Rows(train.x[:number])
    detector = learn(Mahalanobis(train.shape), train)
    mean, covariance = ledoit_wolf(flat(train))
    x = flat(test) - mean
    expected = np.einsum("ni,ij,nj->n", x, np.linalg.inv(covariance), x)
    with torch.autocast("cpu", torch.bfloat16):
        scores = detector.score(test.take(torch.arange(len(test))))
    np.testing.assert_allclose(scores.numpy(), expected, rtol=1e-6)


def test_it_tells_a_digit_from_others_better_than_untrained():
    train, test, anomalous = digits(normal=3, size=8)
    detector = Mahalanobis(train.shape)
    assert auroc(detector, test, anomalous) == 0.5
    assert auroc(learn(detector, train), test, anomalous) > 0.95


def test_many_more_columns_than_rows_are_no_matrix_of_all_pairs():
    x = torch.randn(6, 6000, generator=torch.Generator().manual_seed(0))
    detector = learn(Mahalanobis((6000,)), Rows(x))
    assert detector.axes.shape == (6000, 6)
    assert detector.score(x).isfinite().all()


def test_a_column_that_never_changes_is_no_harm():
    x = torch.randn(30, 4)
    x[:, 2] = 1
    detector = learn(Mahalanobis((4,)), Rows(x))
    assert detector.score(x).isfinite().all()
    alike = learn(Mahalanobis((4,)), Rows(torch.ones(5, 4)))
    assert alike.score(x).isfinite().all()


def test_features_learn_first_and_are_what_the_gaussian_is_of():
    train, test, _ = digits(size=32)
    torch.manual_seed(0)
    detector = Mahalanobis(train.shape, features=partial(Autoencoder, code=6, width=2, batch_size=30))
    assert not next(iter(detector.stages(train))).scorable
    learn(detector, train, max_epochs=1)
    x = test.take(torch.arange(20))
    with torch.no_grad():
        assert torch.equal(detector.explain(x).features, detector.features.encode(x))
        codes = detector.features.encode(train.take(torch.arange(120))).double()
    torch.testing.assert_close(detector.mean, codes.mean(0))
