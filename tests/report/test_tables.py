import math
import re
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from anomaly_bench.errors import SettingError
from anomaly_bench.record import Record, write_json
from anomaly_bench.report import formats
from anomaly_bench.report.results import results, tidy
from anomaly_bench.report.tables import make_tables, text_of, write_report

CLASSES = ["cat", "dog", "owl"]
CLEAN = {"name": "clean", "epoch": "last"}
WITHOUT_CLASS = {"protocol": "tabular_half", "class": None, "class_index": None}
"""Of a run whose problem only its case names."""


def made_up(cls="cat", seed=0, auroc=0.5, status="finished", metrics=None, failure=None, **facts) -> Record:
    """A record of ganomaly on `pets`, but for what is said."""
    run = {
        "model": "ganomaly",
        "data": "pets",
        "protocol": "leave_one_class_out",
        "case": f"abnormal-{cls}",
        "class": cls,
        "class_index": CLASSES.index(cls) if cls in CLASSES else 0,
        "seed": seed,
        "evaluation": CLEAN,
        "settings_hash": "00aa00aa",
        "overrides": [],
        "data_source": "torchvision",
        "data_fingerprint": "f00d",
        "data_classes": CLASSES,
        "epochs_done": 15,
        "device": "cpu",
        "precision": "bf16",
        "versions": {"torch": "2.15.0"},
        "machine": {"cpu": "a processor"},
        "git": "0123abc-dirty",
        "finished": "2025-01-01T00:00:00+00:00",
        "control": "no gradient epochs",
    } | facts
    numbers = {"auroc": auroc, "auroc_untrained": 0.55, "per_class": {}} | (metrics or {})
    return Record(
        Path(f"{run['model']}-{cls}-{seed}"),
        status,
        run,
        numbers if status == "finished" else {},
        failure or {},
    )


def table_of(*records: Record) -> formats.Table:
    (table,) = make_tables(records)
    return table


def rows_of(table: formats.Table) -> list[dict[str, str]]:
    return [dict(zip(table.headers, row, strict=True)) for row in table.rows]


def notes_of(table: formats.Table) -> str:
    return "\n".join(table.notes)


def test_mean_and_sample_deviation_by_hand():
    table = table_of(*(made_up("cat", seed, auroc) for seed, auroc in enumerate((0.80, 0.90, 0.85))))
    assert rows_of(table)[0] == {
        **{"model": "ganomaly", "evaluation": "clean", "n": "3", "epochs": "15"},
        "cat": "0.850 ± 0.050",
    }


def test_the_mean_over_classes_is_of_their_means():
    records = [made_up("owl", 0, 0.9), made_up("dog", 0, 0.7), made_up("cat", 0, 0.4), made_up("cat", 1, 0.6)]
    table = table_of(*records)
    assert table.headers == ["model", "evaluation", "n", "epochs", "cat", "dog", "owl", "mean"]
    row = rows_of(table)[0]
    assert row["mean"] == "0.700"  # (0.5 + 0.7 + 0.9) / 3; no deviation, for seed 1 has one class only
    assert row["cat"] == "0.500 ± 0.141"
    assert row["n"] == "1–2"


def test_the_deviation_of_the_mean_is_over_seeds():
    aurocs = {
        ("cat", 0): 0.5,
        ("cat", 1): 0.6,
        ("dog", 0): 0.9,
        ("dog", 1): 0.8,
        ("owl", 0): 0.7,
        ("owl", 1): 1,
    }
    table = table_of(*(made_up(cls, seed, auroc) for (cls, seed), auroc in aurocs.items()))
    assert rows_of(table)[0]["mean"] == "0.750 ± 0.071"  # 0.7 and 0.8


def test_a_mean_over_some_classes_is_marked():
    part = table_of(made_up("cat", 0, 0.5), made_up("dog", 0, 0.7))
    assert rows_of(part)[0]["mean"] == "0.600 †"
    assert rows_of(part)[0]["cat"] == "0.500"
    assert "† where these are not all 3" in notes_of(part)
    whole = table_of(*(made_up(cls) for cls in CLASSES))
    assert "†" not in str(whole.rows)


def test_a_class_called_mean_is_no_mean():
    assert rows_of(table_of(made_up("mean")))[0]["mean"] == "0.500"


def test_control_and_best_epoch_have_rows_of_their_own():
    records = [made_up("cat", seed, 0.7, metrics={"auroc_best_epoch": 0.9 + seed / 50}) for seed in (0, 1)]
    table = table_of(*records)
    assert [row["model"] for row in rows_of(table)] == ["ganomaly", "· untrained", "· best epoch *"]
    assert [row["cat"] for row in rows_of(table)] == ["0.700 ± 0.000", "0.550 ± 0.000", "0.910 ± 0.014"]
    assert re.search(r"\* best epoch: .* seen the test labels", notes_of(table))
    assert "no gradient epochs: ganomaly" in notes_of(table)


def test_the_interval_of_a_single_run_has_rows_and_a_note_and_that_of_one_of_several_seeds_neither():
    one, other = (made_up(seed=seed, metrics={"auroc_interval": [0.4, 0.6]}) for seed in (0, 1))
    single, several = table_of(one), table_of(one, other)
    assert [row["model"] for row in rows_of(single)][1:3] == ["· 95 % from", "· 95 % to"]
    assert "95 % from, to" in notes_of(single)
    assert "95 %" not in f"{rows_of(several)} {notes_of(several)}"


def test_settings_that_came_later_and_the_precision_of_a_machine_make_no_row(tmp_path):
    def record(seed: int, digest: str, config: str, **facts: object) -> Record:
        one = made_up(seed=seed, settings_hash=digest, **facts)
        (tmp_path / digest).mkdir()
        (tmp_path / digest / "config.yaml").write_text(f"seed: {seed}\n{config}", encoding="utf-8")
        return replace(one, folder=tmp_path / digest)

    before = record(0, "a", "model: {width: 3}\nevaluation: {epoch: last}\n")
    later = "model: {width: 3, jitter: 1.0e-06}\nevaluation: {epoch: last, validation: null}\n"
    after = record(1, "b", f"{later}trainer: {{device: cuda}}\n", precision="fp32")
    (row,) = rows_of(table_of(before, after))[:1]
    assert row["n"] == "2"
    assert len({row["settings"] for row in rows_of(table_of(before, after)) if "settings" in row}) <= 1
    other = record(2, "c", "model: {width: 3, jitter: 0.1}\nevaluation: {epoch: last}\n")
    moved = record(3, "d", later, data_fingerprint="beef")
    odd = record(4, "e", "protocol: of a stranger\ntrainer: [1]\n")
    assert "default (e)" in {row["settings"] for row in rows_of(table_of(before, odd))}
    assert {row["settings"] for row in rows_of(table_of(before, after, other, moved))} >= {
        "default (a)",
        "default (c)",
        "default (d)",
    }


def test_a_switch_of_the_evaluation_that_all_share_is_shown():
    records = [made_up(seed=seed, overrides=["evaluation.epoch=best_test", "model.x=1"]) for seed in (0, 1)]
    assert rows_of(table_of(*records))[0]["settings"] == "evaluation.epoch=best_test"


def test_what_hindsight_reached_has_a_row_and_columns_of_its_own(tmp_path):
    records = [made_up("cat", seed, 0.7, metrics={"auroc_hindsight": 0.9 + seed / 50}) for seed in (0, 1)]
    table = table_of(*records)
    assert [row["model"] for row in rows_of(table)] == ["ganomaly", "· untrained", "· hindsight *"]
    assert rows_of(table)[-1]["cat"] == "0.910 ± 0.014"
    assert re.search(r"\* hindsight: .* seen the test labels", notes_of(table))
    for name, record in (("with", records[0]), ("without", made_up())):
        kept(tmp_path / name, record)
        write_report(tmp_path / name)
        report = tmp_path / name / "report"
        assert ("hindsight_mean" in pd.read_csv(report / "table.csv")) == (name == "with")
        assert ("hindsight *" in (report / "index.html").read_text(encoding="utf-8")) == (name == "with")
    kept(tmp_path / "mixed", made_up("dog"), records[0])
    write_report(tmp_path / "mixed")
    assert pd.read_csv(tmp_path / "mixed/report/table.csv")["hindsight_mean"].max() == 0.9


def test_rows_with_features_of_other_images_are_marked():
    records = [made_up("cat", 0, 0.9, model="pretrained", pretrained=True), made_up("cat", 0, 0.7)]
    (note,) = [note for note in make_tables(records)[0].notes if note.startswith("Not comparable")]
    assert note.startswith(
        "Not comparable with the others: pretrained. Their features were learned on other images"
    )
    assert not any("comparable" in note for note in make_tables(records[1:])[0].notes)


def test_methods_that_learn_from_the_test_rows_are_named():
    records = [made_up(model="ocsvm", transductive=True), made_up(model="ae")]
    assert "Learned from the test rows themselves, without labels: ocsvm." in notes_of(table_of(*records))
    assert "Learned from the test rows" not in notes_of(table_of(records[1]))


def test_what_pixels_are_measured_on_is_told_where_they_are():
    assert "pixels: AUROC of all pixels" in notes_of(table_of(made_up(metrics={"auroc_pixel": 0.9})))
    assert "pixels" not in notes_of(table_of(made_up()))


def test_what_is_known_of_a_table_of_numbers_is_told():
    told = notes_of(table_of(made_up(n_distinct=90, n_missing=7, data_note="Of 1999.", known_ratio=0.025)))
    assert "pets: Of 1999." in told
    assert "pets: 7 missing numbers became medians of their columns' training rows." in told
    assert "pets: precision, recall and F1 call the 0.025 of the test rows" in told


def test_without_evaluated_epochs_there_is_no_best_epoch():
    table = table_of(made_up())
    assert "best epoch" not in str(table.rows) + notes_of(table)


def test_missing_failed_and_unfinished_runs_are_told():
    table = table_of(
        *(made_up("cat", 0), made_up("cat", 1), made_up("dog", 0)),
        made_up("owl", 0, status="unfinished"),
        made_up("dog", 1, status="failed", failure={"error": "the loss became NaN"}),
    )
    assert rows_of(table)[0]["dog"] == "0.500"
    assert "FAILED: ganomaly-dog-1: the loss became NaN" in notes_of(table)
    assert "Missing from ganomaly, clean: 3 of 6 runs: dog (seed 1), owl (seed 0), owl (seed 1)" in notes_of(
        table
    )
    assert "Unfinished: ganomaly-owl-0" in notes_of(table)


@pytest.mark.parametrize(("number", "told"), [(10, "9."), (11, "9 and 1 more.")])
def test_of_many_unfinished_runs_ten_are_named(number, told):
    runs = [made_up("cat"), *(made_up("dog", seed, status="unfinished") for seed in range(number))]
    (note,) = [note for note in table_of(*runs).notes if note.startswith("Unfinished")]
    assert note.startswith("Unfinished: ganomaly-dog-0, ganomaly-dog-1, ")
    assert note.endswith(f"ganomaly-dog-{told}")


def test_a_class_one_method_lacks_is_a_dash():
    table = table_of(made_up("cat"), made_up("dog"), made_up("cat", model="ae"))
    assert [row["dog"] for row in rows_of(table) if row["model"] == "ae"] == ["–"]


def test_a_class_has_one_column_wherever_it_stands_in_the_data():
    bottle = made_up("cat", class_index=0, data_classes=["cat", "dog"], data_fingerprint="one")
    others = [made_up("cat", 1, class_index=1, data_classes=["ant", "cat"]), made_up("dog", 0, class_index=1)]
    assert table_of(bottle, *others).headers.count("cat") == 1


def test_another_evaluation_that_asked_for_the_same_numbers_has_a_row_and_a_note():
    table = table_of(made_up(evaluations=["as_published"]))
    assert {row["evaluation"] for row in rows_of(table) if row["evaluation"]} == {"clean", "as_published"}
    assert all(f"Evaluation {name} (ganomaly): " in notes_of(table) for name in ("clean", "as_published"))


def test_only_failures_make_a_table_without_rows():
    table = table_of(made_up(status="failed", failure={"error": "no memory"}))
    assert table.rows == []
    assert all("no memory" in form(table) for form in (formats.text, formats.markdown, formats.latex))


def test_settings_are_told_by_the_overrides_that_differ():
    records = [
        made_up(
            settings_hash="1", overrides=["model=ganomaly", "+model.nz=20", "trainer.max_epochs=3", "seed=0"]
        ),
        made_up(
            settings_hash="2", overrides=["model=ganomaly", "trainer.max_epochs=3", "abnormal_class=cat"]
        ),
    ]
    assert [row["settings"] for row in rows_of(table_of(*records))[::2]] == ["default", "model.nz=20"]


def test_methods_on_other_parts_of_the_data_are_told_apart():
    short, long = ["data.limit=500", "trainer.max_epochs=1"], ["trainer.max_epochs=20"]
    records = [
        made_up(model="ae", settings_hash="1", overrides=short),
        made_up(model="ae", settings_hash="2", overrides=long),
        made_up(model="knn", settings_hash="3", overrides=short),
    ]
    settings = {
        (row["model"], row["settings"]) for row in rows_of(table_of(*records)) if row["model"][0] != "·"
    }
    assert settings == {
        ("ae", "data.limit=500, trainer.max_epochs=1"),
        ("ae", "trainer.max_epochs=20"),
        ("knn", "data.limit=500"),
    }


def test_the_rows_and_what_all_runs_were_told_of_the_data_are_below_the_table():
    told = ["data.limit=500", "data.download=False", "protocol.rho=0.1", "model.nz=3"]
    short = made_up(model="ae", n_train=1400, n_test=50, overrides=told)
    shorter = made_up(model="knn", n_train=1000, n_test=50, overrides=told)
    expected = "Rows: 1,000–1,400 in training, 50 in the test (data.limit=500, protocol.rho=0.1)."
    assert expected in notes_of(table_of(short, shorter))
    assert "Rows: 1,400 in training, 50 in the test." in notes_of(
        table_of(short, made_up("dog", n_train=1400, n_test=50))
    )
    assert "Rows: " not in notes_of(table_of(short, made_up("dog", n_train=None)))


def test_how_a_sweep_was_launched_tells_no_settings_apart():
    one, other = (["model.nz=20"], ["hydra/launcher=joblib", "hydra.job.num=1"])
    records = [made_up(settings_hash="1", overrides=one), made_up(settings_hash="2", overrides=other)]
    assert [row["settings"] for row in rows_of(table_of(*records))[::2]] == ["default", "model.nz=20"]


def test_a_class_that_the_data_do_not_name_comes_after_those_they_do():
    names = ["0.normal", "1.abnormal/gun"]
    facts = {"protocol": "folder", "class": None, "class_index": None, "data_classes": names}
    table = table_of(made_up(metrics={"per_class": {"another": 0.6, "1.abnormal/gun": 0.8}}, **facts))
    assert table.headers[4:] == ["1.abnormal/gun", "another", "overall"]


def test_cases_without_a_class_of_their_own_are_no_seeds():
    cats, dogs = (
        made_up(auroc=area, case=f"normal-{cls}", overrides=[f"normal_class={cls}"], **WITHOUT_CLASS)
        for cls, area in (("cat", 0.9), ("dog", 0.1))
    )
    shown = [
        (row["settings"], row["n"], row["overall"]) for row in rows_of(make_tables([cats, dogs])[0])[::2]
    ]
    assert shown == [("normal-cat", "1", "0.900"), ("normal-dog", "1", "0.100")]
    assert "settings" not in table_of(cats).headers


def test_a_case_is_told_of_each_method_where_they_differ():
    one, other = (
        made_up(model=model, case=case, **WITHOUT_CLASS) for model, case in (("ae", "normal-cat"), ("b", "c"))
    )
    assert [row["settings"] for row in rows_of(table_of(one, other))[::2]] == ["normal-cat", "c"]


def test_settings_that_overrides_do_not_tell_apart_show_their_hash():
    records = [made_up(settings_hash="1"), made_up(settings_hash="2")]
    assert [row["settings"] for row in rows_of(table_of(*records))[::2]] == ["default (1)", "default (2)"]


def test_of_two_runs_of_the_same_thing_the_newest_counts():
    old = made_up(auroc=0.1, finished="2024-01-01T00:00:00+00:00")
    table, left_out = make_tables([made_up(auroc=0.9), old])
    assert rows_of(table)[0]["cat"] == "0.900"
    assert "a newer run" in notes_of(left_out)


def test_a_run_without_a_readable_record_is_told():
    (left_out,) = make_tables([Record(Path("lost"), "finished", {}, {}, {})])
    assert left_out.notes == ["Left out: lost: its run.json cannot be read."]


def test_a_class_of_which_no_run_is_finished_is_a_hole():
    table = table_of(made_up("cat"), made_up("dog", status="failed", failure={"error": "x"}), made_up("owl"))
    assert table.headers[-4:] == ["cat", "dog", "owl", "mean"]
    assert table.rows[0][-3] == "–"
    assert any("Missing from" in note and "dog" in note for note in table.notes)


def test_a_finished_run_counts_before_one_that_failed_later():
    failed = made_up(
        status="failed", failure={"error": "x"}, finished=None, started="2026-01-01T00:00:00+00:00"
    )
    table, _ = make_tables([made_up(auroc=0.9), failed])
    assert rows_of(table)[0]["cat"] == "0.900"


def test_evaluations_stand_beside_each_other_and_say_their_switches():
    leaky = {"name": "as_published", "epoch": "best_test"}
    table = table_of(made_up(auroc=0.6), made_up(auroc=0.8, evaluation=leaky, settings_hash="1"))
    assert [(r["evaluation"], r["cat"]) for r in rows_of(table)[::2]] == [
        ("as_published", "0.800"),
        ("clean", "0.600"),
    ]
    assert re.search(
        r"as_published \(ganomaly\): epoch=best_test; .* chosen by the test labels", notes_of(table)
    )


def test_folders_have_their_sub_classes_and_overall():
    names = ["0.normal", "1.abnormal/gun", "1.abnormal/axe"]
    areas = [{"1.abnormal/axe": 0.8, "1.abnormal/gun": 0.6}, {"1.abnormal/axe": 0.9, "1.abnormal/gun": 0.6}]
    facts = {"protocol": "folder", "class": None, "class_index": None, "data_classes": names}
    table = table_of(*(made_up(seed=s, auroc=0.7, metrics={"per_class": areas[s]}, **facts) for s in (0, 1)))
    assert table.headers[4:] == ["1.abnormal/gun", "1.abnormal/axe", "overall"]
    assert table.rows[0][4:] == ["0.600 ± 0.000", "0.850 ± 0.071", "0.700 ± 0.000"]
    assert table.rows[1][4:] == ["–", "–", "0.550 ± 0.000"]


def test_provenance_is_below_the_table_and_synthetic_data_are_loud():
    told = notes_of(table_of(made_up()))
    for part in (
        "Seeds: 0",
        "torchvision",
        "f00d",
        "cpu, bf16",
        "a processor",
        "torch 2.15.0",
        "0123abc-dirty",
    ):
        assert part in told
    table = table_of(made_up(data_source="synthetic"))
    assert "SYNTHETIC DATA" in table.title
    assert "SYNTHETIC" in notes_of(table)
    assert "class folders" in notes_of(table_of(made_up(data_source="folder")))
    jpeg = notes_of(table_of(made_up(data_source="folder", data_formats=[".jpg"])))
    assert "class folders of .jpg files (lossy" in jpeg
    assert "lossy" not in notes_of(table_of(made_up(data_source="folder", data_formats=[".png"])))
    for suffix in (".jpeg", ".webp"):
        mixed = made_up(data_source="folder", data_formats=[".png", suffix])
        assert "(lossy" in notes_of(table_of(mixed))
    one_of_two = table_of(made_up("cat"), made_up("dog", data_source="synthetic"))
    assert "SYNTHETIC DATA" in one_of_two.title


def test_runs_on_different_data_are_told():
    table = table_of(made_up("cat"), made_up("dog", data_fingerprint="beef"))
    assert "did not all see the same data" in notes_of(table)


@pytest.mark.parametrize(
    "facts", [{}, {"n_test_seen_in_training": 3, "n_test": 0}, {"n_test_seen_in_training": 3}]
)
def test_a_damaged_record_of_a_table_of_numbers_stops_no_report(facts):
    whole = {"n_distinct": 90, "n_test_seen_in_training": 3, "n_test": 12}
    told = notes_of(table_of(made_up(seed=0, **whole), made_up(seed=1, n_distinct=90, **facts)))
    assert told.count("rows come in the training rows too") == 1
    assert "pets: about 25% of the test rows" in told


def test_the_share_of_repeated_rows_is_one_line_for_all_splits():
    of = {"n_distinct": 90, "n_test": 100}
    runs = [made_up(seed=seed, n_test_seen_in_training=seen, **of) for seed, seen in enumerate((4, 2, 3))]
    told = notes_of(table_of(*runs))
    assert told.count("rows come in the training rows too") == 1
    assert "pets: about 2–4% of the test rows come in" in told


def test_one_line_a_cell():
    records = [made_up("cat", 0, 0.5), made_up("cat", 1, 0.7), made_up("dog", 0, 0.9)]
    cat, dog, mean = tidy(results(records))
    assert (cat["class"], cat["n"], cat["mean"]) == ("cat", 2, pytest.approx(0.6))
    assert cat["std"] == pytest.approx(math.sqrt(0.02))
    assert (dog["untrained_mean"], dog["best_epoch_mean"]) == (0.55, pytest.approx(math.nan, nan_ok=True))
    assert (mean["class"], mean["mean"], mean["n"]) == ("mean", pytest.approx(0.75), 2)


HOSTILE = 'a|b_%<x>\\$&#{}~^*[]`"\n\x1b[31m'


def test_markdown_keeps_its_columns():
    lines = formats.markdown(table_of(made_up(HOSTILE), made_up("dog", model=HOSTILE))).splitlines()
    bars = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines if line.startswith("|")}
    assert bars == {len(table_of(made_up("cat"), made_up("dog", model="x")).headers) + 1}
    assert "a\\|b\\_%\\<x\\>" in lines[2]
    assert "\x1b" not in "".join(lines)


def test_latex_escapes_every_special_character():
    table = table_of(made_up(HOSTILE), made_up("dog", model=HOSTILE))
    text = formats.latex(table)
    header = text[text.index("\\toprule") : text.index("\\midrule")]
    escaped = (
        r"a\textbar{}b\_\%\textless{}x\textgreater{}\textbackslash{}\$\&\#\{\}\textasciitilde{}"
        r"\textasciicircum{}{*}{[}{]}"
    )
    assert escaped in header
    for line in text[text.index("\\toprule") : text.index("\\bottomrule")].splitlines()[1:]:
        if "&" in line:
            assert len(re.findall(r"(?<!\\)&", line)) == len(table.headers) - 1
    assert "\\begin{tabular}{llllrr}" in text
    assert text.isascii()


def test_text_fits_a_terminal():
    names = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    records = [
        made_up(name, seed, 0.5 + seed / 100, class_index=number, data_classes=names, evaluation=evaluation)
        for number, name in enumerate(names)
        for seed in range(3)
        for evaluation in (CLEAN, {"name": "as_published"})
    ]
    text = "\n".join(map(formats.text, make_tables(records)))
    assert max(map(len, text.splitlines())) <= 120
    assert "automobile" in text
    assert "±.010" in text


def test_text_has_every_setting_that_tells_rows_apart():
    told = {lr: [f"data.limit={lr}00", f"model.lr={lr}", f"trainer.max_epochs={lr}0"] for lr in (1, 2)}
    records = [made_up(settings_hash=f"{lr}", overrides=overrides) for lr, overrides in told.items()]
    lines = [line.split("  ")[0].removesuffix(",") for line in formats.text(table_of(*records)).splitlines()]
    assert [line for line in lines if re.fullmatch(r"[a-z._]+=\w+", line)] == [*told[1], *told[2]]


def test_where_a_run_was_computed_is_no_part_of_its_name():
    typed = [["model.lr=1"], ["model.lr=2", "trainer.device=cuda", "data.download=False"]]
    records = [made_up(overrides=overrides, settings_hash=overrides[0]) for overrides in typed]
    named = {row["settings"] for row in rows_of(table_of(*records)) if row["settings"]}
    assert named == {"model.lr=1", "model.lr=2"}


def test_long_names_are_cut_before_a_table_is_parted():
    names = [f"number {number} of the long-named classes" for number in range(8)]
    records = [made_up(name, class_index=number, data_classes=names) for number, name in enumerate(names)]
    text = formats.text(table_of(*records))
    assert max(map(len, text.splitlines())) <= 120
    assert text.count("n  epochs") == 1
    assert "numb…ses" in text


def test_text_of_many_classes_comes_in_blocks():
    names = [f"class number {number}" for number in range(20)]
    records = [made_up(name, class_index=number, data_classes=names) for number, name in enumerate(names)]
    text = formats.text(table_of(*records))
    assert max(map(len, text.splitlines())) <= 120
    assert text.count("n  epochs") > 1
    headers = " ".join(line for line in text.splitlines() if line.startswith("model"))
    assert [int(number) for number in re.findall(r"\d+", headers)] == list(range(20))
    assert len(re.findall(r"\b0\.500\b", text)) == 21


def test_titles_and_notes_are_escaped_like_cells():
    failed = made_up("dog", data=HOSTILE, status="failed", failure={"error": HOSTILE})
    table = table_of(made_up(data=HOSTILE), failed)
    markdown, latex = formats.markdown(table), formats.latex(table)
    assert markdown.count("<x>") == 0
    assert markdown.count("\\<x\\>") == 2
    assert latex.count("b_%") == 0
    assert latex.count(r"b\_\%") == 2


def test_text_holds_no_terminal_codes():
    assert "\x1b" not in formats.text(table_of(made_up(data=HOSTILE)))
    assert "\x1b" not in formats.text(table_of(made_up(HOSTILE), made_up("dog", model=HOSTILE)))


def kept(runs: Path, *records: Record) -> None:
    for number, record in enumerate(records):
        folder = runs / f"run{number}"
        write_json(folder / "run.json", record.run)
        if record.status == "finished":
            write_json(folder / "metrics.json", record.metrics)
        if record.status == "failed":
            write_json(folder / "error.json", record.failure)


def test_a_report_is_written_from_the_folders_alone(tmp_path):
    kept(
        tmp_path,
        made_up("cat", 0, 0.9),
        made_up("dog", 0, 0.8),
        made_up("owl", status="failed", failure={"error": "x"}),
    )
    write_json(tmp_path / "lost" / "error.json", {"error": "no such folder"})
    text = write_report(tmp_path)
    again = write_report(tmp_path)
    report = tmp_path / "report"
    assert text == again
    assert "0.900" in text
    assert "FAILED: lost: no such folder" in text
    assert {str(path.relative_to(report)) for path in report.rglob("*") if path.is_file()} == {
        *("table.csv", "table.md", "table.tex", "index.html"),
        *(f"figures/pets-leave_one_class_out-classes.{kind}" for kind in ("png", "svg")),
    }
    cells = pd.read_csv(report / "table.csv")
    assert cells[["class", "mean"]].to_numpy().tolist() == [
        ["cat", 0.9],
        ["dog", 0.8],
        ["mean", pytest.approx(0.85)],
    ]
    assert "0.850 †" in (report / "table.md").read_text(encoding="utf-8")
    assert "\\toprule" in (report / "table.tex").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["mean", "overall"])
def test_a_class_called_as_a_line_over_all_classes_is_told_from_it(tmp_path, name):
    if name == "mean":
        kept(tmp_path, made_up("mean", 0, 0.9), made_up("dog", 0, 0.8))
    else:
        kept(tmp_path, made_up(metrics={"per_class": {"overall": 0.9, "dog": 0.8}}, **WITHOUT_CLASS))
    write_report(tmp_path)
    cells = pd.read_csv(tmp_path / "report" / "table.csv")
    assert cells.columns[-1] == "whole"
    assert not cells.duplicated(["class", "whole"]).any()
    assert cells.loc[cells["whole"], "class"].tolist() == [name]


def test_the_text_of_some_records_alone():
    text = text_of([made_up("cat", 0, 0.9), made_up("cat", 0, 0.8, data="birds")])
    assert re.findall(r"^AUROC on (\w+)", text, re.MULTILINE) == ["birds", "pets"]
    assert "0.900" in text


def test_a_report_elsewhere(tmp_path):
    kept(tmp_path / "runs", made_up())
    write_report(tmp_path / "runs", tmp_path / "out")
    assert (tmp_path / "out" / "table.csv").exists()
    assert not (tmp_path / "runs" / "report").exists()


def test_no_runs_is_refused_by_name(tmp_path):
    with pytest.raises(SettingError, match=re.escape(f"runs_dir={tmp_path}")):
        write_report(tmp_path)
