import copy
import math

import pytest
import torch
from autoencoding import assert_close, before_and_after, first_stage
from steps import batch_of, noise
from torch.distributions import Normal, kl_divergence

from anomaly_bench.detectors.vae import VAE, kl
from anomaly_bench.errors import SettingError

LIKELIHOODS = ("gaussian_variance", "gaussian", "bernoulli")


def small(shape=(1, 16, 16), **settings) -> VAE:
    torch.manual_seed(0)
    defaults = {"network": "dense", "code": 3, "hidden": (10,)}
    return VAE(shape, **defaults | settings)


def surprise(x, decoded, likelihood, sigma=1.0):
    """-log p(x|z), by the distributions of torch, one number a row."""
    x = x.flatten(1)
    if likelihood == "bernoulli":
        p = torch.sigmoid(decoded.flatten(1))
        pixels = (x + 1) / 2
        return -(pixels * p.log() + (1 - pixels) * (1 - p).log()).sum(1)
    if likelihood == "gaussian":
        return -Normal(torch.tanh(decoded.flatten(1)), sigma).log_prob(x).sum(1)
    raw, free = decoded.flatten(1).split(x.shape[1], dim=1)
    log_variance = -6 + torch.log(1 + torch.exp(free + 6))
    return -Normal(torch.tanh(raw), torch.exp(log_variance / 2)).log_prob(x).sum(1)


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_one_update_equals_the_transcription_of_the_bound(likelihood):
    detector = small(likelihood=likelihood, sigma=0.7, beta=2.0, network="conv", width=4)
    plain = copy.deepcopy(detector).train()
    x = noise()
    step = first_stage(detector, x).step
    torch.manual_seed(5)
    losses = step(batch_of(x))

    torch.manual_seed(5)
    optimizer = torch.optim.Adam([*plain.encode.parameters(), *plain.decode.parameters()], lr=1e-3)
    m, log_s2 = plain.encode(x).split(3, dim=1)
    z = m + torch.exp(log_s2 / 2) * torch.randn(8, 3)
    reconstruction = surprise(x, plain.decode(z), likelihood, 0.7).mean()
    divergence = kl_divergence(Normal(m, torch.exp(log_s2 / 2)), Normal(0.0, 1.0)).sum(1).mean()
    (reconstruction + 2 * divergence).backward()
    optimizer.step()

    assert losses["reconstruction"].item() == pytest.approx(reconstruction.item(), rel=1e-5)
    assert losses["kl"].item() == pytest.approx(divergence.item(), rel=1e-5)
    first = dict(small(likelihood=likelihood, network="conv", width=4).named_parameters())
    for (name, ours), theirs in zip(detector.named_parameters(), plain.parameters(), strict=True):
        assert not torch.equal(ours, first[name]), name
        assert_close(ours, theirs, atol=1e-5)


def test_the_kl_is_the_divergence_of_the_gaussians_and_of_their_samples():
    m, log_s2 = torch.tensor([[0.5, -1.0]]), torch.tensor([[0.3, -0.7]])
    q, p = Normal(m, torch.exp(log_s2 / 2)), Normal(0.0, 1.0)
    assert_close(kl(m, log_s2), kl_divergence(q, p).sum(1))
    torch.manual_seed(0)
    z = q.sample((200_000,))
    assert kl(m, log_s2).item() == pytest.approx(
        (q.log_prob(z) - p.log_prob(z)).sum(-1).mean().item(), abs=0.02
    )


@pytest.mark.parametrize("likelihood", LIKELIHOODS)
def test_the_scores_are_those_of_the_papers(likelihood):
    x = noise(5)
    detector = small(likelihood=likelihood, samples=4, beta=3.0).eval()
    with torch.no_grad():
        m, log_s2 = detector.encode(x).split(3, dim=1)
        draws = [
            surprise(x, detector.decode(m + torch.exp(log_s2 / 2) * e), likelihood) for e in detector.noise
        ]
        probability = torch.stack(draws).mean(0)
        divergence = kl_divergence(Normal(m, torch.exp(log_s2 / 2)), Normal(0.0, 1.0)).sum(1)
        raw = detector.decode(m).flatten(1)[:, :256]
        mean = 2 * torch.sigmoid(raw) - 1 if likelihood == "bernoulli" else torch.tanh(raw)
        expected = {
            "probability": probability,
            "elbo": probability + 3 * divergence,
            "reconstruction": ((x.flatten(1) - mean) ** 2).sum(1),
        }
        for detector.score_by, score in expected.items():
            assert_close(detector.score(x), score, atol=1e-3)
            explained = detector.explain(x)
            assert_close(explained.score, score, atol=1e-3)
            assert_close(explained.reconstruction.flatten(1), mean)
            assert explained.map.shape == (5, 16, 16)


def test_the_draws_of_the_score_are_kept_with_the_weights():
    x, detector, other = (
        noise(),
        small().eval(),
        VAE((1, 16, 16), network="dense", code=3, hidden=(10,)).eval(),
    )
    assert detector.noise.shape == (10, 3)
    torch.manual_seed(1)
    scores = detector.score(x)
    torch.manual_seed(2)
    assert torch.equal(detector.score(x), scores)
    assert_close(detector.score(x[3:4]), scores[3:4], atol=1e-3)
    other.load_state_dict(detector.state_dict())
    assert torch.equal(other.score(x), scores)


def test_more_draws_come_closer_to_the_expectation():
    x = noise(4)
    few, many = small(samples=2).eval(), small(samples=300).eval()
    others = small(samples=300).eval()
    others.noise = torch.randn(300, 3, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        gap = (many.score(x) - others.score(x)).abs().max()
        assert gap < (few.score(x) - others.score(x)).abs().max()


def test_an_untouched_pixel_has_the_least_variance_and_no_less():
    detector = small()
    x, decoded = torch.zeros(1, 1, 16, 16), torch.zeros(1, 2, 16, 16)
    decoded[:, 1] = -1000.0
    expected = 256 * (math.log(2 * math.pi) - 6) / 2
    assert detector.surprise(x, decoded).item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("score_by", ["reconstruction", "elbo", "probability"])
def test_learning_tells_twos_from_other_digits(score_by):
    before, after = before_and_after(
        lambda shape: VAE(
            shape, network="dense", code=8, hidden=(64,), score_by=score_by, batch_size=20, epochs=40, lr=2e-3
        )
    )
    assert after > 0.85
    assert after > before + 0.1


def test_rows_and_images_of_any_channels():
    assert small((7,)).eval().explain(noise(3, (7,))).reconstruction.shape == (3, 7)
    assert small((3, 16, 16), network="conv", width=2).eval().score(noise(2, (3, 16, 16))).shape == (2,)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"likelihood": "poisson"}, "model.likelihood=poisson: allowed are gaussian_variance"),
        ({"score_by": "kl"}, "model.score_by=kl: allowed are reconstruction"),
        ({"sigma": 0.0}, "model.sigma=0.0"),
        ({"samples": 0}, "model.samples=0"),
        ({"network": "deep"}, "model.network=deep: allowed are conv, dense"),
        ({"hidden": (0,)}, r"model.hidden=\(0,\): a layer needs at least 1 unit"),
        ({"shape": (7,), "network": "conv"}, "model.network=conv: it needs images"),
        ({"shape": (7,), "likelihood": "bernoulli"}, "model.likelihood=bernoulli: it needs images"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(SettingError, match=message):
        small(**settings)
