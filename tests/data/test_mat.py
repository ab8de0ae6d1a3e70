"""MATLAB files read by a process of their own; tests/data/test_hostile_files.py holds damaged ones."""

from pathlib import Path

import numpy as np
import pytest
from scipy.io import savemat

from anomaly_bench.data.mat import read_apart


def test_numbers_truth_values_and_texts_are_read_and_cells_left_out(tmp_path: Path) -> None:
    plain = {
        "X": np.array([[0.1, -1e300]]),
        "file": np.array([[1, 2]], dtype=np.int16),
        "n": np.array([[3, -4]], dtype=np.int16),
        "seen": np.array([[True, False]]),
        "y": np.array(["normal", "odd   "]),
    }
    savemat(tmp_path / "x.mat", plain | {"cells": np.array([[{"a": 1}]], dtype=object)})
    back = read_apart(tmp_path / "x.mat")
    assert back.keys() == plain.keys()
    assert all(np.array_equal(back[name], plain[name]) for name in plain)


def test_why_a_file_cannot_be_read_is_told_in_a_line(tmp_path: Path) -> None:
    (tmp_path / "x.mat").write_bytes(b"no MATLAB file, but long enough to look at" * 9)
    with pytest.raises(ValueError, match=r"^\w+Error: [^\n]+$"):
        read_apart(tmp_path / "x.mat")
