import copy

import pytest
import torch
from gans import auroc_on_digits, stage_of, weights_of, what_moves
from layers import assert_first_weights, layers_of
from steps import assert_same_weights, batch_of, noise
from torch import Tensor, nn

from anomaly_bench.detectors.fence_gan import FenceGAN, dispersion
from anomaly_bench.errors import SettingError

IMAGE, ROW = (1, 16, 16), (9,)


def small(shape: tuple[int, ...] = IMAGE, **settings) -> FenceGAN:
    torch.manual_seed(0)
    return FenceGAN(shape, **{"nz": 5, "width": 4, "hidden": 16, "d_lr": 1e-3, "g_lr": 1e-3} | settings)


def plain_bce(p: Tensor, target: float) -> Tensor:
    return -(target * torch.log(p) + (1 - target) * torch.log(1 - p)).mean()


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        (IMAGE, {}),
        (IMAGE, {"networks": "cifar10", "d_decay": 0.5}),
        (IMAGE, {"networks": "cifar10", "d_l2": 0.1}),
        (IMAGE, {"losses": "paper", "beta": 7.0, "d_decay": 0.25}),
        (ROW, {"gamma": 0.4}),
    ],
)
def test_two_updates_equal_the_equations(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], settings: dict
) -> None:
    settings = {"alpha": 0.3, "beta": 5.0, "gamma": 0.2} | settings
    # PyTorch's own first weights: from the method's, near 0, small networks have next to no gradients.
    monkeypatch.setattr("anomaly_bench.detectors.fence_gan.init_weights", lambda *_: None)
    detector = small(shape, **settings)
    g, d = copy.deepcopy(detector.generate).train(), copy.deepcopy(detector.discriminate).train()
    step = stage_of(detector, shape, 1).step
    opt_g = torch.optim.Adam(g.parameters(), lr=1e-3, betas=(0.5, 0.999))
    opt_d = torch.optim.Adam(d.parameters(), lr=1e-3, betas=(0.5, 0.999))
    updates = 0
    convolutions = [i for i, layer in enumerate(d) if isinstance(layer, nn.Conv2d)]

    def descend_d(loss: Tensor) -> None:
        nonlocal updates
        opt_d.param_groups[0]["lr"] = 1e-3 / (1 + settings.get("d_decay", 0) * updates)
        loss = loss + settings.get("d_l2", 0) * sum((d[i].weight ** 2).sum() for i in convolutions)
        opt_d.zero_grad()
        loss.backward()
        opt_d.step()
        updates += 1

    for seed in (3, 4):
        x = noise(12, shape) * (1 - 0.1 * seed)
        torch.manual_seed(seed)
        losses = step(batch_of(x))

        torch.manual_seed(seed)
        fake = g(torch.randn(12, 5))
        l_real = plain_bce(torch.sigmoid(d(x)), 1)
        if settings.get("losses") != "paper":
            descend_d(l_real)
        l_fake = settings["gamma"] * plain_bce(torch.sigmoid(d(fake.detach())), 0)
        descend_d(l_real + l_fake if settings.get("losses") == "paper" else l_fake)
        d_grads = [p.grad.clone() for p in d.parameters()]

        p = torch.sigmoid(d(fake))
        if settings.get("losses") == "paper":
            encirclement = sum(torch.log(abs(0.3 - one)) for one in p) / 12
        else:
            encirclement = plain_bce(p, 0.3)
        centre = sum(fake) / 12
        spread = 1 / (sum(((one - centre) ** 2).sum().sqrt() for one in fake) / 12)
        opt_g.zero_grad()
        (encirclement + settings["beta"] * spread).backward()
        opt_g.step()
        for parameter, gradient in zip(d.parameters(), d_grads, strict=True):
            parameter.grad = gradient
        expected = {"real": l_real, "fake": l_fake, "encirclement": encirclement, "dispersion": spread}
        assert losses.keys() == expected.keys()
        for name, loss in expected.items():
            assert losses[name].item() == pytest.approx(loss.item(), abs=1e-5), name
    assert_same_weights(detector.discriminate, d)
    assert_same_weights(detector.generate, g)


def test_each_optimiser_moves_its_own_network() -> None:
    assert what_moves(small(), IMAGE, still=0, number=1) == {"generate"}
    assert what_moves(small(), IMAGE, still=1, number=1) == {"discriminate"}


def test_pretraining_is_of_the_discriminator_alone_by_its_two_losses() -> None:
    detector, x = small(ROW, gamma=0.2, losses="paper"), noise(12, ROW)
    stage = stage_of(detector, ROW)
    torch.manual_seed(3)
    judged = torch.sigmoid(detector.discriminate(detector.generate(torch.randn(12, 5)))).detach()
    l_real = plain_bce(torch.sigmoid(detector.discriminate(x)), 1).item()
    torch.manual_seed(3)
    losses = stage.step(batch_of(x))
    assert losses["real"].item() == pytest.approx(l_real, abs=1e-5)
    assert losses["fake"].item() == pytest.approx(0.2 * plain_bce(judged, 0).item(), abs=1e-5)

    detector = small(gamma=0.2)
    stage = stage_of(detector, IMAGE)
    before = weights_of(detector.generate)
    losses = stage.step(batch_of(noise(12, IMAGE)))
    assert all(torch.equal(p, before[name]) for name, p in detector.generate.named_parameters())
    assert losses.keys() == {"real", "fake"}
    assert {int(state["step"]) for state in stage.optimizers[0].state.values()} == {2}
    pretrain, gan = small(pretrain=3, epochs=7, batch_size=11).stages(None)  # pyright: ignore[reportArgumentType]
    assert (pretrain.epochs, gan.epochs, pretrain.batch_size, gan.batch_size) == (3, 7, 11, 11)
    assert gan.optimizers[0] is pretrain.optimizers[0]


def test_the_smaller_learning_rate_is_kept_with_the_optimiser() -> None:
    detector = small(d_decay=0.5)
    stage = stage_of(detector, IMAGE, 1)
    stage.step(batch_of(noise(12, IMAGE)))
    (group,) = stage.optimizers[0].state_dict()["param_groups"]
    assert group["lr"] == pytest.approx(1e-3 / (1 + 2 * 0.5))
    assert stage.optimizers[1].param_groups[0]["lr"] == 1e-3


def test_dispersion_falls_as_rows_spread_and_its_gradient_goes_through_their_mean() -> None:
    rows = torch.tensor([[0.0, 0.0], [6.0, 8.0]], requires_grad=True)
    loss = dispersion(rows)
    assert loss.item() == pytest.approx(1 / 5)
    loss.backward()
    torch.testing.assert_close(rows.grad, torch.tensor([[0.6, 0.8], [-0.6, -0.8]]) / 50)


def test_encirclement_of_the_paper_stays_finite_on_the_fence() -> None:
    assert small(losses="paper", alpha=0.5).encirclement(torch.zeros(3)).isfinite()


@pytest.mark.parametrize("shape", [IMAGE, ROW])
def test_score_is_the_log_odds_of_1_minus_d(shape: tuple[int, ...]) -> None:
    detector, x = small(shape).eval(), noise(4, shape)
    torch.testing.assert_close(torch.sigmoid(detector.score(x)), 1 - torch.sigmoid(detector.discriminate(x)))
    nn.init.constant_(detector.discriminate[-2].bias, -40.0)
    assert len(detector.score(x).unique()) == 4


@pytest.mark.parametrize("networks", ["mnist", "cifar10"])
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 64, 64), (2, 32, 48), (7,)])
def test_shapes(shape: tuple[int, ...], networks: str) -> None:
    detector, x = small(shape, networks=networks).eval(), noise(3, shape)
    assert detector.generate(torch.randn(3, 5)).shape == x.shape
    explained = detector.explain(x)
    torch.testing.assert_close(explained.score, detector.score(x))
    assert explained.score.shape == (3,)
    assert explained.features is not None
    assert explained.features.dim() == 2


def test_layers_for_mnist_are_those_of_the_official_code() -> None:
    detector = FenceGAN((1, 28, 28))
    assert layers_of(detector.generate) == [
        "linear 200-1024, relu, bn",
        "linear 1024-6272, relu, bn",
        "convT 4/2/1 128-64, relu, bn",
        "convT 4/2/1 64-1, tanh",
    ]
    assert layers_of(detector.discriminate) == [
        "conv 4/2/1 1-64, leaky 0.1",
        "conv 4/2/1 64-64, leaky 0.1",
        "linear 3136-1024, leaky 0.1",
        "linear 1024-1",
    ]


def test_layers_for_cifar10_are_those_of_the_official_code() -> None:
    detector = FenceGAN((3, 32, 32), networks="cifar10", width=32, nz=256)
    assert layers_of(detector.generate) == [
        "linear 256-1024 no bias, bn, leaky 0.2",
        "convT 5/2/2 256-128 no bias, bn, leaky 0.2",
        "convT 5/2/2 128-64 no bias, bn, leaky 0.2",
        "convT 5/2/2 64-32 no bias, bn, leaky 0.2",
        "convT 5/2/2 32-3, tanh",
    ]
    assert layers_of(detector.discriminate) == [
        "conv 5/2/2 3-32 no bias, bn, leaky 0.2",
        "conv 5/2/2 32-64 no bias, bn, leaky 0.2",
        "conv 5/2/2 64-128 no bias, bn, leaky 0.2",
        "conv 5/2/2 128-256, leaky 0.2, dropout 0.2",
        "linear 1024-1",
    ]


def test_first_weights_for_mnist_are_normal_and_those_for_cifar10_xaviers() -> None:
    torch.manual_seed(0)
    assert_first_weights(FenceGAN((1, 28, 28), width=16), 0.02)
    assert_first_weights(FenceGAN((3, 32, 32), networks="cifar10", width=8))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"networks": "svhn"}, "model.networks=svhn: allowed are mnist, cifar10"),
        ({"losses": "both"}, "model.losses=both: allowed are code, paper"),
        ({"alpha": 0.0}, "model.alpha=0.0"),
        ({"shape": (1, 30, 30)}, r"data\.image_size.*multiples of 4 \(nearest: 32\)"),
        ({"shape": (1, 28, 28), "networks": "cifar10"}, r"data\.image_size.*multiples of 16 \(nearest: 32\)"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**settings)


@pytest.mark.parametrize("size", [16, None])
def test_learns_digits(size: int | None) -> None:
    shape = (1, size, size) if size else (64,)
    settings = {
        "nz": 8,
        "hidden": 32,
        "d_lr": 2e-3,
        "g_lr": 2e-3,
        "pretrain": 2,
        "epochs": 5,
        "batch_size": 12,
    }
    before, after = auroc_on_digits(small(shape, **settings), size)
    assert after > max(0.8, before + 0.1), (before, after)
