import copy
import math

import pytest
import torch
from autoencoding import assert_close, before_and_after, first_stage
from steps import batch_of, noise
from torch.distributions import Bernoulli, kl_divergence

from anomaly_bench.detectors.sparse_ae import SparseAE, kl
from anomaly_bench.errors import SettingError


def small(shape=(1, 8, 8), **settings) -> SparseAE:
    torch.manual_seed(0)
    return SparseAE(shape, **{"code": 70} | settings)


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def test_one_update_equals_the_transcription():
    detector = small(beta=0.7, lambda_=0.2, rho=0.1)
    plain, first = copy.deepcopy(detector), copy.deepcopy(detector)
    x = noise(16, (1, 8, 8))
    losses = first_stage(detector, x).step(batch_of(x))

    (w1, b1), (w2, b2) = (layer.parameters() for layer in (plain.up, plain.down))
    optimizer = torch.optim.Adam([w1, b1, w2, b2], lr=1e-3)
    pixels = (x.reshape(16, 64) + 1) / 2
    h = sigmoid(pixels @ w1.T + b1)
    rebuilt = sigmoid(h @ w2.T + b2)
    reconstruction = sum(0.5 * ((p - r) ** 2).sum() for p, r in zip(pixels, rebuilt, strict=True)) / 16
    rho_hat = h.sum(0) / 16
    sparsity = sum(0.1 * torch.log(0.1 / r) + 0.9 * torch.log(0.9 / (1 - r)) for r in rho_hat)
    decay = 0.5 * ((w1**2).sum() + (w2**2).sum())
    (reconstruction + 0.7 * sparsity + 0.2 * decay).backward()
    optimizer.step()

    expected = {"reconstruction": reconstruction, "sparsity": sparsity, "decay": decay}
    for name, value in expected.items():
        assert losses[name].item() == pytest.approx(value.item(), rel=1e-5)
    for ours, theirs, before in zip(
        detector.parameters(), plain.parameters(), first.parameters(), strict=True
    ):
        assert not torch.equal(ours, before)
        assert_close(ours, theirs, atol=1e-5)


def test_the_kl_is_that_of_two_coins_and_finite_at_the_ends():
    mean = torch.tensor([0.01, 0.05, 0.5, 0.99])
    assert_close(kl(0.05, mean), kl_divergence(Bernoulli(torch.tensor(0.05)), Bernoulli(mean)))
    assert kl(0.05, torch.tensor(0.05)).item() == pytest.approx(0, abs=1e-7)
    assert kl(0.05, torch.tensor([0.0, 1.0])).isfinite().all()


def test_the_gradient_of_the_kl_is_the_one_of_the_notes():
    mean = torch.tensor([0.02, 0.3, 0.9], requires_grad=True)
    (slope,) = torch.autograd.grad(kl(0.05, mean).sum(), mean)
    with torch.no_grad():
        assert_close(slope, -0.05 / mean + 0.95 / (1 - mean))


def test_sparsity_lowers_the_activations_towards_rho():
    x = noise(60, (1, 8, 8))
    means = {}
    for beta in (0.0, 3.0):
        detector = small(beta=beta, lr=3e-2)
        step = first_stage(detector, x).step
        for _ in range(150):
            step(batch_of(x))
        with torch.no_grad():
            means[beta] = detector.explain(x).features.mean(0)
    assert (means[3.0] - 0.05).abs().max() < 0.03
    assert means[0.0].mean() > 0.2


def test_score_is_the_squared_error_of_pixels_on_0_to_1():
    detector, x = small(), noise(5, (1, 8, 8))
    with torch.no_grad():
        explained = detector.explain(x)
        assert_close(explained.score, ((x - explained.reconstruction) ** 2).flatten(1).sum(1) / 4)
        assert_close(detector.score(x), explained.score)
    assert explained.map.shape == (5, 8, 8)
    assert explained.reconstruction.abs().max() <= 1
    rows = noise(5, (7,)) * 9
    explained = small((7,)).explain(rows)
    assert_close(explained.score, ((rows - explained.reconstruction) ** 2).sum(1))


def test_learning_tells_twos_from_other_digits():
    before, after = before_and_after(
        lambda shape: SparseAE(shape, code=300, batch_size=40, epochs=40, lr=3e-3, beta=0.3), size=8
    )
    assert after > 0.85
    assert after > before + 0.1


@pytest.mark.parametrize(
    "settings", [{"rho": 0.0}, {"rho": 1.0}, {"beta": -1.0}, {"lambda_": -math.inf}, {"code": 0}]
)
def test_refusals(settings):
    (name,) = settings
    with pytest.raises(SettingError, match=f"model.{name}="):
        small(**settings)
