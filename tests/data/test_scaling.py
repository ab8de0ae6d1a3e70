import numpy as np
import pytest
import torch
from sklearn.preprocessing import MinMaxScaler, StandardScaler

from anomaly_bench.data import scaling
from anomaly_bench.data.scaling import fit_scaler
from anomaly_bench.errors import SettingError

ROWS = torch.randn(50, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 100, 1e-3, 0]) + 7
NEW = torch.randn(9, 4, generator=torch.Generator().manual_seed(1)) * 3
GAP = float("nan")


@pytest.mark.parametrize(("scale", "theirs"), [("minmax", MinMaxScaler()), ("standard", StandardScaler())])
def test_is_scikit_learns(scale, theirs):
    scaler, theirs = fit_scaler(ROWS, scale), theirs.fit(ROWS.double().numpy())
    for x in (ROWS, NEW):
        np.testing.assert_allclose(scaler(x), theirs.transform(x.double().numpy()), rtol=1e-4, atol=2e-3)


def test_training_rows_come_to_lie_between_0_and_1_and_others_where_they_will():
    scaler = fit_scaler(ROWS, "minmax")
    assert scaler(ROWS).amin() == 0
    assert scaler(ROWS)[:, :3].amax(0) == pytest.approx([1, 1, 1], abs=1e-4)
    assert scaler(NEW).amin() < 0
    assert not scaler(ROWS)[:, 3].any()  # without spread, it is shifted only


@pytest.mark.parametrize("scale", ["minmax", "standard"])
def test_a_spread_that_float32_cannot_divide_by(scale):
    x = torch.tensor([[5e-40, -3e38], [6e-40, 3e38]])
    scaled = fit_scaler(x, scale)(x)
    assert scaled.isfinite().all()
    assert scaled[:, 0].abs().amax() < 1e-39
    if scale == "minmax":
        assert torch.equal(scaled[:, 1], x[:, 1])
    else:  # whose deviation is half of the range
        torch.testing.assert_close(scaled[:, 1], torch.tensor([-1.0, 1.0]), rtol=1e-2, atol=0)


def test_squares_need_not_be_numbers_of_float32(monkeypatch):
    monkeypatch.setattr(scaling, "BLOCK", 100)  # two columns of 50 rows
    size = torch.tensor([1e-25, 1, 1e20, 1e-12, 1e37])
    rows = torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(
        fit_scaler(rows * size, "standard")(rows * size), fit_scaler(rows, "standard")(rows)
    )


@pytest.mark.parametrize("scale", ["minmax", "standard", None])
def test_missing_numbers_become_the_training_median(scale):
    x = torch.tensor([[1.0, GAP], [GAP, GAP], [2.0, GAP], [9.0, GAP]])
    scaler = fit_scaler(x, scale)
    assert scaler.fill.tolist() == [2, 0]
    given = torch.tensor([[GAP, GAP], [2.0, 0.0]])
    scaled = scaler(given)
    assert torch.equal(scaled[0], scaled[1])
    assert given[0].isnan().all()  # what is given stays as it is


@pytest.mark.parametrize("scale", ["minmax", "standard", None])
def test_a_gap_in_a_column_that_had_none_becomes_the_training_median_too(scale, monkeypatch):
    monkeypatch.setattr(scaling, "BLOCK", 100)  # two columns of 50 rows
    scaler = fit_scaler(ROWS, scale)
    assert torch.equal(scaler(torch.full((1, 4), GAP)), scaler(ROWS.median(0).values[None]))


@pytest.mark.parametrize("scale", ["minmax", "standard"])
def test_a_column_with_gaps_is_scaled_as_if_the_median_stood_there(scale):
    gaps, filled = (torch.tensor([[0.0], [8.0], [1.0], [middle]]) for middle in (GAP, 1.0))
    assert torch.equal(fit_scaler(gaps, scale)(gaps), fit_scaler(filled, scale)(filled))


def test_a_small_spread_far_from_zero_is_told_exactly():
    x = (4e6 + torch.arange(10_000) % 2)[:, None]  # float32 has no mean of these
    assert fit_scaler(x, "standard")(x).abs().unique().tolist() == [1]


@pytest.mark.parametrize("scale", ["minmax", "standard"])
def test_float64_keeps_what_a_large_offset_leaves(scale):
    x = torch.cat([ROWS[:, :2].double() + 1.7e9, torch.full((50, 1), 0.1).double()], dim=1)
    x[::2, 2] += 1e-16  # rounding is no spread
    expected = fit_scaler(ROWS[:, :2].double(), scale)(ROWS[:, :2].double())
    scaled = fit_scaler(x, scale)(x)
    torch.testing.assert_close(scaled[:, :2], expected, rtol=0, atol=1e-5)
    assert scaled[:, 2].abs().amax() < 1e-6


def test_no_scale_leaves_numbers_alone():
    assert torch.equal(fit_scaler(ROWS, None)(NEW), NEW)


def test_an_unknown_scale_is_refused():
    with pytest.raises(SettingError, match=r"data\.scale=robust: allowed are minmax, standard, null"):
        fit_scaler(ROWS, "robust")
