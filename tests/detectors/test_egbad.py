import copy

import pytest
import torch
from gans import auroc_on_digits, stage_of, what_moves
from layers import assert_first_weights, layers_of
from steps import assert_same_weights, batch_of, noise
from torch import nn

from anomaly_bench.detectors.egbad import EGBAD
from anomaly_bench.errors import SettingError

IMAGE, ROW = (1, 16, 16), (9,)


def small(shape: tuple[int, ...] = IMAGE, **settings) -> EGBAD:
    torch.manual_seed(0)
    return EGBAD(shape, **{"nz": 5, "hidden": 16, "width": 4, "lr": 1e-3} | settings)


@pytest.mark.parametrize("shape", [IMAGE, ROW])
def test_two_updates_equal_the_equations(monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]) -> None:
    # PyTorch's own first weights: from the method's, near 0, small networks have next to no gradients.
    monkeypatch.setattr("anomaly_bench.detectors.egbad.init_weights", lambda *_: None)
    detector = small(shape, ema_decay=0.7)
    e, g, d = (
        copy.deepcopy(net).train() for net in (detector.encode, detector.generate, detector.discriminate)
    )
    averages = [copy.deepcopy(net) for net in (e, g, d)]
    step = stage_of(detector, shape).step
    opt_e, opt_g, opt_d = (
        torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.999)) for net in (e, g, d)
    )

    def judge(x: torch.Tensor, z: torch.Tensor) -> torch.Tensor:
        return torch.sigmoid(d.head(d.join(torch.cat((d.see_x(x), d.see_z(z)), 1)))).view(-1)

    for seed in (3, 4):
        x = noise(12, shape) * (1 - 0.1 * seed)
        torch.manual_seed(seed)
        losses = step(batch_of(x))

        torch.manual_seed(seed)
        z = torch.randn(12, 5)
        with torch.no_grad():
            code, fake = e(x), g(z)
        l_d = -torch.log(judge(x, code)).mean() - torch.log(1 - judge(fake, z)).mean()
        opt_d.zero_grad()
        l_d.backward()
        opt_d.step()
        d_grads = [p.grad.clone() for p in d.parameters()]
        l_g = -torch.log(judge(g(z), z)).mean()
        opt_g.zero_grad()
        l_g.backward()
        l_e = -torch.log(1 - judge(x, e(x))).mean()
        opt_e.zero_grad()
        l_e.backward()
        opt_g.step()
        opt_e.step()
        for p, grad in zip(d.parameters(), d_grads, strict=True):
            p.grad = grad
        for kept, net in zip(averages, (e, g, d), strict=True):
            for ours, theirs in zip(kept.parameters(), net.parameters(), strict=True):
                ours.data = 0.7 * ours.data + 0.3 * theirs.data
        for name, expected in {"discriminator": l_d, "generator": l_g, "encoder": l_e}.items():
            assert losses[name].item() == pytest.approx(expected.item(), abs=1e-5), name
    for ours, theirs in zip(
        (detector.encode, detector.generate, detector.discriminate), (e, g, d), strict=True
    ):
        assert_same_weights(ours, theirs)
    for ours, theirs in zip(
        detector.averages.parameters(), nn.ModuleList(averages).parameters(), strict=True
    ):
        close = (ours - theirs).abs() < 1e-5
        assert close.float().mean() > 0.9  # but where Adam blows up a gradient of rounding


def test_each_optimiser_moves_its_own_networks() -> None:
    assert what_moves(small(), IMAGE, still=0) == {"encode", "generate", "averages"}
    assert what_moves(small(), IMAGE, still=1) == {"discriminate", "averages"}


def test_averages_take_the_batch_norms_of_what_they_follow() -> None:
    detector = small()
    stage_of(detector, IMAGE).step(batch_of(noise(8, IMAGE)))
    for ours, theirs in zip(detector.averages[1].buffers(), detector.generate.buffers(), strict=True):
        assert torch.equal(ours, theirs)
    assert not torch.equal(detector.generate[1].running_mean, torch.zeros(16))
    assert not any(parameter.requires_grad for parameter in detector.averages.parameters())


@pytest.mark.parametrize("shape", [IMAGE, ROW])
@pytest.mark.parametrize("method", ["fm", "cross-e"])
def test_score_is_by_the_averaged_networks(shape: tuple[int, ...], method: str) -> None:
    detector, x = small(shape, score_method=method, w=0.3).eval(), noise(4, shape)
    encode, generate, discriminate = detector.averages
    for net in (detector.encode, detector.generate, detector.discriminate):
        for parameter in net.parameters():
            nn.init.zeros_(parameter)  # of what is trained, and must not matter
    z = encode(x)
    rebuilt = generate(z)
    (f, _), (f_hat, logits) = discriminate(x, z), discriminate(rebuilt, z)
    noticed = (f - f_hat).abs().sum(1) if method == "fm" else -torch.log(torch.sigmoid(logits))
    expected = (
        0.7 * torch.stack([(a - b).abs().sum() for a, b in zip(x, rebuilt, strict=True)]) + 0.3 * noticed
    )
    torch.testing.assert_close(detector.score(x), expected)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 64, 64), (2, 32, 48), (7,)])
def test_shapes(shape: tuple[int, ...]) -> None:
    detector, x = small(shape).eval(), noise(3, shape)
    score, residual, reconstruction, code = detector.explain(x)
    assert score.shape == (3,)
    assert residual is None if len(shape) == 1 else residual.shape == (3, *shape[1:])
    assert reconstruction.shape == x.shape
    assert code.shape == (3, 5)


def test_layers_for_mnist_are_those_of_the_official_code() -> None:
    detector = EGBAD((1, 28, 28))
    assert layers_of(detector.encode) == [
        "conv 3/1/1 1-32, leaky 0.1",
        "conv 3/2/1 32-64 no bias, bn, leaky 0.1",
        "conv 3/2/1 64-128 no bias, bn, leaky 0.1",
        "linear 6272-200",
    ]
    assert layers_of(detector.generate) == [
        "linear 200-1024 no bias, bn, relu",
        "linear 1024-6272 no bias, bn, relu",
        "convT 4/2/1 128-64 no bias, bn, relu",
        "convT 4/2/1 64-1, tanh",
    ]
    assert layers_of(detector.discriminate) == [
        "conv 4/2/1 1-64, leaky 0.1, dropout 0.5",
        "conv 4/2/1 64-64 no bias, bn, leaky 0.1, dropout 0.5",
        "linear 200-512, leaky 0.1, dropout 0.5",  # of z
        "linear 3648-1024, leaky 0.1, dropout 0.5",
        "linear 1024-1",
    ]


def test_layers_for_kdd_are_those_of_the_official_code() -> None:
    detector = EGBAD((121,), nz=32, hidden=128)
    assert layers_of(detector.encode) == ["linear 121-64, leaky 0.1", "linear 64-32"]
    assert layers_of(detector.generate) == ["linear 32-64, relu", "linear 64-128, relu", "linear 128-121"]
    assert layers_of(detector.discriminate) == [
        "linear 121-128, leaky 0.1, dropout 0.2",
        "linear 32-128, leaky 0.1, dropout 0.2",
        "linear 256-128, leaky 0.1, dropout 0.2",
        "linear 128-1",
    ]


def test_first_weights_of_images_are_normal_and_those_of_rows_xaviers() -> None:
    torch.manual_seed(0)
    assert_first_weights(EGBAD((1, 28, 28), width=16), 0.02)
    assert_first_weights(EGBAD((121,), nz=32, hidden=128))


@pytest.mark.parametrize("shape", [(1, 28, 28), (121,)])
def test_dropout_of_the_discriminator_can_be_switched_off(shape: tuple[int, ...]) -> None:
    """As it was in the code for images when the paper was written."""
    discriminate = EGBAD(shape, dropout=0.0).discriminate.train()
    x, z = torch.rand(4, *shape), torch.rand(4, 200)
    assert torch.equal(discriminate(x, z)[1], discriminate(x, z)[1])
    discriminate = EGBAD(shape).discriminate.train()
    assert not torch.equal(discriminate(x, z)[1], discriminate(x, z)[1])


@pytest.mark.parametrize("active", [True, False])
def test_the_first_convolution_of_images_has_an_activation_or_none(active: bool) -> None:
    first, second, *_ = EGBAD((1, 28, 28), first_activation=active).encode
    assert isinstance(first, nn.Conv2d)
    assert isinstance(second, nn.LeakyReLU if active else nn.Conv2d)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"dropout": 1.0}, r"model\.dropout=1\.0: must be from 0 to below 1, or null"),
        ({"score_method": "l3"}, "model.score_method=l3: allowed are fm, cross-e"),
        ({"w": -0.1}, "model.w=-0.1"),
        ({"shape": (1, 30, 30)}, r"data\.image_size.*multiples of 4 \(nearest: 32\)"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**settings)


@pytest.mark.parametrize(("size", "epochs"), [(16, 12), (None, 20)])
def test_learns_digits(size: int | None, epochs: int) -> None:
    shape = (1, size, size) if size else (64,)
    detector = small(shape, ema_decay=0.9, hidden=32, nz=8, width=8, lr=2e-3, epochs=epochs, batch_size=12)
    before, after = auroc_on_digits(detector, size)
    assert after > max(0.75, before + 0.2), (before, after)
