import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from anomaly_bench import record

NAMES = [
    *("..", ".", "", "a/b", "a\\b", "/etc/passwd", "C:", "猫", "犬", "a b", "-x", "x" * 300),
    "a\nb",
    "a\0b",
]


def test_json_is_strict_sorted_and_plain(tmp_path):
    data = {
        "z": float("nan"),
        "a": {
            "inf": np.inf,
            "array": np.array([1.0, np.nan]),
            "number": np.float32(0.5),
            "yes": np.bool_(True),
        },
        "m": (1, None, "ü"),
    }
    record.write_json(tmp_path / "deep" / "x.json", data)
    text = (tmp_path / "deep" / "x.json").read_text(encoding="utf-8")
    assert json.loads(text, parse_constant=pytest.fail) == {
        "a": {"array": [1.0, None], "inf": None, "number": 0.5, "yes": True},
        "m": [1, None, "ü"],
        "z": None,
    }
    assert list(json.loads(text)) == ["a", "m", "z"]
    assert text.startswith('{\n  "a"')


def test_a_failing_write_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "metrics.json"
    record.write_json(path, {"auroc": 1})
    with pytest.raises(TypeError):
        record.write_json(path, {"auroc": object()})
    with pytest.raises(ZeroDivisionError), record.replacing(path) as temporary:
        temporary.write_text(f"half {1 / 0}" if temporary.write_text("half") else "")
    assert json.loads(path.read_text()) == {"auroc": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_puts_a_new_file_in_the_place_of_the_old(tmp_path):
    path, held = tmp_path / "metrics.json", tmp_path / "held.json"
    record.write_json(path, {"auroc": 1})
    held.hardlink_to(path)
    record.write_json(path, {"auroc": 2})
    assert json.loads(held.read_text()) == {"auroc": 1}
    assert json.loads(path.read_text()) == {"auroc": 2}


def test_the_content_is_on_the_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """Else a loss of power may leave the name and no content."""
    path, synced, fsync = tmp_path / "metrics.json", [], os.fsync
    monkeypatch.setattr(
        record.os, "fsync", lambda file: synced.append((os.fstat(file).st_ino, path.exists())) or fsync(file)
    )
    record.write_json(path, {"auroc": 1})
    assert synced == [(path.stat().st_ino, False)]


def test_csv_round_trip(tmp_path):
    frame = pd.DataFrame({"file": ["a,b.png", 'c"d'], "score": [0.1 + 0.2, 1e-300]})
    record.write_csv(tmp_path / "scores.csv", frame)
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "scores.csv"), frame)


def test_no_text_of_a_csv_is_a_formula(tmp_path):
    texts = ["=1+1", "+1", "-1.png", "@x", "\t=1", "", "a=1", "–"]
    frame = pd.DataFrame({"file": texts, "score": np.linspace(-1, 1, 8), "n": range(-8, 0), "=1+1": 0})
    record.write_csv(tmp_path / "scores.csv", frame)
    back = pd.read_csv(tmp_path / "scores.csv", keep_default_na=False)
    assert back["file"].tolist() == ["'=1+1", "'+1", "'-1.png", "'@x", "'\t=1", "", "a=1", "–"]
    assert list(back) == ["file", "score", "n", "'=1+1"]
    pd.testing.assert_frame_equal(back[["score", "n"]], frame[["score", "n"]])


def test_a_carriage_return_ends_no_line(tmp_path):
    for frame in (pd.DataFrame({"file": ["a\rb", "c"]}), pd.DataFrame({"a\rb": ["c", "d"]})):
        record.write_csv(tmp_path / "x.csv", frame)
        pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "x.csv"), frame)


def test_bytes_of_a_name_that_are_no_text_are_spelled_out(tmp_path):
    record.write_text(tmp_path / "x.txt", "a\udc80")
    assert (tmp_path / "x.txt").read_bytes() == b"a\\udc80"


def test_settings_hash_knows_what_can_move_a_number():
    settings = {"model": {"nz": 100, "lr": 0.1}, "seed": 0, "protocol": {"abnormal_class": 2, "share": 0.8}}
    same = {"protocol": {"share": 0.8, "abnormal_class": 3}, "seed": 1, "model": {"lr": 0.1, "nz": 100}}
    other = {"protocol": {"share": 0.8}, "model": {"lr": 0.1, "nz": 20}}
    assert record.settings_hash(settings) == record.settings_hash(same)
    assert record.settings_hash(settings) != record.settings_hash(other)
    own = [record.settings_hash({"model": {"lr": 0.1, "seed": seed}}) for seed in (0, 1)]
    assert own[0] != own[1]  # a method's, which no name of a run holds
    assert len(record.settings_hash(settings)) == 8
    assert record.settings_hash({"a": [1, {"b": None}]}) == "04c9b7f3"  # runs of other days are found again


def test_run_name():
    name = record.run_name("mnist", "leave_one_class_out", "ganomaly", "abnormal_2", 0, "1a2b3c4d")
    assert name == "mnist-leave_one_class_out-ganomaly-abnormal_2-seed0-1a2b3c4d"


def test_names_from_outside_are_confined(tmp_path):
    safe = [record.safe_name(name) for name in NAMES]
    assert len(set(safe)) == len(NAMES)
    for name, confined in zip(NAMES, safe, strict=True):
        folder = tmp_path / record.run_name("d", "p", "m", name, 0, "1a2b3c4d")
        folder.mkdir()
        assert folder.resolve().parent == tmp_path.resolve()
        (tmp_path / confined).mkdir()
        assert not confined.startswith(".")
        assert len(confined) <= 45
    assert len(list(tmp_path.iterdir())) == 2 * len(NAMES)


def run_folder(runs: Path, name: str, **files: object) -> Path:
    for file, data in files.items():
        text = data if isinstance(data, str) else json.dumps(data)
        record.write_text(runs / name / f"{file}.json", text)
    return runs / name


def test_records_tell_finished_failed_and_unfinished(tmp_path):
    run_folder(tmp_path, "a", run={"seed": 0}, metrics={"auroc": 0.5}, error={"error": "earlier"})
    run_folder(tmp_path, "b", run={"seed": 1}, error={"error": "diverged"})
    run_folder(tmp_path, "c", run={"seed": 2})
    run_folder(tmp_path, "sweep/deep/d", run={"seed": 3}, metrics={"auroc": 0.7})
    run_folder(tmp_path, "e", error={"error": "no data"})
    run_folder(tmp_path, "not-a-run", other={})
    records = record.read_records(tmp_path)
    assert [(r.folder.name, r.status) for r in records] == [
        *(("a", "finished"), ("b", "failed"), ("c", "unfinished"), ("e", "failed"), ("d", "finished"))
    ]
    assert records[0].metrics == {"auroc": 0.5}
    assert records[1].failure == {"error": "diverged"}
    assert records[3].run == {}


def test_one_run_and_no_runs(tmp_path):
    folder = run_folder(tmp_path, "a", run={"seed": 0})
    assert [r.folder for r in record.read_records(folder)] == [folder]
    assert record.read_records(tmp_path / "absent") == []


@pytest.mark.parametrize("broken", ["", "{", "[1]", '{"auroc": '])
def test_broken_json_is_a_warning(tmp_path, caplog, broken):
    run_folder(tmp_path, "a", run={"seed": 0}, metrics=broken or " ")
    with caplog.at_level(logging.WARNING, "anomaly_bench"):
        (found,) = record.read_records(tmp_path)
    assert found.status == "unfinished"
    assert str(tmp_path / "a" / "metrics.json") in caplog.text


@pytest.mark.parametrize(
    ("file", "name", "fitting", "others"),
    [
        ("metrics", "auroc", [0, 0.5, 1, None], [-0.1, 1.1, "0.5", True]),
        ("metrics", "per_class", [{"cat": 0.5, "dog": None}], [{"cat": 2}, 0.5]),
        ("metrics", "auroc_interval", [[0.5, 1]], [[0.5], [0, 1, 1], [0.5, 2]]),
        ("metrics", "of_another_day", [12.5, None], ["text", [1]]),
        ("run", "seed", [0, 3], [-1, 0.5, True]),
        ("run", "of_another_day", ["text", [1], True], []),
    ],
)
def test_what_is_of_no_kind_that_runs_write_is_left_out_and_named(
    tmp_path, caplog, file, name, fitting, others
):
    for number, value in enumerate([*fitting, *others]):
        fits = number < len(fitting)
        caplog.clear()
        run_folder(
            tmp_path, "a", **{"run": {}, "metrics": {"n_train": 1}} | {file: {"n_test": 1, name: value}}
        )
        (found,) = record.read_records(tmp_path)
        assert vars(found)[file] == {"n_test": 1} | ({name: value} if fits else {})
        assert (repr(name) in caplog.text) is not fits


@pytest.mark.parametrize("half", ["\\ud83d", "\\uD83D"])
def test_half_a_sign_is_replaced(tmp_path, half):
    (tmp_path / "x.json").write_text(f'{{"error": "a{half}b"}}')
    assert record.read_json(tmp_path / "x.json") == {"error": "a?b"}


def test_whole_numbers_beyond_64_bits_are_floats(tmp_path):
    (tmp_path / "x.json").write_text(f"[{2**63 - 1}, {2**63}, {10**400}]".join(('{"numbers": ', "}")))
    numbers = record.read_json(tmp_path / "x.json")["numbers"]
    assert numbers == [2**63 - 1, 2.0**63, None]
    assert isinstance(numbers[1], float)


def test_a_config_may_have_many_lists_side_by_side_and_few_in_each_other():
    side_by_side = "".join(f"key{number}: [1, 2]\n" for number in range(50))
    assert record.plain_yaml(side_by_side) == side_by_side
    with pytest.raises(ValueError, match="nested more than"):
        record.plain_yaml("[" * 21 + "]" * 21)


def test_the_config_is_read_when_asked_for(tmp_path):
    folder = run_folder(tmp_path, "a", run={"seed": 0})
    (found,) = record.read_records(tmp_path)
    record.write_text(folder / "config.yaml", "seed: 0\n")
    assert found.config == "seed: 0\n"


def test_records_and_reports_need_no_torch():
    code = (
        "import sys, anomaly_bench.metrics, anomaly_bench.report.tables, anomaly_bench.report.figures; "
        "print({'torch', 'hydra', 'omegaconf', 'matplotlib'} & set(sys.modules))"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "set()"
