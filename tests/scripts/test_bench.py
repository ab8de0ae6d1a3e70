"""The benchmark measures and tells; how fast anything is, no test asks."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"
SAMPLES = {
    ("training, images/s", "anomaly-bench"): [200.0, 300.0, 100.0],
    ("training, images/s", "without channels_last"): [100.0, 100.0, 100.0],
    ("training, images/s", "plain"): [100.0, 100.0, 25.0],
    ("start to the end of the first step, s", "anomaly-bench"): [2.0, 1.0, 3.0],
    ("GFLOP/s", "matrices, float32"): [200.0, 100.0, 100.0],
}


@pytest.fixture
def script(monkeypatch):
    """Imports one of the script's files."""
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def bench(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPTS / "bench.py", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )


def report(samples, gflop=None):
    kept = [{"what": what, "contender": who, "values": values} for (what, who), values in samples.items()]
    facts = {"anomaly-bench": {"threads": 2, "precision": "fp32"}, "plain": {"threads": 2}}
    device = {"name": "a processor", "contenders": facts, "samples": kept, "gflop": gflop or {}}
    machine = {"cpu": "a processor", "cores": 2, "memory_gib": 1.0, "platform": "Linux"}
    load = {"before": [0.1, 0, 0], "after": [0.2, 0, 0]}
    return {
        "machine": machine,
        "versions": {"python": "3", "torch": "2"},
        "peers": {"anomalib": "2"},
        "made": "now",
        "git": "abc",
        "rounds": 3,
        "quick": False,
        "load_average": load,
        "devices": {"cpu": device},
    }


def cells(text, start):
    """The cells of the only line of a table that starts so."""
    (line,) = [line for line in text.splitlines() if line.startswith("|") and start in line]
    return [cell.strip() for cell in line.strip("|").split("|")]


@pytest.mark.slow
def test_quick(tmp_path):
    output = tmp_path / "a/quick.json"
    done = bench("--quick", "--only", "training", "--output", output)
    assert done.returncode == 0, done.stderr
    found = json.loads(output.read_text())
    samples = found["devices"]["cpu"]["samples"]
    assert {"anomaly-bench", "without channels_last", "plain"} <= {sample["contender"] for sample in samples}
    assert all(sample["what"] == "training, images/s" for sample in samples)
    assert all(len(sample["values"]) == 1 and sample["values"][0] > 0 for sample in samples)
    assert found["machine"]["cores"] > 0
    assert output.with_suffix(".md").read_text() == done.stdout.removesuffix("\n")
    assert "these figures mean nothing" in done.stdout
    assert sorted(file.name for file in output.parent.iterdir()) == ["quick.json", "quick.md"]


@pytest.mark.slow
def test_all_sections(tmp_path):
    done = bench("--quick", "--output", tmp_path / "quick.json")
    assert done.returncode == 0, done.stderr
    device = json.loads((tmp_path / "quick.json").read_text())["devices"]["cpu"]
    measures = {sample["what"] for sample in device["samples"]}
    assert len(measures) == 14
    assert all(sample["values"][0] > 0 for sample in device["samples"])
    assert device["gflop"]["scoring"]["anomaly-bench"] == device["gflop"]["scoring"]["plain"]
    assert device["gflop"]["training"]["anomaly-bench"] < device["gflop"]["training"]["plain"]


def test_ratios_are_taken_within_rounds(script):
    page = script("bench_table").table(report(SAMPLES))
    assert cells(page, "| training, images/s")[1:] == [
        "anomaly-bench",
        "200 [100-300]",
        "5",
        "1 [1-1]",
        "3 [2-4]",
    ]
    assert cells(page, "without channels_last")[3:] == ["10", "0.5 [0.333-1]", "1 [1-4]"]
    assert cells(page, "start to the end")[2:] == ["2 [1-3]", "", "1 [1-1]", ""]


def test_the_share_of_the_limit(script):
    gflop = {
        "training": {"anomaly-bench": 0.5, "plain": 0.7},
        "scoring": {"anomaly-bench": 0.1, "plain": 0.1},
    }
    page = script("bench_table").table(report(SAMPLES, gflop))
    reached = cells(page, "matrices, float32")
    assert reached[1:3] == ["100 [100-200]", "200 [200-400]"]
    assert reached[3] == "50% [50%-150%]"


def test_the_json_makes_the_same_table(script, tmp_path):
    table = script("bench_table").table
    gflop = {
        "training": {"plain": 0.7, "anomaly-bench": 0.5},
        "scoring": {"plain": 0.1, "anomaly-bench": 0.1},
    }
    given = report(SAMPLES, gflop)
    script("anomaly_bench.record").write_json(tmp_path / "a.json", given)
    assert table(json.loads((tmp_path / "a.json").read_text())) == table(given)


def test_everyone_is_first_in_turn(script):
    rotated = script("bench").rotated
    assert [rotated(["a", "b", "c"], number) for number in range(4)] == [
        ["a", "b", "c"],
        ["b", "c", "a"],
        ["c", "a", "b"],
        ["a", "b", "c"],
    ]


def test_levers_that_change_nothing_are_left_out(script, monkeypatch):
    module = script("bench")
    assert ("channels_last", False) in module.levers("cpu")
    monkeypatch.setattr(module, "LEVERS", (("precision", "auto"), ("channels_last", True), ("no_such", 1)))
    assert module.levers("cpu") == []


def test_a_contender_that_dies_is_quoted(script):
    contender = script("bench_processes").Contender([sys.executable, "-c", "raise SystemExit('no luck')"])
    with pytest.raises(SystemExit, match="no luck"):
        contender.ready()
    contender.end()
    with pytest.raises(SystemExit, match="none either"):
        script("bench_processes").run([sys.executable, "-c", "raise SystemExit('none either')"])


def test_a_command_is_timed_to_its_first_line_and_to_its_end(script):
    code = "import time; print('first', flush=True); time.sleep(0.3); print('{\"value\": 7}')"
    ended = script("bench_processes").run([sys.executable, "-c", code])
    assert ended.seconds >= ended.first + 0.2
    assert ended.peak > 1
    assert ended.said == {"value": 7}


def test_unknown_names_are_refused(script, capsys):
    with pytest.raises(SystemExit):
        script("bench").main(["--only", "training,nothing"])
    assert "allowed are training, scoring" in capsys.readouterr().err
