import numpy as np
import pytest
import torch
from sklearn.ensemble import IsolationForest

from anomaly_bench.errors import SettingError
from anomaly_bench.networks.forest import Forest, mean_length


def rows(number=400, length=5, seed=0):
    return torch.randn(number, length, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("number", "psi"), [(400, 256), (400, 16), (400, 2), (100, 256)])
def test_scores_are_scikit_learns(number, psi):
    x, new = rows(number), torch.cat([rows(300, seed=1), 4 * rows(100, seed=2)])
    theirs = IsolationForest(n_estimators=30, max_samples=min(psi, number), random_state=3).fit(x.numpy())
    forest = Forest(30, psi)
    forest.take(theirs)
    for part in (x, new):
        np.testing.assert_allclose(
            forest(part).numpy(), -theirs.score_samples(part.numpy()), rtol=0, atol=1e-6
        )


def test_values_on_a_threshold_go_the_same_way_as_scikit_learns():
    """Rows of few distinct values, and rows that lie on the thresholds and next to them."""
    x = torch.randint(0, 4, (200, 3), generator=torch.Generator().manual_seed(0)).float() / 3
    theirs = IsolationForest(n_estimators=20, max_samples=64, random_state=0).fit(x.numpy())
    forest = Forest(20, 64)
    forest.take(theirs)
    on = forest.threshold[forest.threshold.isfinite()][:300].view(-1, 1).repeat(1, 3)
    for part in (x, on, on.nextafter(torch.tensor(9.0)), on.nextafter(torch.tensor(-9.0))):
        np.testing.assert_allclose(
            forest(part).numpy(), -theirs.score_samples(part.numpy()), rtol=0, atol=1e-6
        )


def test_the_seed_is_torchs_and_everything_is_kept_in_tensors():
    x = rows()
    forests = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        forests.append(Forest(10, 64))
        forests[-1].fit(x)
    assert torch.equal(forests[0](x), forests[1](x))
    assert not torch.equal(forests[0](x), forests[2](x))
    other = Forest(10, 64)
    assert other(x).unique().tolist() == [1.0]
    other.load_state_dict(forests[2].state_dict())
    assert torch.equal(other(x), forests[2](x))
    torch.testing.assert_close(torch.cat([other(part) for part in x.split(7)]), forests[2](x))


def test_grown_again_it_keeps_nothing_of_before():
    once, twice = Forest(10, 64), Forest(10, 64)
    twice.fit(3 * rows(seed=5))
    for forest in (once, twice):
        torch.manual_seed(0)
        forest.fit(rows(20))
    assert torch.equal(once(rows(seed=1)), twice(rows(seed=1)))


def test_far_rows_score_higher_and_the_mean_length_is_the_papers():
    x = rows()
    forest = Forest()
    forest.fit(x)
    assert forest(torch.full((1, 5), 6.0)) > forest(x).max()
    harmonic = sum(1 / i for i in range(1, 256))
    assert mean_length(np.array([256]))[0] == pytest.approx(2 * harmonic - 2 * 255 / 256, abs=0.01)
    assert mean_length(np.array([1, 2])).tolist() == [0.0, 1.0]


def test_refusals():
    with pytest.raises(SettingError, match=r"model\.trees=0"):
        Forest(0)
    with pytest.raises(SettingError, match=r"model\.max_samples=1"):
        Forest(1, 1)
