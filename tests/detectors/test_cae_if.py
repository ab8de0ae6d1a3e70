import copy

import numpy as np
import pytest
import torch
from autoencoding import assert_close, auroc, batch, digits, first_stage, learn, noise
from sklearn.ensemble import IsolationForest

from anomaly_bench.detectors.cae_if import CAEIF


def small(shape=(1, 16, 16), **settings) -> CAEIF:
    torch.manual_seed(0)
    return CAEIF(shape, **{"network": "dense", "code": 4, "hidden": (10,)} | settings)


def test_one_update_of_the_autoencoder_equals_the_transcription():
    detector = small(network="conv", width=4)
    plain, first = copy.deepcopy(detector).train(), copy.deepcopy(detector)
    x = noise()
    losses = first_stage(detector, x).step(batch(x))
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3, eps=1e-7, weight_decay=5e-4)
    loss = ((x - plain.decode(plain.encode(x))) ** 2).mean()
    loss.backward()
    optimizer.step()
    assert losses["reconstruction"].item() == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs, before in zip(
        detector.parameters(), plain.parameters(), first.parameters(), strict=True
    ):
        assert not torch.equal(ours, before) or not ours.any()
        assert_close(ours, theirs, atol=1e-5)


def test_the_forest_is_grown_on_the_codes_once_they_are_learned(monkeypatch):
    grown = []
    fit = IsolationForest.fit
    monkeypatch.setattr(IsolationForest, "fit", lambda self, x: grown.append((self, x)) or fit(self, x))
    train, test, _ = digits(size=8)
    detector = learn(small((1, 8, 8), batch_size=20, epochs=2), train).eval()
    ((theirs, given),) = grown
    x = test.take(torch.arange(50))
    with torch.no_grad():
        np.testing.assert_allclose(given, detector.encode(train.take(torch.arange(120))).numpy(), atol=1e-5)
        codes = detector.encode(x)
        expected = -theirs.score_samples(codes.numpy())
        np.testing.assert_allclose(detector.score(x).numpy(), expected, rtol=0, atol=1e-6)
        explained = detector.explain(x)
    assert torch.equal(explained.score, detector.score(x))
    assert torch.equal(explained.features, codes)
    assert explained.reconstruction.shape == x.shape
    assert theirs.n_estimators == 100
    assert theirs.max_samples_ == 120


def test_it_tells_zeros_from_other_digits_better_than_its_untrained_copy():
    train, test, anomalous = digits(normal=0, size=8)
    torch.manual_seed(0)
    detector = CAEIF(train.shape, network="dense", code=8, hidden=(64,), batch_size=20, epochs=60, lr=2e-3)
    assert auroc(detector, test, anomalous) == 0.5
    assert auroc(learn(detector, train), test, anomalous) > 0.85
