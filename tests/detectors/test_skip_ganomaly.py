import copy

import pytest
import torch
from gans import auroc_on_digits, stage_of, what_moves
from layers import assert_first_weights, layers_of
from steps import assert_same_weights, batch_of, noise
from torch import nn

from anomaly_bench.detectors.skip_ganomaly import SkipGANomaly
from anomaly_bench.errors import SettingError

SHAPE = (1, 16, 16)


def small(shape: tuple[int, ...] = SHAPE, **settings) -> SkipGANomaly:
    torch.manual_seed(0)
    return SkipGANomaly(shape, **{"nz": 6, "ngf": 4, "ndf": 4} | settings)


def as_pix2pix(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """The U-Net as pix2pix nests it, level by level from outside to inside."""

    def level(number: int, x: torch.Tensor) -> torch.Tensor:
        outer, inner = net.down[number], net.up[len(net.up) - 1 - number]
        below = outer(x)
        if number + 1 < len(net.down):
            below = torch.cat([below, level(number + 1, below)], 1)
        return inner(below)

    return level(0, x)


@pytest.mark.parametrize("d_lat", [False, True])
def test_three_updates_equal_the_official_ones(d_lat: bool) -> None:
    detector = small(d_lat=d_lat, w_adv=0.7, w_con=20.0, w_lat=3.0, reinit_below=0.0)
    g, d = copy.deepcopy(detector.generate).train(), copy.deepcopy(detector.discriminate).train()
    step = stage_of(detector, SHAPE).step
    opt_g = torch.optim.Adam(g.parameters(), lr=2e-4, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(d.parameters(), lr=2e-4, betas=(0.5, 0.999))

    def judge(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        f = d.head(d.features(x))
        return f, torch.sigmoid(d.classify(f)).view(-1)

    for number in range(3):
        x = noise(12, SHAPE) * (1 - 0.1 * number)
        losses = step(batch_of(x))

        x_hat = as_pix2pix(g, x)
        (f, _), (f_hat, p_hat) = judge(x), judge(x_hat)
        l_adv, l_con = -torch.log(p_hat).mean(), (x - x_hat).abs().mean()
        l_lat = ((f - f_hat) ** 2).mean()
        opt_g.zero_grad()
        (0.7 * l_adv + 20 * l_con + 3 * l_lat).backward()
        opt_g.step()

        opt_d.zero_grad()
        (f, p), (f_hat, p_hat) = judge(x), judge(x_hat.detach())
        l_d = -torch.log(p).mean() - torch.log(1 - p_hat).mean()
        l_d = l_d + 3 * ((f - f_hat) ** 2).mean() if d_lat else l_d
        l_d.backward()
        opt_d.step()
        for name, expected in {"adv": l_adv, "con": l_con, "lat": l_lat, "d": l_d}.items():
            assert losses[name].item() == pytest.approx(expected.item(), abs=1e-5), name
    assert_same_weights(detector.generate, g)
    assert_same_weights(detector.discriminate, d)


def test_each_optimiser_moves_its_own_network() -> None:
    assert what_moves(small(), SHAPE, still=0) == {"discriminate"}
    assert what_moves(small(), SHAPE, still=1) == {"generate"}


def test_a_collapsed_discriminator_starts_anew_and_only_then() -> None:
    for below, reinit in ((100.0, 1), (0.0, 0)):
        detector = small(reinit_below=below, lr=0.0)
        before = detector.discriminate.head.weight.clone()
        assert stage_of(detector, SHAPE).step(batch_of(noise(8, SHAPE)))["reinit"] == reinit
        after = detector.discriminate.head.weight
        assert torch.equal(before, after) == (not reinit)
        assert 0.015 < after.std() < 0.025


@pytest.mark.parametrize("lambda_", [0.9, 0.0, 1.0])
def test_score_is_the_weighted_residual_of_pixels_and_features(lambda_: float) -> None:
    detector, x = small(lambda_=lambda_).eval(), noise(4, SHAPE)
    x_hat = detector.generate(x)
    f, f_hat = detector.discriminate(x)[0], detector.discriminate(x_hat)[0]
    expected = [
        lambda_ * ((x[i] - x_hat[i]) ** 2).mean() + (1 - lambda_) * ((f[i] - f_hat[i]) ** 2).mean()
        for i in range(4)
    ]
    torch.testing.assert_close(detector.score(x), torch.stack(expected))


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32), (1, 64, 64), (3, 64, 64)])
def test_shapes(shape: tuple[int, ...]) -> None:
    detector, x = small(shape).eval(), noise(3, shape)
    score, residual, reconstruction, features = detector.explain(x)
    assert score.shape == (3,)
    assert residual.shape == (3, *shape[1:])
    assert reconstruction.shape == x.shape
    assert features.shape == (3, 6)


def test_layers_at_32_pixels_are_those_of_the_official_code() -> None:
    detector = SkipGANomaly((3, 32, 32))
    assert [", ".join(layers_of(level)) for level in detector.generate.down] == [
        "conv 4/2/1 3-64 no bias",
        "leaky 0.2, conv 4/2/1 64-128 no bias, bn",
        "leaky 0.2, conv 4/2/1 128-256 no bias, bn",
        "leaky 0.2, conv 4/2/1 256-512 no bias, bn",
        "leaky 0.2, conv 4/2/1 512-512 no bias",
    ]
    assert [", ".join(layers_of(level)) for level in detector.generate.up] == [
        "relu, convT 4/2/1 512-512 no bias, bn",
        "relu, convT 4/2/1 1024-256 no bias, bn",
        "relu, convT 4/2/1 512-128 no bias, bn",
        "relu, convT 4/2/1 256-64 no bias, bn",
        "relu, convT 4/2/1 128-3, tanh",
    ]
    assert layers_of(detector.discriminate) == [
        "conv 4/2/1 3-64 no bias, leaky 0.2",
        "conv 4/2/1 64-128 no bias, bn, leaky 0.2",
        "conv 4/2/1 128-256 no bias, bn, leaky 0.2",
        "conv 4/1/0 256-100 no bias",
        "conv 3/1/1 100-1 no bias",
    ]


def test_first_weights_are_dcgans() -> None:
    detector = small((3, 32, 32), ngf=16, ndf=16)
    assert_first_weights(detector, 0.02)
    for network in (detector.generate, detector.discriminate):
        scales = [m.weight for m in network.modules() if isinstance(m, nn.BatchNorm2d)]
        assert torch.cat(scales).std().item() == pytest.approx(0.02, rel=0.25)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lambda_": 1.5}, "model.lambda_=1.5"),
        ({"shape": (1, 28, 28)}, r"data\.image_size.*nearest: 32"),
        ({"shape": (6,)}, "images"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**settings)


def test_learns_digits() -> None:
    before, after = auroc_on_digits(small(lr=2e-3, epochs=15, batch_size=12), 16)
    assert after > max(0.75, before + 0.1), (before, after)
