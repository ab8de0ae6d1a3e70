"""Whole tables, at a size that a test can bear."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from anomaly_bench.record import read_json

SCRIPT = Path(__file__).parents[2] / "scripts" / "whole_tables.py"


@pytest.mark.slow
@pytest.mark.skipif(
    "ANOMALY_BENCH_DATA" not in os.environ, reason="needs MNIST: ANOMALY_BENCH_DATA is not set"
)
def test_a_table_is_run_published_and_timed(tmp_path: Path) -> None:
    tiny = ["data.limit=60", "data.image_size=16", "trainer.max_epochs=1", "model.ngf=4", "model.ndf=4"]
    folders = ["--runs", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
    command = [sys.executable, str(SCRIPT), "--experiments", "ganomaly_mnist", *folders, *tiny]
    said = subprocess.run(
        [*command, "abnormal_class=3", "seed=0"], capture_output=True, text=True, check=True
    ).stdout
    assert "beside the paper's" in said
    published = tmp_path / "results" / "ganomaly_mnist"
    assert "not run" in (published / "table.md").read_text()
    (call,) = read_json(published / "seconds.json")["calls"]
    assert call["seconds"] > 0
    assert "seed=0" in call["overrides"]
