import copy

import numpy as np
import pytest
import torch
from autoencoding import auroc, digits, first_stage, learn, mnist_root
from scipy.optimize import minimize
from scipy.special import gammaln
from steps import batch_of, noise
from torch.nn.functional import log_softmax

from anomaly_bench.data.public import load
from anomaly_bench.detector import Rows
from anomaly_bench.detectors.geotrans import GeoTrans, dirichlet, inverse_digamma
from anomaly_bench.errors import SettingError
from anomaly_bench.networks.transformations import Transformations
from anomaly_bench.training.control import untrained


def small(shape=(1, 16, 16), **settings) -> GeoTrans:
    torch.manual_seed(0)
    return GeoTrans(shape, **{"widen_factor": 1, "width": 4, "batch_size": 40, "lr": 1e-2} | settings)


def answers(alpha, n: int = 400):
    """Rows of Dirichlet distributions `[T, K]`, `[n, T, K]`, drawn once and for all."""
    draws = np.random.default_rng(0).gamma(np.broadcast_to(alpha, (n, *np.shape(alpha))))
    return draws / draws.sum(-1, keepdims=True)


def fitted(p):
    mean, mean_log = torch.from_numpy(p.mean(0)), torch.from_numpy(np.log(p).mean(0))
    return dirichlet(mean, mean_log).numpy()


# ------------------------------------------------------------------------------ Dirichlet distributions


def test_inverse_digamma():
    x = torch.tensor([1e-3, 0.05, 0.5, 1.0, 3.0, 40.0, 1e4], dtype=torch.float64)
    torch.testing.assert_close(inverse_digamma(torch.special.digamma(x)), x, rtol=1e-10, atol=0)


def test_the_fit_is_the_likeliest_of_a_numerical_optimiser():
    p = answers([[8.0, 0.5, 1.0, 0.2], [0.3, 0.3, 0.3, 5.0]])
    for ours, rows in zip(fitted(p), p.transpose(1, 0, 2), strict=True):
        mean_log = np.log(rows).mean(0)

        def unlikely(log_alpha, mean_log=mean_log):
            a = np.exp(log_alpha)
            return gammaln(a).sum() - gammaln(a.sum()) - ((a - 1) * mean_log).sum()

        best = minimize(unlikely, np.zeros(4), method="BFGS", options={"gtol": 1e-8})
        np.testing.assert_allclose(ours, np.exp(best.x), rtol=1e-4)
        assert unlikely(np.log(ours)) <= best.fun + 1e-12


def test_the_fit_finds_what_the_rows_were_drawn_from():
    alpha = np.array([[6.0, 1.0, 0.4], [2.0, 2.0, 9.0]])
    np.testing.assert_allclose(fitted(answers(alpha, 20_000)), alpha, rtol=0.05)


def test_each_distribution_is_fitted_alone():
    p = answers([[8.0, 0.5, 1.0], [1.0, 1.0, 1.0], [0.1, 4.0, 0.1]])
    alone = np.concatenate([fitted(p[:, t : t + 1]) for t in range(3)])
    np.testing.assert_allclose(fitted(p), alone, rtol=1e-10)


def test_answers_all_alike_or_almost_sure_have_a_finite_fit():
    alike = torch.full((1, 4), 0.25, dtype=torch.float64)
    assert dirichlet(alike, alike.log()).isfinite().all()
    sure = (
        torch.tensor([[0.0, -40.0, -60.0, -2000.0]], dtype=torch.float64).expand(3, -1)
        - torch.arange(3)[:, None]
    )
    log_p = log_softmax(sure + torch.tensor([0.0, 1.0, 0.0, 2.0]), 1)
    fit = dirichlet(log_p.exp().mean(0, keepdim=True), log_p.mean(0, keepdim=True))
    assert fit.isfinite().all()
    assert (fit > 0).all()


# ------------------------------------------------------------------------------ learning


def test_one_update_equals_the_transcription():
    detector = small(lr=1e-3)
    plain, first = copy.deepcopy(detector).train(), copy.deepcopy(detector)
    x = noise(40)
    stage = first_stage(detector, x)
    assert stage.epochs == 3 * 72
    assert stage.batch_size == 40
    t = detector.order[:, 0].long()
    losses = stage.step(batch_of(x))

    optimizer = torch.optim.Adam(plain.net.parameters(), lr=1e-3, eps=1e-7)
    seen = Transformations((1, 16, 16)).views(x).unflatten(0, (40, 72))[torch.arange(40), t]
    logits = plain.net(seen)
    loss = -log_softmax(logits, 1)[torch.arange(40), t].mean()
    squares = sum((p**2).sum() for p in plain.net.parameters())
    (loss + 0.00025 * squares).backward()
    optimizer.step()
    assert losses["classification"].item() == pytest.approx(loss.item(), rel=1e-5)
    assert losses["accuracy"].item() == pytest.approx((logits.argmax(1) == t).double().mean().item())
    for ours, theirs, before in zip(
        detector.parameters(), plain.parameters(), first.parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-4)  # of an update of 1e-3
        assert not torch.equal(ours, before)


def test_a_round_shows_every_image_in_every_way_once():
    detector, x = small(shift=0, epochs=9), noise(10)
    stage = first_stage(detector, x)
    assert stage.epochs == 16
    order = detector.order.clone()
    for _ in range(8):
        stage.step(batch_of(x))
    assert torch.equal(order.sort(1).values, torch.arange(8, dtype=torch.uint8).expand(10, 8))
    assert torch.equal(detector.order, order)
    assert detector.turn.tolist() == [8] * 10


def test_after_training_nothing_of_the_order_is_kept():
    train, _, _ = digits()
    detector = learn(small(train.shape, shift=0, epochs=1), train, max_epochs=1)
    assert detector.order.numel() == detector.turn.numel() == 0
    assert detector.alpha.shape == (8, 8)


# ------------------------------------------------------------------------------ scores


def scored(**settings) -> tuple[GeoTrans, np.ndarray, np.ndarray]:
    """A detector fitted to noise, and answers `[N, T, T]` for noise to learn and other noise to score."""
    detector, train = small(shift=0, **settings).eval(), noise(20)
    with torch.no_grad():
        list(detector.stages(Rows(train)))
        transform = Transformations((1, 16, 16), shift=0)
        p = [
            torch.stack([detector.net(view) for view in transform.views(x).split(8)])
            .double()
            .softmax(2)
            .numpy()
            for x in (train, noise(5, seed=2))
        ]
    return detector, *p


def test_the_score_is_the_mean_likelihood_of_all_views():
    detector, learned, p = scored()
    alpha = fitted(learned)
    np.testing.assert_allclose(detector.alpha.numpy(), alpha, rtol=1e-4)
    expected = -sum(((alpha[t] - 1) * np.log(p[:, t])).sum(1) for t in range(8))
    with torch.no_grad():
        np.testing.assert_allclose(detector.score(noise(5, seed=2)).numpy(), expected / 8, rtol=1e-3)


def test_the_simple_score_is_the_mean_of_the_right_answers():
    detector, _, p = scored(score_by="simple")
    expected = -np.mean([p[:, t, t] for t in range(8)], 0)
    with torch.no_grad():
        np.testing.assert_allclose(detector.score(noise(5, seed=2)).numpy(), expected, rtol=1e-5)


def test_epochs_are_evaluated_only_where_a_score_is_there():
    assert not first_stage(small(), noise(4)).scorable
    assert first_stage(small(score_by="simple"), noise(4)).scorable


def test_explanation():
    detector, _, _ = scored()
    x = noise(3)
    with torch.no_grad():
        explained = detector.explain(x)
        assert torch.equal(explained.score, detector.score(x))
        assert explained.features.shape == (3, 16)


def test_what_is_not_allowed_is_refused():
    with pytest.raises(SettingError, match=r"model\.score_by=sum: allowed are dirichlet, simple"):
        small(score_by="sum")
    with pytest.raises(SettingError, match=r"data\.image_size: found images of 16 x 32"):
        small((1, 16, 32))


# ------------------------------------------------------------------------------ real data


def test_learning_tells_new_twos_from_other_digits():
    train, test, anomalous = digits(normal=2, size=8)

    def build() -> GeoTrans:
        return small(train.shape, shift=0, epochs=24)

    control, _ = untrained(build, train, seed=0)
    detector = learn(build(), train)
    for score_by in ("dirichlet", "simple"):
        control.score_by = detector.score_by = score_by
        before, after = auroc(control, test, anomalous), auroc(detector, test, anomalous)
        assert after > 0.9
        assert 1 - after < 0.5 * (1 - before)


@pytest.mark.slow
def test_learning_tells_threes_of_mnist_from_other_digits():
    dataset = load("mnist", mnist_root(), 32, limit=4000)
    normal = dataset.classes == 3
    train = Rows(dataset.x[dataset.official_train & normal])
    part = ~dataset.official_train & (np.arange(len(normal)) % 10 == 0)
    test, anomalous = Rows(dataset.x[part]), ~normal[part]

    def build() -> GeoTrans:
        return small(train.shape, epochs=72)

    control, _ = untrained(build, train, seed=0)
    after = auroc(learn(build(), train), test, anomalous)
    assert after > 0.8
    assert after > auroc(control, test, anomalous) + 0.05
