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

from anomaly_bench.detector import RMSProp
from anomaly_bench.detectors.alocc import ALOCC
from anomaly_bench.errors import SettingError

SHAPE = (1, 16, 16)


def small(shape: tuple[int, ...] = SHAPE, **settings) -> ALOCC:
    torch.manual_seed(0)
    return ALOCC(shape, **{"width": 2} | settings)


@pytest.mark.parametrize(
    "shape", [(1, 28, 28), (3, 32, 32), (1, 33, 33), (1, 45, 45), (3, 64, 64), (2, 32, 50)]
)
def test_any_size_is_taken_and_rebuilt(shape: tuple[int, ...]) -> None:
    detector, x = small(shape).eval(), noise(3, shape)
    score, residual, reconstruction, features = detector.explain(x)
    assert score.shape == (3,)
    assert residual.shape == (3, *shape[1:])
    assert reconstruction.shape == x.shape
    assert features.dim() == 2
    torch.testing.assert_close(detector.score(x), score)


def test_layers_are_the_official_ones() -> None:
    detector = ALOCC((1, 45, 45))
    assert layers_of(detector.refine) == [
        "conv 5/2/2 1-32, bn, leaky 0.2",
        "conv 5/2/2 32-64, bn, leaky 0.2",
        "conv 5/2/2 64-128, bn, leaky 0.2",
        "convT 5/2/2 128-32, bn, relu",
        "convT 5/2/2 32-16, bn, relu",
        "convT 5/2/2 16-1, sigmoid",  # tanh there; here of pixels on [0, 1]
    ]
    assert layers_of(detector.discriminate) == [
        "conv 5/2/2 1-16, leaky 0.2",
        "conv 5/2/2 16-32, bn, leaky 0.2",
        "conv 5/2/2 32-64, bn, leaky 0.2",
        "conv 5/2/2 64-128, bn, leaky 0.2",
        "conv 3/1/0 128-1",  # over all that is left: a linear layer
    ]


def test_filters_of_the_paper_are_those_of_a_width_of_64() -> None:
    filters = [p.shape[0] for p in ALOCC((1, 32, 32), width=64).discriminate.parameters() if p.dim() == 4]
    assert filters == [64, 128, 256, 512, 1]


@pytest.mark.parametrize("refiner_steps", [1, 2])
def test_one_step_is_the_papers_equations_in_the_codes_order(refiner_steps: int) -> None:
    detector, x = small(refiner_steps=refiner_steps, lambda_=0.7, sigma=0.2), noise(8, SHAPE)
    refine, discriminate = (copy.deepcopy(n).train() for n in (detector.refine, detector.discriminate))
    stage = stage_of(detector, 0, SHAPE)
    torch.manual_seed(5)
    losses = stage.step(batch_of(x))

    torch.manual_seed(5)
    r, d = (RMSProp(network.parameters(), lr=2e-3) for network in (refine, discriminate))
    clean = x / 2 + 0.5
    noisy = clean + torch.randn(8, *SHAPE) * 0.2
    real, fake = torch.sigmoid(discriminate(clean)), torch.sigmoid(discriminate(refine(noisy).detach()))
    l_d = -(real.log().mean() + (1 - fake).log().mean())
    descend_plainly(d, l_d)
    d_after = copy.deepcopy(discriminate)
    for kept, p in zip(d_after.parameters(), discriminate.parameters(), strict=True):
        kept.grad = p.grad.clone()
    for _ in range(refiner_steps):
        refined = refine(noisy)
        error = ((clean - refined) ** 2).sum() / clean.numel()
        adversarial = -torch.sigmoid(discriminate(refined)).log().mean()
        descend_plainly(r, adversarial + 0.7 * error)

    assert losses["discriminator"].item() == pytest.approx(l_d.item(), abs=1e-5)
    assert losses["adversarial"].item() == pytest.approx(adversarial.item(), abs=1e-4)
    assert losses["reconstruction"].item() == pytest.approx(error.item(), abs=1e-5)
    assert_same_weights(detector.discriminate, d_after)
    assert_same_weights(detector.refine, refine)


def test_a_step_moves_both_networks() -> None:
    detector = small()
    names = moved(detector, stage_of(detector, 0, SHAPE).step, batch_of(noise(8, SHAPE)))
    taken_off_by_batch_norm = {f"refine.{i}.bias" for i in (0, 3, 6, 9, 12)} | {
        f"discriminate.features.{i}.bias" for i in (2, 5, 8)
    }
    assert names | taken_off_by_batch_norm == {name for name, _ in detector.named_parameters()}


def test_the_refiners_update_leaves_the_discriminator_alone() -> None:
    detector = small().train()
    x = (noise(8, SHAPE) + 1) / 2
    r = torch.optim.SGD(detector.refine.parameters(), lr=0.1)
    names = moved(detector, lambda b: detector.refiner_update(r, x, detector.refine(x)), batch_of(x))
    assert networks(names) == {"refine"}


@pytest.mark.parametrize("scored", ["refined", "plain"])
def test_scores_are_high_where_the_discriminator_says_fake(scored: str) -> None:
    detector, x = small(score=scored).eval(), noise(6, SHAPE)
    judged = (x + 1) / 2
    if scored == "refined":
        judged = detector.refine(judged)
    probability = torch.sigmoid(detector.discriminate(judged))
    score = detector.score(x)
    torch.testing.assert_close(torch.sigmoid(score), 1 - probability)
    torch.testing.assert_close(detector.explain(x).score, score)


def test_training_ends_where_the_reconstruction_is_good_enough() -> None:
    until = stage_of(small(rho=0.1), 0, SHAPE).until
    assert until({"reconstruction": 0.09})
    assert not until({"reconstruction": 0.11})
    assert not stage_of(small(), 0, SHAPE).until({"reconstruction": 1e-12})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"score": "both"}, "model.score=both: allowed are refined, plain"),
        ({"refiner_steps": 0}, "model.refiner_steps=0"),
        ({"shape": (6,)}, "images"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**settings)


def test_learns_digits() -> None:
    detector = small(width=4, batch_size=12, lr=3e-4, refiner_steps=1, score="plain", epochs=20)
    untrained, trained = auroc_before_and_after(detector, 16)
    assert trained > max(0.7, untrained + 0.2)
