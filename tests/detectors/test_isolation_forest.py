from functools import partial

import numpy as np
import pytest
import torch
from autoencoding import auroc, digits, learn
from sklearn import ensemble

from anomaly_bench.detector import Detector, Rows
from anomaly_bench.detectors.ae import Autoencoder
from anomaly_bench.detectors.isolation_forest import IsolationForest
from anomaly_bench.errors import SettingError


def c(n: int) -> float:
    """The paper's equation 1, transcribed; 1 for two rows, as in its journal version."""
    return 2 * (np.log(n - 1) + 0.5772156649) - 2 * (n - 1) / n if n > 2 else float(n == 2)


def walked(tree, row: np.ndarray) -> float:
    """The depth at which one tree of scikit-learn's isolates a row, by the paper's Algorithm 3."""
    node = steps = 0
    while tree.children_left[node] >= 0:
        goes_left = row[tree.feature[node]] <= tree.threshold[node]
        node = (tree.children_left if goes_left else tree.children_right)[node]
        steps += 1
    return steps + c(int(tree.n_node_samples[node]))


def test_scores_are_the_papers_equation_over_the_trees_that_were_grown(monkeypatch):
    grown = []
    fit = ensemble.IsolationForest.fit
    monkeypatch.setattr(
        ensemble.IsolationForest, "fit", lambda self, x: grown.append((self, x)) or fit(self, x)
    )
    train, test, _ = digits(size=8)
    detector = learn(IsolationForest(train.shape, trees=20, max_samples=64), train)
    ((theirs, given),) = grown
    np.testing.assert_allclose(given, train.take(torch.arange(120)).flatten(1).numpy())
    x = test.take(torch.arange(30))
    rows = x.flatten(1).numpy()
    depth = np.mean([[walked(tree.tree_, row) for row in rows] for tree in theirs.estimators_], axis=0)
    np.testing.assert_allclose(detector.score(x).numpy(), 2 ** (-depth / c(64)), rtol=0, atol=1e-5)
    explained = detector.explain(x)
    assert torch.equal(explained.score, detector.score(x))
    assert torch.equal(explained.features, x.flatten(1))


def test_the_papers_sizes_are_the_defaults(monkeypatch):
    grown = []
    fit = ensemble.IsolationForest.fit
    monkeypatch.setattr(ensemble.IsolationForest, "fit", lambda self, x: grown.append(self) or fit(self, x))
    learn(IsolationForest((3,)), Rows(torch.randn(300, 3)))
    assert (grown[0].n_estimators, grown[0].max_samples_) == (100, 256)


def test_it_tells_a_digit_from_others_better_than_its_untrained_copy():
    train, test, anomalous = digits(normal=0, size=8)
    torch.manual_seed(0)
    detector = IsolationForest(train.shape)
    assert auroc(detector, test, anomalous) == 0.5
    assert auroc(learn(detector, train), test, anomalous) > 0.95


def test_features_learn_first_and_are_what_the_forest_sees():
    train, test, _ = digits(size=32)
    torch.manual_seed(0)
    features = partial(Autoencoder, code=6, width=2, batch_size=30)
    detector = IsolationForest(train.shape, trees=10, features=features)
    assert isinstance(detector.features, Autoencoder)
    before = detector.features.encode[0].weight.clone()
    stage = next(iter(detector.stages(train)))
    assert (stage.name, stage.scorable) == ("autoencoder", False)
    learn(detector, train, max_epochs=1)
    assert not torch.equal(detector.features.encode[0].weight, before)
    x = test.take(torch.arange(20))
    with torch.no_grad():
        codes = detector.features.encode(x)
        assert torch.equal(detector.explain(x).features, codes)
        torch.testing.assert_close(detector.score(x), detector.forest(codes))


class Featureless(Detector):
    """A detector that shows only scores."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()

    def stages(self, train: Rows):
        return iter(())

    def score(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(1).sum(1)


def test_refusals():
    with pytest.raises(SettingError, match=r"model\.features=Featureless"):
        learn(IsolationForest((1, 8, 8), features=Featureless), digits(size=8)[0])
    with pytest.raises(SettingError, match=r"model\.trees=0"):
        IsolationForest((3,), trees=0)
