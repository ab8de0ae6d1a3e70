import copy

import pytest
import torch
from autoencoding import assert_close, before_and_after, digits, first_stage, learn
from steps import batch_of, noise

from anomaly_bench.detector import Rows
from anomaly_bench.detectors.sdae import SDAE
from anomaly_bench.errors import SettingError


def small(shape=(1, 4, 4), **settings) -> SDAE:
    torch.manual_seed(0)
    return SDAE(shape, **{"layers": (8, 5), "nu": 0.4} | settings)


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


def cross_entropy(p, target):
    return -(target * p.log() + (1 - target) * (1 - p).log()).sum(1).mean()


def walked(detector, x):
    with torch.no_grad():
        return list(detector.stages(Rows(x)))


def moved(detector, before):
    return [
        name
        for (name, ours), first in zip(detector.named_parameters(), before.parameters(), strict=True)
        if not torch.equal(ours, first)
    ]


@pytest.mark.parametrize("layer", [0, 1])
def test_an_update_of_each_layer_equals_the_transcription(layer):
    detector, x = small(), noise(8, (1, 4, 4))
    plain, first = copy.deepcopy(detector), copy.deepcopy(detector)
    stage = walked(detector, x)[layer]
    torch.manual_seed(5)
    losses = stage.step(batch_of(x))

    torch.manual_seed(5)
    h = (x.reshape(8, 16) + 1) / 2
    if layer == 1:
        h = sigmoid(h @ plain.net.weights[0].T + plain.net.up[0]).detach()
    w, b, c = plain.net.weights[layer], plain.net.up[layer], plain.net.down[layer]
    optimizer = torch.optim.Adam([w, b, c], lr=1e-3)
    kept = (torch.rand(h.shape) >= 0.4).float()
    rebuilt = sigmoid(sigmoid((kept * h) @ w.T + b) @ w + c)
    loss = cross_entropy(rebuilt, h)
    loss.backward()
    optimizer.step()

    assert losses["reconstruction"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert moved(detector, first) == [f"net.{kind}.{layer}" for kind in ("weights", "up", "down")]
    for ours, theirs in zip(detector.parameters(), plain.parameters(), strict=True):
        assert_close(ours, theirs, atol=1e-5)


def test_an_update_of_the_whole_is_uncorrupted_and_moves_everything():
    detector, x = small(), noise(8, (1, 4, 4))
    plain, first = copy.deepcopy(detector), copy.deepcopy(detector)
    losses = walked(detector, x)[-1].step(batch_of(x))

    (w1, w2), (b1, b2), (c1, c2) = plain.net.weights, plain.net.up, plain.net.down
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    pixels = (x.reshape(8, 16) + 1) / 2
    code = sigmoid(sigmoid(pixels @ w1.T + b1) @ w2.T + b2)
    loss = cross_entropy(sigmoid(sigmoid(code @ w2 + c2) @ w1 + c1), pixels)
    loss.backward()
    optimizer.step()

    assert losses["reconstruction"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert len(moved(detector, first)) == 6
    for ours, theirs in zip(detector.parameters(), plain.parameters(), strict=True):
        assert_close(ours, theirs, atol=1e-5)


def test_stages_go_from_the_lowest_layer_to_the_whole():
    names = [
        (stage.name, stage.epochs) for stage in walked(small(epochs=3, tuning_epochs=4), noise(8, (1, 4, 4)))
    ]
    assert names == [("layer 1", 3), ("layer 2", 3), ("fine-tuning", 4)]


def test_layers_learn_one_after_the_other_and_lower_the_error_of_the_untuned_whole():
    train, _, _ = digits(size=8)
    detector = learn(
        small((1, 8, 8), layers=(40, 20), nu=0.1, epochs=60, tuning_epochs=0, lr=3e-3, batch_size=20), train
    )
    x = train.take(torch.arange(120))
    with torch.no_grad():
        assert detector.score(x).mean() < 0.7 * small((1, 8, 8), layers=(40, 20)).score(x).mean()


def test_rows_have_a_linear_decoder_at_the_bottom_only():
    detector, x = small((7,)), noise(8, (7,)) * 9
    plain = copy.deepcopy(detector)
    first_stage(detector, x)
    stages = walked(detector, x)
    torch.manual_seed(5)
    loss = stages[0].step(batch_of(x))["reconstruction"].item()
    torch.manual_seed(5)
    w, b, c = plain.net.weights[0], plain.net.up[0], plain.net.down[0]
    with torch.no_grad():
        kept = (torch.rand(8, 7) >= 0.4).float()
        rebuilt = sigmoid((kept * x) @ w.T + b) @ w + c
        assert loss == pytest.approx(((rebuilt - x) ** 2).sum(1).mean().item(), rel=1e-5)
        inner = detector.net.encode(x, 1)
        assert 0 < inner.min() < inner.max() < 1


def test_score_is_the_squared_error_of_pixels_on_0_to_1():
    detector, x = small(), noise(5, (1, 4, 4))
    with torch.no_grad():
        explained = detector.explain(x)
        assert_close(explained.score, ((x - explained.reconstruction) ** 2).flatten(1).sum(1) / 4)
        assert_close(detector.score(x), explained.score)
        assert torch.equal(detector.score(x), detector.score(x))
    assert explained.map.shape == (5, 4, 4)
    assert explained.features.shape == (5, 5)


def test_learning_tells_twos_from_other_digits():
    before, after = before_and_after(
        lambda shape: SDAE(shape, layers=(60, 30), batch_size=20, epochs=20, tuning_epochs=60, lr=3e-3),
        size=8,
    )
    assert after > 0.85
    assert after > before + 0.1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ()}, "model.layers=\\[\\]: needed is one"),
        ({"layers": (3, 0)}, "a layer needs at least 1 unit"),
        ({"nu": 1.0}, "model.nu=1.0"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(SettingError, match=message):
        small(**settings)
