import numpy as np
import pytest
import torch
from autoencoding import auroc, digits, learn
from scipy.optimize import minimize_scalar
from sklearn.metrics import roc_auc_score

from anomaly_bench.detector import Rows
from anomaly_bench.detectors.rpca import RPCA, pursue, soft
from anomaly_bench.errors import SettingError


def low_rank_plus_sparse(n=80, d=60, rank=4, share=0.05, seed=0):
    """The model of the theorem: Gaussian factors, and large entries of random signs at random places."""
    generator = torch.Generator().manual_seed(seed)
    low = torch.randn(n, rank, generator=generator) @ torch.randn(rank, d, generator=generator) / rank**0.5
    places = torch.rand(n, d, generator=generator) < share
    signs = torch.randint(0, 2, (n, d), generator=generator) * 2 - 1
    return low.double(), (places * signs * 10).double()


@pytest.mark.parametrize("shape", [(80, 60), (60, 80)])
def test_both_parts_are_recovered_exactly(shape):
    low, sparse = low_rank_plus_sparse(*shape)
    found_low, found_sparse, directions = pursue(low + sparse, 80**-0.5, 1e-7, 1000)
    assert (found_low - low).norm() < 1e-5 * low.norm()
    assert (found_sparse - sparse).norm() < 1e-5 * sparse.norm()
    assert torch.equal(found_sparse != 0, sparse != 0)
    assert directions.shape == (shape[1], 4)
    assert torch.allclose(directions.T @ directions, torch.eye(4).double(), atol=1e-9)
    assert torch.allclose(low @ directions @ directions.T, low, atol=1e-4)


def test_it_solves_the_problem_that_it_states():
    """Its value is least: no feasible direction lowers it."""
    low, sparse = low_rank_plus_sparse(20, 15, rank=6, share=0.4, seed=3)  # too hard to be recovered
    x = low + sparse
    lambda_ = 20**-0.5
    found, _, _ = pursue(x, lambda_, 1e-9, 1000)

    def value(part):
        return (torch.linalg.matrix_norm(part, "nuc") + lambda_ * (x - part).abs().sum()).item()

    best = value(found)
    for seed in range(20):
        direction = torch.randn(20, 15, generator=torch.Generator().manual_seed(seed)).double()
        for size in (1e-3, 1e-1):
            assert value(found + size * direction) > best
    assert value(low) > best


@pytest.mark.parametrize("a", [-2.0, -0.3, 0.0, 0.1, 1.7])
def test_soft_is_the_proximal_operator_of_the_absolute_value(a):
    least = minimize_scalar(lambda s: 0.5 * abs(s) + 0.5 * (s - a) ** 2, bounds=(-3, 3), method="bounded").x
    assert soft(torch.tensor(a), 0.5).item() == pytest.approx(least, abs=1e-4)


def test_rows_it_was_fitted_to_have_the_norm_of_their_sparse_part_and_others_their_residual():
    low, sparse = low_rank_plus_sparse()
    sparse[8:] = 0  # eight rows are corrupted
    x = (low + sparse).float()
    detector = learn(RPCA((60,)), Rows(x))
    centred = x.double() - x.double().mean(0)
    _, expected, directions = pursue(centred, 80**-0.5, 1e-7, 1000)
    torch.testing.assert_close(detector.score(x), expected.norm(dim=1))
    assert detector.score(x)[:8].min() > 2 * detector.score(x)[8:].max()

    new = torch.randn(5, 60)
    rows = new.double() - x.double().mean(0)
    torch.testing.assert_close(detector.score(new), (rows - rows @ directions @ directions.T).norm(dim=1))
    mixed = torch.cat([new, x[[3]]])
    torch.testing.assert_close(detector.score(mixed)[-1], expected[3].norm())


def test_explanation():
    train, test, _ = digits(size=8)
    detector, x = learn(RPCA(train.shape), train), test.take(torch.arange(5))
    explained = detector.explain(x)
    torch.testing.assert_close(explained.map.sum((1, 2)).sqrt(), explained.score)
    assert explained.reconstruction.shape == x.shape
    assert explained.features.shape == (5, detector.directions.shape[1])


def test_it_tells_twos_from_other_digits_and_rows_alike_are_no_error():
    train, test, anomalous = digits(size=8)
    detector = RPCA(train.shape)
    assert not detector.score(test.take(torch.arange(3))).any()
    assert auroc(learn(detector, train), test, anomalous) > 0.9
    same = learn(RPCA((4,)), Rows(torch.ones(6, 4)))
    assert same.score(torch.zeros(2, 4)).tolist() == pytest.approx([2.0, 2.0])


def test_contaminated_it_finds_what_is_corrupted():
    """Learned from the rows themselves, a tenth of them with a few pixels overwritten."""
    train, _, _ = digits(size=8)
    x, rng = train.x.clone(), np.random.RandomState(0)
    for row in range(12):
        x[row].view(-1)[rng.permutation(64)[:8]] = 255
    rows = Rows(x)
    scores = learn(RPCA(rows.shape), rows).score(rows.take(torch.arange(120)))
    assert roc_auc_score(np.arange(120) < 12, scores) > 0.9


@pytest.mark.parametrize("settings", [{"lambda_": 0.0}, {"tolerance": 0.0}, {"iterations": 0}])
def test_refusals(settings):
    (name,) = settings
    with pytest.raises(SettingError, match=f"model.{name}="):
        RPCA((3,), **settings)
