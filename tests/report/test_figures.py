import numpy as np
import pandas as pd
import pytest
from PIL import Image

from anomaly_bench.report import figures

SYNTHETIC = r"ganomaly on $\bags_1$ (synthetic data)"
RNG = np.random.default_rng(0)
TRUTH = np.arange(40) % 4 == 0
SCORES = RNG.random(40) + TRUTH


def assert_picture(path, least=200, most=4000):
    """A whole PNG of a sensible size that is not all of one colour, and no temporary file beside it."""
    with Image.open(path) as picture:
        picture.load()
        assert picture.format == "PNG"
        assert all(least <= side <= most for side in picture.size)
        assert len(picture.convert("L").getcolors(256)) > 2
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("threshold", [None, 0.7])
def test_score_histogram(tmp_path, threshold):
    figures.score_histogram(tmp_path / "x" / "scores.png", SCORES, TRUTH, threshold, SYNTHETIC)
    assert_picture(tmp_path / "x" / "scores.png")


def test_score_histogram_of_equal_scores(tmp_path):
    figures.score_histogram(tmp_path / "scores.png", np.ones(40), TRUTH, 1.0, "collapsed")
    assert_picture(tmp_path / "scores.png")


def test_roc_and_pr(tmp_path):
    figures.roc_and_pr(tmp_path / "roc.png", SCORES, TRUTH, SYNTHETIC)
    assert_picture(tmp_path / "roc.png")


@pytest.mark.parametrize("epochs", [1, 5])
def test_losses_of_two_stages(tmp_path, epochs):
    stage = np.repeat([0, 1], epochs)
    frame = pd.DataFrame(
        {
            **{"stage": stage, "name": np.array(["ae", "gan"])[stage], "epoch": [*range(1, epochs + 1)] * 2},
            "reconstruction": np.where(stage == 0, 1.0, np.nan),
            "$generator_x": np.where(stage == 1, 2.0, np.nan),
            **{"rows": 64, "seconds": 0.1, "auroc": 0.5},
        }
    )
    figures.losses(tmp_path / "losses.png", frame, SYNTHETIC)
    assert_picture(tmp_path / "losses.png")


@pytest.mark.parametrize(("channels", "maps"), [(1, True), (3, False), (2, True)])
def test_reconstructions(tmp_path, channels, maps):
    x = RNG.random((40, channels, 8, 12))
    figures.reconstructions(
        tmp_path / "r.png", x, x * 0.5, SCORES, TRUTH, maps=x[:, 0] if maps else None, title=SYNTHETIC
    )
    assert_picture(tmp_path / "r.png")


def test_reconstructions_show_the_extremes_of_either_kind():
    groups = figures._extremes(np.array([5.0, 1, 4, 2, 3, 9, 7, 8]), np.arange(8) > 4)
    assert {name: rows.tolist() for name, rows in groups.items()} == {
        "normal, lowest scores": [1, 3],
        "normal, highest scores": [2, 0],
        "anomalous, lowest scores": [6],
        "anomalous, highest scores": [5],
    }


@pytest.mark.parametrize("features", [RNG.normal(size=(40, 5)), np.zeros((12, 1), np.float32)])
def test_embedding(tmp_path, features):
    figures.embedding(tmp_path / "e.png", features, TRUTH[: len(features)], SYNTHETIC)
    assert_picture(tmp_path / "e.png")


def test_class_heat_map(tmp_path):
    cell = {"model": "ganomaly", "evaluation": "clean", "settings": "", "class": "a|b_$<x>", "order": 0.0}
    cells = [cell | {"mean": 0.9}, cell | {"class": "mean", "order": np.inf, "mean": 0.4}]
    cells.append(cell | {"model": "ae", "settings": "model.nz=20", "mean": 0.6})
    figures.class_heat_map(tmp_path / "map.png", cells, SYNTHETIC)
    assert_picture(tmp_path / "map.png")
