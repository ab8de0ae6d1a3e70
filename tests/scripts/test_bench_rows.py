"""The measurement of methods on many rows, at a size that a test can bear."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "bench_rows.py"


@pytest.mark.slow
@pytest.mark.parametrize("method", ["repen", "rdp"])
def test_a_process_measures_itself(method: str) -> None:
    command = [sys.executable, str(SCRIPT), "--one", method, "2000", "10"]
    told = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert told["method"] == method
    assert told["scores that are finite"] == 2000
    assert 0 < told["peak above that, MiB"] < 2000
    assert told["learning, s"] > 0
