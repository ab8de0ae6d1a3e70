import copy

import numpy as np
import pytest
import torch
from autoencoding import auroc, digits, first_stage, learn
from steps import batch_of, noise
from torch.nn.functional import log_softmax

from anomaly_bench.detector import Rows
from anomaly_bench.detectors.e3outlier import E3Outlier
from anomaly_bench.errors import SettingError
from anomaly_bench.networks.transformations import Transformations


def small(shape=(1, 16, 16), **settings) -> E3Outlier:
    torch.manual_seed(0)
    return E3Outlier(shape, **{"widen_factor": 1, "width": 4, "batch_size": 40} | settings)


@pytest.mark.parametrize(
    ("operations", "kinds", "passes"), [("ra", 72, 288), ("ra+ia", 88, 264), ("ra+ia+pr", 111, 333)]
)
def test_rounds_of_all_operations(operations, kinds, passes):
    detector = small(operations=operations)
    stage = first_stage(detector, noise(4))
    assert stage.epochs == passes == kinds * int(np.ceil(250 / kinds))
    assert detector.order.shape == (4, kinds)


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_two_updates_equal_the_transcription(optimizer):
    detector = small((3, 16, 16), optimizer=optimizer)
    plain, first = copy.deepcopy(detector).train(), copy.deepcopy(detector)
    x = noise(40, (3, 16, 16))
    stage = first_stage(detector, x)
    order = detector.order.long()
    if optimizer == "sgd":
        theirs = torch.optim.SGD(plain.net.parameters(), lr=1e-3, momentum=0.9)
    else:
        theirs = torch.optim.Adam(plain.net.parameters(), lr=1e-3, eps=1e-7)
    views = Transformations((3, 16, 16), "ra+ia+pr").views(x).unflatten(0, (40, 111))
    for turn in range(2):
        losses = stage.step(batch_of(x))
        t = order[:, turn]
        logits = plain.net(views[torch.arange(40), t])
        loss = -log_softmax(logits, 1)[torch.arange(40), t].mean()
        theirs.zero_grad()
        (loss + 0.00025 * sum((p**2).sum() for p in plain.net.parameters())).backward()
        theirs.step()
        assert losses["classification"].item() == pytest.approx(loss.item(), rel=1e-4)
        assert losses["accuracy"].item() == pytest.approx((logits.argmax(1) == t).double().mean().item())
    tolerance = 1e-6 if isinstance(theirs, torch.optim.SGD) else 2e-4  # of two updates of 1e-3 by Adam
    for ours, their, before in zip(
        detector.parameters(), plain.parameters(), first.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, their, rtol=0, atol=tolerance)
        assert not torch.equal(ours, before)


@pytest.mark.parametrize("score_by", ["pl", "mp", "ne"])
def test_scores_are_those_of_all_views(score_by):
    detector, x = small(score_by=score_by).eval(), noise(11)  # more than are scored at once
    for p in detector.net.parameters():
        torch.nn.init.normal_(p, std=0.5)
    with torch.no_grad():
        views = Transformations((1, 16, 16), "ra+ia+pr").views(x).unflatten(0, (11, 111))
        p = np.stack([detector.net(image).double().softmax(1).numpy() for image in views])
        scores = detector.score(x).numpy()
    for image, score in zip(p, scores, strict=True):
        expected = {
            "pl": -np.mean([image[t, t] for t in range(111)]),
            "mp": -np.mean([max(image[t]) for t in range(111)]),
            "ne": -np.mean([(q := image[t][image[t] > 0]) @ np.log2(q) for t in range(111)]),
        }[score_by]
        assert score == pytest.approx(expected, rel=1e-4)


def test_a_sure_answer_has_a_finite_score():
    detector = small(operations="ra", shift=0).eval()
    torch.nn.init.constant_(detector.net.head.weight, 0)
    detector.net.head.bias.data = torch.tensor([0.0, 400.0, *[0.0] * 6])
    with torch.no_grad():
        assert detector.score(noise(2)).tolist() == [0.0, 0.0]


def test_negative_entropy_and_probability_do_not_ask_what_was_applied():
    """The views of an image turned by 90 degrees are its views in another order; only the pseudo label tells."""
    x = noise(3)
    detectors = {name: small(score_by=name, operations="ra").eval() for name in ("pl", "mp", "ne")}
    with torch.no_grad():
        gaps = {name: (d.score(x) - d.score(x.rot90(1, (2, 3)))).abs().max() for name, d in detectors.items()}
    assert gaps["mp"] < 1e-5
    assert gaps["ne"] < 1e-5
    assert gaps["pl"] > 1e-4


def test_among_unlabelled_rows_it_finds_those_that_are_few():
    train, test, anomalous = digits(normal=4, size=8)
    x = torch.cat([train.x, test.x[anomalous][:13]])
    rows, strange = Rows(x), np.arange(len(x)) >= 120
    settings = {
        "operations": "ra",
        "shift": 0,
        "batch_size": 30,
        "optimizer": "adam",
        "lr": 1e-2,
        "epochs": 24,
    }
    detector = small((1, 8, 8), **settings)
    assert detector.transductive
    found = {}
    for trained in (False, True):
        if trained:
            learn(detector, rows)
        for score_by in ("pl", "ne"):
            detector.score_by = score_by
            found[trained, score_by] = auroc(detector, rows, strange)
    for score_by in ("pl", "ne"):
        assert found[True, score_by] > 0.9, found
        assert found[True, score_by] > found[False, score_by] + 0.2, found


def test_explanation():
    detector, x = small().eval(), noise(3)
    with torch.no_grad():
        explained = detector.explain(x)
        assert torch.equal(explained.score, detector.score(x))
        assert torch.equal(explained.features, detector.net.features(x))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"score_by": "if"}, r"model\.score_by=if: allowed are ne, mp, pl"),
        ({"optimizer": "lars"}, r"model\.optimizer=lars: allowed are adam, sgd"),
        ({"operations": "ia"}, r"model\.operations=ia: allowed are ra"),
        ({"shape": (1, 15, 15)}, r"data\.image_size: found 15 pixels"),
    ],
)
def test_what_is_not_allowed_is_refused(settings, said):
    with pytest.raises(SettingError, match=said):
        small(**settings)
