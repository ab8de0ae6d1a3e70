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
from torch.nn.functional import binary_cross_entropy

from anomaly_bench.detector import Rows
from anomaly_bench.detectors.ognet import OGNet
from anomaly_bench.errors import SettingError
from anomaly_bench.training.trainer import Trainer

SHAPE = (1, 17, 17)


def small(shape: tuple[int, ...] = SHAPE, **settings) -> OGNet:
    torch.manual_seed(0)
    return OGNet(shape, **{"width": 2, "finetune_steps": 4} | settings)


def entropy(logits: torch.Tensor, target: float) -> torch.Tensor:
    probability = torch.sigmoid(logits)
    return binary_cross_entropy(probability, torch.full_like(probability, target))


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 32, 32), (1, 33, 33), (3, 64, 64), (1, 20, 45)])
def test_any_size_is_taken_and_rebuilt(shape: tuple[int, ...]) -> None:
    detector, x = small(shape).eval(), noise(2, shape)
    score, residual, reconstruction, features = detector.explain(x)
    assert score.shape == (2,)
    assert residual.shape == (2, *shape[1:])
    assert reconstruction.shape == x.shape
    assert features.dim() == 2
    torch.testing.assert_close(detector.score(x), score)


def test_layers_at_45_pixels_are_the_official_ones() -> None:
    detector = OGNet((1, 45, 45))
    assert layers_of(detector.rebuild) == [
        "conv 5/1/0 1-64, bn, relu",
        "conv 5/1/0 64-128, bn, relu",
        "conv 5/1/0 128-256, relu, bn",  # swapped, as the next one
        "conv 5/1/0 256-512, relu, bn",
        "convT 5/1/0 512-256, bn, relu",
        "convT 5/1/0 256-128, bn, relu",
        "convT 5/1/0 128-64, bn, relu",
        "convT 5/1/0 64-1, tanh",
    ]
    assert layers_of(detector.discriminate) == [
        "conv 5/2/2 1-64, bn, relu",
        "conv 5/2/2 64-128, bn, relu",
        "conv 5/2/2 128-256, bn, relu",
        "conv 5/2/2 256-512, relu",
        "linear 4608-1",
    ]


def test_one_step_of_phase_1() -> None:
    detector, x = small(sigma=0.3, w_adv=0.25), noise(8, SHAPE)
    rebuild, discriminate = (copy.deepcopy(n).train() for n in (detector.rebuild, detector.discriminate))
    stage = stage_of(detector, 0, SHAPE)
    torch.manual_seed(5)
    losses = stage.step(batch_of(x))

    torch.manual_seed(5)
    g = torch.optim.Adam(rebuild.parameters(), lr=1e-3)
    d = torch.optim.Adam(discriminate.parameters(), lr=1e-4)
    noisy = torch.clamp(x + 0.3 * torch.randn(8, *SHAPE), -1, 1)
    rebuilt = rebuild(noisy)
    l_d = 0.5 * (entropy(discriminate(rebuilt.detach()), 1) + entropy(discriminate(x), 0))
    descend_plainly(d, l_d)
    d_after = copy.deepcopy(discriminate)
    for kept, p in zip(d_after.parameters(), discriminate.parameters(), strict=True):
        kept.grad = p.grad.clone()
    error = ((rebuilt - x) ** 2).sum() / x.numel()
    adversarial = entropy(discriminate(rebuilt), 0)
    descend_plainly(g, 0.75 * error + 0.25 * adversarial)

    assert losses["discriminator"].item() == pytest.approx(l_d.item(), abs=1e-5)
    assert losses["reconstruction"].item() == pytest.approx(error.item(), abs=1e-5)
    assert losses["adversarial"].item() == pytest.approx(adversarial.item(), abs=1e-5)
    assert_same_weights(detector.discriminate, d_after)
    assert_same_weights(detector.rebuild, rebuild)


def test_one_step_of_phase_2() -> None:
    detector, x = small(w_old=0.2, w_new=0.7, finetune_lr=1e-3), noise(12, SHAPE)
    for p in detector.rebuild_old.parameters():
        torch.nn.init.normal_(p, std=0.2)
    stage = stage_of(detector, 2, SHAPE)
    for p in detector.rebuild_old.parameters():  # walking the stages has made it a copy
        torch.nn.init.normal_(p, std=0.2)
    new, old, discriminate = (
        copy.deepcopy(n) for n in (detector.rebuild, detector.rebuild_old, detector.discriminate)
    )
    losses = stage.step(batch_of(x))

    new.eval(), old.eval(), discriminate.train()
    d = torch.optim.Adam(discriminate.parameters(), lr=1e-3)
    with torch.no_grad():
        bad = old(x[:4]), new(0.5 * old(x[4:8]) + 0.5 * old(x[8:]))
        good = new(x[:4]), x[:4]
    l_d = (
        0.2 * entropy(discriminate(bad[0]), 1)
        + 0.7 * entropy(discriminate(good[0]), 0)
        + 0.3 * entropy(discriminate(good[1]), 0)
        + 0.8 * entropy(discriminate(bad[1]), 1)
    )
    descend_plainly(d, l_d)
    assert sum(loss.item() for loss in losses.values()) == pytest.approx(l_d.item(), abs=1e-5)
    assert_same_weights(detector.discriminate, discriminate)
    for ours, theirs in zip(detector.discriminate.buffers(), discriminate.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_each_phase_moves_its_own_networks() -> None:
    detector, batch = small(), batch_of(noise(12, SHAPE))
    assert networks(moved(detector, stage_of(detector, 0, SHAPE).step, batch)) == {"rebuild", "discriminate"}
    stage = stage_of(detector, 2, SHAPE)
    averages = {name: b.clone() for name, b in detector.rebuild.named_buffers()}
    assert networks(moved(detector, stage.step, batch)) == {"discriminate"}
    assert all(torch.equal(b, averages[name]) for name, b in detector.rebuild.named_buffers())


def test_phase_2_ends_after_its_steps_whatever_the_epoch() -> None:
    detector, batch = small(finetune_steps=2), batch_of(noise(12, SHAPE))
    step = stage_of(detector, 2, SHAPE).step
    step(batch)
    assert moved(detector, step, batch)
    kept = copy.deepcopy(detector.state_dict())
    step(batch)
    assert all(torch.equal(tensor, kept[name]) for name, tensor in detector.state_dict().items())
    assert detector.finetuned == 2


def test_the_old_generator_is_the_one_after_the_first_epochs() -> None:
    rows = Rows(((noise(24, SHAPE) + 1) * 127).to(torch.uint8))
    detector = small(batch_size=8, epochs=2, old_epochs=1)
    trainer = Trainer(device="cpu", precision="fp32")
    trainer.learn(detector, rows, seed=0)
    alone = small(batch_size=8, epochs=2, old_epochs=1)
    stages = alone.stages
    alone.stages = lambda train: iter([next(stages(train))])
    trainer.learn(alone, rows, seed=0)
    for old, new in zip(detector.rebuild_old.parameters(), alone.rebuild.parameters(), strict=True):
        assert torch.equal(old, new)
    assert not torch.equal(detector.rebuild[0].weight, detector.rebuild_old[0].weight)


def test_stages_count_epochs_and_rows() -> None:
    old, gan, finetune = small(batch_size=2, old_epochs=2, epochs=5, finetune_steps=9).stages(
        Rows(torch.zeros(24, *SHAPE, dtype=torch.uint8))
    )
    assert (old.epochs, gan.epochs, finetune.epochs) == (2, 3, 3)
    assert (old.batch_size, finetune.batch_size) == (2, 6)


def test_scores_are_high_where_the_discriminator_says_fake() -> None:
    detector, x = small().eval(), noise(5, SHAPE)
    torch.testing.assert_close(detector.score(x), detector.discriminate(detector.rebuild(x)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"shape": (1, 16, 16)}, r"data.image_size.*17 pixels or more"),
        ({"shape": (6,)}, "images"),
        ({"old_epochs": 3}, "model.old_epochs=3: .*model.epochs=3"),
        ({"old_epochs": 0}, "model.old_epochs=0"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**settings)


def test_learns_digits() -> None:
    plan = {"batch_size": 12, "epochs": 3, "finetune_steps": 20, "lr_d": 1e-3, "finetune_lr": 1e-3}
    untrained, trained = auroc_before_and_after(small((1, 20, 20), width=4, **plan), 20)
    assert trained > max(0.7, untrained + 0.1)
