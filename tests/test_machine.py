import sys

import pytest

from anomaly_bench import machine, record


def test_a_quota_of_the_control_group_bounds_the_cores(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    for line, expected in (("400000 100000", 4), ("50000 100000", 1), ("max 100000", 64), ("", 64)):
        monkeypatch.setattr(machine, "_first_line", lambda _, line=line: line)
        assert machine.cores() == expected


def test_free_memory_is_bounded_by_the_control_group(monkeypatch):
    free = machine.free_gib()
    assert free > 0
    lines = {"/sys/fs/cgroup/memory.max": str(2**26), "/sys/fs/cgroup/memory.current": str(2**25)}
    monkeypatch.setattr(machine, "_first_line", lines.__getitem__)
    if sys.platform == "linux":
        assert machine.free_gib() == pytest.approx(2**-5)


def test_free_memory_where_the_system_does_not_say(monkeypatch):
    def nowhere(*_: object) -> str:
        raise FileNotFoundError

    monkeypatch.setattr(machine.Path, "read_text", nowhere)
    assert 0.1 < machine.free_gib() < 1e5
    monkeypatch.delattr(machine.os, "sysconf")
    assert machine.free_gib() == 4


def test_the_machine_is_described_in_words_that_can_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "_first_line", lambda _: "100000 100000")
    record.write_json(tmp_path / "x.json", machine.described())
    described = record.read_json(tmp_path / "x.json")
    assert set(described) == {"cpu", "cores", "memory_gib", "platform"}
    assert described["cores"] == 1  # of the quota, however many there are
