import numpy as np
import pytest
import torch
from layers import layers_of
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from steps import batch_of, descend_plainly
from torch import nn

from anomaly_bench.detector import Batch, Rows
from anomaly_bench.detectors.deep_svdd import DeepSVDD, away_from_zero, contrast
from anomaly_bench.errors import SettingError
from anomaly_bench.networks.lenet import LeNetDecoder, LeNetEncoder
from anomaly_bench.training.trainer import Trainer, Walk

QUICK = Trainer(device="cpu", precision="fp32")


def images(n: int = 40, size: int = 28) -> Rows:
    generator = torch.Generator().manual_seed(0)
    return Rows(torch.randint(0, 256, (n, 1, size, size), generator=generator, dtype=torch.uint8))


def small(**settings) -> DeepSVDD:
    torch.manual_seed(0)
    return DeepSVDD((6,), **{"hidden": [5], "rep": 4, "batch_size": 20, "lr": 1e-2} | settings)


def rows() -> Rows:
    return Rows(torch.rand(40, 6, generator=torch.Generator().manual_seed(0)))


def shapes(net: nn.Module, x: torch.Tensor) -> list[tuple[int, ...]]:
    """What each convolution and linear layer gives."""
    seen = []
    for module in net.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            module.register_forward_hook(lambda _, __, out: seen.append(tuple(out.shape[1:])))
    net(x)
    return seen


def test_networks_of_mnist() -> None:
    encoder, decoder = (net((1, 28, 28), [8, 4], 32) for net in (LeNetEncoder, LeNetDecoder))
    assert shapes(encoder, torch.rand(2, 1, 28, 28)) == [(8, 28, 28), (4, 14, 14), (32,)]
    assert shapes(decoder, torch.rand(2, 32)) == [(4, 8, 8), (8, 14, 14), (1, 28, 28)]
    assert layers_of(encoder) == [
        "conv 5/1/2 1-8 no bias, bn eps 0.0001 no affine, leaky 0.01, maxpool 2/2",
        "conv 5/1/2 8-4 no bias, bn eps 0.0001 no affine, leaky 0.01, maxpool 2/2",
        "linear 196-32 no bias",
    ]
    assert layers_of(decoder) == [
        "leaky 0.01, nearest x2",
        "convT 5/1/2 2-4 no bias, bn eps 0.0001 no affine, leaky 0.01, nearest x2",
        "convT 5/1/3 4-8 no bias, bn eps 0.0001 no affine, leaky 0.01, nearest x2",
        "convT 5/1/2 8-1 no bias, sigmoid",
    ]


def test_networks_of_cifar10() -> None:
    encoder, decoder = (net((3, 32, 32), [32, 64, 128], 128) for net in (LeNetEncoder, LeNetDecoder))
    assert shapes(encoder, torch.rand(2, 3, 32, 32)) == [(32, 32, 32), (64, 16, 16), (128, 8, 8), (128,)]
    assert shapes(decoder, torch.rand(2, 128)) == [(128, 4, 4), (64, 8, 8), (32, 16, 16), (3, 32, 32)]
    assert layers_of(encoder) == [
        "conv 5/1/2 3-32 no bias, bn eps 0.0001 no affine, leaky 0.01, maxpool 2/2",
        "conv 5/1/2 32-64 no bias, bn eps 0.0001 no affine, leaky 0.01, maxpool 2/2",
        "conv 5/1/2 64-128 no bias, bn eps 0.0001 no affine, leaky 0.01, maxpool 2/2",
        "linear 2048-128 no bias",
    ]
    assert layers_of(decoder) == [
        "bn eps 0.0001 no affine, leaky 0.01",  # of the code phi(x)
        "convT 5/1/2 8-128 no bias, bn eps 0.0001 no affine, leaky 0.01, nearest x2",
        "convT 5/1/2 128-64 no bias, bn eps 0.0001 no affine, leaky 0.01, nearest x2",
        "convT 5/1/2 64-32 no bias, bn eps 0.0001 no affine, leaky 0.01, nearest x2",
        "convT 5/1/2 32-3 no bias, sigmoid",
    ]


@pytest.mark.parametrize(
    ("channels", "pretrain_epochs", "xavier"),
    [([32, 64, 128], 1, True), ([32, 64, 128], 0, False), ([8, 4], 1, False)],
)
def test_first_weights_are_xaviers_in_the_convolutions_of_cifar10s_autoencoder_alone(
    channels: list[int], pretrain_epochs: int, xavier: bool
) -> None:
    """Up to gain sqrt(6 / (fan in + fan out)), where gain^2 = 2 / (1 + slope^2); torch's are up to sqrt(1 / fan in)."""
    torch.manual_seed(0)
    detector = DeepSVDD((3, 32, 32), channels=channels, rep=128, pretrain_epochs=pretrain_epochs)
    for module in detector.modules():
        if isinstance(module, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            outputs, inputs, *kernel = module.weight.shape
            area = int(np.prod(kernel))
            bound = (inputs * area) ** -0.5
            if xavier and kernel:
                bound = (2 / (1 + 0.01**2) * 6 / ((inputs + outputs) * area)) ** 0.5
            assert bound * 0.95 < module.weight.abs().max().item() <= bound * (1 + 1e-6), module


@pytest.mark.parametrize("shape", [(1, 28, 28), (7,)])
def test_nothing_can_be_constant_by_itself(shape: tuple[int, ...]) -> None:
    detector = DeepSVDD(shape)
    assert not [name for name, _ in detector.named_parameters() if "bias" in name]
    norms = [module for module in detector.modules() if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d))]
    assert all(not norm.affine for norm in norms)


def test_contrast_is_scaled_by_the_training_images() -> None:
    train = images()
    detector = DeepSVDD((1, 28, 28))
    Walk(detector, train).next()
    pixels = train.x.double().numpy() / 255
    offset = pixels - pixels.mean((1, 2, 3), keepdims=True)
    offset /= np.abs(offset).mean((1, 2, 3), keepdims=True)
    expected = (offset - offset.min()) / (offset.max() - offset.min())
    prepared = detector.prepare(train.take(torch.arange(40)))
    np.testing.assert_allclose(prepared, expected, atol=1e-5)  # whatever the range of the pixels
    assert not contrast(torch.full((1, 1, 4, 4), 0.3)).any()


def test_centre_is_the_mean_away_from_zero() -> None:
    centre = torch.tensor([0.5, 0.05, -0.05, 0.0, -0.2])
    torch.testing.assert_close(away_from_zero(centre), torch.tensor([0.5, 0.1, -0.1, 0.0, -0.2]))
    detector, train = small(), rows()
    walk = Walk(detector, train)
    for _ in range(3):
        walk.next()
    torch.testing.assert_close(detector.centre, away_from_zero(detector.embed(train.x).mean(0).detach()))


@pytest.mark.parametrize("objective", ["one-class", "soft-boundary"])
def test_one_update(objective: str) -> None:
    detector, train = small(objective=objective, weight_decay=0.1, pretrain_epochs=0, nu=0.2), rows()
    walk = Walk(detector, train)
    stages = [walk.next() for _ in range(4 if objective == "soft-boundary" else 3)]
    detector.radius.fill_(0.0 if objective == "one-class" else 0.4)
    weights = [parameter.detach().clone().requires_grad_() for parameter in detector.embed.parameters()]
    x, centre, radius = train.x[:20], detector.centre.clone(), detector.radius.item()
    output = nn.functional.leaky_relu(x @ weights[0].T, 0.01) @ weights[1].T
    distance = ((output - centre) ** 2).sum(1)
    loss = distance.mean()
    if objective == "soft-boundary":
        loss = radius**2 + (1 / 0.2) * torch.relu(distance - radius**2).mean()
    (loss + sum(0.05 * (w**2).sum() for w in weights)).backward()  # weight decay w / 2 |W|^2
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    optimizer.step()

    before = [parameter.clone() for parameter in detector.rebuild.parameters()]
    losses = stages[-1].step(Batch(x, torch.arange(20)))
    assert losses["svdd"].item() == pytest.approx(loss.item(), rel=1e-5)
    for parameter, expected in zip(detector.embed.parameters(), weights, strict=True):
        torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-5)
    assert all(map(torch.equal, detector.rebuild.parameters(), before))
    if objective == "soft-boundary":
        expected = np.quantile(distance.detach().sqrt().numpy(), 0.8)
        assert detector.radius.item() == pytest.approx(expected, rel=1e-5)
        with torch.no_grad():
            distance = (detector.embed(x) - centre).square().sum(1)
            torch.testing.assert_close(detector.score(x), distance - detector.radius**2)


def test_two_updates_of_the_autoencoder() -> None:
    detector, train = small(pretrain_decay=0.1), rows()
    stage = Walk(detector, train).next()
    assert stage is not None
    networks = [*detector.embed.parameters(), *detector.rebuild.parameters()]
    weights = [parameter.detach().clone().requires_grad_() for parameter in networks]
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    for x in train.x.split(20):
        code = nn.functional.leaky_relu(x @ weights[0].T, 0.01) @ weights[1].T
        rebuilt = nn.functional.leaky_relu(code @ weights[2].T, 0.01) @ weights[3].T
        loss = ((rebuilt - x) ** 2).sum(1).mean()
        descend_plainly(optimizer, loss + sum(0.05 * (w**2).sum() for w in weights))
        assert stage.step(batch_of(x))["reconstruction"].item() == pytest.approx(loss.item(), rel=1e-5)
        for parameter, expected in zip(networks, weights, strict=True):
            torch.testing.assert_close(parameter, expected, rtol=0, atol=1e-5)


def test_pretraining_rebuilds_and_stages_slow_down() -> None:
    detector, train = (
        small(
            pretrain_epochs=5,
            pretrain_milestone=3,
            pretrain_decay=0.3,
            epochs=9,
            milestone=4,
            weight_decay=0.2,
        ),
        rows(),
    )
    seen = []
    walk = Walk(detector, train)
    while (stage := walk.next()) is not None:
        ((group,),) = (optimizer.param_groups for optimizer in stage.optimizers)
        seen.append((stage.name, stage.epochs, group["lr"], group["weight_decay"]))
        if len(seen) == 1:
            x = train.x[:20]
            expected = ((detector.rebuild(detector.embed(x)) - x) ** 2).sum(1).mean().item()
            with torch.enable_grad():
                loss = stage.step(Batch(x, torch.arange(20)))["reconstruction"].item()
            assert loss == pytest.approx(expected, rel=1e-5)
    assert seen == [
        ("autoencoder", 3, 0.01, 0.3),
        ("autoencoder, slower", 2, 0.001, 0.3),
        ("sphere", 4, 0.01, 0.2),
        ("sphere, slower", 5, 0.001, 0.2),
    ]


def test_soft_boundary_warms_up() -> None:
    detector, train = small(objective="soft-boundary", epochs=30, milestone=20, warm_up=8), rows()
    stages, walk = [], Walk(detector, train)
    while (stage := walk.next()) is not None:
        detector.radius.zero_()
        stage.step(batch_of(train.x[:20]))
        stages.append((stage.name, stage.epochs, detector.radius.item() > 0))
    assert stages[2:] == [
        ("sphere, no radius yet", 8, False),
        ("sphere", 12, True),
        ("sphere, slower", 10, True),
    ]


def test_beats_its_untrained_copy_on_digits() -> None:
    """With as many columns of noise as of pixels, which random features cannot leave out."""
    pixels, labels = load_digits(return_X_y=True)
    noise = torch.rand(len(pixels), 64, generator=torch.Generator().manual_seed(0))
    x = torch.cat([torch.from_numpy(pixels / 16).float(), noise], 1)
    normal = np.flatnonzero(labels == 6)
    held = np.concatenate([normal[120:], np.flatnonzero(labels != 6)[::6]])
    areas = {}
    for epochs in (0, 40):
        torch.manual_seed(0)
        detector = DeepSVDD(
            (128,), hidden=[64], rep=16, pretrain_epochs=0, epochs=epochs, lr=1e-3, batch_size=30
        )
        QUICK.learn(detector, Rows(x[normal[:120]]), seed=0)
        areas[epochs] = roc_auc_score(labels[held] != 6, detector.eval().score(x[held]).detach())
    assert areas[40] > 0.9, areas
    assert areas[0] < 0.8, areas


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"objective": "hard"}, r"model\.objective=hard: allowed are one-class, soft-boundary"),
        ({"nu": 1.0}, r"model\.nu=1\.0"),
        ({"rep": 0}, r"model\.rep=0"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**settings)


@pytest.mark.parametrize("shape", [(1, 30, 30), (1, 28, 32), (1, 64, 64)])
def test_sizes_that_do_not_fit(shape: tuple[int, ...]) -> None:
    with pytest.raises(SettingError, match=r"data\.image_size: found"):
        DeepSVDD(shape)
