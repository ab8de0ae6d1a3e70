"""The measurement of methods on many rows, at a size that a test can bear."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_rows.py"


def test_the_table_is_the_same_from_the_file_whose_keys_are_sorted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from bench_rows import COLUMNS, page

    line = {name: number for number, name in enumerate(COLUMNS)} | {"method": "repen"}
    machine = {"cpu": "one", "cores": 2, "memory_gib": 3.0}
    facts = {"machine": machine, "made": "today", "git": "0"}
    assert page([line], facts) == page([dict(sorted(line.items()))], facts)
    assert page([line], facts).index("rows") < page([line], facts).index("finite")


@pytest.mark.slow
@pytest.mark.parametrize("method", ["repen", "rdp"])
def test_a_process_measures_itself(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, str(SCRIPT), "--one", method, "2000", "10"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["method"] == method
    monkeypatch.syspath_prepend(SCRIPT.parent)
    from bench_rows import COLUMNS

    assert set(told) == set(COLUMNS)
    assert told["scores that are finite"] == 2000
    assert 0 < told["peak above that, MiB"] < 2000
    assert told["learning, s"] > 0
