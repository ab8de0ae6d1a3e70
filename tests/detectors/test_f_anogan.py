import copy

import numpy as np
import pytest
import torch
from layers import layers_of
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from anomaly_bench.data.dataset import resized
from anomaly_bench.detector import Batch, RMSProp, Rows, Stage
from anomaly_bench.detectors.f_anogan import FAnoGAN
from anomaly_bench.errors import SettingError
from anomaly_bench.networks.resnet import Critic, Encoder, Generator
from anomaly_bench.training.scoring import score_rows
from anomaly_bench.training.trainer import Trainer


def small(shape: tuple[int, ...] = (1, 16, 16), **settings) -> FAnoGAN:
    torch.manual_seed(0)
    return FAnoGAN(shape, **{"nz": 6, "width": 4, "flip": False} | settings)


def rows(shape: tuple[int, ...] = (1, 16, 16), n: int = 20) -> Rows:
    pixels = torch.randint(0, 256, (n, *shape), generator=torch.Generator().manual_seed(1))
    return Rows(pixels.to(torch.uint8))


def stage_of(detector: FAnoGAN, number: int, train: Rows) -> Stage:
    stage = list(detector.stages(train))[number]
    detector.train()
    return stage


def first(train: Rows, n: int) -> Batch:
    index = torch.arange(n)
    return Batch(train.take(index), index)


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: x.clone() for name, x in module.state_dict().items()}


def unchanged(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(x, before[name]) for name, x in module.state_dict().items())


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Equal where the last gradient is more than rounding, which Adam would blow up to a full step."""
    pairs = list(zip(ours.parameters(), theirs.parameters(), strict=True))
    scale = max(their.grad.abs().max() for _, their in pairs)
    compared = 0
    for our, their in pairs:
        clear = their.grad.abs() > 1e-4 * scale
        torch.testing.assert_close(our[clear], their[clear], rtol=1e-4, atol=1e-5)
        compared += int(clear.sum())
    assert compared > 0.5 * sum(their.numel() for _, their in pairs)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32), (1, 64, 64), (3, 64, 64)])
def test_shapes(shape: tuple[int, ...]) -> None:
    detector, x = small(shape, width=2).eval(), torch.rand(3, *shape) * 2 - 1
    score, residual, reconstruction, features = detector.explain(x)
    assert score.shape == (3,)
    assert residual.shape == (3, *shape[1:])
    assert reconstruction.shape == x.shape
    assert features.shape == (3, 16 * 16)
    torch.testing.assert_close(detector.score(x), score)


def test_networks_are_as_wide_as_the_official_ones_and_codes_end_in_tanh() -> None:
    detector = FAnoGAN((1, 64, 64))
    assert layers_of(detector.generate) == layers_of(Generator(64, 1, 128, 64))
    assert layers_of(detector.criticise) == layers_of(Critic(64, 1, 64))
    assert layers_of(detector.encode) == [*layers_of(Encoder(64, 1, 128, 64))[:-1], "linear 8192-128, tanh"]


def test_score_is_both_residuals() -> None:
    detector, x = small(kappa=3.0).eval(), torch.rand(4, 1, 16, 16) * 2 - 1
    fake = detector.generate(detector.encode(x))
    f, f_hat = detector.criticise(x)[0], detector.criticise(fake)[0]
    expected = [((x[i] - fake[i]) ** 2).mean() + 3 * ((f[i] - f_hat[i]) ** 2).mean() for i in range(4)]
    torch.testing.assert_close(detector.score(x), torch.stack(expected))


def test_one_gan_step_is_algorithm_1_of_wgan_gp() -> None:
    detector, train = small(n_critic=2, lr=1e-3), rows()
    reference = copy.deepcopy(detector).train()
    generate, criticise = reference.generate, reference.criticise
    batch = first(train, 8)
    stage = stage_of(detector, 0, train)
    torch.manual_seed(5)
    losses = stage.step(batch)

    torch.manual_seed(5)
    g = torch.optim.Adam(generate.parameters(), lr=1e-3, betas=(0.0, 0.9))
    d = torch.optim.Adam(criticise.parameters(), lr=1e-3, betas=(0.0, 0.9))
    distances, penalties = [], []
    for x in (batch.x[:4], batch.x[4:]):
        x_tilde = generate(torch.randn(4, 6)).detach()
        epsilon = torch.rand(4, 1, 1, 1)
        x_hat = (epsilon * x + (1 - epsilon) * x_tilde).requires_grad_()
        (gradient,) = torch.autograd.grad(criticise(x_hat)[1].sum(), x_hat, create_graph=True)
        penalty = sum((torch.sqrt((row**2).sum()) - 1) ** 2 for row in gradient) / 4
        distance = criticise(x)[1].mean() - criticise(x_tilde)[1].mean()
        d.zero_grad()
        (10 * penalty - distance).backward()
        d.step()
        distances.append(distance.item())
        penalties.append(penalty.item())
    d_after = copy.deepcopy(criticise)
    for kept, parameter in zip(d_after.parameters(), criticise.parameters(), strict=True):
        kept.grad = parameter.grad.clone()
    l_g = -criticise(generate(torch.randn(4, 6)))[1].mean()
    g.zero_grad()
    l_g.backward()
    g.step()

    assert losses["wasserstein"].item() == pytest.approx(np.mean(distances), abs=1e-5)
    assert losses["penalty"].item() == pytest.approx(np.mean(penalties), rel=1e-4)
    assert losses["generator"].item() == pytest.approx(l_g.item(), abs=1e-5)
    assert_same_weights(detector.criticise, d_after)
    assert_same_weights(detector.generate, generate)


@pytest.mark.parametrize("training", ["izi", "ziz", "izi_f"])
def test_one_encoder_step_is_the_papers_loss(training: str) -> None:
    detector, train = small(encoder_training=training, kappa=2.0, encoder_lr=1e-3), rows()
    reference = copy.deepcopy(detector)
    batch = first(train, 8)
    stage = stage_of(detector, 1, train)
    torch.manual_seed(5)
    losses = stage.step(batch)

    torch.manual_seed(5)
    generate, encode, f = reference.generate.eval(), reference.encode.train(), reference.criticise.features
    x, e = batch.x, RMSProp(encode.parameters(), lr=1e-3)
    if training == "ziz":
        z = torch.randn(8, 6)
        loss = ((z - encode(generate(z))) ** 2).sum() / (8 * 6)
    else:
        fake = generate(encode(x))
        loss = ((x - fake) ** 2).sum() / x.numel()
        if training == "izi_f":
            loss = loss + 2.0 * ((f(x) - f(fake)) ** 2).sum() / f(x).numel()
    loss.backward()
    e.step()

    assert losses["encoder"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert_same_weights(detector.encode, encode)


def test_gan_step_moves_generator_and_critic_alone() -> None:
    detector, train = small(n_critic=3), rows()
    stage = stage_of(detector, 0, train)
    before = {name: snapshot(module) for name, module in detector.named_children()}
    losses = stage.step(first(train, 12))
    g, d = stage.optimizers
    assert {int(state["step"]) for state in d.state.values()} == {3}
    assert {int(state["step"]) for state in g.state.values()} == {1}
    assert not any(loss.requires_grad for loss in losses.values())
    assert unchanged(detector.encode, before["encode"])
    still = {
        f"{name}.{n}"
        for name in ("generate", "criticise")
        for n, x in getattr(detector, name).named_parameters()
        if torch.equal(x, before[name][n])
    }
    # what these add to the values of real and generated images alike cancels in the Wasserstein distance
    assert still == {
        "criticise.head.bias",
        "criticise.features.2.path.5.bias",
        "criticise.features.2.shortcut.1.bias",
    }


def test_encoder_step_moves_the_encoder_alone() -> None:
    detector, train = small(), rows()
    stage = stage_of(detector, 1, train)
    before = {name: snapshot(module) for name, module in detector.named_children()}
    stage.step(first(train, 8))
    assert unchanged(detector.generate, before["generate"])
    assert unchanged(detector.criticise, before["criticise"])
    for name, parameter in detector.encode.named_parameters():
        assert not torch.equal(parameter, before["encode"][name]), name
    assert all(
        p.grad is None for module in (detector.generate, detector.criticise) for p in module.parameters()
    )


def test_stages_count_rows_and_steps_as_the_official_code() -> None:
    detector = small(batch_size=2, n_critic=3, epochs=7, encoder_steps=25)
    gan, encoder = detector.stages(rows(n=21))
    assert (gan.epochs, gan.batch_size) == (7, 6)
    assert (encoder.epochs, encoder.batch_size) == (3, 2)


def test_fewer_rows_than_critic_updates() -> None:
    detector, train = small(), rows(n=3)
    losses = stage_of(detector, 0, train).step(first(train, 3))
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_flip_mirrors_some_images_and_only_in_training() -> None:
    detector, x = small(flip=True), first(rows(), 20).x
    torch.manual_seed(0)
    mirrored = detector.mirrored(x)
    same = [torch.equal(a, b) for a, b in zip(mirrored, x, strict=True)]
    flipped = [torch.equal(a, b.flip(2)) for a, b in zip(mirrored, x, strict=True)]
    assert 4 < sum(flipped) < 16
    assert [not s for s in same] == flipped
    assert torch.equal(small(flip=False).mirrored(x), x)
    detector.eval()
    assert torch.equal(detector.score(x), detector.score(x))


def test_a_step_under_autocast_sees_updated_weights() -> None:
    detector, train = small(lr=1e-2), rows()
    stage = stage_of(detector, 0, train)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        losses = stage.step(first(train, 20))
    assert all(loss.dtype == torch.float32 for loss in losses.values())
    assert all(torch.isfinite(loss) for loss in losses.values())


def test_encoder_output_bounds_the_code() -> None:
    x = torch.rand(8, 1, 16, 16) * 2 - 1
    for output, bounded in (("tanh", True), ("none", False)):
        detector = small(encoder_output=output)
        nn.init.constant_(detector.encode[0][1].bias, 5.0)
        assert bool((detector.encode(x).abs() <= 1).all()) is bounded


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder_training": "iziz"}, "model.encoder_training=iziz: allowed are izi, ziz, izi_f"),
        ({"encoder_output": "clip"}, "model.encoder_output=clip"),
        ({"n_critic": 0}, "model.n_critic=0"),
        ({"shape": (1, 48, 48)}, "data.image_size"),
        ({"shape": (1, 32, 64)}, "data.image_size"),
        ({"shape": (6,)}, "images"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**settings)


def digits(size: int) -> tuple[Rows, Rows, np.ndarray]:
    """Ones to learn; other ones and zeros to score, and which are zeros."""
    data = load_digits()
    images = resized((data.images * 15.9).astype(np.uint8)[..., None], size)
    ones, zeros = images[data.target == 1], images[data.target == 0]
    test = torch.cat([ones[120:], zeros[:60]])
    return Rows(ones[:120]), Rows(test), np.arange(len(test)) >= len(ones) - 120


def score_digits(size: int, **settings) -> tuple[float, float, FAnoGAN, Rows]:
    """AUROC untrained and trained."""
    train, test, anomalous = digits(size)
    detector = small((1, size, size), nz=16, batch_size=12, **settings)
    untrained = score_rows(detector, test, precision="fp32", batch_size=50)
    Trainer(device="cpu", precision="fp32").learn(detector, train, seed=0)
    trained = score_rows(detector, test, precision="fp32", batch_size=50)
    auroc = [float(roc_auc_score(anomalous, scores)) for scores in (untrained, trained)]
    return auroc[0], auroc[1], detector, test


def test_learns_digits_and_scores_each_alone() -> None:
    untrained, trained, detector, test = score_digits(
        16, n_critic=2, epochs=8, encoder_steps=80, lr=2e-3, encoder_lr=2e-3
    )
    assert trained > max(0.9, untrained + 0.2)

    scores = score_rows(detector, test, precision="fp32", batch_size=50)
    by_seven = score_rows(detector, test, precision="fp32", batch_size=7)
    backwards = score_rows(detector, Rows(test.x.flip(0)), precision="fp32", batch_size=50).flip(0)
    torch.testing.assert_close(by_seven, scores, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(backwards, scores, rtol=1e-4, atol=1e-6)
    assert len(scores.unique()) > 0.9 * len(scores)

    other = small(nz=16, n_critic=1)
    other.load_state_dict(detector.state_dict())
    assert torch.equal(score_rows(other, test, precision="fp32", batch_size=50), scores)


@pytest.mark.slow
def test_learns_digits_at_32_pixels() -> None:
    untrained, trained, *_ = score_digits(
        32, n_critic=2, width=8, epochs=20, encoder_steps=200, lr=1e-3, encoder_lr=1e-3
    )
    assert trained > max(0.9, untrained + 0.2)
