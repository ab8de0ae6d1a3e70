from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from anomaly_bench.detector import Detector, Explanation, Rows, Stage
from anomaly_bench.training.packing import Packed
from anomaly_bench.training.scoring import (
    autocast,
    evaluation,
    explain_rows,
    folded,
    map_rows,
    score_rows,
    scoring,
)

CPU = torch.device("cpu")


class Normed(Detector):
    """Scores by the sum of a batch-normed layer."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, momentum=0.3), nn.Dropout(0.5))

    def stages(self, train: Rows) -> Iterator[Stage]:
        yield from ()

    def score(self, x: Tensor) -> Tensor:
        return self.net(x).sum(1)

    def explain(self, x: Tensor) -> Explanation:
        return Explanation(self.score(x), features=self.net[0](x))


@pytest.fixture
def detector() -> Normed:
    torch.manual_seed(0)
    detector = Normed()
    nn.init.normal_(detector.net[1].running_mean)
    return detector


@pytest.fixture
def rows() -> Rows:
    return Rows(torch.randn(10, 4, generator=torch.Generator().manual_seed(1)) * 3 + 1)


@pytest.mark.parametrize("batch_statistics", [False, True])
def test_evaluation_puts_everything_back(detector: Normed, rows: Rows, batch_statistics: bool) -> None:
    detector.train()
    detector.net[0].eval()
    before = {name: x.clone() for name, x in detector.state_dict().items() if "num_batches" not in name}
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with evaluation(detector, CPU, batch_statistics):
        assert not detector.training
        assert not torch.is_grad_enabled()
        assert detector.net[1].training is batch_statistics
        detector.score(rows.x)
        torch.rand(5)
    assert [module.training for module in detector.modules()] == [True, True, False, True, True]
    assert detector.net[1].momentum == 0.3
    assert torch.is_grad_enabled()
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(detector.state_dict()[name], x) for name, x in before.items())


def test_batch_statistics_leave_every_buffer_as_it_was(detector: Normed, rows: Rows) -> None:
    before = {name: x.clone() for name, x in detector.state_dict().items()}
    score_rows(detector, rows, precision="fp32", batch_size=5, batch_statistics=True)
    assert all(torch.equal(x, before[name]) for name, x in detector.state_dict().items())


def test_evaluation_puts_everything_back_after_an_error(detector: Normed) -> None:
    detector.train()
    with pytest.raises(KeyError), evaluation(detector, CPU, batch_statistics=True):
        raise KeyError
    assert all(module.training for module in detector.modules())
    assert detector.net[1].momentum == 0.3


def test_batch_statistics_are_never_asked_of_one_row(detector: Normed, rows: Rows) -> None:
    scores = score_rows(detector, rows, precision="fp32", batch_size=3, batch_statistics=True)
    larger = score_rows(detector, rows, precision="fp32", batch_size=4, batch_statistics=True)
    assert torch.equal(scores, larger)


def test_maps_are_of_the_network_that_scores(detector: Normed, rows: Rows) -> None:
    class Mapped(Normed):
        def explain(self, x: Tensor) -> Explanation:
            score = self.score(x)
            return Explanation(score, map=score[:, None, None])

    mapped = Mapped()
    mapped.load_state_dict(detector.state_dict())
    for batch_statistics in (False, True):
        how = {"precision": "fp32", "batch_size": 3, "batch_statistics": batch_statistics}
        maps = map_rows(mapped, rows, **how)
        assert maps is not None
        torch.testing.assert_close(maps.flatten(), score_rows(mapped, rows, **how))


def test_batch_statistics_are_those_of_training_mode(detector: Normed, rows: Rows) -> None:
    scores = score_rows(detector, rows, precision="fp32", batch_size=5, batch_statistics=True)
    linear, norm = detector.net[0], detector.net[1]
    parts = []
    for x in rows.x.split(5):
        h = linear(x)
        parts.append(((h - h.mean(0)) / (h.var(0, unbiased=False) + norm.eps).sqrt()).sum(1))
    torch.testing.assert_close(scores, torch.cat(parts).detach())


def test_scores_are_of_evaluation_mode_in_order_whatever_the_batch(detector: Normed, rows: Rows) -> None:
    expected = detector.eval().score(rows.x).detach()
    detector.train()
    for batch_size in (1, 3, 64):
        scores = score_rows(detector, rows, precision="fp32", batch_size=batch_size)
        torch.testing.assert_close(scores, expected)
        assert not scores.requires_grad


def test_explanations_are_joined_and_what_is_not_shown_stays_none(detector: Normed, rows: Rows) -> None:
    said = explain_rows(detector, rows, precision="fp32", batch_size=4)
    torch.testing.assert_close(said.score, score_rows(detector, rows, precision="fp32", batch_size=4))
    torch.testing.assert_close(said.features, detector.net[0](rows.x).detach())
    assert said.map is None
    assert said.reconstruction is None


def test_bf16_scores_come_out_in_float32(detector: Normed, rows: Rows) -> None:
    exact = score_rows(detector, rows, precision="fp32", batch_size=4)
    rounded = score_rows(detector, rows, precision="bf16", batch_size=4)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.05, atol=0.1)


def test_autocast_sees_weights_that_were_just_updated() -> None:
    linear = nn.Linear(1, 1, bias=False)
    with autocast(CPU, "bf16"):
        nn.init.constant_(linear.weight, 1.0)
        assert linear(torch.ones(1, 1)).item() == 1
        nn.init.constant_(linear.weight, 2.0)
        assert linear(torch.ones(1, 1)).item() == 2
        assert linear(torch.ones(1, 1)).dtype == torch.bfloat16
    with autocast(CPU, "fp32"):
        assert linear(torch.ones(1, 1)).dtype == torch.float32


class Casts(TorchDispatchMode):
    """Counts casts to bfloat16 by the size of what is cast."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default and kwargs["dtype"] == torch.bfloat16:
            self.sizes.append(args[0].numel())
        return func(*args, **(kwargs or {}))


def test_weights_are_cast_once_for_all_batches_unless_scoring_descends(
    detector: Normed, rows: Rows, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = detector.net[0].weight.numel()
    with Casts() as casts:
        score_rows(detector, rows, precision="bf16", batch_size=5)
    assert casts.sizes.count(weight) == 1
    monkeypatch.setattr(Normed, "foldable", False)
    with Casts() as casts:
        score_rows(detector, rows, precision="bf16", batch_size=5)
    assert casts.sizes.count(weight) == 2


class Convolved(Detector):
    """Scores by the sum of convolutions with batch norm, one of them under spectral norm, one not in a sequence."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(),
            nn.ConvTranspose2d(4, 5, 3, bias=False), nn.BatchNorm2d(5), nn.Tanh(),
            nn.utils.parametrizations.spectral_norm(nn.Conv2d(5, 2, 3)), nn.BatchNorm2d(2),
        )  # fmt: skip
        for module in self.net:
            if isinstance(module, nn.BatchNorm2d):
                for tensor in (*module.parameters(), module.running_mean, module.running_var):
                    nn.init.uniform_(tensor, 0.5, 1.5)  # pyright: ignore[reportArgumentType]

    def stages(self, train: Rows) -> Iterator[Stage]:
        yield from ()

    def score(self, x: Tensor) -> Tensor:
        return self.net(x).flatten(1).sum(1)


def test_folded_batch_norm_gives_the_same_scores_and_is_unfolded_after() -> None:
    torch.manual_seed(0)
    detector, images = Convolved(), Rows(torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8))
    layers, before = list(detector.net), {name: x.clone() for name, x in detector.state_dict().items()}
    with evaluation(detector, CPU), folded(detector):
        kinds = [type(layer).__name__ for layer in detector.net]
    assert kinds.count("BatchNorm2d") == 1
    assert kinds.count("Identity") == 2
    scores, plain = (
        score_rows(detector, images, precision="fp32", batch_size=4, fold=fold) for fold in (True, False)
    )
    torch.testing.assert_close(scores, plain)
    assert not torch.equal(scores, plain), "nothing was folded"
    assert all(ours is layer for ours, layer in zip(detector.net, layers, strict=True))
    assert all(torch.equal(x, before[name]) for name, x in detector.state_dict().items())


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is without oneDNN")
def test_on_a_cpu_convolutions_are_packed_unless_told_or_scoring_descends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    detector = Convolved()

    def n_packed(**settings: bool) -> int:
        with scoring(detector, CPU, precision="fp32", **settings):
            return sum(isinstance(layer, Packed) for layer in detector.net)

    assert n_packed() == n_packed(batch_statistics=True) == 2
    assert n_packed(fold=False) == 0
    monkeypatch.setattr(Convolved, "foldable", False)
    assert n_packed() == 0


class Activating(nn.BatchNorm2d):
    """Batch norm that does more, as some networks have."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


def test_batch_norm_that_activates_is_not_folded() -> None:
    detector = Normed()
    detector.net = nn.Sequential(nn.Conv2d(1, 2, 3), Activating(2), nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2))
    with evaluation(detector, CPU), folded(detector):
        assert isinstance(detector.net[1], Activating)
        assert isinstance(detector.net[3], nn.Identity)


def test_batch_statistics_are_not_folded() -> None:
    torch.manual_seed(0)
    detector, images = Convolved(), Rows(torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8))
    scores = [
        score_rows(detector, images, precision="fp32", batch_size=9, batch_statistics=True, fold=fold)
        for fold in (True, False)
    ]
    torch.testing.assert_close(*scores)
