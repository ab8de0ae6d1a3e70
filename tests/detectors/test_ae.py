import copy

import numpy as np
import pytest
import torch
from autoencoding import assert_close, auroc, before_and_after, first_stage, learn, mnist_root
from scipy.ndimage import correlate1d
from steps import batch_of, noise

from anomaly_bench.data import public
from anomaly_bench.detector import Rows
from anomaly_bench.detectors.ae import Autoencoder
from anomaly_bench.errors import SettingError
from anomaly_bench.losses import ssim

LOSSES = ("l2", "l1", "ssim")


def small(shape=(1, 16, 16), **settings) -> Autoencoder:
    torch.manual_seed(0)
    return Autoencoder(shape, **{"network": "dense", "code": 4, "hidden": (10,)} | settings)


def plain_ssim(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """SSIM maps by scipy's filters, image by image, `[N, C, H, W]`."""
    offsets = np.arange(-5, 6)
    window = np.exp(-(offsets**2) / (2 * 1.5**2))

    def mean(image):
        for axis in (0, 1):
            image = correlate1d(image, window / window.sum(), axis, mode="mirror")
        return image

    def one(a, b):
        mu_a, mu_b = mean(a), mean(b)
        s_a, s_b, s_ab = mean(a * a) - mu_a**2, mean(b * b) - mu_b**2, mean(a * b) - mu_a * mu_b
        c1, c2 = (0.01 * 2) ** 2, (0.03 * 2) ** 2
        top = (2 * mu_a * mu_b + c1) * (2 * s_ab + c2)
        return top / ((mu_a**2 + mu_b**2 + c1) * (s_a + s_b + c2))

    pairs = zip(x.flatten(0, 1).double().numpy(), y.flatten(0, 1).double().numpy(), strict=True)
    return torch.from_numpy(np.stack([one(a, b) for a, b in pairs])).float().view(x.shape)


def test_structural_similarity_is_that_of_the_paper():
    x, y = noise(3, (2, 12, 9)), noise(3, (2, 12, 9), seed=2)
    blurred = (x + x.roll(1, 2)) / 2
    for other in (y, blurred, -x):
        assert_close(ssim(x, other), plain_ssim(x, other), atol=1e-4)
    assert_close(ssim(x, x), torch.ones_like(x), atol=1e-4)
    assert ssim(x, blurred).mean() > ssim(x, y).mean()


def test_the_gradient_of_structural_similarity_is_right():
    x, y = noise(1, (1, 6, 6)), noise(1, (1, 6, 6), seed=2).requires_grad_()
    (slope,) = torch.autograd.grad(ssim(x, y).mean(), y)
    with torch.no_grad():
        for place in ((0, 0, 0, 0), (0, 0, 3, 2)):
            step = torch.zeros_like(y)
            step[place] = 1e-3
            numeric = (
                plain_ssim(x, y + step).double().mean() - plain_ssim(x, y - step).double().mean()
            ) / 2e-3
            assert slope[place].item() == pytest.approx(numeric.item(), abs=2e-4)


@pytest.mark.parametrize("loss", LOSSES)
def test_one_update_equals_the_transcription(loss):
    detector = small(network="conv", width=4, loss=loss, lr=1e-3, eps=1e-7, weight_decay=0.1)
    plain, first = copy.deepcopy(detector).train(), copy.deepcopy(detector)
    x = noise()
    losses = first_stage(detector, x).step(batch_of(x))

    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3, eps=1e-7, weight_decay=0.1)
    rebuilt = plain.decode(plain.encode(x))
    value = {
        "l2": lambda: ((x - rebuilt) ** 2).mean(),
        "l1": lambda: (x - rebuilt).abs().mean(),
        "ssim": lambda: 1 - ssim(x, rebuilt).mean(),
    }[loss]()
    value.backward()
    optimizer.step()

    assert losses["reconstruction"].item() == pytest.approx(value.item(), rel=1e-5)
    for ours, theirs, before in zip(
        detector.parameters(), plain.parameters(), first.parameters(), strict=True
    ):
        assert not torch.equal(ours, before) or not ours.any()
        assert_close(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("loss", LOSSES)
def test_the_score_is_the_error_of_the_reconstruction(loss):
    detector, x = small(loss=loss).eval(), noise(5)
    with torch.no_grad():
        rebuilt = detector.decode(detector.encode(x))
        expected = {
            "l2": ((x - rebuilt) ** 2).flatten(1).sum(1),
            "l1": (x - rebuilt).abs().flatten(1).sum(1),
            "ssim": 1 - plain_ssim(x, rebuilt).flatten(1).mean(1),
        }[loss]
        assert_close(detector.score(x), expected, atol=1e-4)
        explained = detector.explain(x)
    assert_close(explained.score, expected, atol=1e-4)
    assert explained.map.shape == (5, 16, 16)
    assert explained.features.shape == (5, 4)


@pytest.mark.parametrize("loss", LOSSES)
def test_learning_tells_twos_from_other_digits(loss):
    before, after = before_and_after(
        lambda shape: Autoencoder(
            shape, network="dense", code=8, hidden=(64,), loss=loss, batch_size=20, epochs=40, lr=2e-3
        )
    )
    assert after > 0.85
    assert after > before + 0.1


def test_learning_tells_zeros_from_other_digits_of_mnist():
    """A slice of real MNIST; skipped where it is not laid out."""
    data = public.load("mnist", mnist_root(), image_size=16, limit=2000)
    zeros = data.classes == 0
    train = Rows(data.x[np.flatnonzero(zeros & data.official_train)])
    rows = np.flatnonzero(~data.official_train)[::4]
    test, anomalous = Rows(data.x[rows]), ~zeros[rows]
    detector = small(code=16, hidden=(64,), batch_size=20, lr=2e-3)
    before = auroc(detector, test, anomalous)
    after = auroc(learn(detector, train, max_epochs=20), test, anomalous)
    assert after > 0.9
    assert after > before


def test_rows():
    detector, x = small((7,)).eval(), noise(3, (7,)) * 9
    explained = detector.explain(x)
    assert explained.map is None
    assert_close(explained.score, ((x - explained.reconstruction) ** 2).sum(1))
    assert not any(isinstance(module, torch.nn.Tanh) for module in detector.modules())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"loss": "l3"}, "model.loss=l3: allowed are l2, l1, ssim"),
        ({"loss": "ssim", "shape": (7,)}, "model.loss=ssim: it needs images"),
        ({"loss": "ssim", "shape": (1, 4, 8)}, "model.loss=ssim: it needs images of 6 pixels"),
        ({"network": "conv", "shape": (7,)}, "model.network=conv: it needs images"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(SettingError, match=message):
        small(**settings)
