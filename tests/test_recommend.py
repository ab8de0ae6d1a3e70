"""The race: bounded, its runs ordinary ones, and its figures from rows that had no part in the ranking."""

import json
import shutil
import time
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from anomaly_bench import recommend as race
from anomaly_bench.cli import answer
from anomaly_bench.data import made_up
from anomaly_bench.data.dataset import Dataset
from anomaly_bench.errors import SettingError
from anomaly_bench.recommend import Entry, by_halves, by_margin, halves
from tests.finished import digit_files, people

QUICK = ["data.image_size=16", "trainer.device=cpu"]


@pytest.fixture
def typed(tmp_path, monkeypatch, capsys, undrawn):
    """What `recommend` prints for some arguments, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANOMALY_BENCH_CACHE", str(tmp_path / "cache"))

    def call(*arguments: str) -> tuple[int, str, str]:
        code = answer(["recommend", *arguments])
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def table_in(out: str) -> pd.DataFrame:
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in out.splitlines() if line[:1] == "|"
    ]
    return pd.DataFrame(rows[2:], columns=rows[0])


def test_a_race_on_a_folder_of_images(typed, tmp_path, caplog):
    caplog.set_level("INFO", "anomaly_bench")
    digit_files(tmp_path / "digits")
    asked = [
        f"data.root={tmp_path / 'digits'}",
        "data=folder",
        "model=isolation_forest,ae_dense,dagmm",
        *QUICK,
    ]
    code, out, err = typed(*asked, "--minutes", "9")
    assert code == 0, err
    table = table_in(out)
    assert sorted(table["method"]) == ["ae_dense", "isolation_forest"]
    assert table["ranked by"].astype(float).is_monotonic_decreasing
    assert "left out: dagmm: model: it takes rows of numbers" in out
    assert "had no part in the ranking" in out
    for _, line in table.iterrows():
        run = Path(line["run"])
        assert run.parent == Path("runs")
        scores = pd.read_csv(run / "scores.csv")
        truth = scores["label"].to_numpy(bool)
        for name, part in zip(("ranked by", "AUROC"), halves(truth, 0), strict=True):
            expected = roc_auc_score(truth[part], scores["score"][part])
            assert float(line[name]) == pytest.approx(expected, abs=6e-4)
    epochs = json.loads((Path(table.set_index("method").loc["ae_dense", "run"]) / "run.json").read_text())
    assert epochs["epochs_done"] > 1  # it climbed
    assert "ae_dense, up to 1 epochs" in caplog.text


@pytest.mark.slow
def test_a_race_without_anomalies_says_that_no_accuracy_is_known(typed, tmp_path):
    shutil.rmtree(digit_files(tmp_path / "digits") / "test/1.abnormal")
    asked = ["data=folder", f"data.root={tmp_path / 'digits'}", "model=isolation_forest,ocsvm", *QUICK]
    code, out, err = typed(*asked, "--minutes", "9")
    assert code == 0, err
    assert "No accuracy is known" in out
    table = table_in(out)
    assert "AUROC" not in table
    assert sorted(table["method"]) == ["isolation_forest", "ocsvm"]
    stability = table.set_index("method")["stability"].astype(float)
    assert 0 < stability["isolation_forest"] < 1
    assert stability["ocsvm"] == pytest.approx(1, abs=1e-3)  # nothing of it is random
    run = json.loads((Path(table["run"][0]) / "run.json").read_text())
    assert (run["data"], run["data_source"], run["n_test"]) == ("folder_made_up", "synthetic", 40)
    assert answer(["score", table["run"][0], str(tmp_path / "digits/test")]) == 0


@pytest.mark.slow
def test_the_bound_holds_in_the_middle_of_a_run(typed, tmp_path):
    people(tmp_path / "people.csv", 2000)
    asked = ["data=table", "data.root=people.csv", "data.label=kind", "normal_class=a", "trainer.device=cpu"]
    judge = race.Judge(str(tmp_path))
    try:
        slow = [*asked, "model=dagmm", "model.epochs=1000000"]
        assert "error" not in judge.ask("look", asked, 120)
        took = time.monotonic()
        told = judge.ask("race", [slow, False], 2)
        assert told == {"error": "stopped after 2 s"}
        assert time.monotonic() - took < 60
    finally:
        judge.end()
    assert not list(Path("runs").glob("*/metrics.json"))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        *(
            (["--minutes", minutes], f"--minutes {minutes}: must be above 0, and 525600, a year, at most")
            for minutes in ("0", "nan", "inf", "1e+09")
        ),
        (["seed=0,1"], "seed=0,1: allowed is one whole number"),
        (["evaluation=as_published"], "evaluation: recommend decides that itself"),
        (["evaluation.epoch=best_test"], "evaluation.epoch: recommend decides that itself"),
        (["+evaluation.epoch=best_test"], "evaluation.epoch: recommend decides that itself"),
        (["trainer.max_epochs=3"], "trainer.max_epochs: recommend decides that itself"),
    ],
)
def test_what_cannot_work_is_refused(typed, arguments, said):
    code, _, err = typed(*arguments)
    assert (code, err.splitlines()[-1][: len(said) + 15]) == (2, f"anomaly-bench: {said}"[: len(said) + 15])


def run_folder(folder: Path, scores: np.ndarray, labels: np.ndarray, **figures: float) -> Path:
    """The records of a run, as far as a ranking reads them."""
    folder.mkdir()
    pd.DataFrame({"label": labels.astype(int), "score": scores}).to_csv(folder / "scores.csv", index=False)
    known = {"auroc_untrained": 0.5, "train_seconds": 1.0, "score_ms_per_image": 1.0}
    (folder / "metrics.json").write_text(json.dumps(known | figures))
    (folder / "run.json").write_text(json.dumps({"stages": [{"epochs_done": 4}], "epochs_done": 4}))
    return folder


def test_the_reported_half_has_no_part_in_the_ranking(tmp_path):
    labels = np.arange(40) % 2 == 1
    ranking, reported = halves(labels, 3)
    assert sorted([*ranking, *reported]) == list(range(40))
    assert labels[ranking].sum() == labels[reported].sum() == 10
    good = np.where(labels, 1.0, 0.0) + np.linspace(0, 0.1, 40)
    lucky, steady = good.copy(), good.copy()
    lucky[reported] *= -1  # best where methods are chosen, worthless where they are judged
    steady[ranking[:3]] *= -1
    entries = [
        Entry("steady", [run_folder(tmp_path / "steady", steady, labels)], 4),
        Entry("lucky", [run_folder(tmp_path / "lucky", lucky, labels)], 4),
    ]
    table = table_in("\n".join(by_halves(entries, 3)))
    assert table["method"].tolist() == ["lucky", "steady"]
    assert table["ranked by"].astype(float)[0] == 1
    assert table["AUROC"].astype(float).tolist() == [0, 1]


def test_too_few_test_rows_of_a_kind_are_refused_before_the_race(typed, tmp_path, monkeypatch):
    monkeypatch.setattr(race, "race", lambda *_, **__: pytest.fail("it raced"))
    for path in sorted((digit_files(tmp_path / "digits") / "test/1.abnormal").iterdir())[1:]:
        path.unlink()
    code, _, err = typed("data=folder", f"data.root={tmp_path / 'digits'}", *QUICK)
    assert code == 2
    assert err.splitlines()[-1].endswith("data: 1 test rows of a kind; two halves need at least 2 of each")


def test_the_seed_draws_the_halves():
    labels = np.arange(40) % 2 == 1
    assert not np.array_equal(halves(labels, 0)[0], halves(labels, 1)[0])


@pytest.mark.parametrize("labels", [[False, False, True], [True, True, False]])
def test_halves_need_two_of_each(labels):
    with pytest.raises(SettingError, match="1 test rows of a kind"):
        halves(np.array(labels), 0)


def test_margin_and_stability_rank_where_no_anomaly_is_known(tmp_path):
    labels, scores = np.arange(20) >= 10, np.arange(20.0)
    noise = np.random.RandomState(0).permutation(scores)
    entries = [
        Entry(
            name,
            [run_folder(tmp_path / f"{name}{n}", one, labels, auroc=auroc) for n, one in enumerate(seeds)],
            4,
        )
        for name, auroc, seeds in (("bad", 0.55, (scores, noise)), ("good", 0.9, (scores, 2 * scores)))
    ]
    table = table_in("\n".join(by_margin(entries)))
    assert table["method"].tolist() == ["good", "bad"]
    assert table["margin"].astype(float).tolist() == pytest.approx([0.4, 0.05])
    assert float(table["stability"][0]) == 1


def test_a_method_is_over_when_more_epochs_change_nothing(tmp_path):
    entry = Entry("ae", [run_folder(tmp_path / "run", np.zeros(2), np.array([0, 1]))], 4, overhead=2)
    assert not entry.over
    assert entry.expected(16) == 2 + 4
    entry.epochs = 16
    assert entry.over


def test_a_method_that_failed_is_over_and_one_with_an_unfinished_stage_is_not(tmp_path):
    folder = run_folder(tmp_path / "run", np.zeros(2), np.array([0, 1]))
    assert Entry("ae", error="no memory").over
    assert Entry("ae", [folder], 4, error="no memory").over
    (folder / "run.json").write_text(json.dumps({"stages": [{"epochs_done": 4}, {"epochs_done": 16}]}))
    assert not Entry("ae", [folder], 16).over


class Asked:
    """Stands for a judge: a run takes a second an epoch, and `slow` fails above its first rung."""

    def __init__(self, folder: Path, facts: dict[str, bool] | None = None) -> None:
        self.folder, self.facts = folder, facts
        self.runs: list[tuple[str, int, int]] = []
        self.bounds: list[float] = []

    def ask(self, what: str, of: list, seconds: float) -> dict:
        if what == "look":
            return self.facts or {}
        given = dict(text.split("=") for text in of[0])
        assert len(given) == len(of[0]), "a setting is there twice"
        run = given["model"], int(given["trainer.max_epochs"]), int(given["seed"])
        self.runs.append(run)
        self.bounds.append(seconds)
        if run[0] == "slow" and run[1] > 1:
            return {"error": "stopped"}
        folder = self.folder / "-".join(map(str, run))
        run_folder(folder, np.zeros(2), np.array([0, 1]), train_seconds=float(run[1]))
        stages = {"stages": [{"epochs_done": run[1]}], "epochs_done": run[1]}
        (folder / "run.json").write_text(json.dumps(stages))
        return {"folder": str(folder)}


def test_methods_climb_as_far_as_their_share_of_the_time_allows(tmp_path):
    asked, entries = Asked(tmp_path), [Entry("a"), Entry("b")]
    clock = SimpleNamespace(left=90)
    race.race(asked, entries, ["data=digits", "seed=9"], [3, 4], made_up=True, clock=clock)
    rungs = [("a", 1), ("b", 1), ("a", 4), ("b", 16)]  # two runs of 16 s fit into 0.7 of 90 s, not of 45 s
    assert asked.runs == [(*rung, seed) for rung in rungs for seed in (3, 4)]
    assert [(entry.epochs, len(entry.folders)) for entry in entries] == [(4, 2), (16, 2)]
    assert all(0 <= bound <= most for bound, most in zip(asked.bounds, [45, 45, 90, 90] * 2, strict=True))


def test_a_method_that_fails_keeps_what_it_had_and_climbs_no_more(tmp_path):
    asked, entries = Asked(tmp_path), [Entry("slow")]
    race.race(asked, entries, [], [0], made_up=False, clock=SimpleNamespace(left=1e6))
    assert asked.runs == [("slow", 1, 0), ("slow", 256, 0)]
    assert (entries[0].error, entries[0].epochs) == ("stopped", 1)


def test_without_time_no_method_begins(tmp_path):
    asked = Asked(tmp_path)
    race.race(asked, [Entry("a")], [], [0], made_up=False, clock=SimpleNamespace(left=0))
    assert asked.runs == []


@pytest.mark.parametrize(
    ("rows", "anomalies", "methods", "seeds"),
    [(True, True, race.ROWS, [7]), (False, False, race.IMAGES, [7, 8])],
)
def test_methods_and_seeds_are_those_of_the_data(tmp_path, monkeypatch, rows, anomalies, methods, seeds):
    asked = Asked(tmp_path, {"rows": rows, "anomalies": anomalies})
    monkeypatch.setattr(race, "judge", lambda: nullcontext(asked))
    with pytest.raises(SettingError, match="no method has finished"):
        race.recommend(["+seed=7"], 1e-9)
    monkeypatch.setattr(
        race, "race", lambda _, entries, *given, **__: asked.runs.append(([e.method for e in entries], given))
    )
    with pytest.raises(SettingError, match="no method has finished"):
        race.recommend(["seed=7", "data.limit=9"], 5)
    assert asked.runs == [([*methods], (["seed=7", "data.limit=9"], seeds))]


@pytest.mark.parametrize("shape", [(60, 1, 8, 8), (60, 5)])
@pytest.mark.parametrize("parts", [0, 20])
def test_anomalies_are_made_of_held_out_rows(shape, parts):
    x = torch.arange(np.prod(shape)).reshape(shape)
    x = (x % 256).to(torch.uint8) if len(shape) == 4 else x.float()
    train = np.arange(60) < 60 - parts
    of = Dataset("mine", x, np.zeros(60, np.int64), ("normal",), train, "folder")
    made = made_up.load(replace(of, masks=np.zeros((60, 8, 8), bool)), "mine")
    assert made.masks is None  # they would be of other rows
    n_test = parts or 12
    assert made.official_train.sum() == 60 - n_test
    assert np.bincount(made.classes).tolist() == [60, n_test]
    held, new = made.x[60 - n_test : 60], made.x[60:]
    assert (held != new).flatten(1).any(1).float().mean() > 0.9
    assert set(new.flatten().tolist()) <= set(held.flatten().tolist())
    assert torch.equal(made_up.load(of, "mine").x, made.x)


def test_too_little_time_is_said_as_that(typed, monkeypatch):
    answers = iter([{"rows": True, "anomalies": True}])

    def ask(self, what, of, seconds):
        time.sleep(max(0, seconds) + 0.01)
        return next(answers, {"error": f"stopped after {seconds:.0f} s"})

    monkeypatch.setattr(race.Judge, "ask", ask)
    code, _, err = typed("model=ae,knn", "--minutes", "0.001")
    assert code == 2
    assert "--minutes 0.001: no method has finished (" in err
    assert "more minutes are needed" in err
    code, _, err = typed("--minutes", "0.001")
    assert code == 2
    assert "--minutes 0.001: no method has finished (reading the data: stopped after 0 s)" in err
    assert "more minutes are needed" in err


def test_methods_that_all_fail_are_not_said_to_need_time(typed, monkeypatch):
    answers = iter([{"rows": True, "anomalies": True}])
    monkeypatch.setattr(
        race.Judge, "ask", lambda *_: next(answers, {"error": "model.lr=-1: must be above 0"})
    )
    code, _, err = typed("model=ae", "--minutes", "1")
    assert (code, "more minutes" in err) == (2, False)


def test_an_unknown_method_is_refused_before_the_race(typed, monkeypatch):
    monkeypatch.setattr(race, "judge", None)
    code, out, err = typed("model=knn,nope")
    assert (code, out) == (2, "")
    assert err.startswith("anomaly-bench: model=nope: there is none; allowed are ")
