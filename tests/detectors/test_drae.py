import copy

import numpy as np
import pytest
import torch
from autoencoding import assert_close, auroc, before_and_after, digits, first_stage, learn
from steps import batch_of, noise

from anomaly_bench.detector import Rows
from anomaly_bench.detectors.drae import DRAE, parted
from anomaly_bench.errors import SettingError


def small(shape=(1, 16, 16), **settings) -> DRAE:
    torch.manual_seed(0)
    return DRAE(shape, **{"network": "dense", "code": 4, "hidden": (10,)} | settings)


def scatter(e):
    return ((e - e.mean()) ** 2).sum()


def plainly_parted(errors):
    """k and h(k), every split tried in turn."""
    e = errors.sort().values
    h = [(scatter(e[:k]) + scatter(e[k:])) / scatter(e) for k in range(1, len(e))]
    k = 1 + int(torch.stack(h).argmin())
    return e[:k].mean(), h[k - 1], k


@pytest.mark.parametrize("seed", range(5))
def test_the_groups_are_those_of_least_scatter(seed):
    errors = torch.rand(23, generator=torch.Generator().manual_seed(seed)) * 200 + 1000
    low, h, share = parted(errors)
    expected_low, expected_h, k = plainly_parted(errors)
    assert low.item() == pytest.approx(expected_low.item(), rel=1e-5)
    assert h.item() == pytest.approx(expected_h.item(), rel=1e-3)
    assert round(share.item() * 23) == k


def test_two_clear_groups_are_found():
    errors = torch.tensor([900.0, 10.0, 12.0, 905.0, 11.0])
    low, h, share = parted(errors)
    assert low.item() == pytest.approx(11.0)
    assert h.item() < 1e-3
    assert share.item() == pytest.approx(0.6)


@pytest.mark.parametrize("errors", [[5.0], [5.0, 5.0, 5.0], [1.0, 2.0]])
def test_errors_all_alike_or_few_are_finite_and_have_gradients(errors):
    e = torch.tensor(errors, requires_grad=True)
    low, h, share = parted(e)
    (slope,) = torch.autograd.grad(low + h, e)
    assert torch.stack([low, h, share]).isfinite().all()
    assert slope.isfinite().all()


def test_the_gradient_goes_through_both_terms():
    e = torch.tensor([3.0, 1.0, 9.0, 2.0, 8.0], dtype=torch.float64)
    ours = e.clone().requires_grad_()
    low, h, _ = parted(ours)
    (slope,) = torch.autograd.grad(low + 5 * h, ours)
    for place in range(5):
        step = torch.zeros(5, dtype=torch.float64)
        step[place] = 1e-6
        (a, b, _), (c, d, _) = plainly_parted(e + step), plainly_parted(e - step)
        assert slope[place].item() == pytest.approx(((a + 5 * b) - (c + 5 * d)).item() / 2e-6, abs=1e-5)


def test_one_update_equals_the_transcription():
    detector = small(network="conv", width=4, lambda_=30.0)
    plain, first = copy.deepcopy(detector).train(), copy.deepcopy(detector)
    x = noise(16)
    losses = first_stage(detector, x).step(batch_of(x))

    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3, eps=1e-7, weight_decay=5e-4)
    errors = ((x - plain.decode(plain.encode(x))) ** 2).sum((1, 2, 3))
    low, h, _ = plainly_parted(errors)
    (low + 30 * h).backward()
    optimizer.step()
    assert losses["reconstruction"].item() == pytest.approx(low.item(), rel=1e-5)
    assert losses["separation"].item() == pytest.approx(h.item(), rel=1e-3)
    for ours, theirs, before in zip(
        detector.parameters(), plain.parameters(), first.parameters(), strict=True
    ):
        assert not torch.equal(ours, before) or not ours.any()
        assert_close(ours, theirs, atol=1e-4)  # of an update of 1e-3


def test_rows_of_the_upper_group_are_not_rebuilt():
    """Without h, a row far off has no part in the update."""
    x = noise(12) * 0.1
    x[5] = 1.0
    detectors = [small(lambda_=0.0), small(lambda_=0.0)]
    other = x.clone()
    other[5, :, ::2] = -1.0
    for detector, rows in zip(detectors, (x, other), strict=True):
        first_stage(detector, rows).step(batch_of(rows))
    for a, b in zip(*(detector.parameters() for detector in detectors), strict=True):
        assert_close(a, b, atol=1e-5)


def test_contaminated_it_finds_other_digits_among_the_rows_it_learned():
    train, test, anomalous = digits(size=8)
    x = torch.cat([train.x, test.x[anomalous][:13]])
    rows, strange = Rows(x), np.arange(len(x)) >= 120
    detector = small((1, 8, 8), code=8, hidden=(64,), batch_size=30, epochs=60, lr=2e-3)
    before = auroc(detector, rows, strange)
    assert auroc(learn(detector, rows), rows, strange) > max(before + 0.1, 0.85)


def test_a_row_is_called_anomalous_where_it_is_of_the_upper_group_of_all():
    train, test, anomalous = digits(size=8)
    rows = Rows(torch.cat([train.x, test.x[anomalous][:13]]))
    detector = small((1, 8, 8), code=8, hidden=(64,), batch_size=30, epochs=3, lr=2e-3)
    assert detector.own_threshold() is None
    learn(detector, rows).eval()
    with torch.no_grad():
        errors = detector.score(rows.take(torch.arange(len(rows))))
    _, _, k = plainly_parted(errors.double())
    assert 1 < k < len(rows)
    assert detector.own_threshold() == pytest.approx(errors.sort().values[k - 1].item(), rel=1e-5)
    again = small((1, 8, 8), code=8, hidden=(64,))
    again.load_state_dict(detector.state_dict())
    assert again.own_threshold() == detector.own_threshold()


def test_learning_tells_new_twos_from_other_digits():
    before, after = before_and_after(
        lambda shape: DRAE(shape, network="dense", code=8, hidden=(64,), batch_size=20, epochs=40, lr=2e-3)
    )
    assert after > 0.85
    assert after > before + 0.1


def test_score_and_explanation():
    detector, x = small().eval(), noise(5)
    with torch.no_grad():
        explained = detector.explain(x)
        assert_close(explained.score, ((x - explained.reconstruction) ** 2).flatten(1).sum(1), atol=1e-4)
        assert_close(detector.score(x), explained.score, atol=1e-4)
    assert explained.map.shape == (5, 16, 16)
    with pytest.raises(SettingError, match=r"model\.lambda_=-1\.0"):
        small(lambda_=-1.0)
