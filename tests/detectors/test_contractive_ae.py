import copy

import pytest
import torch
from autoencoding import assert_close, before_and_after, first_stage
from steps import batch_of, noise
from torch.func import jacrev, vmap

from anomaly_bench.detectors.contractive_ae import ContractiveAE
from anomaly_bench.errors import SettingError


def small(shape=(1, 4, 4), **settings) -> ContractiveAE:
    torch.manual_seed(0)
    return ContractiveAE(shape, **{"code": 6} | settings)


def jacobian_norms(detector, y):
    """Squared Frobenius norms by automatic differentiation, one code unit after the other."""
    return vmap(jacrev(lambda row: detector.net.encode(row[None])[0]))(y).square().sum((1, 2))


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def test_one_update_equals_the_transcription():
    detector = small(lambda_=0.8)
    plain, first = copy.deepcopy(detector), copy.deepcopy(detector)
    x = noise(8, (1, 4, 4))
    losses = first_stage(detector, x).step(batch_of(x))

    w, b, c = plain.net.weights[0], plain.net.up[0], plain.net.down[0]
    optimizer = torch.optim.Adam([w, b, c], lr=1e-3)
    pixels = (x.reshape(8, 16) + 1) / 2
    h = sigmoid(pixels @ w.T + b)
    p = sigmoid(h @ w + c)
    reconstruction = -(pixels * p.log() + (1 - pixels) * (1 - p).log()).sum(1).mean()
    jacobians = (h * (1 - h))[:, :, None] * w  # [8, 6, 16]
    contraction = jacobians.square().sum((1, 2)).mean()
    (reconstruction + 0.8 * contraction).backward()
    optimizer.step()

    assert losses["reconstruction"].item() == pytest.approx(reconstruction.item(), rel=1e-5)
    assert losses["contraction"].item() == pytest.approx(contraction.item(), rel=1e-5)
    for ours, theirs, before in zip(
        detector.parameters(), plain.parameters(), first.parameters(), strict=True
    ):
        assert not torch.equal(ours, before)
        assert_close(ours, theirs, atol=1e-5)


def test_the_norm_of_one_layer_is_that_of_automatic_differentiation():
    detector, y = small(), torch.rand(5, 16)
    code, norms = detector.contraction(y)
    assert_close(norms, jacobian_norms(detector, y))
    assert_close(code, detector.net.encode(y))


def test_the_estimate_for_deep_ones_has_the_norm_as_its_mean():
    detector, y = small(hidden=(9,), probes=4000), torch.rand(3, 16)
    _, norms = detector.contraction(y)
    torch.testing.assert_close(norms, jacobian_norms(detector, y), rtol=0.1, atol=0)


def test_the_gradient_of_the_estimate_is_that_of_the_norm():
    detector, y = small(hidden=(9,), probes=4000), torch.rand(2, 16)
    weights = list(detector.net.weights)
    estimated = torch.autograd.grad(detector.contraction(y)[1].sum(), weights)
    exact = torch.autograd.grad(jacobian_norms(detector, y).sum(), weights)
    for ours, theirs in zip(estimated, exact, strict=True):
        assert (ours - theirs).norm() < 0.1 * theirs.norm()


@pytest.mark.parametrize("hidden", [(), (9,)])
def test_lambda_contracts(hidden):
    x, norms = noise(60, (1, 4, 4)), {}
    for lambda_ in (0.0, 10.0):
        detector = small(hidden=hidden, lambda_=lambda_, lr=1e-2)
        step = first_stage(detector, x).step
        for _ in range(60):
            step(batch_of(x))
        norms[lambda_] = jacobian_norms(detector, (x.flatten(1) + 1) / 2).mean().item()
    assert norms[10.0] < 0.5 * norms[0.0]


def test_score_is_the_squared_error_of_pixels_on_0_to_1():
    detector, x = small(), noise(5, (1, 4, 4))
    with torch.no_grad():
        explained = detector.explain(x)
        assert_close(explained.score, ((x - explained.reconstruction) ** 2).flatten(1).sum(1) / 4)
        assert_close(detector.score(x), explained.score)
    assert explained.map.shape == (5, 4, 4)
    assert explained.features.shape == (5, 6)


def test_rows_are_rebuilt_without_a_sigmoid_by_their_squared_error():
    detector, x = small((7,)), noise(5, (7,)) * 9
    losses = first_stage(detector, x).step(batch_of(x))
    fresh = small((7,))
    with torch.no_grad():
        rebuilt = fresh.explain(x).reconstruction
    assert losses["reconstruction"].item() == pytest.approx(
        ((x - rebuilt) ** 2).sum(1).mean().item(), rel=1e-5
    )


@pytest.mark.parametrize("hidden", [(), (60,)])
def test_learning_tells_twos_from_other_digits(hidden):
    before, after = before_and_after(
        lambda shape: ContractiveAE(shape, code=40, hidden=hidden, batch_size=20, epochs=40, lr=3e-3), size=8
    )
    assert after > 0.85
    assert after > before + 0.1


@pytest.mark.parametrize("settings", [{"lambda_": -1.0}, {"probes": 0}, {"code": 0}, {"hidden": (0,)}])
def test_refusals(settings):
    with pytest.raises(SettingError, match=r"model\."):
        small(**settings)
