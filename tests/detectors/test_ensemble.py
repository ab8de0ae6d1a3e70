from functools import partial

import numpy as np
import pytest
import torch
from autoencoding import auroc, digits, learn
from torch import Tensor

from anomaly_bench.detector import Rows
from anomaly_bench.detectors.ae import Autoencoder
from anomaly_bench.detectors.ensemble import Ensemble, ranks
from anomaly_bench.detectors.isolation_forest import IsolationForest
from anomaly_bench.detectors.knn import KNN
from anomaly_bench.errors import SettingError

AE = partial(Autoencoder, network="dense", code=8, hidden=(32,), batch_size=20, epochs=20)
MEMBERS = {"ae": partial(KNN, features=AE), "pixels": KNN, "error": AE}


def taken(rows: Rows) -> Tensor:
    return rows.take(torch.arange(len(rows)))


def ensemble(shape, **settings) -> Ensemble:
    torch.manual_seed(0)
    return Ensemble(shape, **{"members": MEMBERS} | settings)


def rank(score: float, training: np.ndarray) -> float:
    """The docstring's formula, one score at a time."""
    low, high = training.min(), training.max()
    if score > high:
        return 1 + np.log(1 + (score - high) / (high - low))
    if score < low:
        return -np.log(1 + (low - score) / (high - low))
    return np.interp(score, np.sort(training), np.linspace(0, 1, len(training)))


def test_scores_are_mean_ranks_among_training_scores():
    train, test, _ = digits(size=8)
    detector = learn(ensemble(train.shape), train).eval()
    with torch.no_grad():
        parts = [
            [detector.members[name].score(taken(rows)).double().numpy() for name in MEMBERS]
            for rows in (train, test)
        ]
        explained = detector.explain(taken(test))
        expected = [[rank(a, ours) for a in theirs] for ours, theirs in zip(*parts, strict=True)]
        np.testing.assert_allclose(detector.score(taken(test)).numpy(), np.mean(expected, axis=0), atol=1e-4)
        assert torch.equal(explained.score, detector.score(taken(test)))
        np.testing.assert_allclose(explained.features.numpy(), np.transpose(expected), atol=1e-4)
    assert explained.score.dtype == torch.float64


def test_ranks_keep_the_order_everywhere_and_hardly_follow_a_scale():
    ladder = torch.randn(1, 50, dtype=torch.float64).sort(1).values
    scores = torch.linspace(-1000, 1000, 5001, dtype=torch.float64)[None]
    found = ranks(scores, ladder)
    assert (found.diff() > 0).all()
    assert ranks(ladder[:, [0, -1]], ladder).tolist() == [[0, 1]]
    torch.testing.assert_close(ranks(7 * scores + 3, 7 * ladder + 3), found)
    assert found[0, -1] < 8  # 1000 is hundreds of spreads away


def test_scores_that_are_all_alike_and_single_rows_have_ranks():
    alike = torch.zeros(1, 5, dtype=torch.float64)
    for ladder in (alike, alike[:, :1]):
        found = ranks(torch.tensor([[-1.0, 0.0, 1.0]], dtype=torch.float64), ladder)[0]
        assert found.isfinite().all()
        assert (found.diff() > 0).all()


def test_members_learn_one_after_another_under_their_names():
    train, test, _ = digits(size=8)
    detector = ensemble(train.shape)
    first = {name: x.clone() for name, x in detector.state_dict().items()}
    stages = list(detector.eval().stages(train))
    assert [stage.name for stage in stages] == ["ae: autoencoder", "error: autoencoder"]
    assert not any(stage.scorable for stage in stages)
    learn(detector, train, max_epochs=1)
    moved = {name for name, x in detector.named_parameters() if not torch.equal(x, first[name])}
    assert moved == dict(detector.named_parameters()).keys()
    assert auroc(ensemble(train.shape), test, np.arange(len(test)) % 2) == 0.5


def test_few_training_rows_are_enough_to_rank_among():
    train, _, _ = digits(size=8)
    detector = learn(ensemble(train.shape, max_rows=17), train, max_epochs=1)
    assert detector.ladder.shape == (3, 17)


def test_it_is_no_worse_than_its_worst_member_and_tells_digits():
    train, test, anomalous = digits(normal=3, size=8)
    members = {"ae": partial(KNN, features=AE), "forest": IsolationForest, "pixels": KNN}
    detector = learn(ensemble(train.shape, members=members), train)
    alone = [auroc(member, test, anomalous) for member in detector.members.values()]
    found = auroc(detector, test, anomalous)
    assert found > 0.9
    assert found > min(alone)
    detector.ladder = detector.ladder.flip(0)  # ranks among another member's scores
    assert abs(auroc(detector, test, anomalous) - found) > 1e-3


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"members": {"one": KNN}}, r"model\.members=\['one'\]: an ensemble has at least 2"),
        ({"max_rows": 1}, r"model\.max_rows=1: must be at least 2"),
    ],
)
def test_refusals(settings, said):
    with pytest.raises(SettingError, match=said):
        ensemble((1, 8, 8), **settings)
