"""What is measured, piece by piece; tests/test_cli.py and tests/test_twins.py hold whole runs."""

import logging
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from anomaly_bench import measuring
from anomaly_bench.detector import Detector, Rows, Stage
from anomaly_bench.training.checkpoint import Epoch


class Summed(Detector):
    """Scores by the sum of a row times each factor that hindsight may choose."""

    bound: float | None = None

    def stages(self, train: Rows) -> Iterator[Stage]:
        yield from ()

    def score(self, x: Tensor) -> Tensor:
        return x.sum(1)

    def own_threshold(self) -> float | None:
        return self.bound

    def in_hindsight(self, train: Rows, test: Rows) -> Iterator[tuple[dict[str, Any], Tensor]]:
        for factor in (-1.0, 1.0, 2.0):
            yield {"factor": factor}, factor * self.score(test.x)


def job(**split: Any) -> Any:
    """As much of a job as is asked for here."""
    return SimpleNamespace(
        seed=3,
        split=SimpleNamespace(**({"test": np.arange(6), "ratio": None} | split)),
        evaluation={"test_order": "shuffled", "quantile": 0.5, "hindsight": True},
        trainer=SimpleNamespace(precision="fp32", fold=True),
    )


def epoch(number: int, auroc: float | None) -> Epoch:
    return Epoch(0, "all", number, {}, 1, 1.0, auroc)


def test_test_rows_are_shuffled_by_the_seed_or_sorted_by_class() -> None:
    anomalous = np.array([True, False, True, False, False, True])
    shuffled = measuring.test_order(job(anomalous=anomalous))
    assert sorted(shuffled) == list(range(6))
    assert list(shuffled) == list(np.random.RandomState(3).permutation(6))
    by_class = job(anomalous=anomalous)
    by_class.evaluation["test_order"] = "by_class"
    assert list(measuring.test_order(by_class)) == [1, 3, 4, 0, 2, 5]


def test_some_rows_are_no_more_than_asked_for_and_none_twice() -> None:
    rows = np.arange(10, 30)
    chosen = measuring.some(rows, 8, seed=0)
    assert len(set(chosen)) == 8
    assert set(chosen) <= set(rows)
    assert list(chosen) == list(measuring.some(rows, 8, seed=0))
    assert sorted(measuring.some(rows, 100, seed=1)) == list(rows)


def test_the_threshold_is_that_of_the_ratio_then_the_methods_own_then_a_quantile() -> None:
    scores, anomalous = np.arange(6.0), np.array([0, 0, 0, 0, 1, 1], bool)
    detector = Summed()
    found = measuring.thresholds_of(job(ratio=1 / 3), detector, scores, anomalous, scores)
    assert list(found) == ["the known ratio, 33.3 % of the test rows", measuring.HINDSIGHT]
    assert all((scores > bound).sum() == 2 for bound in found.values())
    name, bound = next(iter(measuring.thresholds_of(job(), detector, scores, anomalous, scores * 10).items()))
    assert (name, bound) == ("50 % of the training scores", 25.0)
    for own in (7.0, 0.0):
        detector.bound = own
        name, bound = next(iter(measuring.thresholds_of(job(), detector, scores, anomalous, scores).items()))
        assert (name, bound) == ("the method's own", own)


def test_maps_are_measured_beside_the_masks_of_their_own_rows_and_not_where_a_mark_is_missing(
    monkeypatch,
) -> None:
    masks = torch.eye(6, dtype=torch.bool).reshape(6, 1, 6).numpy()
    masks[[0, 2]] = False  # a normal row, and an anomalous one that nobody has marked
    one = job(test=np.array([5, 4, 3, 2, 1, 0]), anomalous=np.array([1, 1, 1, 1, 1, 0], bool))
    one.dataset = SimpleNamespace(masks=masks)
    one.evaluation |= {"batch_size": 2, "batch_norm": "batch"}
    order = measuring.test_order(one)
    test = Rows(torch.from_numpy(one.split.test[order])[:, None].float())

    def perfect(_, rows: Rows, *, batch_statistics: bool, **__: Any) -> Tensor:
        assert batch_statistics
        numbers = rows.take(torch.arange(len(rows))).flatten().long()
        assert 2 not in numbers
        return torch.from_numpy(masks)[numbers].float()

    monkeypatch.setattr(measuring, "map_rows", perfect)
    found = measuring.pixel_numbers(one, Summed(), test, one.split.anomalous[order])
    assert found == {"auroc_pixel": 1, "aupro": 1}
    one.dataset.masks = np.zeros_like(masks)
    assert measuring.pixel_numbers(one, Summed(), test, one.split.anomalous[order]) == {}


def test_the_best_epoch_is_the_first_of_the_best_and_counts_those_not_evaluated() -> None:
    assert measuring.best_epoch([epoch(1, None), epoch(2, None)]) == {}
    history = [epoch(1, None), epoch(2, 0.7), epoch(3, 0.9), epoch(4, 0.9), epoch(5, 0.2)]
    assert measuring.best_epoch(history) == {"auroc_best_epoch": 0.9, "best_epoch": 3}


def test_hindsight_tells_the_best_value_and_how_many_were_tried() -> None:
    test, anomalous = Rows(torch.arange(4.0)[:, None]), np.array([0, 0, 1, 1], bool)
    found = measuring.in_hindsight(job(), Summed(), test, test, anomalous)
    assert found == {"auroc_hindsight": 1.0, "hindsight": {"factor": 1.0}, "hindsight_tried": 3}
    honest = job()
    honest.evaluation["hindsight"] = False
    assert measuring.in_hindsight(honest, Summed(), test, test, anomalous) == {}


@pytest.mark.parametrize(("distinct", "told"), [(1, True), (50, False)])
def test_scores_that_are_mostly_alike_are_told_of(
    distinct: int, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "anomaly_bench"):
        measuring.warn_of_flat(np.arange(100) % distinct)
    assert ("distinct" in caplog.text) == told
