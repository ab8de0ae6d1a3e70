import re
from contextlib import contextmanager
from itertools import pairwise
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from anomaly_bench.report import comparisons, figures
from anomaly_bench.report.comparison import Ranking
from anomaly_bench.report.comparisons import GRID, Point
from anomaly_bench.report.style import drawn, numbered, shorts

SYNTHETIC = r"ganomaly on $\bags_1$ (synthetic data)"
RNG = np.random.default_rng(0)
TRUTH = np.arange(40) % 4 == 0
SCORES = RNG.random(40) + TRUTH


def assert_picture(path, least=200, most=4000):
    """A whole PNG of a sensible size that is not all of one colour, an SVG, and no temporary file beside them."""
    png, svg = (path.with_name(f"{path.name}.{kind}") for kind in ("png", "svg"))
    with Image.open(png) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert all(least <= side <= most for side in picture.size)
        assert len(picture.convert("L").getcolors(256)) > 2
    assert ElementTree.parse(svg).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    assert sorted(path.parent.iterdir()) == [png, svg]


@pytest.fixture
def panels(monkeypatch):
    """The axes of what is drawn."""
    kept = []

    @contextmanager
    def watched(*arguments, **more):
        with drawn(*arguments, **more) as axes:
            yield axes
        kept.extend(axes)

    monkeypatch.setattr(figures, "drawn", watched)
    monkeypatch.setattr(comparisons, "drawn", watched)
    return kept


def words(path):
    """The texts of a picture."""
    root = ElementTree.parse(path.with_name(f"{path.name}.svg")).getroot()
    return ["".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text")]


@pytest.mark.parametrize("thresholds", [{}, {"95 % of the training scores": 0.7, "best F1": 1e9}])
def test_score_histogram(tmp_path, thresholds):
    figures.score_histogram(tmp_path / "x" / "scores", SCORES, TRUTH, thresholds, SYNTHETIC)
    assert_picture(tmp_path / "x" / "scores")
    told = words(tmp_path / "x" / "scores")
    assert SYNTHETIC in told
    assert all(f"{name}: {value:.4g}" in told for name, value in thresholds.items())


def test_a_histogram_has_shares_of_either_kind_and_an_outlier_in_its_last_bin(tmp_path, panels):
    scores, truth = np.r_[np.zeros(30), np.linspace(0.5, 1, 9), 100], np.arange(40) >= 30
    figures.score_histogram(tmp_path / "scores", scores, truth, {}, SYNTHETIC)
    normal, _, anomalous, _ = (patch.get_data().values for patch in panels[0].patches)
    assert (normal[0], normal.sum()) == (1, 1)
    assert (anomalous[-1], anomalous.sum()) == (pytest.approx(0.1), pytest.approx(1))
    assert {"normal (30)", "anomalous (10)"} <= set(words(tmp_path / "scores"))


def test_score_histogram_of_equal_scores(tmp_path):
    figures.score_histogram(tmp_path / "scores", np.ones(40), TRUTH, {"a": 1.0}, "collapsed")
    assert_picture(tmp_path / "scores")


@pytest.mark.parametrize(
    "scores",
    [
        np.where(TRUTH, 1.0, 0.99999994).astype(np.float32),
        (1000 + np.arange(40) % 7 * 6e-5).astype(np.float32),
        (1 + 1e-6 * RNG.random(40)).astype(np.float32),
        1 + 2.0**-52 * TRUTH,
        np.full(40, 1e17),
        np.full(40, 3e38, np.float32),
    ],
)
def test_score_histogram_of_nearly_equal_scores(tmp_path, scores):
    figures.score_histogram(tmp_path / "scores", scores, TRUTH, {"a": float(scores.max())}, "nearly flat")
    assert_picture(tmp_path / "scores")


def test_roc_and_pr(tmp_path, panels):
    figures.roc_and_pr(tmp_path / "roc", SCORES, TRUTH, SYNTHETIC)
    assert_picture(tmp_path / "roc")
    area, precision = roc_auc_score(TRUTH, SCORES), average_precision_score(TRUTH, SCORES)
    told = {f"AUROC {area:.3f}", f"average precision {precision:.3f}", "chance 0.500", "chance 0.250"}
    assert told <= set(words(tmp_path / "roc"))
    curve = panels[0].lines[0]
    assert np.trapezoid(curve.get_ydata(), curve.get_xdata()) == pytest.approx(area)


def test_the_same_picture_is_the_same_file(tmp_path):
    for name in "ab":
        figures.roc_and_pr(tmp_path / name, SCORES, TRUTH, SYNTHETIC)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_an_svg_does_not_depend_on_the_last_digits_of_its_numbers(tmp_path):
    def svg(panel: str, point: str) -> str:
        return f'<clipPath id="{panel}"/><path id="{point}"/><g clip-path="url(#{panel})"><use href="#{point}"/></g>'

    here, there = svg("p0123456789", "mabcdef0123"), svg("pfedcba9876", "m9876543210")
    assert numbered(here) == numbered(there) == svg("shape0", "shape1")
    figures.roc_and_pr(tmp_path / "roc", SCORES, TRUTH, SYNTHETIC)
    text = (tmp_path / "roc.svg").read_text()
    names = re.findall(r'id="([^"]+)"', text)
    assert len(set(names)) == len(names)
    assert not [name for name in names if re.search("[0-9a-f]{10}", name)]
    used = set(re.findall(r"#(shape\d+)", text))
    assert used
    assert used <= set(names)


@pytest.mark.parametrize("epochs", [1, 5])
def test_losses_of_two_stages(tmp_path, panels, epochs):
    stage = np.repeat([0, 1], epochs)
    frame = pd.DataFrame(
        {
            **{"stage": stage, "name": np.array(["ae", "gan"])[stage], "epoch": [*range(1, epochs + 1)] * 2},
            "reconstruction": np.where(stage == 0, 1.0, np.nan),
            "$generator_x": np.where(stage == 1, 2.0, np.nan),
            **{"rows": 64, "seconds": 0.1, "auroc": np.linspace(0.8, 0.5, 2 * epochs)},
        }
    )
    figures.losses(tmp_path / "losses", frame, SYNTHETIC)
    assert_picture(tmp_path / "losses")
    assert {"last: 0.500", "best: 0.800, has seen the labels"} <= set(words(tmp_path / "losses"))
    loss, border = panels[1].lines
    assert loss.get_xdata().tolist() == [*range(epochs + 1, 2 * epochs + 1)]
    assert list(border.get_xdata()) == [epochs + 0.5] * 2


@pytest.mark.parametrize("channels", [1, 3, 2])
def test_reconstructions(tmp_path, panels, channels):
    x = RNG.random((40, channels, 8, 12))
    figures.reconstructions(tmp_path / "r", x, x * 0.5, x[:, 0], SCORES, TRUTH, SYNTHETIC)
    assert_picture(tmp_path / "r")
    given, again = (panels[place].images[0].get_array() for place in (0, 4))
    np.testing.assert_allclose(again, given / 2)
    assert {f"{score:.3g}" for score in np.sort(SCORES[TRUTH])[[0, 1, 2, -3, -2, -1]]} <= set(
        words(tmp_path / "r")
    )


def test_reconstructions_of_one_image_of_each_kind(tmp_path):
    x = RNG.random((2, 1, 8, 8))
    truth = np.array([False, True])
    figures.reconstructions(tmp_path / "rec", x, x, x[:, 0], np.array([0.1, 0.2]), truth, SYNTHETIC)
    assert_picture(tmp_path / "rec", least=100)
    assert {"normal", "anomalous"} <= set(words(tmp_path / "rec"))


@pytest.mark.parametrize("numbers", [(8, 8), (6, 4), (2, 3)])
def test_titles_of_reconstructions_do_not_overlap(tmp_path, panels, numbers):
    x, truth = RNG.random((sum(numbers), 1, 8, 8)), np.arange(sum(numbers)) >= numbers[0]
    figures.reconstructions(tmp_path / "r", x, x, x[:, 0], np.arange(len(x)), truth, SYNTHETIC)
    boxes = [axes.title.get_window_extent() for axes in panels if axes.get_title()]
    assert len(boxes) == 4
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes))


def test_reconstructions_show_the_extremes_of_either_kind():
    groups = figures._extremes(np.array([5.0, 1, 4, 2, 3, 9, 7, 8]), np.arange(8) > 4)
    assert {name: rows.tolist() for name, rows in groups.items()} == {
        "normal, lowest scores: best": [1, 3],
        "normal, highest scores: worst": [2, 0],
        "anomalous, highest scores: best": [5],
        "anomalous, lowest scores: worst": [6],
    }


@pytest.mark.parametrize("features", [RNG.normal(size=(40, 5)), np.zeros((12, 1), np.float32)])
def test_embedding(tmp_path, panels, features):
    truth = TRUTH[: len(features)]
    figures.embedding(tmp_path / "e", features, truth, SYNTHETIC)
    assert_picture(tmp_path / "e")
    normal, anomalous = panels[0].collections
    assert (len(normal.get_offsets()), len(anomalous.get_offsets())) == ((~truth).sum(), truth.sum())
    assert f"anomalous ({truth.sum()})" in words(tmp_path / "e")


HOSTILE = "a|b_$<x>\x1b\n船 and a name that is much too long for any picture of ours"
CELL = {"model": "ganomaly", "evaluation": "clean", "settings": "", "class": HOSTILE, "order": 0.0}


def test_class_heat_map(tmp_path):
    cells = [CELL | {"mean": 0.9}, CELL | {"class": "mean", "order": np.inf, "mean": 0.4}]
    cells.append(CELL | {"model": "ae", "settings": "model.nz=20", "mean": 0.6})
    comparisons.class_heat_map(tmp_path / "map", cells, SYNTHETIC)
    assert_picture(tmp_path / "map")
    assert {"0.900", "0.600", "0.400", "–"} <= set(words(tmp_path / "map"))


@pytest.mark.parametrize(
    ("methods", "classes", "cut", "shown"),
    [
        (
            4,
            9,
            " (the first 3 methods and 3 columns, and the last)",
            ["c0", "c1", "c2", "c8", "m0", "m1", "m2"],
        ),
        (4, 3, " (the first 3 methods)", ["c0", "c1", "c2", "m0", "m1", "m2"]),
        (1, 5, " (the first 3 columns, and the last)", ["c0", "c1", "c2", "c4", "m0"]),
        (3, 4, "", ["c0", "c1", "c2", "c3", "m0", "m1", "m2"]),
    ],
)
def test_a_heat_map_of_very_many_is_cut_and_says_so(tmp_path, monkeypatch, methods, classes, cut, shown):
    monkeypatch.setattr(comparisons, "MOST_ROWS", 3)
    monkeypatch.setattr(comparisons, "MOST_COLUMNS", 4)
    cells = [
        CELL | {"model": f"m{row}", "evaluation": "", "class": f"c{column}", "mean": 0.9}
        for row in range(methods)
        for column in range(classes)
    ]
    comparisons.class_heat_map(tmp_path / "map", cells, "many")
    told = words(tmp_path / "map")
    assert f"many{cut}" in " ".join(told)
    assert [name for name in told if name[0] in "cm" and name[1].isdigit()] == shown


def test_bands(tmp_path):
    seeds = np.vstack([GRID**0.5, GRID])
    curves = {"cat": {"ae": seeds, HOSTILE: seeds[:1]}, HOSTILE: {"ae": seeds}}
    for name, draw in (
        ("r", comparisons.roc_bands),
        ("p", comparisons.pr_bands),
        ("l", comparisons.learning_curves),
    ):
        (tmp_path / name).mkdir()
        draw(tmp_path / name / "x", curves, SYNTHETIC)
        assert_picture(tmp_path / name / "x")
        assert "ae" in words(tmp_path / name / "x")


def test_a_band_is_the_mean_and_a_deviation_about_it_within_0_and_1(tmp_path, panels):
    seeds = np.stack([np.full(len(GRID), 0.6), np.ones(len(GRID))])
    comparisons.roc_bands(tmp_path / "r", {"cat": {"ae": seeds}}, SYNTHETIC)
    assert panels[0].lines[0].get_ydata() == pytest.approx(np.full(len(GRID), 0.8))
    edges = panels[0].collections[0].get_paths()[0].vertices[:, 1]
    assert (edges.min(), edges.max()) == (pytest.approx(0.8 - 0.08**0.5), 1)


def test_every_learning_curve_lies_inside_its_panel(tmp_path, panels):
    curves = {"good": {"ae": np.full((1, len(GRID)), 0.95)}, "bad": {"ae": np.full((1, len(GRID)), 0.2)}}
    comparisons.learning_curves(tmp_path / "l", curves, SYNTHETIC)
    for axes in panels:
        low, high = axes.get_ylim()
        for curve in axes.lines:
            assert low < min(curve.get_ydata()) <= max(curve.get_ydata()) < high


def test_labels_say_what_tells_methods_apart():
    long = ", data.limit=1000, trainer.max_epochs=20, model.width=16"
    names = [f"geotrans, clean{long}, model.heads=1", f"geotrans, clean{long}, model.heads=2"]
    assert shorts(names, 40) == ["geotrans, heads=1", "geotrans, heads=2"]
    assert shorts(["ae, clean", "knn, clean"], 40) == ["ae", "knn"]
    assert shorts(["ae, clean"], 40) == ["ae, clean"]
    names = [f"a, {', '.join(f'model.key{key}={value}' for key in range(9))}" for value in (1, 2)]
    for name, value in zip(shorts(names, 40, 2), "12", strict=True):
        assert len(name.splitlines()) == 2
        assert f"key0={value}, key1={value}" in name
        assert name.endswith(f"key8={value}")
    alike = [f"egbad, a{'x' * 30}{middle}{'y' * 30}" for middle in "12"]
    first, second = shorts(alike, 20)
    assert (first[:3], second[:3], first[3:]) == ("1: ", "2: ", second[3:])


def test_runtime(tmp_path):
    points = [("ae", 3.0, 0.9, np.nan), (HOSTILE, 3000.0, 0.4, 0.1), ("ocsvm", 0.001, 0.5, 0.0)]
    comparisons.runtime(tmp_path / "t", points, SYNTHETIC, ", on different machines")
    assert_picture(tmp_path / "t")
    assert "seconds of training a run, on different machines" in words(tmp_path / "t")


def test_a_picture_of_the_times_of_very_many_has_the_best_and_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(comparisons, "MOST_ROWS", 2)
    comparisons.runtime(tmp_path / "t", [(f"m{i}", 1.0 + i, 0.5 + i / 10, 0.0) for i in range(4)], "many")
    told = words(tmp_path / "t")
    assert "many (the best 2 of 4)" in told
    assert [name for name in told if name.startswith("m") and "  " in name] == ["m3  0.800", "m2  0.700"]


@pytest.mark.parametrize(
    "points",
    [
        [Point(1000, 0.9, 0.01, 0.88), Point(20, 0.8, np.nan, None)],
        [Point("wide", 0.9, 0.01, None), Point(HOSTILE, 0.8, 0.02, None)],
        [Point(0, 0.9, 0.01, 0.9)],
    ],
)
def test_paper_curve(tmp_path, points):
    comparisons.paper_curve(tmp_path / "c", points, "model.nz", "AUROC", SYNTHETIC)
    assert_picture(tmp_path / "c")
    assert ("the paper" in words(tmp_path / "c")) == any(point.paper is not None for point in points)


def test_values_of_a_setting_stand_in_order_each_at_its_place(tmp_path, panels):
    points = [Point(1000, 0.9, 0.01, 0.88), Point(20, 0.8, np.nan, None)]
    comparisons.paper_curve(tmp_path / "c", points, "model.nz", "AUROC", SYNTHETIC)
    ticks = zip(panels[0].get_xticks(), panels[0].get_xticklabels(), strict=True)
    assert [(x, label.get_text()) for x, label in ticks] == [(20, "20"), (1000, "1000")]
    ours, _, _, paper = panels[0].lines
    assert [*zip(ours.get_xdata(), ours.get_ydata(), strict=True)] == [(20, 0.8), (1000, 0.9)]
    assert [*zip(paper.get_xdata(), paper.get_ydata(), strict=True)] == [(1000, 0.88)]
    assert panels[0].get_xscale() == "log"


def test_a_bar_joins_the_methods_of_its_group(tmp_path, panels):
    ranks = Ranking(list("abcd"), [1.0, 1.5, 2.5, 4.0], 10, 0.01, 1.6, [range(0, 3)])
    comparisons.critical_difference(tmp_path / "d", ranks, SYNTHETIC)
    (bar,) = [line.get_xdata() for line in panels[0].lines if line.get_linewidth() == 3.5]
    margin = 0.05 * 3 / 9
    assert list(bar) == pytest.approx([1 - margin, 2.5 + margin])


@pytest.mark.parametrize("methods", [2, 3, 12])
def test_critical_difference(tmp_path, methods):
    names = [*(f"method {number}" for number in range(methods - 1)), HOSTILE]
    groups = [range(0, 2)]
    ranks = Ranking(names, [1.0 + number for number in range(methods)], 10, 0.01, 2.5, groups)
    comparisons.critical_difference(tmp_path / "d", ranks, SYNTHETIC)
    assert_picture(tmp_path / "d")
    assert "critical difference 2.50, n = 10" in words(tmp_path / "d")
    assert "method 0  1.00" in words(tmp_path / "d")
