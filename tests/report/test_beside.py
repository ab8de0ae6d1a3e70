"""A paper's table beside ours."""

import math
import re
from dataclasses import replace

import pandas as pd
import pytest
from test_tables import WITHOUT_CLASS, kept, made_up

from anomaly_bench.data.public import CLASS_NAMES
from anomaly_bench.record import Record, write_text
from anomaly_bench.report import formats
from anomaly_bench.report.beside import CELL, paper_tables
from anomaly_bench.report.matching import Number, _mean, reached
from anomaly_bench.report.printed import printed
from anomaly_bench.report.tables import make_tables, text_of, write_report

DIGITS = list(CLASS_NAMES["mnist"])


def digit(number=0, seed=0, auroc=0.8, **facts) -> Record:
    """A record of GANomaly on MNIST as the paper has it, but for what is said."""
    facts = {"data": "mnist", "class_index": number, "data_classes": DIGITS} | facts
    return made_up(str(number), seed, auroc, **facts)


def named(*records: Record, name="ganomaly_mnist") -> list[Record]:
    """The records as runs of an experiment."""
    return [
        Record(r.folder, r.status, r.run | {"experiments": [name]}, r.metrics, r.failure) for r in records
    ]


def rows_of(table: formats.Table) -> list[dict[str, str]]:
    """Texts by column; of two evaluations' equal columns the last."""
    return [dict(zip(table.headers, row, strict=True)) for row in table.rows]


def by_class(table: formats.Table) -> dict[str, dict[str, str]]:
    return {row["class"]: row for row in rows_of(table)}


def cells_of(table: formats.Table) -> pd.DataFrame:
    return pd.DataFrame(table.cells, columns=list(CELL))


def test_ours_the_papers_the_difference_and_the_control():
    (table,) = paper_tables(named(digit(1, 0, 0.70), digit(1, 1, 0.72)))
    one = by_class(table)["1"]
    assert one["paper"] == "0.653 [0.609, 0.695]"
    assert one["clean"] == "0.710 ± 0.014"
    assert (one["n"], one["difference"], one["untrained"]) == ("2", "+0.057 ✓", "0.550")


def test_what_was_not_run_says_so():
    (table,) = paper_tables(named(digit(1)))
    assert [row["clean"] for row in rows_of(table)].count("not run") == 9
    assert "9 of 10 numbers not run" in table.notes[0]
    (empty,) = paper_tables([], "ganomaly_mnist")
    assert {row["clean"] for row in rows_of(empty)} == {"not run"}


@pytest.mark.parametrize(
    ("areas", "reached"),
    [
        ([0.772], True),  # one seed: no noise is known, but the bar of digit 8 goes down to 0.772
        ([0.7714], False),
        ([0.7716], True),  # 0.772 at three decimals
        ([0.70, 0.80], True),  # 0.75 and two standard errors of 0.05
        ([0.7594, 0.7666], False),  # 0.763 and two of 0.0036; with deviations in their place it would be
        ([0.99], True),
    ],
)
def test_reached_within_the_noise_that_is_known(areas, reached):
    (table,) = paper_tables(named(*(digit(8, seed, area) for seed, area in enumerate(areas))))
    assert ("✓" in by_class(table)["8"]["difference"]) == reached
    cells = cells_of(table).set_index("class")
    assert cells["reached"]["8"] == reached
    assert cells["difference"]["8"] == pytest.approx(sum(areas) / len(areas) - 0.840)


def test_the_papers_standard_error_counts_too():
    # GeoTrans on class airplane: 0.747 with a standard error of 0.004
    names = list(CLASS_NAMES["cifar10"])
    facts = {"data": "cifar10", "protocol": "one_vs_rest", "model": "geotrans", "data_classes": names}
    for area, mark in ((0.740, "✓"), (0.738, "")):
        table, *_ = paper_tables([made_up("airplane", 0, area, **facts)])
        assert table.name == "geotrans_cifar10"  # others quote it
        (row,) = [row for row in rows_of(table) if row["class"] == "airplane"]
        assert row["paper"] == "0.747 ± 0.004"
        assert ("✓" in row["difference"]) == bool(mark)


def test_the_mean_is_over_the_classes_both_have():
    (table,) = paper_tables(named(digit(0, 0, 0.9), digit(1, 0, 0.7)))
    mean = by_class(table)["mean"]
    assert mean["paper"] == f"{(0.878 + 0.653) / 2:.3f}"
    assert mean["clean"] == "0.800 †"
    assert any(note.startswith("†") for note in table.notes)
    (whole,) = paper_tables(named(*(digit(number, 0, 0.8) for number in range(10))))
    assert by_class(whole)["mean"]["paper"] == "0.781"
    assert "†" not in str(whole.rows)


def test_the_mean_has_the_seeds_that_all_its_classes_have():
    uneven = [digit(number, seed, 0.8) for number, seeds in ((0, 2), (1, 3)) for seed in range(seeds)]
    (table,) = paper_tables(named(*uneven))
    assert (by_class(table)["mean"]["clean"], by_class(table)["mean"]["n"]) == ("0.800 †", "2")
    (table,) = paper_tables(named(*uneven[:4]))
    assert by_class(table)["mean"]["clean"] == "0.800 † ± 0.000"


def test_the_mean_has_no_interval_of_a_single_class():
    runs = (digit(number, 0, 0.7, metrics={"auroc_interval": [0.69, 0.71]}) for number in (0, 1))
    (table,) = paper_tables(named(*runs))
    assert by_class(table)["0"]["clean"] == "0.700 [0.690, 0.710]"
    assert by_class(table)["mean"]["clean"] == "0.700 †"


def test_the_error_of_a_mean_is_that_of_independent_classes():
    assert _mean([replace(printed()[0], se=0.004)] * 4).standard_error == pytest.approx(0.002)


def test_of_an_error_rate_less_is_better():
    row = replace(printed()[0], metric="eer", value=0.2, std=math.nan, se=math.nan, low=math.nan)
    assert [reached(Number(rate, math.nan, 1), row) for rate in (0.1, 0.2, 0.201)] == [True, True, False]


def test_a_run_that_is_not_finished_makes_no_table():
    begun = digit(2, 0, status="unfinished", overrides=["model.nz=3"], settings_hash="1")
    (table,) = paper_tables(named(digit(1), begun))
    assert table.title == "ganomaly_mnist: AUROC beside the paper's"


def test_evaluations_stand_beside_each_other():
    leaky = {"name": "as_published", "epoch": "best_test"}
    (table,) = paper_tables(named(digit(1, 0, 0.6), digit(1, 0, 0.8, evaluation=leaky, settings_hash="1")))
    assert table.headers[-8:] == [
        *("clean", "n", "difference", "untrained"),
        *("as_published", "n", "difference", "untrained"),
    ]
    one = next(row for row in table.rows if "0.653" in row[-9])
    assert [one[-8], one[-4]] == ["0.600", "0.800"]
    cells = cells_of(table)
    run = cells[cells["n"] > 0]
    assert run[["evaluation", "mean"]].to_numpy().tolist() == [["clean", 0.6], ["as_published", 0.8]]


def test_what_the_test_labels_chose_is_compared_where_they_did_and_marked():
    chosen = {"auroc_hindsight": 0.66, "auroc_interval": [0.5, 0.7]}
    leaky = {"name": "as_published", "hindsight": True}
    records = digit(1, 0, 0.6), digit(1, 0, 0.6, evaluation=leaky, settings_hash="1", metrics=chosen)
    (table,) = paper_tables(named(*records))
    one = next(row for row in table.rows if "0.653" in row[-9])
    assert [one[-8], one[-4]] == ["0.600", "0.660 *"]
    assert any(
        note.startswith("* ours with hyper-parameters or a threshold chosen by the test labels")
        for note in table.notes
    )
    (honest,) = paper_tables(named(records[0]))
    assert not any(note.startswith("*") for note in honest.notes)


def test_another_normal_class_is_another_problem_where_runs_have_no_class_of_their_own():
    usual, other = (
        made_up(
            metrics={"f1": f1},
            **WITHOUT_CLASS | {"model": "dagmm", "data": "thyroid", "case": case, "overrides": overrides},
        )
        for f1, case, overrides in (
            (0.9, "normal-normal", []),
            (0.1, "normal-hyper", ["normal_class=hyper"]),
        )
    )
    tables = paper_tables(named(usual, other, name="dagmm"))
    assert [table.title.partition("'s")[2] for table in tables] == ["", ", normal_class=hyper"]
    found = [cells_of(table).query("n > 0")[["n", "mean"]].to_numpy().tolist() for table in tables]
    assert found == [[[1, 0.9]], [[1, 0.1]]]
    assert "settings normal_class=hyper" in tables[1].notes[0]
    assert paper_tables([usual])
    assert not paper_tables([other])


def test_other_settings_make_tables_of_their_own_and_are_told():
    short = digit(
        1, 0, 0.6, overrides=["abnormal_class=1", "trainer.max_epochs=1"], epochs_done=1, settings_hash="1"
    )
    tables = paper_tables(named(short, digit(1, 0, 0.7)))
    assert [table.title for table in tables] == [
        "ganomaly_mnist: AUROC beside the paper's",
        "ganomaly_mnist: AUROC beside the paper's, trainer.max_epochs=1",
    ]
    assert "epochs of ganomaly on mnist: ours 1, the paper's 15" in tables[1].notes[0]
    assert "seeds: ours 1, the paper's 3" in tables[0].notes[0]
    assert "epochs" not in tables[0].notes[0]


def test_a_method_that_trains_without_epochs_differs_in_none():
    def note(epochs: int) -> str:
        run = digit(0, model="deep_svdd", protocol="one_vs_rest", epochs_done=epochs)
        (table,) = paper_tables(named(run, name="deep_svdd_mnist"))
        return table.notes[0]

    assert "epochs of" not in note(0)
    assert "epochs of deep_svdd on mnist: ours 3, the paper's not known" in note(3)


def test_runs_without_an_experiment_are_compared_where_they_are_the_papers():
    (table,) = paper_tables([digit(1)])
    assert table.name == "ganomaly_mnist"
    assert {row["method"] for row in rows_of(table)} <= {"GANomaly", ""}
    changed = [
        digit(1, overrides=[text])
        for text in ("model.nz=32", "+model.nz=32", "data.limit=10", "protocol.train_share=0.5")
    ]
    for record in changed:
        assert paper_tables([record]) == []
        assert len(paper_tables(named(record))) == 1
    same = ["data.root=somewhere", "trainer.device=cpu", "trainer.eval_every=1", "hydra/launcher=joblib"]
    (table,) = paper_tables([digit(1, overrides=same)])
    assert table.title == "ganomaly_mnist: AUROC beside the paper's"


def test_runs_of_one_experiment_are_in_no_other_table():
    assert [table.name for table in paper_tables(named(digit(2), name="ganomaly_runtime"))] == [
        "ganomaly_runtime"
    ]
    both = Record(
        digit(2).folder, "finished", digit(2).run | {"experiments": ["a", "ganomaly_mnist"]}, {"auroc": 1}, {}
    )
    assert [table.name for table in paper_tables([both])] == ["ganomaly_mnist"]


def test_the_experiment_asked_for_counts_before_those_recorded():
    (table,) = paper_tables(named(digit(2), name="ganomaly_runtime"), "ganomaly_mnist")
    assert by_class(table)["2"]["clean"] == "0.800"


def test_a_study_of_settings_is_matched_by_the_settings(tmp_path):
    def run(place, seed=0, **model):
        settings = {"nz": 100, "w_adv": 1.0, "w_con": 50.0, "w_enc": 1.0} | model
        lines = "".join(f"  {key}: {value}\n" for key, value in settings.items())
        write_text(tmp_path / place / "config.yaml", f"model:\n{lines}")
        made = digit(2, seed, 0.9, settings_hash=place)
        return Record(tmp_path / place, made.status, made.run, made.metrics, {})

    records = named(run("a"), run("b", nz=32), run("c", w_enc=90.0), name="ganomaly_hyperparameters")
    (table,) = paper_tables(records)
    cells = cells_of(table)
    run_cells = cells[(cells["n"] > 0) & (cells["class"] == "2")]
    assert run_cells["method"].tolist() == [
        *("GANomaly nz=32", "GANomaly nz=100", "GANomaly w_adv=1"),
        *("GANomaly w_con=50", "GANomaly w_enc=1", "GANomaly w_enc=90"),
    ]


def test_a_study_of_a_typed_setting_is_one_table_and_what_else_is_typed_another(tmp_path):
    def run(lambda_, *more):
        place = f"{lambda_}{more}"
        write_text(tmp_path / place / "config.yaml", f"model:\n  lambda_: {lambda_}\n")
        facts = {"model": "rda", "data": "mnist", "protocol": "contaminated", "settings_hash": place}
        overrides = [f"model.lambda_={lambda_}", *more]
        made = made_up("4", 0, 0.9, metrics={"f1": 0.5}, overrides=overrides, **facts)
        return Record(tmp_path / place, made.status, made.run, made.metrics, {})

    records = named(run(0.00035), run(0.00045), run(0.00035, "model.inner_epochs=3"), name="rda_mnist")
    both, other = paper_tables(records)
    for table, lambdas in ((both, ["0.00035", "0.00045"]), (other, ["0.00035"])):
        cells = cells_of(table)
        had = cells[(cells["n"] > 0) & (cells["metric"] == "f1")]
        assert had["method"].unique().tolist() == [f"l2,1 RDA (rows), lambda={value}" for value in lambdas]
    assert "model.inner_epochs=3" in other.title


def test_f1_stands_beside_the_control_s():
    facts = {"model": "dagmm", "data": "thyroid", "protocol": "tabular_half"}
    numbers = {"precision": 0.4, "recall": 0.5, "f1": 0.444, "f1_untrained": 0.385, "auroc_hindsight": 0.9}
    record = made_up(metrics=numbers, **facts | {"class": None, "class_index": None})
    (table,) = paper_tables(named(record, name="dagmm"))
    run = [row for row in rows_of(table) if row["clean"] not in ("", "not run")]
    assert [(row["metric"], row["clean"], row["untrained"]) for row in run] == [
        ("precision", "0.400", ""),
        ("recall", "0.500", ""),
        ("F1", "0.444", "0.385"),
    ]
    assert not any(note.startswith("*") for note in table.notes)
    by_labels = made_up(
        metrics=numbers,
        evaluation={"name": "as_published", "hindsight": True},
        known_ratio=0.025,
        n_distinct=3,
        **facts | {"class": None, "class_index": None},
    )
    (table,) = paper_tables(named(by_labels, name="dagmm"))
    run = [row["as_published"] for row in rows_of(table) if row["as_published"] not in ("", "not run")]
    assert run == ["0.400 *", "0.500 *", "0.444 *"]
    assert any(note.startswith("* ours with hyper-parameters or a threshold") for note in table.notes)
    (own,) = make_tables([by_labels])
    assert any("threshold of the best F1, which the test labels chose" in note for note in own.notes)


@pytest.mark.parametrize(
    ("table", "model", "own", "other", "f1"),
    [
        ("egbad_kddcup99", "egbad_kdd", {"score_method": "cross-e"}, {"score_method": "fm"}, "0.937"),
        ("memae_kddcup99", "memae_kdd", {"memory": 50, "shrink": 1.0}, {"shrink": 0.5}, "0.964"),
        ("memae_kddcup99", "memae_kdd", {"memory": 0}, {"memory": 20}, "0.934"),
    ],
)
def test_kdd_stands_beside_the_papers_own_score_and_sizes(tmp_path, table, model, own, other, f1):
    def shown(settings):
        write_text(tmp_path / "config.yaml", f"model: {settings}\n")
        facts = {"model": model, "data": "kddcup99", "protocol": "tabular_half"}
        made = made_up(metrics={"f1": 0.9}, **facts | {"class": None, "class_index": None})
        record = Record(tmp_path, made.status, made.run, made.metrics, {})
        (found,) = paper_tables(named(record, name=table))
        return [row["paper"] for row in rows_of(found) if row["clean"] == "0.900"]

    assert shown(own) == [f1]
    assert other is None or shown(own | other) == []


def baggage(**facts) -> Record:
    kinds = {"1.abnormal/gun": 0.8, "1.abnormal/gun-part": 0.6, "1.abnormal/knife": 0.7}
    facts = {
        "data": "uba",
        "protocol": "folder",
        "class": None,
        "class_index": None,
        "epochs_done": 25,
    } | facts
    return made_up(auroc=0.75, metrics={"per_class": kinds}, **facts)


def test_folders_are_matched_by_the_kinds_of_anomalies():
    (table,) = paper_tables(named(baggage(), name="ganomaly_xray"))
    ours = [(row["data"], row["class"], row["clean"]) for row in rows_of(table)[:5]]
    assert [own[1:] for own in ours] == [
        *(("gun", "0.800"), ("gun-part", "0.600"), ("knife", "0.700"), ("overall", "0.750")),
        ("overall", "not run"),
    ]
    assert "✓" in str(table.rows)


def test_synthetic_data_reach_nothing():
    (table,) = paper_tables(named(baggage(data_source="synthetic"), name="ganomaly_xray"))
    assert "SYNTHETIC DATA" in table.title
    assert "✓" not in str(table.rows) + table.title
    assert any(note.startswith("SYNTHETIC") for note in table.notes)
    assert not cells_of(table)["reached"].any()


def test_lossy_copies_are_told():
    record = digit(1, data_source="folder", data_formats=[".jpg"])
    (table,) = paper_tables([record])
    assert "class folders of .jpg files (lossy" in table.notes[0]


def test_times_are_shown_and_not_judged():
    records = named(digit(0, 0, metrics={"score_ms_per_image": 1.5}), name="ganomaly_runtime")
    (table,) = paper_tables(records)
    row = next(row for row in table.rows if "1.50" in row)
    assert "2.79" in row
    assert "-1.29" in row
    assert "✓" not in str(table.rows)
    assert {row["method"] for row in rows_of(table)} == {"AnoGAN", "EGBAD", "GANomaly", ""}


def test_a_single_run_shows_its_interval():
    (table,) = paper_tables(named(digit(1, 0, 0.7, metrics={"auroc_interval": [0.69, 0.71]})))
    assert by_class(table)["1"]["clean"] == "0.700 [0.690, 0.710]"
    assert any("bootstrap" in note for note in table.notes)


def test_a_whole_table_fits_a_terminal():
    names = list(CLASS_NAMES["cifar10"])
    records = [
        made_up(
            name, seed, 0.5 + seed / 10, data="cifar10", data_classes=names, class_index=index, evaluation=how
        )
        for index, name in enumerate(names)
        for seed in range(3)
        for how in ({"name": "clean"}, {"name": "as_published"})
    ]
    text = text_of(named(*records, name="ganomaly_cifar10"))
    assert max(map(len, text.splitlines())) <= 120
    assert re.search(r"airplane +0\.618 +0\.600 +3 +-0\.018 ✓ +0\.550 +0\.600 +3 ", text)
    assert text.count("not run") == 2 * 11 * 2 + 1  # baselines, classes and mean, evaluations; and a note


def test_the_report_writes_the_papers_numbers_too(tmp_path):
    kept(tmp_path, *named(digit(1, 0, 0.7), digit(2, 0, 0.95)))
    text = write_report(tmp_path)
    frame = pd.read_csv(tmp_path / "report" / "paper.csv")
    assert "ganomaly_mnist: AUROC beside the paper's" in text
    assert len(frame) == 11
    assert frame["n"].sum() == 3  # and the mean of the two
    assert frame["printed"].min() == 0.536
    assert math.isnan(frame["mean"][0])
    assert "beside the paper" in (tmp_path / "report" / "table.md").read_text(encoding="utf-8")
    assert r"$\surd$" in (tmp_path / "report" / "table.tex").read_text(encoding="utf-8")
