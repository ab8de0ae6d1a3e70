import numpy as np
import pytest
import torch
from layers import layers_of
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anomaly_bench.detector import Batch, Rows
from anomaly_bench.detectors.dsebm import DSEBM
from anomaly_bench.errors import SettingError
from anomaly_bench.training.trainer import Trainer


def small(**settings) -> DSEBM:
    torch.manual_seed(0)
    detector = DSEBM((6,), **{"hidden": [5, 4], "lr": 1e-2, "batch_size": 20} | settings)
    with torch.no_grad():
        detector.b.uniform_(-1, 1)
    return detector


def by_hand(x: Tensor, weights: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Energy and its slope of rows, the slope by the chain rule: the derivative of softplus is a sigmoid."""
    b, w1, c1, w2, c2 = weights
    first = x @ w1.T + c1
    second = torch.log1p(first.exp()) @ w2.T + c2
    energy = ((x - b) ** 2).sum(1) / 2 - torch.log1p(second.exp()).sum(1)
    slope = (x - b) - (torch.sigmoid(second) @ w2 * torch.sigmoid(first)) @ w1
    return energy, slope


def weights_of(detector: DSEBM) -> list[Tensor]:
    names = ("b", "h.0.0.0.weight", "h.0.0.0.bias", "h.0.1.weight", "h.0.1.bias")
    return [detector.get_parameter(name).detach().clone().requires_grad_() for name in names]


def test_energy_and_reconstruction() -> None:
    x = torch.rand(7, 6)
    energy, slope = by_hand(x, weights_of(small()))
    torch.testing.assert_close(small().score(x), energy)
    torch.testing.assert_close(small(score_by="reconstruction").score(x), (slope**2).sum(1))
    torch.testing.assert_close(small().explain(x).reconstruction, (x - slope).detach())


def test_one_update() -> None:
    detector = small(sigma=0.3)
    weights, x = weights_of(detector), torch.rand(20, 6)
    (stage,) = detector.stages(Rows(x))
    torch.manual_seed(5)
    loss = stage.step(Batch(x, torch.arange(20)))["matching"].item()
    torch.manual_seed(5)
    noisy = x + 0.3 * torch.randn(20, 6)
    expected = ((x - (noisy - by_hand(noisy, weights)[1])) ** 2).sum(1).mean()
    optimizer = torch.optim.Adam(weights, lr=1e-2)
    expected.backward()
    optimizer.step()
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    for parameter, weight in zip(weights_of(detector), weights, strict=True):
        torch.testing.assert_close(parameter, weight, rtol=0, atol=1e-5)


def test_images_have_the_convolutions_of_geotrans_and_softplus_as_the_paper() -> None:
    assert layers_of(DSEBM((3, 32, 32)).h) == [
        "conv 3/2/1 3-64, softplus",
        "conv 3/2/1 64-128, softplus",
        "conv 3/2/1 128-256, softplus",
        "linear 4096-256, softplus",
    ]
    assert layers_of(DSEBM((3, 32, 32), version="geotrans").h) == [
        "conv 3/2/1 3-64 no bias, bn, relu",
        "conv 3/2/1 64-128 no bias, bn, relu",
        "conv 3/2/1 128-256 no bias, bn, relu",
        "linear 4096-256, relu",
    ]


def test_geotrans_version_has_batch_norm_and_relu() -> None:
    torch.manual_seed(0)
    detector, x = DSEBM((2, 16, 16), width=2, code=4, version="geotrans"), torch.rand(5, 2, 16, 16)
    first, second, third, last = (detector.get_submodule(f"h.{number}") for number in (0, 3, 6, 10))

    def energy(x: Tensor) -> Tensor:
        h = x
        for layer in (first, second, third):
            h = layer(h)
            mean, variance = h.mean((0, 2, 3), keepdim=True), h.var((0, 2, 3), keepdim=True, correction=0)
            h = torch.relu((h - mean) / (variance + 1e-5).sqrt())
        return 0.5 * x.square().sum((1, 2, 3)) - torch.relu(last(h.flatten(1))).sum(1)

    torch.testing.assert_close(detector.train().energy(x)[0], energy(x))
    x.requires_grad_()
    (slope,) = torch.autograd.grad(energy(x).sum(), x)
    torch.testing.assert_close(detector.rebuilt(x), (x - slope).detach())


def test_images_have_a_map_and_leave_no_gradients() -> None:
    detector = DSEBM((2, 16, 16), width=2, code=4)
    with torch.no_grad():
        said = detector.explain(torch.rand(3, 2, 16, 16))
    assert said.map is not None
    assert said.map.shape == (3, 16, 16)
    assert all(parameter.grad is None for parameter in detector.parameters())


@pytest.mark.parametrize("score_by", ["energy", "reconstruction"])
def test_beats_its_untrained_copy_on_digits(score_by: str) -> None:
    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels / 8 - 1).float()
    normal = np.flatnonzero(labels == 8)
    held = np.concatenate([normal[120:], np.flatnonzero(labels != 8)[::6]])
    areas = {}
    for epochs in (0, 60):
        torch.manual_seed(0)
        detector = DSEBM((64,), hidden=[32, 32], lr=5e-3, batch_size=30, epochs=epochs, score_by=score_by)
        Trainer(device="cpu", precision="fp32").learn(detector, Rows(x[normal[:120]]), seed=0)
        areas[epochs] = roc_auc_score(labels[held] != 8, detector.eval().score(x[held]).detach())
    assert areas[60] > 0.8, areas
    assert areas[60] > areas[0] + 0.05, areas


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score_by": "both"}, r"model\.score_by=both: allowed are energy, reconstruction"),
        ({"version": "alad"}, r"model\.version=alad: allowed are paper, geotrans"),
        ({"version": "geotrans"}, r"model\.version=geotrans: it needs images, found rows"),
        ({"sigma": 0}, r"model\.sigma=0"),
        ({"hidden": [0]}, r"model\.hidden=\[0\]"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**settings)
