from pathlib import Path

import numpy as np
import pytest

from anomaly_bench.data.settings import check_image_size, data_root, kept_rows, within
from anomaly_bench.errors import SettingError


def test_data_root(monkeypatch, tmp_path):
    monkeypatch.setenv("ANOMALY_BENCH_DATA", str(tmp_path))
    assert data_root("given") == Path("given")
    assert data_root("~/given") == Path.home() / "given"
    assert data_root(None) == tmp_path
    monkeypatch.delenv("ANOMALY_BENCH_DATA")
    assert data_root(None) == tmp_path / "xdg/anomaly-bench"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert data_root(None) == Path.home() / ".cache/anomaly-bench"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert data_root(None) == Path.home() / ".cache/anomaly-bench"


def test_kept_rows():
    classes = np.array([2, 2, 2, 2, 0, 1, 0, 0, 1, 2])
    train = np.array([True] * 7 + [False] * 3)
    assert kept_rows(classes, train, None).tolist() == list(range(10))
    assert kept_rows(classes, train, 3).tolist() == [0, 4, 5, 7, 8, 9]
    assert kept_rows(classes, train, 1).tolist() == [4, 7]
    assert kept_rows(classes, train, 6).tolist() == [0, 1, 2, 4, 5, 6, 7, 8, 9]  # class 1 has no second row
    for limit in (0, -1, 2.5, "many", True):
        with pytest.raises(SettingError, match=r"data\.limit="):
            kept_rows(classes, train, limit)


def test_image_sizes():
    for size in (1, 4096, None):
        check_image_size(size)
    for size in (0, -8, 4097, 32.0, True):
        with pytest.raises(SettingError, match=r"data\.image_size="):
            check_image_size(size)


def test_a_folder_may_itself_be_reached_by_a_link(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "real/a.png").touch()
    (tmp_path / "real/b.png").symlink_to("a.png")
    (tmp_path / "alias").symlink_to("real")
    files = [tmp_path / "alias" / name for name in ("a.png", "b.png")]
    assert within(files, tmp_path / "alias") == files
