import json
import os
import re
import signal
import subprocess
import sys
import time
from importlib import metadata
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.torch import load_file
from sklearn.datasets import load_digits

from anomaly_bench import cli, jobs, record
from anomaly_bench.cli import answer
from anomaly_bench.commands import COMMANDS
from anomaly_bench.errors import SettingError
from anomaly_bench.jobs import leave_note
from anomaly_bench.report.pictures import draw_run

TINY = [
    *("data=digits", "data.limit=150", "data.image_size=16"),
    *("model.ngf=4", "model.ndf=4", "model.nz=8", "model.epochs=2", "model.batch_size=16"),
]
METRICS = (
    *(
        "auroc",
        "auroc_untrained",
        "auroc_interval",
        "aupr_in",
        "aupr_out",
        "average_precision",
        "eer",
        "threshold",
        "precision",
    ),
    *(
        "recall",
        "specificity",
        "f1",
        "per_class",
        "train_seconds",
        "train_images_per_s",
        "score_ms_per_image",
    ),
    *("n_train", "n_test", "n_anomalous"),
)


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys, undrawn):
    """Calls the command line in an empty folder; gives exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    for name in ("ANOMALY_BENCH_DEBUG", "ANOMALY_BENCH_SWEEP", "ANOMALY_BENCH_DATA", "HYDRA_FULL_ERROR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["anomaly-bench", *arguments])
        monkeypatch.delenv("ANOMALY_BENCH_SWEEP", raising=False)
        try:
            code = answer(list(arguments))
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        shown = capsys.readouterr()
        return code, shown.out, shown.err

    return call


def only_run(folder: str = "runs") -> Path:
    (found,) = [path.parent for path in Path(folder).glob("*/metrics.json")]
    return found


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def evaluations_of(run: Path) -> list[str]:
    """The evaluation that made the run, then those that asked for it again."""
    kept = read(run / "run.json")
    return [kept["evaluation"]["name"], *kept.get("evaluations", [])]


def digit_folders(root: Path, size: int = 16) -> None:
    """Digits 0 as normal, 1 and 7 as two kinds of anomaly, in GANomaly's layout."""
    images, labels = load_digits(return_X_y=True)
    counts: dict[int, int] = {}
    for pixels, label in zip(images, labels, strict=True):
        counts[label] = number = counts.get(label, -1) + 1
        place = {0: "train/0.normal" if number < 60 else "test/0.normal"}.get(label)
        place = place or {1: "test/1.abnormal/one", 7: "test/1.abnormal/seven"}.get(label)
        if place is None or number > 90:
            continue
        path = root / place / f"{number:03}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        grey = Image.fromarray((pixels.reshape(8, 8) * 15.9).astype(np.uint8))
        grey.resize((size, size), Image.Resampling.BILINEAR).save(path)


def test_one_run_leaves_all_its_files(bench, monkeypatch):
    monkeypatch.setattr("anomaly_bench.run.draw_run", draw_run)
    code, out, _ = bench("model=ganomaly", *TINY, "abnormal_class=3")
    assert code == 0
    run = only_run()
    assert run.name.startswith("digits-leave_one_class_out-ganomaly-abnormal-3-seed0-")
    assert str(run) in out

    metrics = read(run / "metrics.json")
    assert [name for name in METRICS if name not in metrics] == []
    assert "auroc_best_epoch" not in metrics
    assert f"AUROC {metrics['auroc']:.3f}, untrained {metrics['auroc_untrained']:.3f}" in out
    scores = pd.read_csv(run / "scores.csv")
    assert list(scores) == ["row", "class", "label", "score"]
    assert len(scores) == metrics["n_test"]
    assert scores["label"].sum() == metrics["n_anomalous"]
    assert (scores["label"] == (scores["class"] == 3)).all()
    losses = pd.read_csv(run / "losses.csv")
    assert losses["epoch"].tolist() == [1, 2]
    assert {"adv", "con", "enc", "d"} <= set(losses)
    provenance = read(run / "run.json")
    assert provenance["n_train"] == metrics["n_train"]
    for name in ("versions", "device", "precision", "data_fingerprint", "data_source", "settings_hash"):
        assert provenance[name]
    assert (run / "config.yaml").exists()
    assert (run / "model.safetensors").exists()
    pictures = {path.stem for path in (run / "figures").glob("*.png")}
    assert pictures == {"scores", "roc_and_pr", "losses", "reconstructions", "features"}
    assert not [path for path in run.rglob("*") if "checkpoint" in path.name or path.name.startswith(".")]


def test_a_finished_run_without_its_weights_is_still_finished(bench):
    bench(*TINY)
    run = only_run()
    (run / "model.safetensors").unlink()
    before = (run / "metrics.json").read_text()
    code, _, err = bench(*TINY)
    assert code == 0
    assert "its weights are gone; rerun=true makes them again" in err
    assert (run / "metrics.json").read_text() == before
    assert not (run / "model.safetensors").exists()


def test_jobs_that_come_to_one_run_leave_no_word_of_another(bench):
    code, out, _ = bench(
        "-m", *TINY, "evaluation=clean", "normal_class=1,2", "abnormal_class=0", "hydra.launcher.n_jobs=1"
    )
    assert code == 0
    assert "newer run" not in out


def test_a_finished_run_is_not_computed_again_unless_asked(bench):
    bench("model=ganomaly", *TINY)
    metrics = only_run() / "metrics.json"
    before = metrics.stat().st_mtime_ns
    code, _, err = bench("model=ganomaly", *TINY)
    assert (code, metrics.stat().st_mtime_ns) == (0, before)
    assert "finished already" in err
    bench("model=ganomaly", *TINY, "rerun=true")
    assert metrics.stat().st_mtime_ns > before


def test_the_same_seed_gives_the_same_scores_and_another_seed_others(bench):
    for folder, seed in (("a", 0), ("b", 0), ("c", 1)):
        bench("model=ganomaly", *TINY, f"runs_dir={folder}", f"seed={seed}")
    a, b, c = (pd.read_csv(only_run(folder) / "scores.csv")["score"].to_numpy() for folder in "abc")
    assert (a == b).all()
    assert not np.array_equal(a, c)


def test_the_score_has_the_right_sign(bench):
    """Recomputed from `scores.csv`, the AUROC is the one in `metrics.json`, and anomalous is positive."""
    bench("model=ganomaly", *TINY)
    scores = pd.read_csv(only_run() / "scores.csv")
    normal, anomalous = (scores["score"][scores["label"] == kind].to_numpy() for kind in (0, 1))
    above = (anomalous[:, None] > normal).mean() + 0.5 * (anomalous[:, None] == normal).mean()
    assert read(only_run() / "metrics.json")["auroc"] == pytest.approx(above)


def test_a_sweep_ends_with_its_table(bench):
    code, out, _ = bench(
        "-m", "model=ganomaly,ae", *TINY[:3], "abnormal_class=range(2)", "seed=0,1", "trainer.max_epochs=1"
    )
    assert code == 0
    assert len(list(Path("runs").glob("*/metrics.json"))) == 8
    assert "AUROC on digits, leave_one_class_out" in out
    table = out[out.index("AUROC on digits") :]
    assert "ganomaly" in table
    assert "untrained" in table
    assert "±" in table


def test_a_sweep_over_models_takes_a_key_of_theirs_that_the_default_one_has_not(bench):
    data = ["data=digits", "data.limit=100", "trainer.max_epochs=1", "hydra.launcher.n_jobs=1"]
    code, out, _ = bench("-m", *data, "model=vae_dense,ae_dense", "model.hidden=[4]", "seed=0")
    assert code == 0
    assert "vae_dense" in out
    runs = [read(path) for path in Path("runs").glob("*/run.json")]
    assert [("model.hidden=[4]" in run["overrides"]) for run in runs] == [True, True]
    code, out, err = bench("-m", *data, "model=vae_dense,knn", "model.hiden=[4]")
    assert (code, out) == (2, "")
    assert "model.hiden" in err
    code, out, _ = bench("-m", *data, "model=vae_dense,knn", "model.hidden=[5]")
    assert code == 1
    assert "model=knn model.hidden=[5]: model.hidden=[5]: no such setting; there are " in out


def test_one_failing_job_does_not_take_the_others_with_it(bench):
    code, out, err = bench("-m", "model=ganomaly", *TINY, "abnormal_class=0,77")
    assert code == 1
    assert only_run().name.startswith("digits-leave_one_class_out-ganomaly-abnormal-0")
    assert "AUROC on digits" in out
    assert "failed: " in out
    assert "abnormal_class=77" in out
    assert "Traceback" not in out + err
    (told,) = Path("runs").glob("failed-*/error.json")
    assert "abnormal_class=77" in read(told)["error"]
    assert "FAILED: failed-" in bench("report")[1]


def test_a_failure_is_recorded_until_the_same_job_is_well(tmp_path, monkeypatch):
    monkeypatch.setenv("ANOMALY_BENCH_SWEEP", "one")
    told = ["model=ae", "seed=1", "hydra.launcher.n_jobs=2"]
    leave_note(str(tmp_path), 0, {"overrides": told, "error": "no data"})
    (substitute,) = tmp_path.glob("failed-*")
    assert read(substitute / "error.json") == {"overrides": told, "error": "no data"}
    leave_note(str(tmp_path), 0, {"overrides": ["model=ae", "seed=2"], "folder": str(tmp_path / "run")})
    assert substitute.exists()
    leave_note(str(tmp_path), 0, {"overrides": ["seed=1", "model=ae"], "folder": str(tmp_path / "run")})
    assert not substitute.exists()
    record.write_json(tmp_path / "run/error.json", {"error": "diverged", "when": "now"})
    leave_note(str(tmp_path), 1, {"overrides": told, "folder": str(tmp_path / "run"), "error": "diverged"})
    assert read(tmp_path / "run/error.json")["when"] == "now"  # the run itself knows more
    assert not substitute.exists()


def test_a_disk_without_room_for_notes_is_told_at_the_end(bench, monkeypatch, capsys):
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(jobs, "UNWRITTEN", [])
    monkeypatch.setattr(record, "replacing", full)
    code, out, _ = bench("-m", "model=ganomaly", *TINY, "abnormal_class=0,77", "hydra.launcher.n_jobs=1")
    assert code == 1
    failed = [line for line in out.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 2
    assert "No space left on device" in failed[0]
    assert "abnormal_class=77" in failed[1]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["model=ganomly"], ["model=ganomly: there is none; did you mean ganomaly"]),
        (["model=xyzzy"], ["model=xyzzy: there is none; allowed are aae, adgan"]),
        (["data=mnst"], ["data=mnst", "mnist"]),
        (["modle=ganomaly"], ["modle", "did you mean model?"]),
        (["modle.lr=3"], ["modle.lr: no such setting; did you mean model.lr"]),
        (["model.ngff=3"], ["model.ngff", "did you mean model.ngf"]),
        (["data.download=false"], ["data.download", "no such setting; there are name, image_size, "]),
        (["lr=3"], ["lr: no such setting; did you mean model.lr?"]),
        (
            ["trainer.deterministic=true"],
            ["trainer.deterministic: no such setting; did you mean deterministic?"],
        ),
        (["model.max_epochs=3"], ["model.max_epochs: no such setting; did you mean trainer.max_epochs?"]),
        (["runs_dri=x"], ["runs_dri", "did you mean runs_dir?"]),
        (["trainer.max_epoch=3"], ["trainer.max_epoch", "trainer.max_epochs"]),
        (["abnormal_class=12"], ["abnormal_class=12", "0 to 9"]),
        (["abnormal_class=cat"], ["abnormal_class=cat", "0 to 9"]),
        (["seed=one"], ["seed=one", "a whole number is needed"]),
        (["evaluation.epoch=first"], ["evaluation.epoch=first", "last", "best_test"]),
        (["trainer.device=cuda:7"], ["trainer.device=cuda:7", "cpu"]),
        (["trainer.precision=fp8"], ["trainer.precision=fp8", "auto, fp32, bf16"]),
        (["trainer.max_epochs=-2"], ["trainer.max_epochs=-2", "at least 0"]),
        (["data.image_size=30"], ["data.image_size", "30", "16 times a power of two"]),
        (["data=folder"], ["data.root"]),
        (["data=folder", "data.root=nowhere"], ["data.root=nowhere", "train/0.normal"]),
        (
            ["data=mnist", "data.root=nowhere", "data.download=false"],
            ["data=mnist", "nowhere", "data.download=true"],
        ),
        (["protocol=one_vs_rest"], ["protocol=one_vs_rest", "test part"]),
        (["normal_class=3"], ["normal_class=3: protocol=leave_one_class_out reads abnormal_class"]),
        (
            ["protocol=contaminated", "abnormal_class=3"],
            ["abnormal_class=3: protocol=contaminated reads normal"],
        ),
        (["protocol=folder", "abnormal_class=3"], ["abnormal_class=3: protocol=folder reads no class"]),
        (["protocol=one_vs_rest", "seed=-1"], ["seed=-1: allowed is 0 to 2**32 - 1"]),
        (["-m", "seed=0,1", "runs_dir=/proc/none"], ["runs_dir='/proc/none': nothing can be written there"]),
        (["abnormal_class=größe"], ["größe: cannot be read", "a to z"]),
        (["model=größe"], ["model=größe: cannot be read", "a to z"]),
        (["model='"], ["model=': cannot be read"]),
        (["data.root=a", "b"], ["b: no KEY=VALUE", "quotes within quotes"]),
        (["abnormal_class=0.5"], ["abnormal_class=0.5: a whole number or a name (in quotes within quotes"]),
        (["--model", "ganomaly"], ["--model", "write model=VALUE"]),
        (
            ["model=knn", "-m", "seed=0,1", "a=b"],
            ["seed=0,1 a=b: settings stand together, all before the flags"],
        ),
        (["++sed=5"], ["sed=5: no such setting; there are abnormal_class, data"]),
        (["+evaluation.foo=1"], ["evaluation.foo=1: no such setting; there are batch_norm"]),
        (["+trainer.foo=1"], ["trainer.foo=1: no such setting; there are batch_size"]),
        (
            ["model=ocsvm", "model.features=nope"],
            ["model.features=nope: must be a config with a _target_ or null"],
        ),
        (["~seed"], ["~seed: it cannot be left out; seed=VALUE sets it"]),
        (
            ["~trainer.device"],
            ["~trainer.device: it cannot be left out; trainer.device=VALUE sets it"],
        ),
        (["-m", "seed=range(0)"], ["seed=range(0): it has no values"]),
        (["-m", "seed=range(3,3)"], ["seed=range(3,3): it has no values"]),
        ([f"runs_dir={'x' * 300}", "data.limit=50"], ["runs_dir='xxx", "no folder can be made there"]),
        (["--nowhere"], ["unrecognized arguments: --nowhere; --hydra-help shows the flags"]),
        (["--cfg", "foo"], ["argument --cfg", "'foo'"]),
        (["-m", "--cfg", "job"], ["Only one of --run, --multirun, --cfg"]),
        (["--cfg", "job", "-p", "nowhere"], ["'nowhere' not found"]),
        (["--experimental-rerun", "a.pickle"], ["--experimental-rerun: it unpickles a file"]),
        (["abnormal_class=0,1"], ["abnormal_class"]),
        (["score", "nowhere", "x.png"], ["nowhere", "finished run"]),
        (["report", "nowhere"], ["nowhere"]),
    ],
)
def test_a_mistake_gets_one_line_and_exit_code_2(bench, arguments, words):
    code, out, err = bench(*arguments)
    assert code == 2
    assert not out or arguments == []
    assert len(err.strip().splitlines()) == 1
    assert [word for word in words if word not in err] == []
    assert not list(Path().rglob("metrics.json"))


def test_hindsight_stands_beside_the_honest_number_only_as_published(bench):
    small = ("model=ocsvm", *TINY[:3])
    bench(*small, "runs_dir=clean")
    bench(*small, "evaluation=as_published", "runs_dir=published")
    clean, published = (read(only_run(name) / "metrics.json") for name in ("clean", "published"))
    assert "auroc_hindsight" not in clean
    assert published["auroc"] == clean["auroc"]
    assert 0.5 < published["auroc_hindsight"] <= 1
    assert published["hindsight_tried"] == 90
    assert set(published["hindsight"]) == {"gamma", "nu"}
    _, _, err = bench("report", "published")
    assert "left out" not in err


def marked_digits(root: Path) -> None:
    """Digits 0, of which some test images have a grey square, in MVTec's layout with its masks."""
    images, labels = load_digits(return_X_y=True)
    for number, pixels in enumerate(images[labels == 0][:90]):
        kind = "train/good" if number < 60 else "test/good" if number < 75 else "test/square"
        picture = (pixels.reshape(8, 8) * 15.9).astype(np.uint8).repeat(2, 0).repeat(2, 1)
        places = {kind: picture}
        if kind == "test/square":
            mask = np.zeros_like(picture)
            mask[:5, number % 8 : number % 8 + 5] = 255
            places = {kind: np.where(mask, 128, picture).astype(np.uint8), "ground_truth/square": mask}
        for place, drawn in places.items():
            (root / place).mkdir(parents=True, exist_ok=True)
            name = f"{number}_mask.png" if place.startswith("ground") else f"{number}.png"
            Image.fromarray(drawn).save(root / place / name)


def test_where_masks_are_anomaly_maps_are_measured_and_so_are_the_controls(bench, tmp_path):
    marked_digits(tmp_path / "set")
    given = ("data=folder", f"data.root={tmp_path / 'set'}", "data.image_size=16", "seed=0")
    bench("model=ae", "model.width=8", "model.epochs=60", "model.lr=3e-3", "model.batch_size=20", *given)
    numbers = read(only_run() / "metrics.json")
    assert numbers["auroc_pixel"] > 0.75
    assert numbers["auroc_pixel"] > numbers["auroc_pixel_untrained"]
    assert numbers["aupro"] > numbers["aupro_untrained"]
    bench("model=ocsvm", *given, "runs_dir=without")  # has no maps
    assert not any("pixel" in name or "pro" in name for name in read(only_run("without") / "metrics.json"))
    _, out, err = bench("report", "runs")
    assert "left out" not in err
    assert re.search(rf"· pixels  .* {numbers['auroc_pixel']:.3f}", out)
    assert re.search(rf"· pixels, untrained  .* {numbers['auroc_pixel_untrained']:.3f}", out)
    assert pd.read_csv("runs/report/table.csv")["pixel_mean"].iloc[-1] == pytest.approx(
        numbers["auroc_pixel"]
    )


def test_a_diverging_run_is_recorded_as_failed_with_what_to_try(bench):
    code, _, err = bench("model=ganomaly", *TINY, "model.lr=1e30")
    assert code == 2
    assert "step" in err
    assert "loss '" in err
    assert "model.lr" in err
    (failed,) = Path("runs").glob("*/error.json")
    assert "loss '" in read(failed)["error"]
    assert not (failed.parent / "metrics.json").exists()


def test_the_best_epoch_stands_beside_the_last_and_replaces_it_only_as_published(bench):
    bench("model=ganomaly", *TINY, "model.epochs=3", "trainer.eval_every=1", "runs_dir=clean")
    clean = read(only_run("clean") / "metrics.json")
    per_epoch = pd.read_csv(only_run("clean") / "losses.csv")["auroc"]
    assert clean["auroc"] == pytest.approx(per_epoch.iloc[-1])
    assert clean["auroc_best_epoch"] == pytest.approx(per_epoch.max())

    bench("model=ganomaly", *TINY, "model.epochs=3", "evaluation=as_published", "runs_dir=published")
    published = only_run("published")
    metrics, evaluation = read(published / "metrics.json"), read(published / "run.json")["evaluation"]
    assert metrics["auroc"] == pytest.approx(metrics["auroc_best_epoch"])
    assert {name: evaluation[name] for name in ("epoch", "batch_norm", "test_order")} == {
        "epoch": "best_test",
        "batch_norm": "batch",
        "test_order": "shuffled",
    }


def test_both_evaluations_have_a_row_where_they_are_the_same_to_a_method(bench):
    code, out, err = bench("-m", "model=knn", *TINY[:3], "evaluation=as_published,clean")
    assert code == 0
    assert "finished already" in err
    # Which of the two comes first is the workers' race.
    asked_for = evaluations_of(only_run())
    assert sorted(asked_for) == ["as_published", "clean"]
    bench("-m", "model=knn", *TINY[:3], "evaluation=as_published,clean")
    assert evaluations_of(only_run()) == asked_for
    bench("report", "runs")
    assert set(pd.read_csv("runs/report/table.csv")["evaluation"]) == {"as_published", "clean"}
    for name in ("as_published", "clean"):
        assert f"Evaluation {name} (knn): " in out


@pytest.mark.parametrize("order", [("clean", "as_published"), ("as_published", "clean")])
def test_an_evaluation_asked_for_later_joins_the_run_whichever_came_first(bench, order):
    for evaluation in order:
        assert bench("model=knn", *TINY[:3], f"evaluation={evaluation}")[0] == 0
    assert evaluations_of(only_run()) == list(order)
    bench("report", "runs")
    assert set(pd.read_csv("runs/report/table.csv")["evaluation"]) == set(order)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("runs_dir=a,b", "runs_dir=a,b: a sweep has one folder"),
        ("hydra.job.chdir=true", "hydra.job.chdir=true: the jobs of a sweep stay"),
    ],
)
def test_where_a_sweep_could_not_read_its_table_it_is_refused(bench, setting, message):
    code, _, err = bench("-m", "model=knn", *TINY[:3], "seed=0,1", setting)
    assert code == 2
    assert message in err
    assert not list(Path().glob("*/*/metrics.json"))


@pytest.mark.parametrize(
    ("model", "data", "order"),
    [
        ("ganomaly", "cifar10", "by_class"),
        ("ganomaly", "mnist", "shuffled"),
        ("ganomaly", "uba", "shuffled"),
        ("skip_ganomaly", "uba", "by_class"),
        ("ae", "cifar10", "shuffled"),
    ],
)
def test_as_published_orders_test_images_as_the_methods_code_does(bench, model, data, order):
    chosen = (f"model={model}", f"data={data}", "evaluation=as_published")
    code, out, _ = bench(*chosen, "--cfg", "job", "--resolve", "-p", "evaluation")
    assert code == 0
    assert f"test_order: {order}\n" in out.partition("by_method")[0]


def test_folders_of_images_are_trained_on_reported_and_scored_again(bench, tmp_path):
    digit_folders(tmp_path / "bags")
    settings = ["data=folder", "data.root=bags", "data.image_size=16", *TINY[3:]]
    code, _, err = bench("model=ganomaly", *settings)
    assert code == 0
    assert "train 60 '0.normal'" in err
    run = only_run()
    assert run.name.startswith("folder-folder-ganomaly-folder-seed0-")
    assert set(read(run / "metrics.json")["per_class"]) == {"1.abnormal/one", "1.abnormal/seven"}

    code, out, _ = bench("score", str(run), "bags/test", "--output", "new.csv")
    assert code == 0
    assert "new.csv" in out
    new = pd.read_csv("new.csv")
    kept = pd.read_csv(run / "scores.csv")
    assert list(new) == ["file", "score", "verdict", "percentile"]
    by_file = {f"bags/{file}": score for file, score in zip(kept["file"], kept["score"], strict=True)}
    again = {file: by_file[file] for file in new["file"]}
    np.testing.assert_allclose(new["score"], list(again.values()), rtol=1e-6)
    threshold = read(run / "metrics.json")["threshold"]
    assert ((new["score"] > threshold) == (new["verdict"] == "anomalous")).all()
    assert new["percentile"].between(0, 100).all()

    code, out, _ = bench("report", "runs")
    assert code == 0
    assert "1.abnormal/seven" in out
    for name in ("table.csv", "table.md", "table.tex"):
        assert (Path("runs/report") / name).stat().st_size > 0


def people(n: int, seed: int) -> pd.DataFrame:
    """Rows with a category, a gap and a column of large numbers; the tall ones are rare."""
    draw = np.random.RandomState(seed)
    rare = draw.rand(n) < 0.1
    height = np.where(rare, 230, 170) + 5 * draw.randn(n)
    frame = pd.DataFrame({"height": height, "income": 1e6 * draw.rand(n), "kind": np.where(rare, "b", "a")})
    frame["hair"] = draw.choice(["fair", "dark"], n)
    frame.loc[3, "income"] = np.nan
    return frame


def test_tables_are_trained_on_and_scored_again(bench):
    people(400, 0).to_csv("people.csv", index=False)
    settings = ["model=ocsvm", "model.pca=null", "data=table", "data.root=people.csv", "data.label=kind"]
    code, _, err = bench(*settings)
    assert code == 0
    assert "1 missing numbers in 1 of 3 columns" in err
    run = only_run()
    assert run.name.startswith("table-tabular_half-ocsvm-normal-a-seed0-")
    figures, facts = read(run / "metrics.json"), read(run / "run.json")
    assert figures["auroc"] > 0.95
    assert figures["f1"] > 0.8
    assert 0 <= figures["f1_untrained"] <= 1
    called = (pd.read_csv(run / "scores.csv")["score"] > figures["threshold"]).sum()
    assert called == pytest.approx(200 * facts["known_ratio"], abs=1)
    assert facts["columns"] == ["height", "income", ["hair", "dark", "fair"]]
    assert (facts["n_missing"], facts["n_distinct"], facts["n_test_seen_in_training"]) == (1, 400, 0)

    kept = pd.read_csv(run / "scores.csv")
    code, out, _ = bench("score", str(run), "people.csv", "--output", "new.csv")
    assert code == 0
    assert "400 rows" in out
    new = pd.read_csv("new.csv")
    assert list(new) == ["file", "row", "score", "verdict", "percentile"]
    np.testing.assert_allclose(new["score"][kept["row"]], kept["score"], rtol=1e-5)

    people(20, 1)[["hair", "kind", "income", "height"]].to_csv("more.csv", index=False)
    code, out, _ = bench("score", str(run), "more.csv", "people.csv")
    assert code == 0
    assert len(out.splitlines()) == 421
    people(20, 1).drop(columns="height").to_csv("less.csv", index=False)
    code, _, err = bench("score", str(run), "less.csv")
    assert code == 2
    assert "it has no column height" in err

    code, out, _ = bench("report", "runs")
    assert code == 0
    assert "1 missing numbers became medians" in out
    assert "the known ratio" in out


def test_scaling_may_be_fitted_on_all_rows(bench):
    people(400, 0).to_csv("people.csv", index=False)
    settings = ["model=ocsvm", "data=table", "data.root=people.csv", "data.label=kind"]
    bench(*settings, "runs_dir=clean")
    bench(*settings, "runs_dir=leak", "evaluation.scaling=all")
    clean, leak = (load_file(only_run(name) / "scaler.safetensors") for name in ("clean", "leak"))
    rows = people(400, 0)["height"].to_numpy(np.float32)
    span = 1 / leak["factor"][0].item()
    assert span == pytest.approx(rows.max() - rows.min(), rel=1e-5)
    assert 1 / clean["factor"][0].item() < 0.8 * span  # no tall one among its rows
    assert only_run("clean").name != only_run("leak").name


def test_protocol_can_be_chosen_for_class_folders(bench, tmp_path):
    digit_folders(tmp_path / "bags")
    settings = ["data=folder", "data.root=bags", "data.image_size=16", *TINY[3:], "trainer.max_epochs=1"]
    code, _, _ = bench(
        "model=ganomaly", *settings, "protocol=leave_one_class_out", "abnormal_class=1.abnormal/one"
    )
    assert code == 0
    assert read(only_run() / "run.json")["class"] == "1.abnormal/one"


def test_list_and_help_say_what_there_is(bench):
    code, out, _ = bench("list")
    assert code == 0
    for word in ("ganomaly", "cifar10", "leave_one_class_out"):
        assert word in out
    out = bench("list", "models")[1]
    assert "\n  ae " in out
    assert "models" not in out.splitlines()
    assert "@package" not in bench("list", "experiments")[1]
    code, out, _ = bench("--help")
    assert code == 0
    for word in (
        "anomaly-bench report",
        "anomaly-bench export",
        "abnormal_class",
        "trainer.max_epochs",
        "n_jobs",
        "model: aae",
    ):
        assert word in out
    assert bench("-m", "model=ae", "-h")[1] == out
    assert bench("--hydra-help", "--cfg", "job")[0] == 0
    assert bench("-m", "--version") == bench("--version") == (0, f"anomaly-bench {cli.__version__}\n", "")


def test_help_has_a_users_own_choices(bench, tmp_path):
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "mine/model/shallow.yaml").write_text("# A shallow autoencoder.\n")
    for arguments in (["--config-dir", "mine"], ["-cd", "mine"], ["--config-dir=mine"]):
        code, out, _ = bench(*arguments, "--help")
        assert (code, "shallow" in out) == (0, True)
    code, out, err = bench("--config-dir", "--help")
    assert (code, out, err.count("anomaly-bench: ")) == (2, "", 1)


def test_list_breaks_no_sentence_off(bench):
    _, out, _ = bench("list", "data")
    lines = {line.split()[0]: line for line in out.splitlines()}
    assert [name for name, line in lines.items() if not line.endswith(".")] == []
    assert lines["cifar100"].endswith("A. Krizhevsky, 2009; no licence is stated.")


def test_list_has_a_users_own_too(bench, tmp_path):
    (tmp_path / "mine/model").mkdir(parents=True)
    (tmp_path / "mine/model/shallow.yaml").write_text("# A shallow autoencoder.\n")
    (tmp_path / "mine/model/ae.yaml").write_text("# Never found, as ours come first.\n")
    for arguments in (
        ["--config-dir", "mine", "list", "models"],
        ["-cd", "mine", "list", "models"],
        ["list", "models", "--config-dir", "mine"],
    ):
        code, out, err = bench(*arguments)
        assert (code, err) == (0, "")
        assert re.search("^  shallow +A shallow autoencoder.$", out, re.MULTILINE)
        assert "\n  ganomaly " in out
        assert "Never found" not in out


def test_killed_in_the_middle_the_same_command_resumes_to_the_same_bits(tmp_path):
    command = [sys.executable, "-m", "anomaly_bench.cli", "model=ganomaly", *TINY, "model.epochs=40"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen([*command, "runs_dir=killed"], cwd=tmp_path, env=environment)
    deadline = time.monotonic() + 120
    while not (found := list((tmp_path / "killed").glob("*/checkpoint.safetensors"))):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert found[0].exists()
    assert not list((tmp_path / "killed").glob("*/metrics.json"))

    for folder in ("killed", "whole"):
        subprocess.run([*command, f"runs_dir={folder}"], cwd=tmp_path, env=environment, check=True)
    killed, whole = (only_run(str(tmp_path / folder)) for folder in ("killed", "whole"))
    for name in ("model.safetensors", "scores.csv"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes()
    timed = ["seconds"]
    a, b = (pd.read_csv(run / "losses.csv").drop(columns=timed) for run in (killed, whole))
    pd.testing.assert_frame_equal(a, b)


def test_a_wish_to_stop_that_comes_in_a_callback_is_heard_after_it():
    """Exceptions raised in a weak reference's callback are dropped; compiling a step runs many of them."""
    program = """
import os, signal, sys, threading, time, weakref
from anomaly_bench import cli

start = threading.Timer.start
threading.Timer.start = lambda timer: (start(timer), time.sleep(0.1))  # as on a busy machine

def launch(arguments):
    kept = set()
    watch = weakref.ref(kept, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    del kept
    print("it was dropped", flush=True)
    time.sleep(60)
    print("and not heard", flush=True)

cli.launch = launch
sys.argv = ["anomaly-bench"]
cli.main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (130, "it was dropped\n")
    assert done.stderr.startswith("anomaly-bench: stopped")
    assert len(done.stderr.splitlines()) == 1


def test_an_experiment_ends_with_the_papers_table_and_takes_in_what_was_run_before(bench, tmp_path):
    digit_folders(tmp_path / "uba")
    small = [
        "data=uba",
        "data.root=uba",
        "data.image_size=16",
        "model.ngf=4",
        "model.ndf=4",
        "model.epochs=1",
    ]
    assert bench("model=ganomaly", *small)[0] == 0
    before = only_run()
    assert "experiments" not in read(before / "run.json")
    code, out, err = bench("experiment=ganomaly_xray", *small, "seed=0")
    assert code == 0
    assert "finished already" in err
    assert read(before / "run.json")["experiments"] == ["ganomaly_xray"]
    auroc = read(before / "metrics.json")["auroc"]
    assert "ganomaly_xray: AUROC beside the paper's" in out
    assert re.search(rf"overall +0\.643 +{auroc:.3f}", out)
    assert "settings data.image_size=16" in out
    _, again, _ = bench("report")
    assert "ganomaly_xray: AUROC beside the paper's" in again
    low, high = read(before / "metrics.json")["auroc_interval"]
    assert low <= auroc <= high


def test_a_method_with_a_rule_of_its_own_calls_rows_by_it(bench):
    code, _, _ = bench(
        *("model=rda", "data=digits", "data.image_size=16", "data.limit=150", "protocol=contaminated"),
        *(
            "model.layers=[20,8]",
            "model.rounds=1",
            "model.epochs=1",
            "model.lambda_=0.1",
            "trainer.device=cpu",
        ),
    )
    assert code == 0
    run = only_run()
    kept = load_file(run / "model.safetensors")
    assert read(run / "metrics.json")["threshold"] == pytest.approx(kept["t"].item())


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["reprot", "runs"],
            "reprot: there is no such command; there are export, list, recommend, report, score",
        ),
        (["runs_dir=", "model=ocsvm"], "runs_dir=: a folder is needed"),
        (["-m", "runs_dir=", "model=ocsvm,knn"], "runs_dir=: a folder is needed"),
        (["score", "RUN"], "score: the following arguments are required: files"),
        (
            ["export", "RUN", "--format", "foo"],
            "export: argument --format: invalid choice: 'foo' (choose from",
        ),
        (["list", "foo"], "list: argument what: invalid choice: 'foo' (choose from"),
        (["list", "models", "--config-dir", "none"], "--config-dir none: there is no such folder"),
        (["recommend", "--minutes", "abc"], "recommend: argument --minutes: invalid float value: 'abc'"),
        (["report", "--foo\nbar"], "report: unrecognized arguments: --foo bar"),
        (["--config-dir", "mine", "score", "RUN"], "score: a command comes first, before its options"),
        (
            ["score", ".", "a.png", "--device", "foo"],
            "--device foo: not on this machine; allowed here: auto, cpu",
        ),
        (
            ["tracker=tensorboard,mlflow"],
            "tracker=tensorboard,mlflow: several values are a sweep, which needs -m",
        ),
        (
            ["model=ae", "abnormal_class=range(10)"],
            "abnormal_class=range(10): several values are a sweep, which needs -m",
        ),
    ],
)
def test_slips_are_refused_in_a_line(bench, arguments, said):
    code, out, err = bench(*arguments)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (SettingError("seed=-1: too small"), 2, "anomaly-bench: seed=-1: too small\n"),
        (KeyboardInterrupt(), 130, "anomaly-bench: stopped; the same command goes on from the last epoch kept\n"),
        (OSError(28, "Full"), 2, "anomaly-bench: Full: make room, or set runs_dir=FOLDER; the same command goes on\n"),
        (OSError(5, "a"), 1, "anomaly-bench: unexpected OSError: [Errno 5] a (ANOMALY_BENCH_DEBUG=1 shows where)\n"),
        (ValueError("a\nb"), 1, "anomaly-bench: unexpected ValueError: a b (ANOMALY_BENCH_DEBUG=1 shows where)\n"),
    ],
)  # fmt: skip
def test_how_a_command_ends_is_told_by_its_exit_code(bench, monkeypatch, error, code, said):
    def failing(_):
        raise error

    monkeypatch.setitem(COMMANDS, "list", failing)
    assert bench("list") == (code, "", said)
    monkeypatch.setenv("ANOMALY_BENCH_DEBUG", "1")
    found, out, err = bench("list")
    assert (found, out) == (code, "")
    assert ("Traceback" in err) == (code != 130)


def test_an_error_within_a_run_is_no_mistake_of_the_user(bench, monkeypatch):
    def failing(*_):
        raise ValueError("shapes differ")

    monkeypatch.setattr(cli, "one_run", failing)
    code, out, err = bench(*TINY)
    assert (code, out) == (1, "")
    assert "unexpected ValueError: shapes differ" in err


def test_who_reads_no_further_ends_it_well():
    program = "from anomaly_bench import cli; cli.COMMANDS['list'] = lambda _: print('x' * 10**7); cli.main()"
    command = [sys.executable, "-c", program, "list"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as reader:
        reader.stdout.close()
        assert reader.stderr.read() == b""
    assert reader.returncode == 0


@pytest.mark.parametrize(("epochs", "said"), [(1, "1 epoch, "), (2, "2 epochs, "), (0, "0 epochs, ")])
def test_a_run_is_summed_up_in_a_line(tmp_path, epochs, said):
    figures = {"auroc": 0.91234, "auroc_untrained": 0.5, "train_seconds": 12.4}
    run = {"model": "ae", "data": "digits", "case": "abnormal-3", "seed": 1, "epochs_done": epochs}
    record.write_json(tmp_path / "metrics.json", figures)
    record.write_json(tmp_path / "run.json", run)
    assert cli.summary(tmp_path) == (
        f"AUROC 0.912, untrained 0.500: ae on digits, abnormal-3, seed 1, {said}12 s of training"
    )
    assert cli.objective_of(tmp_path) is None
    record.write_json(tmp_path / "metrics.json", figures | {"auroc_validation": 0.7})
    assert ", untrained 0.500, on validation rows 0.700: ae" in cli.summary(tmp_path)
    assert cli.objective_of(tmp_path) == 0.7


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("model=gano", "model=ganomaly"),
        ("re", "report recommend rerun="),
        ("score", "score"),
        ("report ", ""),
        ("list mo", ""),
        ("recommend data=fol", ""),
        ("export runs/one --format on", ""),
        ("'data.root=\"a b", ""),
    ],
)
def test_what_a_shell_completes_is_offered_or_nothing_is_said(line, offered):
    command = [sys.executable, "-m", "anomaly_bench.cli", "-sc", "query=bash"]
    typed = f"anomaly-bench {line}"
    env = os.environ | {"COMP_LINE": typed, "COMP_POINT": str(len(typed))}
    done = subprocess.run(command, env=env, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (offered.split(), "")


def test_its_version_is_its_own(capsys):
    assert cli.answer(["--version"]) == 0
    assert capsys.readouterr().out == f"anomaly-bench {metadata.version('anomaly-bench')}\n"
