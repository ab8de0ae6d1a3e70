import copy

import numpy as np
import pytest
import torch
from autoencoding import assert_close, auroc, before_and_after, digits, first_stage, learn
from scipy.optimize import minimize
from steps import batch_of, noise

from anomaly_bench.detector import Rows
from anomaly_bench.detectors.rda import RDA, prox
from anomaly_bench.errors import SettingError

PENALTIES = {
    "rows": lambda s: np.linalg.norm(s, axis=1).sum(),
    "columns": lambda s: np.linalg.norm(s, axis=0).sum(),
    "l1": lambda s: np.abs(s).sum(),
}


def small(shape=(1, 4, 4), **settings) -> RDA:
    torch.manual_seed(0)
    return RDA(shape, **{"layers": (9, 5), "lambda_": 0.02, "rounds": 2, "epochs": 3} | settings)


def test_dense_layers_are_those_of_the_code():
    assert [tuple(weight.shape) for weight in RDA((1, 28, 28)).net.weights] == [(400, 784), (200, 400)]


def sigmoid(x):
    return 1 / (1 + torch.exp(-x))


@pytest.mark.parametrize("penalty", PENALTIES)
def test_the_proximal_operators_are_the_minima_that_they_stand_for(penalty):
    a = np.random.RandomState(0).randn(3, 4)
    a[0] *= 0.1
    found = prox(torch.from_numpy(a), 0.7, penalty).numpy()

    def objective(s):
        s = s.reshape(3, 4)
        return 0.7 * PENALTIES[penalty](s) + 0.5 * ((s - a) ** 2).sum()

    best = min(
        minimize(objective, start, method="Powell", options={"xtol": 1e-8, "ftol": 1e-12}).fun
        for start in (a.ravel(), found.ravel())
    )
    assert objective(found.ravel()) <= best + 1e-6
    for seed in range(30):
        near = found + 1e-3 * np.random.RandomState(seed).randn(3, 4)
        assert objective(near.ravel()) >= objective(found.ravel())
    assert prox(torch.zeros(3, 4), 0.7, penalty).isfinite().all()


def test_rows_shorter_than_the_threshold_vanish_and_the_others_lose_as_much():
    a = torch.tensor([[3.0, 4.0], [0.3, 0.4]])
    assert_close(prox(a, 1.0, "rows"), torch.tensor([[2.4, 3.2], [0.0, 0.0]]))
    assert_close(prox(a.T, 1.0, "columns"), torch.tensor([[2.4, 3.2], [0.0, 0.0]]).T)


def test_one_update_learns_from_x_minus_s():
    detector, x = small(), noise(8, (1, 4, 4))
    step = first_stage(detector, x).step
    detector.S = torch.rand(8, 16) * 0.3
    plain, first = copy.deepcopy(detector), copy.deepcopy(detector)
    losses = step(batch_of(x.flip(0))._replace(index=torch.arange(7, -1, -1)))

    (w1, w2), (b1, b2), (c1, c2) = plain.net.weights, plain.net.up, plain.net.down
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-3)
    low = (x.reshape(8, 16) + 1) / 2 - plain.S
    code = sigmoid(sigmoid(low @ w1.T + b1) @ w2.T + b2)
    loss = ((low - sigmoid(sigmoid(code @ w2 + c2) @ w1 + c1)) ** 2).mean()
    loss.backward()
    optimizer.step()
    assert losses["reconstruction"].item() == pytest.approx(loss.item(), rel=1e-5)
    for ours, theirs, before in zip(
        detector.parameters(), plain.parameters(), first.parameters(), strict=True
    ):
        assert not torch.equal(ours, before)
        assert_close(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("penalty", PENALTIES)
def test_a_round_splits_the_rows_as_the_alternation_says(penalty):
    """Two rounds, walked by hand without learning in them, so that the second sees the first's S."""
    x = noise(8, (1, 4, 4))
    detector = small(penalty=penalty, reinit=False, lambda_=0.1).eval()
    with torch.no_grad():
        names = [stage.name for stage in detector.stages(Rows(x))]
        y = (x.reshape(8, 16) + 1) / 2
        t = 0.1 * 4 * y.mean() if penalty == "l1" else 0.1 * 8
        s = prox(y - detector.net(y), t, penalty)
        rest = y - detector.net(y - s)
        assert_close(detector.S, prox(rest, t, penalty))
        assert (detector.S != 0).float().mean() > 0
        assert_close(detector.score(x), rest.norm(dim=1))
        assert_close(detector.score(x.flip(0)[:3]), rest.norm(dim=1).flip(0)[:3])
        new = noise(8, (1, 4, 4), seed=7)
        unit = (new.reshape(8, 16) + 1) / 2
        assert_close(detector.score(new), (unit - detector.net(unit)).norm(dim=1))
    assert names == ["round 1", "round 2"]


def test_rounds_begin_with_first_weights_unless_told_otherwise():
    x = noise(8, (1, 4, 4))
    for reinit in (True, False):
        detector = small(reinit=reinit)
        with torch.no_grad():
            walk = iter(detector.stages(Rows(x)))
            (adam,) = next(walk).optimizers
            before = detector.net.weights[0].clone()
            (next_adam,) = next(walk).optimizers
        assert torch.equal(detector.net.weights[0], before) != reinit
        assert (next_adam is adam) != reinit


def test_among_rows_it_learned_it_finds_those_of_other_digits():
    """Contaminated: twos, and a tenth of other digits among them; the sparse part is theirs."""
    train, test, anomalous = digits(size=8)
    x = torch.cat([train.x, test.x[anomalous][:13]])
    rows, strange = Rows(x), np.arange(len(x)) >= 120
    detector = small(
        (1, 8, 8), layers=(60, 20), lambda_=2.2 / len(x), rounds=3, epochs=40, batch_size=20, lr=3e-3
    )
    before = auroc(detector.eval(), rows, strange)
    learn(detector, rows)
    assert auroc(detector, rows, strange) > max(before + 0.1, 0.85)
    kept_out = detector.S.norm(dim=1) > 0
    assert kept_out[strange].float().mean() > 2 * kept_out[~strange].float().mean()


@pytest.mark.parametrize("penalty", ["rows", "l1"])
def test_learning_tells_new_twos_from_other_digits(penalty):
    before, after = before_and_after(
        lambda shape: RDA(
            shape, layers=(60, 20), penalty=penalty, lambda_=0.01, rounds=2, epochs=40, batch_size=20, lr=3e-3
        ),
        size=8,
    )
    assert after > 0.85
    assert after > before + 0.1


def test_convolutional_and_rows():
    x = noise(6, (3, 16, 16))
    detector = learn(small((3, 16, 16), network="conv", code=4, width=2, epochs=1), Rows(x))
    explained = detector.explain(x)
    assert explained.map.shape == (6, 16, 16)
    assert explained.reconstruction.shape == x.shape
    rows = noise(6, (7,)) * 9
    detector = learn(small((7,), epochs=1), Rows(rows))
    assert detector.S.shape == (6, 7)
    assert detector.explain(rows).map is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"network": "fc"}, "model.network=fc: allowed are conv, dense"),
        ({"penalty": "l2"}, "model.penalty=l2: allowed are rows, columns, l1"),
        ({"lambda_": -1.0}, "model.lambda_=-1.0"),
        ({"rounds": 0}, "model.rounds=0"),
        ({"network": "conv", "shape": (7,)}, "model.network=conv: it needs images"),
    ],
)
def test_refusals(settings, message):
    with pytest.raises(SettingError, match=message):
        small(**settings)


def test_rows_calls_anomalous_what_is_left_in_s():
    detector, x = small(lambda_=0.09), noise(12, (1, 4, 4))
    learn(detector, Rows(x))
    verdict = detector.score(x) > detector.own_threshold()
    assert torch.equal(verdict, detector.S.norm(dim=1) > 0)
    assert 0 < verdict.sum() < 12
    assert small(penalty="l1").own_threshold() is None
