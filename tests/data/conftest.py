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


@pytest.fixture
def ganomaly(tmp_path, draw):
    """A set in GANomaly's layout; the value of each image tells where it came from."""
    root = tmp_path / "set"
    for number, suffix in enumerate(("png", "JPG", "bmp", "tiff", "webp", "pgm")):
        draw(root / f"train/0.normal/{number}.{suffix}", 10 + number, size=(8 + number, 8))
    draw(root / "test/0.normal/a.gif", 50)
    draw(root / "test/1.abnormal/gun/a.png", 100)
    draw(root / "test/1.abnormal/knife/b.jpeg", 150, size=(30, 20))
    return root


@pytest.fixture
def cache_files(tmp_path):
    """The files of the decoding cache as they are now, each with the time it was written."""
    return lambda: {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}
