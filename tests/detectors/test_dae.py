import copy

import pytest
import torch
from autoencoding import assert_close, before_and_after, first_stage
from steps import batch_of, noise

from anomaly_bench.detectors.dae import DAE
from anomaly_bench.errors import SettingError


def small(shape=(1, 16, 16), **settings) -> DAE:
    torch.manual_seed(0)
    return DAE(shape, **{"network": "dense", "code": 4, "hidden": (10,)} | settings)


@pytest.mark.parametrize("corruption", ["masking", "salt_pepper", "gaussian"])
def test_one_update_rebuilds_the_clean_rows(corruption):
    detector = small(network="conv", width=4, corruption=corruption, nu=0.4, sigma=0.3)
    plain, first = copy.deepcopy(detector).train(), copy.deepcopy(detector)
    x = noise()
    step = first_stage(detector, x).step
    torch.manual_seed(5)
    losses = step(batch_of(x))

    torch.manual_seed(5)
    if corruption == "masking":
        kept = (torch.rand(x.shape) >= 0.4).float()
        x_tilde = kept * x + (1 - kept) * -1
    elif corruption == "salt_pepper":
        kept, salt = (torch.rand(x.shape) >= 0.4).float(), (torch.rand(x.shape) >= 0.5).float()
        x_tilde = kept * x + (1 - kept) * (2 * salt - 1)
    else:
        x_tilde = x + 0.3 * torch.randn(x.shape)
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    loss = ((x - plain.decode(plain.encode(x_tilde))) ** 2).mean()
    loss.backward()
    optimizer.step()

    assert losses["reconstruction"].item() == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs, before in zip(
        detector.parameters(), plain.parameters(), first.parameters(), strict=True
    ):
        assert not torch.equal(ours, before)
        assert_close(ours, theirs, atol=1e-5)


def test_masking_empties_a_share_nu_of_the_entries_anew_each_time():
    detector, x = small(nu=0.25), torch.full((40, 1, 16, 16), 0.5)
    once, again = detector.corrupted(x), detector.corrupted(x)
    assert set(once.unique().tolist()) == {-1.0, 0.5}
    assert (once == -1).float().mean().item() == pytest.approx(0.25, abs=0.02)  # binomial: deviation 0.004
    assert (once != again).float().mean().item() == pytest.approx(2 * 0.25 * 0.75, abs=0.02)
    assert small((9,)).corrupted(torch.ones(50, 9)).unique().tolist() == [0.0, 1.0]


def test_salt_and_pepper_are_the_extremes_in_equal_shares():
    detector, x = small(corruption="salt_pepper", nu=0.25), torch.full((40, 1, 16, 16), 0.5)
    corrupted = detector.corrupted(x)
    assert set(corrupted.unique().tolist()) == {-1.0, 0.5, 1.0}
    for value in (-1, 1):  # binomial: deviation 0.003
        assert (corrupted == value).float().mean().item() == pytest.approx(0.125, abs=0.015)
    rows = small((9,), corruption="salt_pepper").corrupted(torch.full((50, 9), 0.5))
    assert rows.unique().tolist() == [0.0, 0.5, 1.0]


def test_gaussian_noise_has_its_deviation_and_mean():
    detector, x = small(corruption="gaussian", sigma=0.3), torch.full((40, 1, 16, 16), 0.5)
    added = detector.corrupted(x) - x
    assert added.std().item() == pytest.approx(0.3, abs=0.01)
    assert added.mean().item() == pytest.approx(0, abs=0.01)


def test_the_score_is_of_the_uncorrupted_row():
    detector, x = small().eval(), noise(5)
    with torch.no_grad():
        rebuilt = detector.decode(detector.encode(x))
        expected = ((x - rebuilt) ** 2).flatten(1).sum(1)
        assert_close(detector.score(x), expected)
        assert torch.equal(detector.score(x), detector.score(x))
        explained = detector.explain(x)
    assert_close(explained.score, expected)
    assert explained.map.shape == (5, 16, 16)
    assert explained.features.shape == (5, 4)


@pytest.mark.parametrize("corruption", ["masking", "salt_pepper", "gaussian"])
def test_learning_tells_twos_from_other_digits(corruption):
    before, after = before_and_after(
        lambda shape: DAE(
            shape,
            network="dense",
            code=16,
            hidden=(64,),
            corruption=corruption,
            batch_size=20,
            epochs=40,
            lr=2e-3,
        )
    )
    assert after > 0.85
    assert after > before + 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"corruption": "salt"}, "model.corruption=salt: allowed are masking, salt_pepper, gaussian"),
        ({"nu": 1.0}, "model.nu=1.0"),
        ({"sigma": -1.0}, "model.sigma=-1.0"),
        ({"shape": (7,), "network": "conv"}, "model.network=conv: it needs images"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(SettingError, match=message):
        small(**settings)
