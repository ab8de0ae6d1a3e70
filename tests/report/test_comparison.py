"""Methods compared over classes and seeds."""

import math
from itertools import combinations

import numpy as np
import pytest
from scipy.stats import friedmanchisquare, wilcoxon
from test_tables import CLASSES, WITHOUT_CLASS, made_up

from anomaly_bench.report.comparison import (
    Shared,
    _groups,
    _p,
    comparison_table,
    pairs,
    ranking,
    shared_blocks,
)
from anomaly_bench.report.results import latest, results
from anomaly_bench.report.tables import make_tables


def records(areas, models=("a", "b", "c"), seeds=2):
    """Runs of `models` with the AUROCs `[blocks, models]`."""
    blocks = [(name, seed) for name in CLASSES for seed in range(seeds)]
    return [
        made_up(name, seed, float(area), model=model)
        for (name, seed), row in zip(blocks, areas, strict=True)
        for model, area in zip(models, row, strict=True)
    ]


AREAS = np.random.default_rng(0).uniform(0.5, 0.6, (6, 3)) + np.array([0.3, 0.0, 0.1])


def test_blocks_are_what_all_methods_have():
    made = records(AREAS)
    lines = results(
        [record for record in made if not (record.run["model"] == "b" and record.run["class"] == "cat")]
    )
    shared = shared_blocks(lines)
    assert shared.methods == ["a, clean", "b, clean", "c, clean"]
    np.testing.assert_array_equal(shared.areas, AREAS[2:])


def test_blocks_of_runs_without_a_class_are_their_cases():
    made = [
        made_up(seed=seed, auroc=float(area), model=model, case=f"normal-{cls}", **WITHOUT_CLASS)
        for (cls, seed), row in zip([(cls, seed) for cls in CLASSES for seed in (0, 1)], AREAS, strict=True)
        for model, area in zip(("a", "b", "c"), row, strict=True)
    ]
    shared = shared_blocks(results(made))
    assert shared.methods == ["a, clean", "b, clean", "c, clean"]
    np.testing.assert_array_equal(shared.areas, AREAS)


def test_a_run_of_two_evaluations_is_one_method():
    made = records(AREAS)
    for record in made:
        if record.run["model"] == "a":
            record.run["evaluations"] = ["as_published"]
    assert shared_blocks(results(latest(made))).methods == ["a, clean", "b, clean", "c, clean"]


def test_ranks_and_friedman_by_hand():
    areas = np.array([[0.9, 0.5, 0.7], [0.8, 0.6, 0.6], [0.7, 0.8, 0.6], [0.9, 0.5, 0.6], [0.9, 0.4, 0.8]])
    ranks = ranking(Shared(["a", "b", "c"], areas))
    assert ranks is not None
    assert ranks.methods == ["a", "c", "b"]
    assert ranks.ranks == pytest.approx([1.2, 2.3, 2.5])  # a tie counts 2.5 for both
    assert ranks.p == pytest.approx(friedmanchisquare(*areas.T).pvalue)
    # Demšar's table 5 has q = 2.343 for three methods
    assert ranks.critical_difference == pytest.approx(2.343 * math.sqrt(3 * 4 / (6 * 5)), abs=1e-3)
    assert ranks.groups == [range(0, 3)]


def test_two_methods_have_ranks_and_no_friedman():
    ranks = ranking(Shared(["a", "b"], AREAS[:, :2]))
    assert ranks is not None
    assert math.isnan(ranks.p)
    assert ranks.critical_difference == pytest.approx(1.960 * math.sqrt(2 * 3 / 36), abs=1e-3)
    assert ranks.groups == []


@pytest.mark.parametrize(
    ("ranks", "groups"),
    [
        ([1, 2, 3, 4], [range(0, 2), range(1, 3), range(2, 4)]),
        ([1, 1.2, 3, 3.1, 3.9], [range(0, 2), range(2, 5)]),
        ([1, 2.5, 4], []),
        ([1, 1, 1], [range(0, 3)]),
    ],
)
def test_groups_are_the_longest_runs_within_the_difference(ranks, groups):
    assert _groups(ranks, 1) == groups


def test_pairs_are_wilcoxons_with_holms_correction():
    areas = AREAS - np.array([0, 0, 0.1])  # b and c are close
    lines = pairs(Shared(["a", "b", "c"], areas), ["a", "c", "b"])
    assert [(line["method"], line["against"]) for line in lines] == [("a", "c"), ("a", "b"), ("c", "b")]
    columns = dict(zip("abc", areas.T, strict=True))
    p = [wilcoxon(columns[one], columns[other]).pvalue for one, other in combinations("acb", 2)]
    assert [line["p"] for line in lines] == pytest.approx(p)
    assert p[2] > 2 * p[0]
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate([(3 - place) * p[number] for place, number in enumerate(order)])
    assert [lines[number]["holm"] for number in order] == pytest.approx(np.minimum(steps, 1).tolist())
    assert lines[1]["better"] == 6
    (tied,) = pairs(Shared(["a", "b"], np.array([[0.5, 0.5], [0.6, 0.5], [0.5, 0.6]])), ["a", "b"])
    assert (tied["better"], tied["blocks"]) == (1, 3)
    assert lines[1]["median"] == pytest.approx(np.median(areas[:, 0] - areas[:, 1]))


def test_alike_methods_differ_in_nothing():
    same = np.repeat(AREAS[:, :1], 3, axis=1)
    shared = Shared(["a", "b", "c"], same)
    assert {line["p"] for line in pairs(shared, shared.methods)} == {1.0}
    ranks = ranking(shared)
    assert ranks is not None
    assert (ranks.p, ranks.ranks) == (1.0, [2, 2, 2])


def test_the_section_follows_its_table():
    table, compared = make_tables(records(AREAS))
    assert compared.title == f"Methods compared, {table.name}"
    assert compared.rows[0][:3] == ["a, clean", "c, clean", "6 of 6"]
    assert "Average rank over the 6 cells (class and seed) that all have: a, clean 1.00;" in compared.notes[0]
    assert "Friedman" in compared.notes[0]


def test_a_run_without_an_auroc_is_in_no_block():
    made = records(AREAS)
    del made[0].metrics["auroc"]
    np.testing.assert_array_equal(shared_blocks(results(made)).areas, AREAS[1:])


def test_a_small_p_keeps_its_first_digit():
    assert [_p(number) for number in (0.0499, 0.001, 0.00044)] == ["0.050", "0.001", "4e-04"]


def four_blocks():
    return [record for record in records(AREAS) if record.run["class"] != "owl"]


@pytest.mark.parametrize("few", [four_blocks(), records(AREAS[:, :1], models=("a",))])
def test_little_is_not_compared(few):
    assert comparison_table("pets", results(few)) is None
    assert len(make_tables(few)) == 1


def test_nothing_finished_is_not_compared():
    assert comparison_table("pets", results([made_up(status="unfinished")])) is None
