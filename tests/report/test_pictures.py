import numpy as np
import pandas as pd
import pytest
from test_tables import made_up

from anomaly_bench.record import write_csv
from anomaly_bench.report import comparisons, pictures
from anomaly_bench.report.comparisons import GRID
from anomaly_bench.report.formats import Table
from anomaly_bench.report.pictures import Shown, draw_paper_curves, draw_report, draw_run, telling_rows

RNG = np.random.default_rng(0)
TRUTH = np.arange(60) % 3 == 0


def at(folder, record):
    """The record in a folder of its own, with scores and test AUROCs."""
    folder = folder / record.folder.name
    scores = RNG.normal(size=60) + TRUTH
    write_csv(folder / "scores.csv", pd.DataFrame({"row": range(60), "label": TRUTH * 1, "score": scores}))
    write_csv(folder / "losses.csv", pd.DataFrame({"stage": 0, "auroc": [np.nan, 0.6, np.nan, 0.8]}))
    return type(record)(folder, record.status, record.run, record.metrics, record.failure)


def shown(x, **more):
    return lambda rows: Shown(
        **({"x": x[rows], "reconstruction": None, "map": None, "features": None} | more)
    )


def test_a_run_is_drawn_as_far_as_the_detector_can_show(tmp_path):
    x = RNG.random((60, 1, 8, 8))
    result = (RNG.random(60), TRUTH, {"95 %": 0.9})
    losses = pd.DataFrame({"stage": [0, 0], "loss": [1.0, 0.5]})
    draw_run(tmp_path / "none", "title", result, losses[:1], shown(x))
    assert {path.name for path in (tmp_path / "none").iterdir()} == {
        f"{name}.{kind}" for name in ("scores", "roc_and_pr") for kind in ("png", "svg")
    }
    everything = lambda rows: Shown(x[rows], x[rows] / 2, None, x[rows].reshape(len(rows), -1))  # noqa: E731
    draw_run(tmp_path / "all", "title", result, losses, everything)
    assert {path.stem for path in (tmp_path / "all").iterdir()} == {
        *("scores", "roc_and_pr", "losses", "reconstructions", "features")
    }
    draw_run(tmp_path / "map", "title", result, losses[:1], lambda rows: shown(x, map=x[rows, 0] - 1)(rows))
    assert {path.stem for path in (tmp_path / "map").iterdir()} == {"scores", "roc_and_pr", "maps"}


def test_telling_rows_are_the_extremes_of_either_kind():
    scores = np.arange(20.0)
    assert telling_rows(scores, scores >= 12).tolist() == [0, 1, 2, 9, 10, 11, 12, 13, 14, 17, 18, 19]


def test_a_report_has_every_picture_that_its_records_allow(tmp_path):
    records = [
        at(tmp_path, made_up(cls, seed, 0.5 + seed / 10, model=model, metrics={"train_seconds": 3.0}))
        for cls in ("cat", "dog")
        for seed in (0, 1)
        for model in ("ae", "ocsvm")
    ]
    drawn = draw_report(tmp_path / "figures", records)
    names = [picture.path.name.removeprefix("pets-leave_one_class_out-") for picture in drawn]
    assert names == ["classes", "runtime", "roc", "pr", "learning"]
    assert {picture.table for picture in drawn} == {"pets-leave_one_class_out"}
    assert {path.name for path in (tmp_path / "figures").iterdir()} == {
        f"{picture.path.name}.{kind}" for picture in drawn for kind in ("png", "svg")
    }


def test_a_mean_of_some_classes_is_marked_beside_that_of_all(tmp_path):
    records = [made_up("cat"), made_up("dog"), made_up("cat", model="knn")]
    time = next(
        picture for picture in draw_report(tmp_path, records) if picture.path.name.endswith("runtime")
    )
    words = time.path.with_suffix(".svg").read_text(encoding="utf-8")
    assert "† knn" in words
    assert "† ganomaly" not in words
    assert "† not of all classes" in words


def test_without_scores_and_losses_there_are_no_curves(tmp_path):
    assert [picture.path.name for picture in draw_report(tmp_path, [made_up("cat"), made_up("dog")])] == [
        "pets-leave_one_class_out-classes"
    ]
    assert draw_report(tmp_path, [made_up(), made_up("cat", 1, status="failed")]) == []


@pytest.mark.parametrize(
    "text",
    ["", "label,score\n", "label,score\n1,nan\n0,1\n", "label,score\n1,1\n1,2\n", "a,b\n1,2\n", "\0\n"],
)
def test_scores_that_make_no_curve_are_left_out(tmp_path, text):
    (tmp_path / "scores.csv").write_text(text)
    assert pictures._scores(tmp_path) is None


def test_curves_of_a_perfect_and_of_a_reversed_detector():
    truth = np.array([False, False, True, True])
    assert pictures._roc(truth, np.arange(4.0)).tolist() == [1] * len(GRID)
    assert pictures._roc(truth, -np.arange(4.0)).tolist() == [*[0] * (len(GRID) - 1), 1]
    assert pictures._pr(truth, np.arange(4.0)).tolist() == [1] * len(GRID)
    assert pictures._pr(truth, -np.arange(4.0))[-1] == 0.5


def test_curves_stand_by_class_and_method_with_a_line_a_seed(tmp_path):
    records = [
        at(tmp_path, made_up(cls, seed, model=model))
        for cls, seed, model in (("cat", 0, "ae"), ("dog", 0, "b"), ("cat", 1, "ae"), ("cat", 0, "b"))
    ]
    runs = pictures._runs(records)
    learned = pictures._learning(runs)
    assert np.isnan(learned[0][1][GRID < 0.5]).all()
    assert learned[0][1][[50, -1]].tolist() == [0.6, 0.8]
    panels = pictures._by_panel(learned, ["b, clean", "ae, clean"])
    assert {name: {row: len(lines) for row, lines in each.items()} for name, each in panels.items()} == {
        "cat": {"b, clean": 1, "ae, clean": 2},
        "dog": {"b, clean": 1},
    }
    assert list(panels["cat"]) == ["b, clean", "ae, clean"]


def cell(settings, mean, printed, **more):
    facts = {"variant": "", "evaluation": "clean", "class": "2", "data": "mnist", "n": 1, "std": np.nan}
    facts |= {
        "metric": "auroc",
        "model": "ganomaly",
        "protocol": "folder",
        "source": "Fig. 5",
        "method": "GANomaly",
    }
    return facts | {"settings": settings, "mean": mean, "printed": printed} | more


def test_each_setting_that_a_paper_studies_has_a_curve_with_the_others_as_usual(tmp_path):
    cells = [
        cell("model.nz=32 model.w_con=50", 0.8, 0.9),
        cell("model.nz=100 model.w_con=50", 0.7, 0.85),
        cell("model.nz=100 model.w_con=1", 0.6, 0.5),
        cell("model.nz=100 model.w_con=90", 0.65, 0.55),
        cell("model.nz=512 model.w_con=50", np.nan, 0.4, n=0),
    ]
    table = Table("ganomaly_hyperparameters", "title", [], 0, [], [], cells)
    drawn = list(draw_paper_curves(tmp_path, [table]))
    assert [picture.caption.split(" on ")[0] for picture in drawn] == [
        "AUROC over model.nz",
        "AUROC over model.w_con",
    ]
    assert all(picture.path.with_name(f"{picture.path.name}.png").exists() for picture in drawn)
    assert not list(draw_paper_curves(tmp_path, [Table("t", "title", [], 0, [], [], cells[:1])]))


def test_a_curve_has_one_metric_of_one_source_and_one_point_a_value(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(
        comparisons, "paper_curve", lambda _, points, *others: kept.append((points, *others[:2]))
    )
    cells = [
        cell("model.w_adv=1 model.w_con=50", 0.8, 0.7, method="w_adv = 1"),
        cell("model.w_adv=1 model.w_con=50", 0.8, 0.9, method="w_con = 50"),
        cell("model.w_adv=9 model.w_con=50", 0.6, 0.5, method="w_adv = 9"),
        *(cell(f"model.w_adv={n} model.w_con=50", 0.4, 0.3, metric="f1", method="w_adv") for n in (1, 9)),
        *(cell(f"model.w_adv={n} model.w_con=50", 0.2, 0.1, source="code", method="w_adv") for n in (1, 9)),
    ]
    drawn = list(draw_paper_curves(tmp_path, [Table("t", "title", [], 0, [], [], cells)]))
    assert len({picture.path for picture in drawn}) == 3
    told = {(metric, *(point.paper for point in points)) for points, _, metric in kept}
    assert told == {("AUROC", 0.7, 0.5), ("F1", 0.3, 0.3), ("AUROC", 0.1, 0.1)}
