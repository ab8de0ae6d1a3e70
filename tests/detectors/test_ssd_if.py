"""SSD-IF: an isolation forest on what E3Outlier's network sees in images as they are."""

from functools import partial

import numpy as np
import pytest
import torch
from autoencoding import auroc, digits, learn
from sklearn import ensemble

from anomaly_bench.detector import Rows
from anomaly_bench.detectors.e3outlier import E3Outlier
from anomaly_bench.detectors.isolation_forest import IsolationForest

SMALL = {
    "operations": "ra",
    "shift": 0,
    "widen_factor": 1,
    "width": 4,
    "batch_size": 30,
    "lr": 1e-2,
    "epochs": 16,
}


def contaminated() -> tuple[Rows, np.ndarray]:
    """120 fours and 13 other digits, and which these are."""
    train, test, anomalous = digits(normal=4, size=8)
    x = torch.cat([train.x, test.x[anomalous][:13]])
    return Rows(x), np.arange(len(x)) >= 120


def small() -> IsolationForest:
    torch.manual_seed(0)
    return IsolationForest((1, 8, 8), features=partial(E3Outlier, **SMALL))


def test_the_forest_grows_on_penultimate_features_of_untransformed_images(monkeypatch):
    given = []
    fit = ensemble.IsolationForest.fit
    monkeypatch.setattr(
        ensemble.IsolationForest, "fit", lambda self, x: given.append((self, x)) or fit(self, x)
    )
    monkeypatch.setattr(
        E3Outlier, "score", lambda *_: pytest.fail("transforms images to find their features")
    )
    rows, _ = contaminated()
    detector = learn(small(), rows, max_epochs=1).eval()
    ((forest, features),) = given
    x = rows.take(torch.arange(len(rows)))
    with torch.no_grad():
        expected = detector.features.net.features(x)
        assert detector.features.net.head.in_features == expected.shape[1]
        np.testing.assert_allclose(features, expected.numpy(), rtol=0, atol=1e-5)
        np.testing.assert_allclose(
            detector.score(x).numpy(), -forest.score_samples(expected.numpy()), rtol=0, atol=1e-5
        )
    assert (forest.n_estimators, forest.max_samples_) == (100, 133)


def test_among_unlabelled_rows_it_finds_those_that_are_few():
    rows, strange = contaminated()
    detector = small()
    assert auroc(detector, rows, strange) == 0.5
    assert auroc(learn(detector, rows), rows, strange) > 0.8
