import copy
import math
import warnings
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from layers import layers_of
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from steps import assert_same_weights, descend_plainly
from torch import Tensor

from anomaly_bench.compose import settings_of
from anomaly_bench.detector import Batch, Rows, Stage
from anomaly_bench.detectors.dagmm import DAGMM, Mixture, mixture_of
from anomaly_bench.errors import SettingError
from anomaly_bench.targets import build
from anomaly_bench.training.trainer import Trainer, leave_untrained

SMALL = {"hidden": [5], "code": 2, "estimation": [6], "k": 3, "batch_size": 16, "lr": 1e-3}


def small(**settings) -> DAGMM:
    torch.manual_seed(0)
    return DAGMM((4,), **SMALL | {"dropout": 0.0} | settings)


def rows(n: int = 64, seed: int = 0) -> Rows:
    return Rows(torch.rand(n, 4, generator=torch.Generator().manual_seed(seed)))


def batch_of(train: Rows) -> Batch:
    index = torch.arange(16)
    return Batch(train.take(index), index)


def numbers(detector: DAGMM, x: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """z, memberships and squared errors by equations 1 to 4, one row at a time."""
    z, gamma, errors = [], [], []
    for row in x:
        code = detector.encode(row[None])[0].detach().double().numpy()
        rebuilt = detector.decode(detector.encode(row[None]))[0].detach().double().numpy()
        row = row.double().numpy()
        relative = math.sqrt(((row - rebuilt) ** 2).sum() / (row**2).sum())
        cosine = (row @ rebuilt) / math.sqrt((row @ row) * (rebuilt @ rebuilt))
        z.append([*code, relative, cosine])
        logits = detector.estimate(torch.tensor(z[-1]).float()[None])[0].detach().double().numpy()
        gamma.append(np.exp(logits) / np.exp(logits).sum())
        errors.append(((row - rebuilt) ** 2).sum())
    return np.array(z), np.array(gamma), np.array(errors)


def gaussians(z: np.ndarray, gamma: np.ndarray) -> tuple[np.ndarray, list[np.ndarray], list[np.ndarray]]:
    """Equation 5, by numpy's own weighted covariance."""
    phi = gamma.mean(0)
    mu = [np.average(z, axis=0, weights=weight) for weight in gamma.T]
    sigma = [np.cov(z.T, aweights=weight, ddof=0) + 1e-6 * np.eye(z.shape[1]) for weight in gamma.T]
    return phi, mu, sigma


def log_joint(z: np.ndarray, phi: np.ndarray, mu: list, sigma: list) -> np.ndarray:
    """log phi_k N_k(z), `[N, K]`, by scipy."""
    return np.stack(
        [np.log(phi[k]) + multivariate_normal(mu[k], sigma[k]).logpdf(z) for k in range(len(phi))], 1
    )


@pytest.mark.parametrize(
    ("data", "inputs", "encode", "decode", "estimate"),
    [
        (
            "kddcup99",
            120,
            ["linear 120-60, tanh", "linear 60-30, tanh", "linear 30-10, tanh", "linear 10-1"],
            ["linear 1-10, tanh", "linear 10-30, tanh", "linear 30-60, tanh", "linear 60-120"],
            ["linear 3-10, tanh, dropout 0.5", "linear 10-4"],
        ),
        (
            "thyroid",
            6,
            ["linear 6-12, tanh", "linear 12-4, tanh", "linear 4-1"],
            ["linear 1-4, tanh", "linear 4-12, tanh", "linear 12-6"],
            ["linear 3-10, tanh, dropout 0.5", "linear 10-2"],
        ),
        (
            "arrhythmia",
            274,
            ["linear 274-10, tanh", "linear 10-2"],
            ["linear 2-10, tanh", "linear 10-274"],
            ["linear 4-10, tanh, dropout 0.5", "linear 10-2"],
        ),
    ],
)
def test_layers_are_those_of_the_papers_data_sets(
    data: str, inputs: int, encode: list[str], decode: list[str], estimate: list[str]
) -> None:
    detector = build(settings_of(["model=dagmm", f"data={data}"])[0].model, (inputs,))
    networks = (detector.encode, detector.decode, detector.estimate)
    assert [layers_of(network) for network in networks] == [encode, decode, estimate]


def test_losses_are_the_papers() -> None:
    detector, train = small(), rows()
    batch = batch_of(train)
    z, gamma, errors = numbers(detector, batch.x)
    phi, mu, sigma = gaussians(z, gamma)
    expected = {
        "reconstruction": errors.mean(),
        "energy": -logsumexp(log_joint(z, phi, mu, sigma), axis=1).mean(),
        "penalty": sum((1 / np.diag(s)).sum() for s in sigma),
    }
    (stage,) = detector.stages(train)
    losses = stage.step(batch)
    assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(expected, rel=1e-3)


def test_the_variational_loss_is_above_the_energy_by_a_divergence() -> None:
    detector, train = small(mixture="variational"), rows()
    batch = batch_of(train)
    z, gamma, _ = numbers(detector, batch.x)
    joint = log_joint(z, *gaussians(z, gamma))
    posterior = joint - logsumexp(joint, axis=1, keepdims=True)
    divergence = (gamma * (np.log(gamma) - posterior)).sum(1).mean()
    (stage,) = detector.stages(train)
    energy = stage.step(batch)["energy"].item()
    assert energy == pytest.approx(-logsumexp(joint, axis=1).mean() + divergence, rel=1e-4)
    assert divergence > 0


def test_one_update_is_adams_on_the_weighted_sum() -> None:
    weights = {"w_reconstruction": 0.7, "w_energy": 0.3, "w_covariance": 0.02}
    detector, twin, train = small(**weights), small(**weights), rows()
    batch = batch_of(train)
    (stage,) = detector.stages(train)
    stage.step(batch)

    code = twin.encode(batch.x)
    rebuilt = twin.decode(code)
    relative = ((batch.x - rebuilt) ** 2).sum(1).sqrt() / (batch.x**2).sum(1).sqrt()
    z = torch.stack([*code.T, relative, torch.cosine_similarity(batch.x, rebuilt)], 1).double()
    gamma = torch.softmax(twin.estimate(z.float()).double(), 1)
    likelihood, penalty = 0, 0
    for weight in gamma.T:
        mu = (weight[:, None] * z).sum(0) / weight.sum()
        sigma = ((weight[:, None] * (z - mu)).T @ (z - mu)) / weight.sum() + 1e-6 * torch.eye(4)
        normal = torch.distributions.MultivariateNormal(mu, sigma)
        likelihood = likelihood + weight.mean() * normal.log_prob(z).exp()
        penalty = penalty + (1 / sigma.diagonal()).sum()
    loss = 0.7 * ((batch.x - rebuilt) ** 2).sum(1).mean() - 0.3 * likelihood.log().mean() + 0.02 * penalty
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
    loss.backward()
    optimizer.step()
    expected = dict(twin.named_parameters())
    for name, parameter in detector.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=5e-5, msg=name)
    assert (
        sum(((a - b) ** 2).sum() for a, b in zip(small().parameters(), twin.parameters(), strict=True)) > 1e-4
    )


def test_on_images_the_error_is_averaged_over_the_pixels_and_z_has_that_of_whole_images() -> None:
    images = torch.rand(16, 2, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    sizes = {
        "network": "conv",
        "width": 4,
        "code": 3,
        "estimation": [6],
        "k": 2,
        "dropout": 0.0,
        "batch_size": 16,
        "jitter": 1e-3,
    }
    weights = {"w_energy": 0.3, "w_covariance": 0.02, "lr": 1e-3}
    torch.manual_seed(0)
    detector = DAGMM((2, 8, 8), **sizes, **weights)
    twin = copy.deepcopy(detector)
    (stage,) = detector.stages(Rows(images))
    losses = stage.step(Batch(images, torch.arange(16)))

    code = twin.encode(images)
    rebuilt = twin.decode(code)
    assert code.shape == (16, 3)
    assert rebuilt.shape == images.shape
    assert rebuilt.abs().max() < 1
    assert twin.encode[-1].out_features == 3  # linear: a code is not bounded
    x, x_hat = images.reshape(16, 128), rebuilt.reshape(16, 128)
    relative = ((x - x_hat) ** 2).sum(1).sqrt() / (x**2).sum(1).sqrt()
    z = torch.stack([*code.T, relative, torch.cosine_similarity(x, x_hat)], 1)
    gamma = torch.softmax(twin.estimate(z).double(), 1)
    mixture, variances = mixture_of(z, gamma, 1e-3)
    terms = {
        "reconstruction": ((images - rebuilt) ** 2).mean(),
        "energy": mixture.energy(z).mean(),
        "penalty": (1 / variances).sum(),
    }
    assert {k: v.item() for k, v in losses.items()} == pytest.approx(
        {k: v.item() for k, v in terms.items()}, rel=1e-4
    )
    optimizer = torch.optim.Adam(twin.parameters(), lr=1e-3)
    (terms["reconstruction"] + 0.3 * terms["energy"] + 0.02 * terms["penalty"]).backward()
    optimizer.step()
    expected = dict(twin.named_parameters())
    for name, parameter in detector.named_parameters():
        torch.testing.assert_close(parameter, expected[name], rtol=0, atol=5e-5, msg=name)


def test_scores_are_energies_under_the_mixture_of_all_training_rows() -> None:
    detector, train = small(dropout=0.5, epochs=3), rows(70)
    Trainer(device="cpu", precision="fp32").learn(detector, train, seed=0)
    detector.eval()
    z, gamma, _ = numbers(detector, train.x)  # 70 rows, though a batch has 16 and the last is left out
    new = rows(10, seed=1).x
    expected = -logsumexp(log_joint(numbers(detector, new)[0], *gaussians(z, gamma)), axis=1)
    np.testing.assert_allclose(detector.score(new).detach(), expected, rtol=1e-3)


def test_half_of_the_estimation_networks_units_are_dropped_after_their_tanh_in_training_only() -> None:
    detector = DAGMM((4,), estimation=[200])
    z = torch.rand(50, 3)
    assert detector.estimate is not None
    hidden = torch.tanh(detector.estimate[0][0](z))
    assert torch.equal(detector.eval().estimate[0](z), hidden)
    dropped = detector.train().estimate[0](z)
    kept = dropped != 0
    assert kept.float().mean().item() == pytest.approx(0.5, abs=0.05)
    torch.testing.assert_close(dropped[kept], 2 * hidden[kept])


STAGES = {
    "dagmm": ({}, ["mixture"]),
    "dagmm_p": ({"pretrain_epochs": 1}, ["layer 1", "layer 2", "mixture"]),
    "pae": (
        {"pretrain_epochs": 1, "joint": False, "mixture": "none"},
        ["layer 1", "layer 2", "autoencoder"],
    ),
    "e2e_ae": ({"joint": False, "mixture": "none"}, ["autoencoder"]),
    "pae_gmm": ({"pretrain_epochs": 1, "joint": False}, ["layer 1", "layer 2", "autoencoder", "mixture"]),
    "pae_gmm_em": (
        {"pretrain_epochs": 1, "joint": False, "mixture": "em"},
        ["layer 1", "layer 2", "autoencoder"],
    ),
}
MOVED = {
    "layer 1": {"encode.0", "decode.1"},
    "layer 2": {"encode.1", "decode.0"},
    "autoencoder": {"encode.0", "encode.1", "decode.0", "decode.1"},
}
ALL = MOVED["autoencoder"] | {"estimate.0", "estimate.1"}


def walk(detector: DAGMM, train: Rows) -> Iterator[Stage]:
    """The stages, the code between them without gradients as the trainer has it."""
    stages = detector.stages(train)
    while True:
        with torch.no_grad():
            stage = next(stages, None)
        if stage is None:
            return
        yield stage


@pytest.mark.parametrize("name", STAGES)
def test_each_stage_moves_its_networks(name: str) -> None:
    settings, names = STAGES[name]
    detector, train = small(**settings), rows()
    seen = []
    for stage in walk(detector, train):
        before = {key: x.clone() for key, x in detector.named_parameters()}
        stage.step(batch_of(train))
        moved = {
            ".".join(key.split(".")[:2]) for key, x in detector.named_parameters() if (x != before[key]).any()
        }
        joint = ALL if settings.get("joint", True) else {"estimate.0", "estimate.1"}
        assert moved == MOVED.get(stage.name, joint), stage.name
        seen.append(stage.name)
    assert seen == names


@pytest.mark.parametrize("layer", [0, 1])
def test_one_update_of_a_layer_rebuilds_what_it_corrupts(layer: int) -> None:
    detector, twin, train = small(pretrain_epochs=1, corruption=0.5), small(), rows()
    batch = batch_of(train)
    stage = list(detector.stages(train))[layer]
    torch.manual_seed(3)
    loss = stage.step(batch)["reconstruction"].item()
    torch.manual_seed(3)
    inputs = [batch.x, twin.encode[0](batch.x).detach()][layer]
    up, down = twin.encode[layer], twin.decode[1 - layer]
    rebuilt = down(up(inputs * (torch.rand(inputs.shape) >= 0.5)))
    expected = ((rebuilt - inputs) ** 2).sum(1).mean()
    descend_plainly(torch.optim.Adam(twin.parameters(), lr=1e-3), expected)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    assert_same_weights(detector.encode[layer], up)
    assert_same_weights(detector.decode[1 - layer], down)


@pytest.mark.parametrize("name", ["pae", "e2e_ae", "pae_gmm", "pae_gmm_em"])
def test_one_update_of_the_autoencoder_alone(name: str) -> None:
    settings, _ = STAGES[name]
    detector, twin, train = small(**settings), small(**settings), rows()
    batch = batch_of(train)
    stage = next(stage for stage in walk(detector, train) if stage.name == "autoencoder")
    loss = ((twin.decode(twin.encode(batch.x)) - batch.x) ** 2).sum(1).mean()
    descend_plainly(torch.optim.Adam(twin.parameters(), lr=1e-3), loss)
    assert stage.step(batch)["reconstruction"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert_same_weights(detector.encode, twin.encode)
    assert_same_weights(detector.decode, twin.decode)


def test_without_a_mixture_the_score_is_the_squared_error() -> None:
    detector = small(joint=False, mixture="none")
    x = rows(5).x
    torch.testing.assert_close(detector.score(x), (x - detector(x)[1]).square().sum(1))


def test_em_is_scikit_learns() -> None:
    detector, train = small(joint=False, mixture="em", jitter=0.01), rows(80)
    torch.manual_seed(5)
    leave_untrained(detector, train)
    z = numbers_z(detector, train.x)
    torch.manual_seed(5)
    seed = int(torch.randint(2**31, ()))
    em = GaussianMixture(len(detector.phi), reg_covar=0.01, n_init=3, random_state=seed).fit(z)
    np.testing.assert_allclose(detector.score(train.x).detach(), -em.score_samples(z), rtol=1e-6)
    np.testing.assert_allclose(detector.phi, em.weights_, rtol=1e-6)


def numbers_z(detector: DAGMM, x: Tensor) -> np.ndarray:
    return detector(x)[0].detach().double().numpy()


@pytest.mark.parametrize(
    "x",
    [
        torch.zeros(20, 4),  # no direction, no length
        torch.full((20, 4), 0.5),  # duplicates
        torch.rand(20, 4) * torch.tensor([1.0, 0, 1e6, 1e-6]),  # constant and badly scaled columns
        torch.rand(1, 4),  # one row
    ],
)
@pytest.mark.parametrize("mixture", ["estimation", "variational", "em"])
def test_degenerate_rows_keep_everything_finite(x: Tensor, mixture: str) -> None:
    detector = small(mixture=mixture, joint=mixture != "em", epochs=3)
    if mixture == "em" and len(x) == 1:
        return  # two rows are the least that scikit-learn takes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of fewer distinct rows than Gaussians
        Trainer(device="cpu", precision="fp32").learn(detector, Rows(x), seed=0)
    for parameter in detector.parameters():
        assert parameter.isfinite().all()
    assert detector.eval().score(torch.cat([x, torch.rand(3, 4), torch.zeros(1, 4)])).isfinite().all()


def test_a_component_that_dies_and_a_flat_direction() -> None:
    z = torch.randn(30, 3, dtype=torch.float64) * torch.tensor([1.0, 0.0, 1e3])
    gamma = torch.tensor([[1.0, 0.0]]).expand(30, 2)
    mixture, variances = mixture_of(z.requires_grad_(), gamma, 1e-6)
    loss = mixture.energy(z).mean() + (1 / variances).sum()
    (gradient,) = torch.autograd.grad(loss, z)
    assert loss.isfinite()
    assert gradient.isfinite().all()


def test_energies_do_not_saturate() -> None:
    """Far rows still have an order, which a sum of likelihoods in float32 does not give them."""
    mixture = Mixture(torch.ones(1).double(), torch.zeros(1, 2).double(), torch.eye(2).double()[None])
    z = torch.tensor([[0.0, 0.0], [100.0, 0.0], [200.0, 0.0]])
    expected = math.log(2 * math.pi) + torch.tensor([0.0, 5000.0, 20000.0]).double()
    torch.testing.assert_close(mixture.energy(z), expected)


def test_beats_its_untrained_copy_on_digits() -> None:
    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels / 16).float()
    sixes, others = np.flatnonzero(labels == 6), np.flatnonzero(labels != 6)[::6]
    train, held = Rows(x[sixes[:120]]), np.concatenate([sixes[120:], others])
    areas = {}
    for epochs in (0, 60):
        torch.manual_seed(0)
        detector = DAGMM((64,), hidden=[32], code=1, k=2, lr=5e-3, batch_size=60, epochs=epochs)
        Trainer(device="cpu", precision="fp32").learn(detector, train, seed=0)
        areas[epochs] = roc_auc_score(labels[held] != 6, detector.eval().score(x[held]).detach())
    assert areas[60] > 0.95
    assert 1 - areas[60] < (1 - areas[0]) / 2


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mixture": "vb"}, r"model\.mixture=vb: allowed are estimation, variational, em, none"),
        ({"mixture": "em"}, r"model\.joint=true: model\.mixture=em"),
        ({"dropout": 1.0}, r"model\.dropout=1\.0"),
        ({"corruption": -0.1}, r"model\.corruption=-0\.1"),
        ({"jitter": 0.0}, r"model\.jitter=0\.0: must be above 0"),
        ({"k": 0}, r"model\.k=0"),
        ({"hidden": [4, 0]}, r"model\.hidden=\[4, 0\]"),
        ({"network": "conv"}, r"model\.network=conv: it needs images"),
        ({"network": "cnn"}, r"model\.network=cnn: allowed are conv, dense"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**settings)


def test_images_are_refused_by_dense_layers_and_pretraining_by_convolutions() -> None:
    with pytest.raises(SettingError, match=r"takes rows of numbers, found images of shape \(1, 8, 8\)"):
        DAGMM((1, 8, 8))
    with pytest.raises(SettingError, match=r"model\.pretrain_epochs=2: .* model\.network=dense alone"):
        DAGMM((1, 8, 8), network="conv", pretrain_epochs=2)
