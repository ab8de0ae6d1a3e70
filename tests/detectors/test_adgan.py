import copy

import pytest
import torch
from layers import layers_of
from steps import (
    assert_same_weights,
    auroc_before_and_after,
    batch_of,
    descend_plainly,
    moved,
    networks,
    noise,
    stage_of,
)
from torch import Tensor, nn

from anomaly_bench.detector import Rows
from anomaly_bench.detectors import adgan
from anomaly_bench.detectors.adgan import ADGAN
from anomaly_bench.errors import SettingError

SHAPE = (1, 16, 16)


def small(shape: tuple[int, ...] = SHAPE, **settings) -> ADGAN:
    torch.manual_seed(0)
    return ADGAN(shape, **{"nz": 6, "width": 2, "n_seeds": 2, "descent_steps": 3} | settings)


def searchable(**settings) -> ADGAN:
    """One whose images depend on z, and whose batch norms are not idle, in evaluation mode."""
    detector = small(**settings)
    for parameter in detector.generate.parameters():
        parameter.data.mul_(3)
    detector.train()
    for _ in range(5):
        detector.generate(torch.randn(20, 6))
    return detector.eval()


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32), (1, 64, 64), (3, 64, 64), (1, 24, 40)])
def test_shapes(shape: tuple[int, ...]) -> None:
    detector, x = small(shape, descent_steps=1).eval(), noise(3, shape)
    score, residual, reconstruction, _ = detector.explain(x)
    assert score.shape == (3,)
    assert residual.shape == (3, *shape[1:])
    assert reconstruction.shape == x.shape


def test_layers_at_32_pixels_are_those_of_the_geotrans_code() -> None:
    detector = ADGAN((3, 32, 32), critic_norm="batch")
    assert layers_of(detector.criticise) == [
        "conv 3/2/1 3-64, bn, relu",
        "conv 3/2/1 64-128, bn, relu",
        "conv 3/2/1 128-256, bn, relu",
        "linear 4096-1",
    ]
    assert layers_of(detector.generate) == [
        "linear 256-4096 no bias, bn, relu",
        "convT 3/2/1 256-128 no bias, bn, relu",
        "convT 3/2/1 128-64 no bias, bn, relu",
        "convT 3/2/1 64-3, tanh",
    ]
    assert detector.start.shape == (8, 256)


def test_without_batch_norm_the_critic_has_the_same_layers() -> None:
    assert layers_of(small((3, 32, 32), width=64).criticise) == [
        "conv 3/2/1 3-64, relu",
        "conv 3/2/1 64-128, relu",
        "conv 3/2/1 128-256, relu",
        "linear 4096-1",
    ]


def test_one_step_is_algorithm_1_of_wgan_gp() -> None:
    detector, x = small(n_critic=2, lr=1e-3, lambda_gp=7.0), noise(8, SHAPE)
    generate, criticise = (copy.deepcopy(n).train() for n in (detector.generate, detector.criticise))
    stage = stage_of(detector, 0, SHAPE)
    torch.manual_seed(5)
    losses = stage.step(batch_of(x))

    torch.manual_seed(5)
    g = torch.optim.Adam(generate.parameters(), lr=1e-3, betas=(0.0, 0.9))
    d = torch.optim.Adam(criticise.parameters(), lr=1e-3, betas=(0.0, 0.9))
    distances = []
    for real in (x[:4], x[4:]):
        fake = generate(torch.randn(4, 6)).detach()
        share = torch.rand(4, 1, 1, 1)
        between = (share * real + (1 - share) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(criticise(between).sum(), between, create_graph=True)
        penalty = sum((row.square().sum().sqrt() - 1) ** 2 for row in slope) / 4
        distance = criticise(real).mean() - criticise(fake).mean()
        descend_plainly(d, 7 * penalty - distance)
        distances.append(distance.item())
    d_after = copy.deepcopy(criticise)
    for kept, p in zip(d_after.parameters(), criticise.parameters(), strict=True):
        kept.grad = p.grad.clone()
    l_g = -criticise(generate(torch.randn(4, 6))).mean()
    descend_plainly(g, l_g)

    assert losses["wasserstein"].item() == pytest.approx(sum(distances) / 2, abs=1e-5)
    assert losses["generator"].item() == pytest.approx(l_g.item(), abs=1e-5)
    assert_same_weights(detector.criticise, d_after)
    assert_same_weights(detector.generate, generate)


def test_a_step_moves_both_networks_and_leaves_the_start() -> None:
    detector = small()
    start = detector.start.clone()
    names = moved(detector, stage_of(detector, 0, SHAPE).step, batch_of(noise(8, SHAPE)))
    assert networks(names) == {"generate", "criticise"}
    assert torch.equal(detector.start, start)


def plain_search(detector: ADGAN, image: Tensor, z: Tensor) -> tuple[float, Tensor]:
    """One image, one first code, one copy of the generator."""
    generate = copy.deepcopy(detector.generate).eval()
    z = z[None].clone().requires_grad_()
    z_adam = torch.optim.Adam([z], lr=detector.z_lr, betas=(0.5, 0.999), eps=1e-7)
    g_adam = torch.optim.Adam(generate.parameters(), lr=detector.g_lr, betas=(0.5, 0.999), eps=1e-7)
    for _ in range(detector.descent_steps):
        for optimizer in (z_adam, g_adam):
            descend_plainly(optimizer, ((image - generate(z)[0]) ** 2).mean())
    return ((image - generate(z)[0]) ** 2).mean().item(), generate(z)[0].detach()


@pytest.mark.parametrize("shape", [SHAPE, (3, 16, 16)])
def test_search_is_one_descent_for_each_image_and_first_code(shape: tuple[int, ...]) -> None:
    detector, x = searchable(shape=shape, n_seeds=3, g_lr=1e-2), noise(4, shape)
    explained = detector.explain(x)
    for row, image in enumerate(x):
        searches = [plain_search(detector, image, z) for z in detector.start]
        left = [loss for loss, _ in searches]
        assert explained.score[row].item() == pytest.approx(sum(left) / 3, rel=1e-4)
        best = searches[left.index(min(left))][1]
        torch.testing.assert_close(explained.reconstruction[row], best, rtol=0, atol=1e-3)


def test_the_generators_own_descent_leaves_less() -> None:
    still, moving = searchable(g_lr=0.0, descent_steps=5), searchable(g_lr=1e-2, descent_steps=5)
    x = noise(4, SHAPE)
    assert (moving.score(x) < 0.98 * still.score(x)).all()


def test_score_is_pure_and_leaves_no_trace(monkeypatch: pytest.MonkeyPatch) -> None:
    detector, x = searchable(), noise(9, SHAPE)
    before = copy.deepcopy(detector.state_dict())
    together = detector.score(x)
    monkeypatch.setattr(adgan, "COPIES", 4)
    torch.testing.assert_close(detector.score(x), together)
    torch.testing.assert_close(detector.score(x.flip(0)).flip(0), together)
    with torch.inference_mode():
        torch.testing.assert_close(detector.score(noise(9, SHAPE)), together)
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        torch.testing.assert_close(detector.score(x), together)
    assert all(torch.equal(tensor, before[name]) for name, tensor in detector.state_dict().items())
    assert all(p.grad is None for p in detector.parameters())


def test_batch_norm_of_the_critic_is_a_choice() -> None:
    for norm, kind in (("batch", nn.BatchNorm2d), ("layer", nn.GroupNorm), ("none", nn.Identity)):
        assert sum(isinstance(m, kind) for m in small(critic_norm=norm).criticise) == 3


def test_steps_become_whole_epochs() -> None:
    (stage,) = small(batch_size=2, n_critic=3, generator_steps=9).stages(
        Rows(torch.zeros(25, *SHAPE, dtype=torch.uint8))
    )
    assert (stage.epochs, stage.batch_size) == (3, 6)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"critic_norm": "spectral"}, "model.critic_norm=spectral: allowed are none, layer, batch"),
        ({"n_seeds": 0}, "model.n_seeds=0"),
        ({"n_critic": 0}, "model.n_critic=0"),
        ({"shape": (1, 28, 28)}, "data.image_size"),
        ({"shape": (6,)}, "images"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**settings)


def test_learns_digits() -> None:
    detector = small(nz=8, width=4, batch_size=12, lr=2e-3, generator_steps=100, descent_steps=4)
    untrained, trained = auroc_before_and_after(detector, 16)
    assert trained > max(0.7, untrained + 0.2)
