"""CAE-IF: an isolation forest on the codes of an autoencoder."""

from functools import partial

import numpy as np
import torch
from autoencoding import auroc, digits, learn
from sklearn import ensemble

from anomaly_bench.detectors.ae import Autoencoder
from anomaly_bench.detectors.isolation_forest import IsolationForest


def small(**settings) -> IsolationForest:
    torch.manual_seed(0)
    features = partial(Autoencoder, network="dense", eps=1e-7, weight_decay=5e-4, batch_size=20, **settings)
    return IsolationForest((1, 8, 8), features=features)


def test_the_forest_is_grown_on_the_codes_once_they_are_learned(monkeypatch):
    grown = []
    fit = ensemble.IsolationForest.fit
    monkeypatch.setattr(
        ensemble.IsolationForest, "fit", lambda self, x: grown.append((self, x)) or fit(self, x)
    )
    train, test, _ = digits(size=8)
    detector = learn(small(code=4, hidden=(10,), epochs=2), train).eval()
    ((forest, given),) = grown
    x = test.take(torch.arange(50))
    with torch.no_grad():
        np.testing.assert_allclose(
            given, detector.features.encode(train.take(torch.arange(120))).numpy(), atol=1e-5
        )
        codes = detector.features.encode(x)
        expected = -forest.score_samples(codes.numpy())
        np.testing.assert_allclose(detector.score(x).numpy(), expected, rtol=0, atol=1e-6)
        assert torch.equal(detector.explain(x).features, codes)
    assert (forest.n_estimators, forest.max_samples_) == (100, 120)


def test_it_tells_zeros_from_other_digits_better_than_its_untrained_copy():
    train, test, anomalous = digits(normal=0, size=8)
    detector = small(code=8, hidden=(64,), epochs=60, lr=2e-3)
    assert auroc(detector, test, anomalous) == 0.5
    assert auroc(learn(detector, train), test, anomalous) > 0.85
