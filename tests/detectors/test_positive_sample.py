import copy

import numpy as np
import pytest
import torch
from layers import layers_of
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from steps import assert_same_weights, batch_of, descend_plainly, moved, networks, noise, stage_of

from anomaly_bench.data.dataset import resized
from anomaly_bench.detector import Rows
from anomaly_bench.detectors.positive_sample import PositiveSample, augmented, patterns
from anomaly_bench.errors import SettingError
from anomaly_bench.training.scoring import explain_rows
from anomaly_bench.training.trainer import Trainer

SHAPE = (1, 16, 16)


def small(shape: tuple[int, ...] = SHAPE, **settings) -> PositiveSample:
    torch.manual_seed(0)
    return PositiveSample(shape, **{"nz": 6, "ngf": 2, "ndf": 2, "augment": False} | settings)


@pytest.mark.parametrize("shape", [(1, 32, 32), (3, 32, 32), (1, 64, 64), (3, 64, 64)])
def test_shapes(shape: tuple[int, ...]) -> None:
    detector, x = small(shape).eval(), noise(3, shape)
    score, gaps, reconstruction, features = detector.explain(x)
    assert score.shape == (3,)
    assert gaps.shape == (3, *shape[1:])
    assert reconstruction.shape == x.shape
    assert features.dim() == 2
    torch.testing.assert_close(detector.score(x), score)


@pytest.mark.parametrize(
    ("size", "filters"),
    [(128, [64, 64, 128, 256, 512]), (64, [64, 64, 128, 256]), (32, [64, 64, 128]), (16, [64, 64])],
)
def test_filters_are_those_of_the_context_encoder(size: int, filters: list[int]) -> None:
    detector = PositiveSample((1, size, size), nz=7)
    layers = [p.shape for p in detector.repair.parameters() if p.dim() == 4]
    down, up = layers[: len(layers) // 2], layers[len(layers) // 2 :]
    assert [w[0] for w in down] == [*filters, 7]
    assert [w[1] for w in up] == [*filters[::-1], 1]
    assert [p.shape[0] for p in detector.discriminate.parameters() if p.dim() == 4] == [*filters, 1]


def test_norms_and_activations_are_the_papers() -> None:
    detector = PositiveSample((1, 64, 64), nz=7)
    assert layers_of(detector.repair) == [
        "conv 4/2/1 1-64 no bias, relu",
        "conv 4/2/1 64-64 no bias, bn, relu",
        "conv 4/2/1 64-128 no bias, bn, relu",
        "conv 4/2/1 128-256 no bias, bn, relu",
        "conv 4/1/0 256-7 no bias, bn, relu",
        "convT 4/1/0 7-256 no bias, bn, relu",
        "convT 4/2/1 256-128 no bias, bn, relu",
        "convT 4/2/1 128-64 no bias, bn, relu",
        "convT 4/2/1 64-64 no bias, bn, relu",
        "convT 4/2/1 64-1, tanh",
    ]
    assert layers_of(detector.discriminate) == [
        "conv 4/2/1 1-64 no bias, leaky 0.2",
        "conv 4/2/1 64-64 no bias, bn, leaky 0.2",
        "conv 4/2/1 64-128 no bias, bn, leaky 0.2",
        "conv 4/2/1 128-256 no bias, bn, leaky 0.2",
        "conv 4/1/0 256-1 no bias",
    ]


def test_one_step_is_the_papers_equations() -> None:
    detector, x = small(lambda_=3.0), noise(8, SHAPE)
    repair, discriminate = (copy.deepcopy(n).train() for n in (detector.repair, detector.discriminate))
    stage = stage_of(detector, 0, SHAPE)
    torch.manual_seed(5)
    losses = stage.step(batch_of(x))

    torch.manual_seed(5)
    g = torch.optim.Adam(repair.parameters(), lr=2e-4, betas=(0.5, 0.999))
    d = torch.optim.Adam(discriminate.parameters(), lr=2e-4, betas=(0.5, 0.999))
    fake = repair(detector.with_defects(x))
    l_d = -torch.log(torch.sigmoid(discriminate(x)[1])).mean()
    l_d = l_d - torch.log(1 - torch.sigmoid(discriminate(fake.detach())[1])).mean()
    descend_plainly(d, l_d)
    d_after = copy.deepcopy(discriminate)
    for kept, p in zip(d_after.parameters(), discriminate.parameters(), strict=True):
        kept.grad = p.grad.clone()
    adversarial = -torch.log(torch.sigmoid(discriminate(fake)[1])).mean()
    const = (x - fake).abs().sum() / x.numel()
    descend_plainly(g, adversarial + 3 * const)

    assert losses["discriminator"].item() == pytest.approx(l_d.item(), abs=1e-5)
    assert losses["adversarial"].item() == pytest.approx(adversarial.item(), abs=1e-5)
    assert losses["reconstruction"].item() == pytest.approx(const.item(), abs=1e-5)
    assert_same_weights(detector.discriminate, d_after)
    assert_same_weights(detector.repair, repair)


def test_a_step_moves_both_networks() -> None:
    detector = small()
    names = moved(detector, stage_of(detector, 0, SHAPE).step, batch_of(noise(8, SHAPE)))
    assert networks(names) == {"repair", "discriminate"}


@pytest.mark.parametrize("shape", [(1, 64, 64), (3, 64, 64)])
def test_defects_are_blocks_of_one_value_on_every_image(shape: tuple[int, ...]) -> None:
    x = torch.full((200, *shape), 2.0)  # a value that no defect has
    painted = small(shape, max_defects=1, min_defect=0.25, max_defect=0.5).with_defects(x)
    for image in painted:
        inside = image[0] != 2
        rows, columns = inside.any(1).nonzero().flatten(), inside.any(0).nonzero().flatten()
        assert 15 <= len(rows) <= 33
        assert 15 <= len(columns) <= 33
        assert inside.sum() == len(rows) * len(columns)
        assert all(len(channel[inside].unique()) == 1 for channel in image)
        assert image[:, inside].abs().max() <= 1
    places = [tuple((image[0] != 2).nonzero()[0].tolist()) for image in painted]
    assert len(set(places)) > 100


def test_the_number_of_defects_is_random_and_at_least_one() -> None:
    x = torch.full((400, 1, 64, 64), 2.0)
    painted = small((1, 64, 64), max_defects=3, min_defect=0.03, max_defect=0.05).with_defects(x)
    counts = torch.tensor([len(image[image != 2].unique()) for image in painted])
    assert counts.min() == 1
    assert counts.max() == 3
    assert all((counts == n).sum() > 80 for n in (1, 2, 3))


def test_patterns_are_local_binary_patterns_of_grey_levels() -> None:
    x = noise(2, (3, 5, 6))
    grey = torch.round((x.mean(1) + 1) * 127.5)
    around = ((-1, -1), (-1, 0), (-1, 1), (0, 1), (1, 1), (1, 0), (1, -1), (0, -1))
    found = patterns(x)
    for n, i, j in np.ndindex(2, 5, 6):
        code = 0
        for bit, (di, dj) in enumerate(around):
            neighbour = grey[n, min(max(i + di, 0), 4), min(max(j + dj, 0), 5)]
            code += int(neighbour >= grey[n, i, j]) << bit
        assert found[n, i, j] == code
    flat = torch.full((1, 1, 4, 4), 0.2) + 1e-4 * noise(1, (1, 4, 4))
    assert (patterns(flat) == 255).all()


@pytest.mark.parametrize(("window", "top"), [(1, 0.0), (3, 0.25), (5, 1.0)])
def test_map_is_the_gap_to_the_nearest_pattern_around(window: int, top: float) -> None:
    detector, x, y = small(window=window, top=top), noise(2, SHAPE), noise(4, SHAPE)[2:]
    score, gaps = detector.compare(x, y)
    ours, theirs, reach = patterns(x), patterns(y), window // 2
    for n, i, j in np.ndindex(2, 16, 16):
        around = theirs[n, max(0, i - reach) : i + reach + 1, max(0, j - reach) : j + reach + 1]
        assert gaps[n, i, j] == (around - ours[n, i, j]).abs().min()
    ordered = gaps.flatten(1).sort(descending=True).values
    torch.testing.assert_close(score, ordered[:, : max(1, round(top * 256))].mean(1))


def test_augmented_images_are_turned_and_stay_in_range() -> None:
    x = noise(20, (3, 32, 32))
    torch.manual_seed(0)
    turned = augmented(x)
    assert turned.shape == x.shape
    assert turned.abs().max() <= 1
    assert ((turned - x).abs().flatten(1).mean(1) > 0.05).all()
    flat = torch.full((5, 1, 16, 16), 0.3)
    torch.testing.assert_close(augmented(flat), flat)
    detector = small(augment=True)
    losses = stage_of(detector, 0, SHAPE).step(batch_of(noise(8, SHAPE)))
    assert all(torch.isfinite(loss) for loss in losses.values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_defects": 0}, "model.max_defects=0"),
        ({"min_defect": 0.7}, "model.min_defect=0.7: .*model.max_defect"),
        ({"window": 4}, "model.window=4: must be odd"),
        ({"top": 2.0}, "model.top=2.0"),
        ({"shape": (1, 28, 28)}, "data.image_size"),
        ({"shape": (6,)}, "images"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**settings)


def test_finds_painted_defects_on_digits_and_where_they_are() -> None:
    data = load_digits()
    ones = resized((data.images * 15.9).astype(np.uint8)[..., None], 16)[data.target == 1]
    marked = ones[120:].clone()
    marked[:, :, 9:13, 2:6] = torch.where(torch.arange(4) % 2 == 0, 230, 90).to(torch.uint8)
    test, anomalous = Rows(torch.cat([ones[120:], marked])), np.arange(2 * len(marked)) >= len(marked)
    detector = small(nz=32, ngf=8, ndf=4, batch_size=30, lr=2e-3, lambda_=20.0, epochs=15)
    before = explain_rows(detector, test, precision="fp32", batch_size=50).score
    Trainer(device="cpu", precision="fp32").learn(detector, Rows(ones[:120]), seed=0)
    after = explain_rows(detector, test, precision="fp32", batch_size=50)
    untrained, trained = (float(roc_auc_score(anomalous, scores)) for scores in (before, after.score))
    assert trained > max(0.7, untrained + 0.1)
    gaps = after.map[len(marked) :].mean(0)
    assert gaps[9:13, 2:6].mean() > 2 * gaps.mean()
