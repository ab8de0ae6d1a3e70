"""Rows that hyper-parameters are chosen by: real anomalies, none of them tested, and no word from the test labels."""

import dataclasses
import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from omegaconf import OmegaConf
from PIL import Image
from sklearn.datasets import load_digits

from anomaly_bench import cli, record
from anomaly_bench.data import digits
from anomaly_bench.data.dataset import Dataset
from anomaly_bench.errors import SettingError
from anomaly_bench.protocols import Contaminated, Folder, LeaveOneClassOut, OneVsRest, TabularHalf
from anomaly_bench.validation import hold_out

CHECKOUT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def digits_set() -> Dataset:
    return digits.load(image_size=None)


@pytest.fixture
def parts(digits_set) -> Dataset:
    """The digits with an official test part."""
    return dataclasses.replace(digits_set, official_train=np.arange(len(digits_set.classes)) % 3 > 0)


def check(dataset, before, share, anomalous_class, kinds):
    split, validation = hold_out(before, dataset, 0, share, anomalous_class)
    assert validation is not None
    held = dataset.classes[validation.rows]
    assert not set(validation.rows) & (set(split.train) | set(split.test))
    assert np.array_equal(split.test, before.test)
    assert np.array_equal(split.anomalous, before.anomalous)
    assert set(held[validation.anomalous]) == kinds
    assert not set(held[~validation.anomalous]) & kinds
    assert not np.isin(dataset.classes[split.train], list(kinds)).any()
    trained = ~np.isin(dataset.classes[before.train], list(kinds))
    assert (~validation.anomalous).sum() == int(share * trained.sum())
    assert len(split.train) + (~validation.anomalous).sum() == trained.sum()
    assert (np.diff(split.train) > 0).all()


def test_a_named_class_stands_in_for_the_anomaly(digits_set):
    check(digits_set, LeaveOneClassOut(2).split(digits_set, 0), 0.1, 7, {7})
    check(digits_set, LeaveOneClassOut(2).split(digits_set, 0), 0.3, "7", {7})


def test_a_named_class_stands_for_its_sub_classes(digits_set):
    names = ("0", "1", "2", "3", "4", "5", "6", "7", "7/barred", "9")
    check(
        dataclasses.replace(digits_set, class_names=names),
        LeaveOneClassOut(2).split(digits_set, 0),
        0.1,
        7,
        {7, 8},
    )


def test_what_a_protocol_leaves_over_needs_no_name(parts):
    check(parts, OneVsRest(4).split(parts, 0), 0.2, None, {0, 1, 2, 3, 5, 6, 7, 8, 9})
    check(parts, OneVsRest(4).split(parts, 0), 0.2, 1, {1})
    folders = dataclasses.replace(
        parts, class_names=("good", "good/2", *(f"scratch/{number}" for number in range(8)))
    )
    check(folders, Folder().split(folders, 0), 0.2, None, set(range(2, 10)))
    table = dataclasses.replace(parts, x=torch.zeros(len(parts.classes), 3))
    check(table, TabularHalf(4).split(table, 0), 0.2, None, {0, 1, 2, 3, 5, 6, 7, 8, 9})


def test_a_small_share_is_one_normal_row_and_others_are_rounded_down(digits_set):
    before = LeaveOneClassOut(2).split(digits_set, 0)
    n = int((digits_set.classes[before.train] != 7).sum())
    for share, expected in ((0.1 / n, 1), (2.9 / n, 2)):
        _, validation = hold_out(before, digits_set, 0, share, 7)
        assert (~validation.anomalous).sum() == expected


@pytest.mark.parametrize("anomalous_class", [None, 7])
def test_anomalous_training_rows_go_on_training_and_are_not_called_normal(parts, anomalous_class):
    before = TabularHalf(4, contamination=0.2).split(parts, 0)
    truth = parts.classes != 4
    clean = before.train[~truth[before.train]]
    assert np.array_equal(before.contamination, before.train[truth[before.train]])
    split, validation = hold_out(before, parts, 0, 0.25, anomalous_class)
    assert validation is not None
    assert np.array_equal(validation.anomalous, truth[validation.rows])
    assert (~validation.anomalous).sum() == int(0.25 * len(clean))
    assert set(before.contamination) <= set(split.train)
    assert len(split.train) == len(before.train) - int(0.25 * len(clean))
    assert (np.diff(split.train) > 0).all()
    assert not set(validation.rows) & (set(before.contamination) | set(split.train) | set(split.test))
    assert set(parts.classes[validation.rows[validation.anomalous]]) <= (
        {7} if anomalous_class else {0, 1, 2, 3, 5, 6, 7, 8, 9}
    )


def test_without_a_share_nothing_changes(digits_set):
    split = LeaveOneClassOut(2).split(digits_set, 0)
    assert hold_out(split, digits_set, 0, None, None) == (split, None)


@pytest.mark.parametrize(
    ("protocol", "share", "anomalous_class", "words"),
    [
        (LeaveOneClassOut(2), 0.1, None, "0 anomalous rows"),
        (LeaveOneClassOut(2), 0.1, 2, "0 anomalous rows"),  # all of the abnormal class are tested
        (LeaveOneClassOut(2), 0.1, "cat", "evaluation.validation_class=cat"),
        (LeaveOneClassOut(2), 0.0, 7, "above 0 and below 1"),
        (LeaveOneClassOut(2), 1.0, 7, "above 0 and below 1"),
        (LeaveOneClassOut(2), None, 7, "evaluation.validation_class=7: it says of which class"),
        (OneVsRest(4), 0.1, 4, "0 to train on"),
        (Contaminated(4), 0.1, 7, "trains on its test rows"),
    ],
)
def test_what_leaves_nothing_to_choose_by_is_refused(parts, protocol, share, anomalous_class, words):
    with pytest.raises(SettingError, match=re.escape(words)):
        hold_out(protocol.split(parts, 0), parts, 0, share, anomalous_class)


TINY = ["model=ae_dense", "data=digits", "data.limit=300", "data.image_size=8", "trainer.max_epochs=1"]


@pytest.fixture
def bench(tmp_path, monkeypatch, capsys, undrawn):
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["anomaly-bench", *arguments])
        monkeypatch.delenv("ANOMALY_BENCH_SWEEP", raising=False)
        try:
            code = cli.answer(list(arguments))
        except SystemExit as leaving:
            code = int(leaving.code or 0)
        return code, *capsys.readouterr()

    return call


def figures() -> list[dict]:
    return [record.read_json(path) for path in sorted(Path("runs").glob("*/metrics.json"))]


def test_changing_the_test_labels_changes_the_result_and_not_what_is_chosen_by(bench, monkeypatch):
    told = [*TINY, "abnormal_class=2", "evaluation.validation=0.2", "evaluation.validation_class=7"]
    code, out, err = bench(*told)
    assert code == 0, err
    (honest,) = figures()
    assert f"on validation rows {honest['auroc_validation']:.3f}" in out
    facts = record.read_json(next(Path("runs").glob("*/run.json")))
    assert facts["validation_anomalies"] == ["7"]
    assert facts["n_validation"] > facts["n_validation_anomalous"] > 0

    split = LeaveOneClassOut.split

    def otherwise(self, dataset, seed):
        found = split(self, dataset, seed)
        return dataclasses.replace(found, anomalous=~found.anomalous)

    monkeypatch.setattr(LeaveOneClassOut, "split", otherwise)
    assert bench(*told, "rerun=true")[0] == 0
    (swapped,) = figures()
    assert swapped["auroc"] == pytest.approx(1 - honest["auroc"])
    assert swapped["auroc_validation"] == honest["auroc_validation"]


def test_a_run_without_validation_is_the_run_it_was(bench):
    assert bench(*TINY, "evaluation.validation_class=7")[0] == 2
    assert not figures()
    assert bench(*TINY)[0] == 0
    (only,) = figures()
    assert "auroc_validation" not in only
    assert bench(*TINY, "evaluation.validation=0.2", "evaluation.validation_class=7")[0] == 0
    assert len(figures()) == 2


@pytest.mark.parametrize("switch", ["evaluation.epoch=best_test", "evaluation.scaling=all"])
def test_no_switch_lets_test_rows_have_a_say(bench, switch):
    told = [*TINY, "evaluation.validation=0.2", "evaluation.validation_class=7", switch]
    code, _, err = bench(*told)
    assert code == 2
    assert switch in err
    assert len(err.splitlines()) == 1


@pytest.mark.slow
def test_what_a_worker_came_to_is_given_to_the_sweeper(bench, tmp_path, monkeypatch):
    from hydra_plugins.anomaly_bench_launcher import SideBySide

    told = [*TINY, "evaluation.validation=0.2", "evaluation.validation_class=7", "seed=0,1"]
    code, out, err = bench("-m", *told, "hydra.launcher.n_jobs=2")
    assert code == 0, out + err
    launcher = SideBySide()
    launcher.config = OmegaConf.create({"runs_dir": "runs"})
    monkeypatch.setenv("ANOMALY_BENCH_SWEEP", next(Path("runs/.sweeps").glob("*/0.json")).parent.name)
    found = [launcher.objective(number) for number in (0, 1)]
    assert sorted(found) == sorted(one["auroc_validation"] for one in figures())
    assert launcher.objective(2) is None


def needs_optuna() -> None:
    if find_spec("hydra_plugins.hydra_optuna_sweeper") is None:
        pytest.skip("the extra optuna is not installed")


def folders(root: Path, tested: tuple[int, int]) -> None:
    """Digits 0 are good and 1 are bad, both under train/; under test/, what is called good and bad is said."""
    images, labels = load_digits(return_X_y=True)
    names = {"train/good": 0, "train/bad": 1, "test/good": tested[0], "test/bad": tested[1]}
    for name, digit in names.items():
        (root / name).mkdir(parents=True)
        some = images[labels == digit][:60] if name.startswith("train") else images[labels == digit][60:120]
        for number, pixels in enumerate(some):
            Image.fromarray((pixels.reshape(8, 8) * 15.9).astype(np.uint8)).save(
                root / name / f"{number}.png"
            )


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["side_by_side", "local_joblib"])
def test_optuna_chooses_the_same_whatever_the_test_labels_say(tmp_path, launcher):
    needs_optuna()
    if launcher == "local_joblib" and find_spec("hydra_plugins.hydra_joblib_launcher") is None:
        pytest.skip("the extra joblib is not installed")
    chosen, reached = [], []
    for name, tested in (("honest", (0, 1)), ("swapped", (1, 0))):
        folders(tmp_path / name, tested)
        command = [
            sys.executable,
            "-m",
            "anomaly_bench.cli",
            "-m",
            "hydra/sweeper=tune",
            f"hydra/launcher={launcher}",
        ]
        told = ["model=ae_dense", "data=folder", f"data.root={tmp_path / name}", "data.image_size=8"]
        search = [
            "model.lr=tag(log,interval(0.00001,0.1))",
            "trainer.max_epochs=2",
            "evaluation.validation=0.25",
        ]
        batches = ["hydra.sweeper.n_trials=4", "hydra.sweeper.n_jobs=2", f"runs_dir={tmp_path / name}-runs"]
        paths = ":".join([str(CHECKOUT), *filter(None, [os.environ.get("PYTHONPATH")])])
        done = subprocess.run(
            [*command, *told, *search, *batches],
            env=os.environ | {"PYTHONPATH": paths},
            cwd=tmp_path,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        found = yaml.safe_load((tmp_path / f"{name}-runs/.sweeps/optimization_results.yaml").read_text())
        chosen.append((found["best_params"], found["best_value"]))
        runs = [record.read_json(path) for path in (tmp_path / f"{name}-runs").glob("*/metrics.json")]
        assert len(runs) == 4
        assert found["best_value"] == max(run["auroc_validation"] for run in runs)
        reached.append(max(run["auroc"] for run in runs))
    assert chosen[0] == chosen[1]
    assert reached[0] != reached[1]


@pytest.mark.slow
def test_optuna_without_validation_rows_is_refused_in_one_line(tmp_path):
    needs_optuna()
    command = [
        sys.executable,
        "-m",
        "anomaly_bench.cli",
        "-m",
        "hydra/sweeper=tune",
        "model.lr=interval(0.1,0.2)",
    ]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(CHECKOUT)}
    )
    assert done.returncode == 2
    assert done.stdout == ""
    assert "test rows choose nothing" in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "runs").exists()
