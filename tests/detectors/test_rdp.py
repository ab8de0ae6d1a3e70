import numpy as np
import pytest
import torch
import yaml
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.nn.functional import leaky_relu

from anomaly_bench.detector import Batch, Rows
from anomaly_bench.detectors.rdp import RDP
from anomaly_bench.errors import SettingError
from anomaly_bench.places import CONFIGS
from anomaly_bench.training.trainer import Trainer, Walk


def small(**settings) -> RDP:
    torch.manual_seed(0)
    return RDP(
        (5,), **{"out": 4, "trees": 2, "levels": 3, "dropout": 0.0, "batch_size": 8, "steps": 10} | settings
    )


def rows(n: int = 60) -> Rows:
    return Rows(torch.rand(n, 5, generator=torch.Generator().manual_seed(0)))


def hat(v: Tensor) -> Tensor:
    return v / v.abs().sum()


@pytest.mark.parametrize("clip", [0.1, 10.0])
def test_two_updates_of_each_tree(clip: float) -> None:
    detector, train = small(clip=clip), rows()
    stage = Walk(detector, train).next()
    assert stage is not None
    weights = [
        [part[tree].detach().clone().requires_grad_() for part in (detector.phi, detector.phi_bias)]
        for tree in range(2)
    ]
    optimizers = [torch.optim.SGD(pair, lr=0.1, momentum=0.9) for pair in weights]
    for seed in (4, 5):
        torch.manual_seed(seed)
        drawn = detector.draw(train, 8)
        torch.manual_seed(seed)
        loss = stage.step(Batch(train.x[:8], torch.arange(8)))["loss"].item()
        losses = []
        for tree, (w, b) in enumerate(weights):
            eta = leaky_relu(drawn[tree] @ detector.eta[tree] + detector.eta_bias[tree], 0.25)
            phi = leaky_relu(drawn[tree] @ w + b, 0.2)
            pair = [(hat(eta[i]) @ hat(eta[i - 1]) - hat(phi[i]) @ hat(phi[i - 1])) ** 2 for i in range(8)]
            total = ((phi - eta) ** 2).mean() + torch.stack(pair).mean()
            optimizers[tree].zero_grad()
            total.backward()
            norm = torch.nn.utils.clip_grad_norm_([w, b], clip)
            assert (norm > clip) == (clip < 1)
            optimizers[tree].step()
            torch.testing.assert_close(detector.phi[tree], w, rtol=0, atol=1e-6)
            torch.testing.assert_close(detector.phi_bias[tree], b, rtol=0, atol=1e-6)
            losses.append(total.item())
        assert loss == pytest.approx(np.mean(losses), rel=1e-5)


def test_first_weights_and_dropout_are_the_codes() -> None:
    """Kaiming-normal, of deviation sqrt(2 / D), biases 0; a tenth of phi's outputs is dropped, in training only."""
    torch.manual_seed(0)
    detector = RDP((200,), trees=5)
    for weight, bias in ((detector.eta, detector.eta_bias), (detector.phi, detector.phi_bias)):
        assert weight.std().item() == pytest.approx(0.1, rel=0.02)
        assert weight.abs().max() > 0.3  # more than uniform weights reach
        assert not bias.any()
    assert not torch.equal(detector.eta, detector.phi)
    x = torch.rand(100, 200)
    for training, share in ((True, 0.1), (False, 0.0)):
        eta, phi = detector.train(training).project(x)
        assert (phi == 0).float().mean().item() == pytest.approx(share, abs=0.01)
        assert (eta != 0).all()


def test_a_level_is_as_long_as_the_codes() -> None:
    """30 updates in each epoch, up to the last of 200 after which it keeps its nets: every 24th from the first on."""
    kept = max(range(0, 200, 24)) + 1
    config = yaml.safe_load((CONFIGS / "model" / "rdp.yaml").read_text())
    assert config["steps"] == RDP((3,)).steps == 30 * kept


def test_score_is_the_trees_mean_error() -> None:
    detector, train = small(), rows()
    Trainer(device="cpu", precision="fp32").learn(detector, train, seed=0)
    detector.eval()
    x, expected = torch.rand(6, 5), []
    for row in x:
        trees = []
        for tree in range(2):
            eta = leaky_relu(row @ detector.eta[tree] + detector.eta_bias[tree, 0], 0.25)
            phi = leaky_relu(row @ detector.phi[tree] + detector.phi_bias[tree, 0], 0.2)
            pair = hat(eta) * hat(detector.partner_eta[tree, 0]) - hat(phi) * hat(
                detector.partner_phi[tree, 0]
            )
            trees.append(((phi - eta) ** 2).mean() + (pair**2).mean())
        expected.append(torch.stack(trees).mean())
    torch.testing.assert_close(detector.score(x), torch.stack(expected), rtol=1e-5, atol=1e-7)


def test_levels_drop_the_highest_and_start_anew() -> None:
    detector, train = small(filter_ratio=0.25, trees=3, subsample=60), rows()
    walk, sizes, firsts = Walk(detector, train), [], []
    while walk.next() is not None:
        sizes.append(tuple(detector.members.shape))
        firsts.append((detector.phi.detach().clone(), detector.eta.clone()))
    assert sizes == [(3, 60), (3, 45), (3, 34)]
    assert not torch.equal(firsts[0][0], firsts[1][0])
    assert not torch.equal(firsts[0][1], firsts[1][1])
    assert not torch.equal(detector.members[0], detector.members[1])


def test_what_is_dropped_scores_highest() -> None:
    detector = small(levels=1, filter_ratio=0.1, trees=1)
    train = rows()
    train.x[7] += 30
    list(Walk(detector, train))
    detector.members = torch.arange(60)[None]
    detector.drop_highest(train)
    assert detector.members.shape == (1, 54)
    assert 7 not in detector.members


@pytest.mark.parametrize("subsample", [50, 500])
def test_trees_draw_with_replacement_however_few_rows_there_are(subsample: int) -> None:
    detector = small(subsample=subsample)
    Walk(detector, rows()).next()
    assert detector.members.shape == (2, subsample)
    assert len(detector.members[0].unique()) < subsample
    assert detector.draw(rows(), 7).shape == (2, 7, 5)


def test_beats_its_untrained_copy_on_digits() -> None:
    pixels, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(pixels / 16).float()
    normal = np.flatnonzero(labels == 0)
    held = np.concatenate([normal[120:], np.flatnonzero(labels != 0)[::6]])
    areas = {}
    for epochs in (0, 100):
        torch.manual_seed(0)
        detector = RDP((64,), trees=3, levels=2, batch_size=60, steps=200)
        trainer = Trainer(device="cpu", precision="fp32", max_epochs=epochs)
        trainer.learn(detector, Rows(x[normal[:120]]), seed=0)
        areas[epochs] = roc_auc_score(labels[held] != 0, detector.eval().score(x[held]).detach())
    assert areas[100] > 0.95, areas
    assert areas[0] < 0.8, areas


def test_many_columns() -> None:
    detector = RDP((20_000,), trees=2, levels=2, steps=1)
    trainer = Trainer(device="cpu", precision="fp32", max_epochs=1, batch_size=16)
    trainer.learn(detector, Rows(torch.rand(100, 20_000)), seed=0)
    assert detector.eval().score(torch.zeros(4, 20_000)).isfinite().all()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"filter_ratio": 1}, r"model\.filter_ratio=1"),
        ({"dropout": -1}, r"model\.dropout=-1"),
        ({"out": 0}, "out=0"),
    ],
)
def test_refusals(settings: dict, message: str) -> None:
    with pytest.raises(SettingError, match=message):
        small(**settings)
