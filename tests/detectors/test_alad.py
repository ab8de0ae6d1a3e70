import copy

import pytest
import torch
from gans import auroc_on_digits, stage_of, what_moves
from layers import assert_first_weights, layers_of
from steps import assert_same_weights, batch_of, noise
from torch import Tensor, nn

from anomaly_bench.detectors.alad import ALAD
from anomaly_bench.errors import SettingError

IMAGE, ROW = (1, 16, 16), (9,)
NETWORKS = ("encode", "generate", "d_xz", "d_xx", "d_zz")


def small(shape: tuple[int, ...] = IMAGE, **settings) -> ALAD:
    torch.manual_seed(0)
    defaults = {
        "nz": 5,
        "width": 4,
        "encoder": [8],
        "generator": [8, 16],
        "d_xz": 16,
        "d_xx": [16],
        "d_zz": [8, 4],
    }
    return ALAD(shape, **defaults | {"lr": 1e-3} | settings)


def plain_bce(logits: Tensor, target: int) -> Tensor:
    p = torch.sigmoid(logits.double())
    return -torch.log(p if target else 1 - p).mean()


@pytest.mark.parametrize(
    ("shape", "settings"), [(IMAGE, {}), (IMAGE, {"concat": "height"}), (ROW, {"spectral_norm": False})]
)
def test_two_updates_equal_the_equations(
    monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], settings: dict
) -> None:
    # PyTorch's own first weights: from the method's, near 0, small networks have next to no gradients.
    monkeypatch.setattr("anomaly_bench.detectors.alad.init_weights", lambda *_: None)
    detector = small(shape, ema_decay=0.7, **settings)
    nets = {name: copy.deepcopy(getattr(detector, name)).train() for name in NETWORKS}
    e, g, d_xz, d_xx, d_zz = nets.values()
    kept = copy.deepcopy(d_xx)
    step = stage_of(detector, shape).step
    opts = {
        name: torch.optim.Adam(net.parameters(), lr=1e-3, betas=(0.5, 0.999)) for name, net in nets.items()
    }

    def pair(x: Tensor, z: Tensor) -> Tensor:
        return d_xz.head(d_xz.join(torch.cat((d_xz.see_x(x), d_xz.see_z(z)), 1)))

    def rows(a: Tensor, b: Tensor) -> Tensor:
        return d_xx.head(d_xx.body(torch.cat((a, b), 2 if settings.get("concat") else 1)))

    def codes(a: Tensor, b: Tensor) -> Tensor:
        return d_zz.head(d_zz.body(torch.cat((a, b), 1)))

    for seed in (3, 4):
        x = noise(12, shape) * (1 - 0.1 * seed)
        torch.manual_seed(seed)
        losses = step(batch_of(x))

        torch.manual_seed(seed)
        z = torch.randn(12, 5)
        code, fake = e(x), g(z)
        rebuilt, recoded = g(code), e(fake)
        l_d = {
            "d_xz": plain_bce(pair(x, code.detach()), 1) + plain_bce(pair(fake.detach(), z), 0),
            "d_xx": plain_bce(rows(x, x), 1) + plain_bce(rows(x, rebuilt.detach()), 0),
            "d_zz": plain_bce(codes(z, z), 1) + plain_bce(codes(z, recoded.detach()), 0),
        }
        for name, loss in l_d.items():
            opts[name].zero_grad()
            loss.backward()
            opts[name].step()
        d_grads = {name: [p.grad.clone() for p in nets[name].parameters()] for name in l_d}

        l_g, l_e = plain_bce(pair(fake, z), 1), plain_bce(pair(x, code), 0)
        cycle = plain_bce(rows(x, rebuilt), 1) + plain_bce(codes(z, recoded), 1)
        of_g = torch.autograd.grad(l_g + cycle, list(g.parameters()), retain_graph=True)
        of_e = torch.autograd.grad(l_e + cycle, list(e.parameters()))
        for name, gradients in {"generate": of_g, "encode": of_e, **d_grads}.items():
            for p, gradient in zip(nets[name].parameters(), gradients, strict=True):
                p.grad = gradient
        opts["generate"].step()
        opts["encode"].step()
        for ours, theirs in zip(kept.parameters(), d_xx.parameters(), strict=True):
            ours.data = 0.7 * ours.data + 0.3 * theirs.data
            ours.grad = theirs.grad
        expected = {**l_d, "generator": l_g, "encoder": l_e, "cycle": cycle}
        assert losses.keys() == expected.keys()
        for name, loss in expected.items():
            assert losses[name].item() == pytest.approx(loss.item(), abs=1e-5), name
    for name, net in nets.items():
        assert_same_weights(getattr(detector, name), net)
    assert_same_weights(detector.averages[2], kept)


def test_each_optimiser_moves_its_own_networks() -> None:
    assert what_moves(small(), IMAGE, still=0) == {"encode", "generate", "averages"}
    assert what_moves(small(), IMAGE, still=1) == {"d_xz", "d_xx", "d_zz", "averages"}


@pytest.mark.parametrize("method", ["features", "logits", "l1", "l2"])
@pytest.mark.parametrize("shape", [IMAGE, ROW])
def test_the_four_scores_are_by_the_averaged_networks(shape: tuple[int, ...], method: str) -> None:
    detector, x = small(shape, score_method=method).eval(), noise(4, shape)
    encode, generate, d_xx = detector.averages
    for parameter in (p for name in NETWORKS for p in getattr(detector, name).parameters()):
        nn.init.zeros_(parameter)  # of what is trained, and must not matter
    rebuilt = generate(encode(x))
    gap = (x - rebuilt).flatten(1)
    expected = {
        "features": (d_xx(x, x)[0] - d_xx(x, rebuilt)[0]).abs().sum(1),
        "logits": -torch.log(torch.sigmoid(d_xx(x, rebuilt)[1])),
        "l1": gap.abs().sum(1),
        "l2": (gap**2).sum(1).sqrt(),
    }[method]
    torch.testing.assert_close(detector.score(x), expected)


def largest_singular_value(layer: nn.Module) -> float:
    return torch.linalg.svdvals(layer.weight.detach().flatten(1))[0].item()


def test_spectral_norm_is_on_all_layers_but_the_last_and_on_the_first_weights() -> None:
    detector = small()
    parts = [getattr(detector, name) for name in ("encode", "d_xz", "d_xx", "d_zz")]
    layers = [m for part in parts for m in part.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    normed = [layer for layer in layers if hasattr(layer, "parametrizations")]
    plain = [layer for layer in layers if not hasattr(layer, "parametrizations")]
    assert plain == [detector.encode[1], detector.d_xz.head, detector.d_xx.head, detector.d_zz.head]
    for layer in normed:
        assert largest_singular_value(layer) == pytest.approx(1, abs=0.1)
        assert layer.parametrizations.weight.original.std().item() < 0.02  # N(0, 0.01), not PyTorch's own
    assert not any(hasattr(m, "parametrizations") for m in detector.generate.modules())
    assert not any(hasattr(m, "parametrizations") for m in small(spectral_norm=False).modules())


def test_spectral_norm_neither_drifts_nor_forgets_in_evaluation() -> None:
    detector, x = small(lr=1e-2), noise(12, IMAGE)
    step = stage_of(detector, IMAGE).step
    for _ in range(3):
        step(batch_of(x))
    detector.eval()
    state = copy.deepcopy(detector.state_dict())
    scores = detector.score(x)
    assert torch.equal(detector.score(x), scores)
    assert all(torch.equal(kept, state[name]) for name, kept in detector.state_dict().items())
    other = small(lr=1e-2, ema_decay=0.5).eval()
    other.load_state_dict(state)
    assert torch.equal(other.score(x), scores)


def test_a_step_in_half_precision_gives_float_losses() -> None:
    detector = small()
    step = stage_of(detector, IMAGE).step
    with torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
        losses = step(batch_of(noise(8, IMAGE)))
    assert all(loss.dtype == torch.float32 and loss.isfinite() for loss in losses.values())


@pytest.mark.parametrize("concat", ["channels", "height"])
@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32), (3, 64, 64), (7,)])
def test_shapes(shape: tuple[int, ...], concat: str) -> None:
    detector, x = small(shape, concat=concat).eval(), noise(3, shape)
    score, residual, reconstruction, code = detector.explain(x)
    assert score.shape == (3,)
    assert residual is None if len(shape) == 1 else residual.shape == (3, *shape[1:])
    assert reconstruction.shape == x.shape
    assert code.shape == (3, 5)


def test_layers_for_cifar10_are_those_of_the_official_code() -> None:
    detector = ALAD((3, 32, 32), spectral_norm=False)
    assert layers_of(detector.encode) == [
        "conv 4/2/1 3-128 no bias, bn, leaky 0.2",
        "conv 4/2/1 128-256 no bias, bn, leaky 0.2",
        "conv 4/2/1 256-512 no bias, bn, leaky 0.2",
        "conv 4/1/0 512-100",
    ]
    assert layers_of(detector.generate) == [
        "convT 4/1/0 100-512 no bias, bn, relu",
        "convT 4/2/1 512-256 no bias, bn, relu",
        "convT 4/2/1 256-128 no bias, bn, relu",
        "convT 4/2/1 128-3, tanh",
    ]
    assert layers_of(detector.d_xz) == [
        "conv 4/2/1 3-128, leaky 0.2",
        "conv 4/2/1 128-256 no bias, bn, leaky 0.2",
        "conv 4/2/1 256-512 no bias, bn, leaky 0.2",
        "linear 100-512, leaky 0.2, dropout 0.2",  # of z: 1 x 1 convolutions there
        "linear 512-512, leaky 0.2, dropout 0.2",
        "linear 8704-1024, leaky 0.2, dropout 0.2",
        "linear 1024-1",
    ]
    assert layers_of(detector.d_xx) == [
        "conv 5/2/2 6-64, leaky 0.2, dropout 0.2",
        "conv 5/2/2 64-128, leaky 0.2, dropout 0.2",
        "linear 8192-1",
    ]
    assert layers_of(detector.d_zz) == [
        "linear 200-64, leaky 0.2, dropout 0.2",
        "linear 64-32, leaky 0.2, dropout 0.2",
        "linear 32-1",
    ]


def test_layers_for_kdd_are_those_of_the_official_code() -> None:
    detector = ALAD((121,), nz=32, d_zz=[32], spectral_norm=False)
    assert layers_of(detector.encode) == ["linear 121-64, leaky 0.2", "linear 64-32"]
    assert layers_of(detector.generate) == ["linear 32-64, relu", "linear 64-128, relu", "linear 128-121"]
    assert layers_of(detector.d_xz) == [
        "linear 121-128 no bias, bn, leaky 0.2",
        "linear 32-128, leaky 0.2, dropout 0.5",
        "linear 256-128, leaky 0.2, dropout 0.5",
        "linear 128-1",
    ]
    assert layers_of(detector.d_xx) == ["linear 242-128, leaky 0.2, dropout 0.2", "linear 128-1"]
    assert layers_of(detector.d_zz) == ["linear 64-32, leaky 0.2, dropout 0.2", "linear 32-1"]


def test_layers_for_arrhythmia_are_those_of_the_official_code() -> None:
    wide = {"encoder": [256, 128], "generator": [128, 256], "d_xz": 256, "d_xx": [256, 128]}
    detector = ALAD((274,), nz=64, spectral_norm=False, **wide)
    assert layers_of(detector.encode) == [
        "linear 274-256, leaky 0.2",
        "linear 256-128, leaky 0.2",
        "linear 128-64",
    ]
    assert layers_of(detector.generate) == ["linear 64-128, relu", "linear 128-256, relu", "linear 256-274"]
    assert layers_of(detector.d_xz) == [
        "linear 274-128 no bias, bn, leaky 0.2",
        "linear 64-128, leaky 0.2, dropout 0.5",
        "linear 256-256, leaky 0.2, dropout 0.5",
        "linear 256-1",
    ]
    assert layers_of(detector.d_xx) == [
        "linear 548-256, leaky 0.2, dropout 0.2",
        "linear 256-128, leaky 0.2, dropout 0.2",
        "linear 128-1",
    ]
    assert layers_of(detector.d_zz) == [
        "linear 128-64, leaky 0.2, dropout 0.2",
        "linear 64-32, leaky 0.2, dropout 0.2",
        "linear 32-1",
    ]


def test_first_weights_of_images_are_normal_and_those_of_rows_xaviers() -> None:
    torch.manual_seed(0)
    assert_first_weights(ALAD((3, 32, 32), width=16, spectral_norm=False), 0.01)
    assert_first_weights(ALAD((121,), nz=32, spectral_norm=False))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score_method": "fm"}, "model.score_method=fm: allowed are features, logits, l1, l2"),
        ({"concat": "width"}, "model.concat=width: allowed are channels, height"),
        ({"shape": (1, 28, 28)}, r"data\.image_size.*nearest: 32"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**settings)


def test_learns_digits() -> None:
    torch.manual_seed(0)
    detector = ALAD((64,), nz=8, ema_decay=0.9, lr=2e-3, epochs=10, batch_size=12, spectral_norm=False)
    before, after = auroc_on_digits(detector, None)
    assert after > max(0.8, before + 0.1), (before, after)
