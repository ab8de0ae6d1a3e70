import copy

import numpy as np
import pytest
import torch
from layers import layers_of
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from steps import assert_same_weights, descend_plainly, moved, networks, stage_of
from torch import Tensor

from anomaly_bench.data.dataset import resized
from anomaly_bench.detector import Batch, Rows
from anomaly_bench.detectors.anogan import AnoGAN
from anomaly_bench.errors import SettingError
from anomaly_bench.training.scoring import score_rows
from anomaly_bench.training.trainer import Trainer


def small(shape: tuple[int, ...] = (1, 16, 16), **settings) -> AnoGAN:
    torch.manual_seed(0)
    return AnoGAN(shape, **{"nz": 6, "ngf": 4, "ndf": 4, "descent_steps": 10, "z_lr": 0.1} | settings)


def searchable(**settings) -> AnoGAN:
    """One whose images depend on z enough for the search to matter, in evaluation mode."""
    detector = small(**settings).eval()
    for parameter in detector.generate.parameters():
        parameter.data.mul_(6)
    return detector


def images(n: int, shape: tuple[int, ...] = (1, 16, 16)) -> Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1)) * 2 - 1


def step_of(detector: AnoGAN):
    (stage,) = detector.stages(Rows(torch.zeros(8, 1, 16, 16, dtype=torch.uint8)))
    detector.train()
    return stage


def loss_left(detector: AnoGAN, x: Tensor, z: Tensor) -> Tensor:
    """(1 - lambda) sum |x - G(z)| + lambda sum |f(x) - f(G(z))| of one image `[1, C, S, S]`."""
    fake = detector.generate(z)
    f, f_hat = detector.discriminate.features(x), detector.discriminate.features(fake)
    return (1 - detector.lambda_) * (x - fake).abs().sum() + detector.lambda_ * (f - f_hat).abs().sum()


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32), (1, 64, 64), (3, 64, 64)])
def test_shapes(shape: tuple[int, ...]) -> None:
    detector, x = small(shape, descent_steps=2).eval(), images(3, shape)
    score, residual, reconstruction, features = detector.explain(x)
    assert score.shape == (3,)
    assert residual.shape == (3, *shape[1:])
    assert reconstruction.shape == x.shape
    assert features.shape == (3, 4 * shape[1] // 8 * 16)
    torch.testing.assert_close(detector.score(x), score)


def test_layers_at_64_pixels_are_the_papers_filters_with_dcgans_norms_and_activations() -> None:
    detector = AnoGAN((1, 64, 64))
    assert layers_of(detector.generate) == [
        "convT 4/1/0 100-512 no bias, bn, relu",
        "convT 5/2/2 512-256 no bias, bn, relu",
        "convT 5/2/2 256-128 no bias, bn, relu",
        "convT 5/2/2 128-64 no bias, bn, relu",
        "convT 5/2/2 64-1, tanh",
    ]
    assert layers_of(detector.discriminate) == [
        "conv 5/2/2 1-64, leaky 0.2",
        "conv 5/2/2 64-128 no bias, bn, leaky 0.2",
        "conv 5/2/2 128-256 no bias, bn, leaky 0.2",
        "conv 5/2/2 256-512 no bias, bn, leaky 0.2",
        "conv 4/1/0 512-1",
    ]


def test_one_step_is_dcgans() -> None:
    detector, x = small(), images(8)
    g_net, d_net = (copy.deepcopy(net).train() for net in (detector.generate, detector.discriminate))
    stage = step_of(detector)
    torch.manual_seed(5)
    losses = stage.step(Batch(x, torch.arange(8)))

    torch.manual_seed(5)
    g = torch.optim.Adam(g_net.parameters(), lr=2e-4, betas=(0.5, 0.999))
    d = torch.optim.Adam(d_net.parameters(), lr=2e-4, betas=(0.5, 0.999))
    fake = g_net(2 * torch.rand(8, 6, 1, 1) - 1)
    probability = torch.sigmoid(d_net(x)[1]), torch.sigmoid(d_net(fake.detach())[1])
    l_d = -(probability[0].log().mean() + (1 - probability[1]).log().mean())
    d.zero_grad()
    l_d.backward()
    d.step()
    d_after = {name: p.detach().clone() for name, p in d_net.named_parameters()}
    clear = {name: p.grad.abs() > 1e-6 for name, p in d_net.named_parameters()}
    l_g = -torch.sigmoid(d_net(fake)[1]).log().mean()
    g.zero_grad()
    l_g.backward()
    g.step()

    assert losses["discriminator"].item() == pytest.approx(l_d.item(), abs=1e-5)
    assert losses["generator"].item() == pytest.approx(l_g.item(), abs=1e-5)
    for name, p in detector.discriminate.named_parameters():
        torch.testing.assert_close(p[clear[name]], d_after[name][clear[name]], rtol=0, atol=2e-6)
    for (_, p), (_, q) in zip(detector.generate.named_parameters(), g_net.named_parameters(), strict=True):
        clear_g = q.grad.abs() > 1e-6
        torch.testing.assert_close(p[clear_g], q[clear_g], rtol=0, atol=2e-6)


def test_step_moves_both_networks_and_leaves_the_start() -> None:
    detector = small()
    before = copy.deepcopy(detector.state_dict())
    stage = step_of(detector)
    losses = stage.step(Batch(images(8), torch.arange(8)))
    assert set(losses) == {"discriminator", "generator"}
    assert not any(loss.requires_grad for loss in losses.values())
    assert all(not torch.equal(p, before[name]) for name, p in detector.named_parameters())
    assert torch.equal(detector.start, before["start"])


def test_search_is_adam_on_each_image_alone() -> None:
    detector, x = searchable(lambda_=0.3, descent_steps=12), images(3)
    for image, score in zip(x.split(1), detector.score(x), strict=True):
        z = detector.start.clone().requires_grad_()
        m, v = torch.zeros_like(z), torch.zeros_like(z)
        for step in range(1, 13):
            (gradient,) = torch.autograd.grad(loss_left(detector, image, z), z)
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            move = 0.1 * (m / (1 - 0.9**step)) / ((v / (1 - 0.999**step)).sqrt() + 1e-8)
            z = (z - move).detach().requires_grad_()
        assert score.item() == pytest.approx(loss_left(detector, image, z).item(), rel=1e-5)


def test_search_leaves_less_than_it_began_with_and_no_trace() -> None:
    detector, x = searchable(descent_steps=30), images(4)
    before = copy.deepcopy(detector.state_dict())
    began = [loss_left(detector, image, detector.start).item() for image in x.split(1)]
    assert (detector.score(x) < torch.tensor(began)).all()
    detector.score(x[:1])
    assert all(torch.equal(kept, before[name]) for name, kept in detector.state_dict().items())
    assert all(parameter.grad is None for parameter in detector.parameters())


def test_best_of_restarts_is_the_best_single_search() -> None:
    detector, x = searchable(restarts=3), images(5)
    together = detector.score(x)
    starts, alone = detector.start, []
    for number in range(3):
        detector.start = starts[number : number + 1]
        alone.append(detector.score(x))
    torch.testing.assert_close(together, torch.stack(alone).min(0).values, rtol=1e-5, atol=0)
    assert (torch.stack(alone).max(0).values > 1.01 * together).all()


def test_one_step_of_the_wasserstein_gan_is_algorithm_1_of_wgan_gp() -> None:
    settings = {"gan": "wgan_gp", "n_critic": 2, "lr": 1e-3, "beta1": 0.0, "beta2": 0.9, "lambda_gp": 7.0}
    detector, x = small(**settings), images(8)
    generate, critic = (copy.deepcopy(net).train() for net in (detector.generate, detector.discriminate))
    stage = stage_of(detector, 0, (1, 16, 16))
    assert stage.batch_size == 2 * 64
    torch.manual_seed(5)
    losses = stage.step(Batch(x, torch.arange(8)))

    torch.manual_seed(5)
    g = torch.optim.Adam(generate.parameters(), lr=1e-3, betas=(0.0, 0.9))
    d = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9))
    distances = []
    for real in (x[:4], x[4:]):
        fake = generate(torch.randn(4, 6, 1, 1)).detach()
        share = torch.rand(4, 1, 1, 1)
        between = (share * real + (1 - share) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(critic(between)[1].sum(), between, create_graph=True)
        penalty = sum((row.square().sum().sqrt() - 1) ** 2 for row in slope) / 4
        distance = critic(real)[1].mean() - critic(fake)[1].mean()
        descend_plainly(d, 7 * penalty - distance)
        distances.append(distance.item())
    d_after = copy.deepcopy(critic)
    for kept, p in zip(d_after.parameters(), critic.parameters(), strict=True):
        kept.grad = p.grad.clone()
    l_g = -critic(generate(torch.randn(4, 6, 1, 1)))[1].mean()
    descend_plainly(g, l_g)

    assert losses["wasserstein"].item() == pytest.approx(np.mean(distances), abs=1e-5)
    assert losses["generator"].item() == pytest.approx(l_g.item(), abs=1e-5)
    assert_same_weights(detector.discriminate, d_after)
    assert_same_weights(detector.generate, generate)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 64, 64)])
def test_the_wasserstein_gan_is_searched_alike(shape: tuple[int, ...]) -> None:
    detector, x = (
        small(shape, gan="wgan_gp", descent_steps=3, lambda_=0.3, z_lr=0.05).eval(),
        images(2, shape),
    )
    explained = detector.explain(x)
    assert explained.map.shape == (2, *shape[1:])
    for row, image in enumerate(x.split(1)):
        z = detector.start.clone().requires_grad_()
        adam = torch.optim.Adam([z], lr=0.05)
        for _ in range(3):
            descend_plainly(adam, loss_left(detector, image, z))
        assert explained.score[row].item() == pytest.approx(loss_left(detector, image, z).item(), rel=1e-5)


def test_a_learned_start_is_the_code_of_an_encoder_that_undoes_the_generator() -> None:
    detector, x = small(learned_start=True, restarts=2, batch_size=8, start_steps=7), images(8)
    stage = stage_of(detector, 1, (1, 16, 16))
    assert stage.epochs == 3
    encode, generate = copy.deepcopy(detector.encode).train(), copy.deepcopy(detector.generate).eval()
    torch.manual_seed(5)
    loss = stage.step(Batch(x, torch.arange(8)))["start"]

    torch.manual_seed(5)
    z = 2 * torch.rand(8, 6, 1, 1) - 1
    e = torch.optim.Adam(encode.parameters(), lr=2e-4, betas=(0.5, 0.999))
    expected = ((z - encode(generate(z).detach())) ** 2).sum() / (8 * 6)
    descend_plainly(e, expected)
    assert loss.item() == pytest.approx(expected.item(), abs=1e-5)
    assert_same_weights(detector.encode, encode)

    assert networks(moved(detector, stage.step, Batch(x, torch.arange(8)))) == {"encode"}
    detector.eval()
    first = detector.first_codes(x).view(8, 2, 6)
    torch.testing.assert_close(first[:, 0], detector.encode(x).view(8, 6))
    assert torch.equal(first[:, 1], detector.start[1].view(1, 6).repeat(8, 1))
    assert detector.score(x).shape == (8,)


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_scores_where_gradients_are_off(context) -> None:
    detector, x = small().eval(), images(3)
    expected = detector.score(x)
    with context():
        torch.testing.assert_close(detector.score(images(3)), expected)


def test_scores_under_autocast_are_close() -> None:
    detector, x = small().eval(), images(4)
    expected = detector.score(x)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        score = detector.score(x)
    assert score.dtype == torch.float32
    torch.testing.assert_close(score, expected, rtol=0.02, atol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_": 1.5}, "model.lambda_=1.5"),
        ({"restarts": 0}, "model.restarts=0"),
        ({"n_critic": 0}, "model.n_critic=0"),
        ({"gan": "lsgan"}, "model.gan=lsgan: allowed are dcgan, wgan_gp"),
        ({"shape": (1, 28, 28)}, "data.image_size"),
        ({"shape": (6,)}, "images"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**settings)


def score_digits(size: int, **settings) -> tuple[float, float, AnoGAN, Rows]:
    """AUROC untrained and trained; ones are normal, zeros are not."""
    data = load_digits()
    digits = resized((data.images * 15.9).astype(np.uint8)[..., None], size)
    ones, zeros = digits[data.target == 1], digits[data.target == 0]
    test = Rows(torch.cat([ones[120:], zeros[:60]]))
    anomalous = np.arange(len(test)) >= len(ones) - 120
    detector = small((1, size, size), nz=16, ngf=8, ndf=8, batch_size=30, lr=1e-3, **settings)
    untrained = score_rows(detector, test, precision="fp32", batch_size=50)
    Trainer(device="cpu", precision="fp32").learn(detector, Rows(ones[:120]), seed=0)
    trained = score_rows(detector, test, precision="fp32", batch_size=50)
    auroc = [float(roc_auc_score(anomalous, scores)) for scores in (untrained, trained)]
    return auroc[0], auroc[1], detector, test


def test_learns_digits_and_scores_each_alone() -> None:
    untrained, trained, detector, test = score_digits(16, epochs=10, descent_steps=30)
    assert trained > max(0.7, untrained + 0.2)

    scores = score_rows(detector, test, precision="fp32", batch_size=50)
    by_seven = score_rows(detector, test, precision="fp32", batch_size=7)
    backwards = score_rows(detector, Rows(test.x.flip(0)), precision="fp32", batch_size=50).flip(0)
    torch.testing.assert_close(by_seven, scores, rtol=1e-2, atol=0)
    torch.testing.assert_close(backwards, scores, rtol=1e-2, atol=0)
    assert len(scores.unique()) > 0.9 * len(scores)

    torch.manual_seed(99)
    other = AnoGAN((1, 16, 16), nz=16, ngf=8, ndf=8, descent_steps=30, z_lr=0.1)
    other.load_state_dict(detector.state_dict())
    torch.testing.assert_close(score_rows(other, test, precision="fp32", batch_size=50), scores)


@pytest.mark.slow
def test_learns_digits_at_32_pixels() -> None:
    untrained, trained, *_ = score_digits(32, epochs=20, descent_steps=200)
    assert trained > max(0.8, untrained + 0.2)
