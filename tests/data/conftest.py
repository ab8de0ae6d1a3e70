import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture(autouse=True)
def own_folders(tmp_path, monkeypatch):
    """Each test has a decoding cache and a user's cache of its own."""
    monkeypatch.setenv("ANOMALY_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


@pytest.fixture
def real_data():
    """The folder of real data sets, where this machine has one."""
    root = os.environ.get("ANOMALY_BENCH_DATA")
    if not root or not (Path(root) / "mnist/MNIST/raw").is_dir():
        pytest.skip("needs MNIST under ANOMALY_BENCH_DATA")
    return Path(root)


@pytest.fixture
def draw():
    """Writes one image of a single value: `draw(path, value, size=(W, H), mode="L")`."""

    def write(path: Path, value: int, size: tuple[int, int] = (8, 8), mode: str = "L") -> Path:
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = np.full((size[1], size[0]), value, dtype=np.uint8)
        Image.fromarray(pixels).convert(mode).save(path)
        return path

    return write
