"""The page of costs: its arithmetic, done again by hand, and that it is what the script writes."""

import runpy
import statistics
from pathlib import Path

import pytest

from anomaly_bench.record import write_json

CHECKOUT = Path(__file__).parents[2]
COST = runpy.run_path(str(CHECKOUT / "scripts/cost.py"))


def finished(folder: Path, name: str, device: str, model: str = "ganomaly", **facts: object) -> None:
    """The record of a finished run: 100 rows a second in training, 2 ms a row in scoring."""
    machine = {"cpu": "Old CPU", "cores": 4}
    write_json(
        folder / name / "run.json",
        {"model": model, "device": device, "machine": machine, "shape": [1, 32, 32]} | facts,
    )
    write_json(
        folder / name / "metrics.json", {"train_images_per_s": 100.0, "score_ms_per_image": 2.0, "auroc": 1.0}
    )


def test_speeds_are_those_of_whole_machines(tmp_path):
    finished(tmp_path, "a", "cpu", threads=1)
    finished(tmp_path, "b", "cpu", threads=4, trained_in="a")
    finished(tmp_path, "c", "cuda:0", threads=1)
    write_json(tmp_path / "d/run.json", {"model": "ganomaly"})  # unfinished
    first, second, third = COST["of_records"](tmp_path)
    assert first[:2] == ("cpu", "ganomaly")
    assert first[3:] == (400.0, 2000.0)
    assert second[3:] == (None, 500.0)  # it has not trained
    assert third == ("cuda", "ganomaly", "cuda:0", 100.0, 500.0)


def test_a_run_costs_its_rows(tmp_path):
    finished(tmp_path, "a", "cuda:0")
    speeds = list(COST["of_records"](tmp_path))
    method = COST["Method"]("other", 20, False)
    by_hand = 0.72 * 70_000 * 20 / 100 + (2 * 0.28 * 70_000 + 1024) / 500
    assert COST["seconds"](speeds, "cuda:0", method, 70_000, statistics.median) == pytest.approx(by_hand)
    small = (
        0.72 * 1_000 * 20 / 100 + (2 * 0.28 * 1_000 + 720) / 500
    )  # it has fewer training rows than are sampled
    assert COST["seconds"](speeds, "cuda:0", method, 1_000, statistics.median) == pytest.approx(small)


def test_a_measured_method_has_its_own_speed_and_the_others_that_of_all(tmp_path):
    finished(tmp_path, "a", "cuda:0")
    finished(tmp_path, "b", "cuda:0", model="slow")
    write_json(tmp_path / "b/metrics.json", {"train_images_per_s": 10.0, "score_ms_per_image": 2.0})
    speeds = list(COST["of_records"](tmp_path))
    hours = {
        name: COST["seconds"](speeds, "cuda:0", COST["Method"](name, 10, False), 10_000, min)
        for name in ("ganomaly", "slow", "other")
    }
    assert hours["ganomaly"] < hours["slow"] == hours["other"]


def test_a_method_that_was_not_measured_here_goes_as_fast_as_elsewhere(tmp_path):
    finished(tmp_path, "a", "cuda:0")
    finished(tmp_path, "b", "cuda:1", model="slow")
    write_json(tmp_path / "b/metrics.json", {"train_images_per_s": 1.0, "score_ms_per_image": 200.0})
    finished(tmp_path, "c", "cuda:0", model="dagmm", shape=[118])  # rows of numbers go at another speed
    speeds = list(COST["of_records"](tmp_path))
    assert {speed.method for speed in speeds} == {"ganomaly", "slow"}
    slow, other = COST["Method"]("slow", 10, True), COST["Method"]("other", 10, False)

    def on(machine, method):
        return COST["seconds"](speeds, machine, method, 10_000, min)

    assert on("cuda:0", slow) == on("cuda:1", slow) == on("cuda:1", other) > on("cuda:0", other)
    line = COST["cost"]([*speeds, speeds[0]._replace(kind="cpu", machine="old")], [slow, other], "old")
    assert float(line["the longest"]) == pytest.approx(on("cuda:0", other) * 9.9289 / 3600, abs=0.1)


def test_totals_for_one_and_for_a_hundred(tmp_path):
    finished(tmp_path, "a", "cuda:0")
    speeds = list(COST["of_records"](tmp_path))
    known = [COST["Method"]("ganomaly", 15, False), COST["Method"]("anogan", 15, True)]
    line = COST["cost"](speeds, known[:1], "cuda:0")
    assert line["on"] == "cuda:0"
    hours = [COST["seconds"](speeds, "cuda:0", known[0], rows, min) / 3600 for rows in COST["ROWS"].values()]
    total = sum(hours) / 6 * 30 * 10 * 5 * 6
    assert line["days on 1"] == f"{total / 24:,.0f}"
    assert line["days on 100"] == f"{total / 100 / 24:,.1f}"
    assert line["the longest"] == f"{max(hours):,.1f}"
    text = COST["page"](speeds, known)
    assert "No speed on a GPU" not in text
    assert "was not measured: anogan" in text
    searching = [speed._replace(method="anogan") for speed in speeds]
    assert "was not measured: none" in COST["page"]([*speeds, *searching], known)


def test_the_fastest_bounds_a_total_from_below_and_the_slowest_from_above(tmp_path):
    for name, rate in (("a", 10.0), ("b", 100.0), ("c", 1000.0)):
        finished(tmp_path, name, "cuda:0")
        write_json(tmp_path / name / "metrics.json", {"train_images_per_s": rate, "score_ms_per_image": 2.0})
    speeds = list(COST["of_records"](tmp_path))
    line = COST["cost"](speeds, [COST["Method"]("ganomaly", 15, False)], "cuda:0")
    ends = [line[f"days on 1{which}"] for which in (", if all ran as the fastest", "", ", as the slowest")]
    fast, median, slow = (float(days.replace(",", "")) for days in ends)
    assert fast < median < slow
    (told,) = COST["measured_lines"](speeds)
    assert (told["training, images/s"], told["from–to, training"], told["n, training"]) == (
        "100",
        "10–1,000",
        "3",
    )


def test_samples_of_a_benchmark_are_those_of_our_own(tmp_path):
    samples = [
        {"contender": contender, "what": what, "values": values}
        for contender, what, values in (
            ("anomaly-bench", "training, images/s", [1.0, 2.0]),
            ("anomaly-bench", "scoring, batch 512, images/s", [3.0]),
            ("anomaly-bench", "memory", [4.0]),
            ("another", "training, images/s", [5.0]),
        )
    ]
    devices = {
        "cpu": {"name": "Old CPU", "samples": samples},
        "cuda:0": {"name": "A GPU", "samples": samples[:1]},
    }
    (tmp_path / "benchmarks").mkdir()
    write_json(tmp_path / "benchmarks/a.json", {"machine": {"cores": 4}, "devices": devices})
    assert [*COST["of_benchmarks"](tmp_path)] == [
        ("cpu", "ganomaly", "Old CPU, 4 cores", 1.0, None),
        ("cpu", "ganomaly", "Old CPU, 4 cores", 2.0, None),
        ("cpu", "ganomaly", "Old CPU, 4 cores", None, 3.0),
        ("cuda", "ganomaly", "A GPU", 1.0, None),
        ("cuda", "ganomaly", "A GPU", 2.0, None),
    ]


def test_where_no_gpu_was_measured_the_page_says_so(tmp_path):
    finished(tmp_path, "a", "cpu", threads=1)
    text = COST["page"](list(COST["of_records"](tmp_path)), [COST["Method"]("ganomaly", 15, False)])
    assert "**No speed on a GPU was measured**" in text
    assert "| Old CPU, 4 cores, no GPU |" in text


def test_epochs_are_those_of_the_configs():
    epochs = COST["epochs_of"]
    assert epochs({"epochs": 15, "warmup_epochs": 3}) == 15
    assert epochs({"epochs": 50, "rounds": 20, "model": {"epochs": 7}}) == 1007
    assert epochs({"epochs": "${on_data:{thyroid:20000},200}"}) == 200
    known = {method.name: method for method in COST["methods"](CHECKOUT / "configs/model")}
    assert known["ganomaly"].epochs == 15
    assert known["anogan"].searches
    assert not known["ganomaly"].searches


def test_the_page_is_what_the_script_writes(tmp_path):
    COST["main"](["--output", str(tmp_path / "cost.md")])
    assert (tmp_path / "cost.md").read_text() == (CHECKOUT / "results/cost.md").read_text()
