import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anomaly_bench.data import folder
from anomaly_bench.data.decode import size_of
from anomaly_bench.protocols import Folder

SCRIPT = Path(__file__).parents[2] / "scripts/make_baggage_demo.py"
SMALL = ("--train", "6", "--test", "4", "--threats", "3")


def make(*arguments):
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, check=False
    )


def pictures(root):
    return {file.relative_to(root).as_posix(): file.read_bytes() for file in sorted(root.rglob("*.png"))}


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    root = tmp_path_factory.mktemp("demo") / "uba"
    made = make(root, *SMALL)
    assert made.returncode == 0, made.stderr
    return root


def test_it_is_a_folder_data_set(demo, monkeypatch, tmp_path):
    monkeypatch.setenv("ANOMALY_BENCH_CACHE", str(tmp_path))
    data = folder.load("uba", demo)
    assert data.shape == (3, 64, 64)
    assert data.source == "synthetic"
    assert data.class_names == ("0.normal", "1.abnormal/gun", "1.abnormal/gun-part", "1.abnormal/knife")
    split = Folder().split(data, 0)
    assert (len(split.train), len(split.test), split.anomalous.sum()) == (6, 13, 9)


def test_it_says_that_it_is_synthetic(demo):
    assert "synthetic" in (demo / "SYNTHETIC.txt").read_text()


def test_the_seed_decides_and_counts_do_not(demo, tmp_path):
    made = make(tmp_path / "more", "--train", "7", "--test", "4", "--threats", "3")
    assert made.returncode == 0, made.stderr
    first, more = pictures(demo), pictures(tmp_path / "more")
    assert len(set(first.values())) == len(first) == 19  # no two alike
    assert {name: more[name] for name in first} == first
    assert make(tmp_path / "other", *SMALL, "--seed", "1").returncode == 0
    assert not set(pictures(tmp_path / "other").values()) & set(first.values())


def test_thickness_adds_up_and_light_is_lost_exponentially():
    script = runpy.run_path(str(SCRIPT))
    slab = (script["rectangle"](-1, -1, 2, 2), "organic", 0.5)
    assert script["attenuation"]([slab, slab], 4) == pytest.approx(
        np.stack([np.full((4, 4), mu) for mu in (1.1, 0.9)])
    )
    means = []
    for count in range(4):
        picture = np.asarray(script["scan"]([slab] * count, 64, np.random.default_rng(0)), dtype=float)
        means.append(picture[..., 2].mean() / 255)  # blue, of which organic matter leaves least
    blue = script["COLOURS"][0, 2]
    through = np.exp(-0.5 * np.arange(4))
    assert means == pytest.approx(through + (1 - through) * blue * np.sqrt(through), abs=0.01)


def test_other_sizes(tmp_path):
    assert make(tmp_path / "small", *SMALL, "--size", "32").returncode == 0
    assert {size_of(str(file)) for file in (tmp_path / "small").rglob("*.png")} == {(32, 32)}


def test_it_overwrites_nothing(demo):
    before = pictures(demo)
    again = make(demo, *SMALL)
    assert again.returncode == 2
    assert "there already" in again.stderr
    assert pictures(demo) == before


@pytest.mark.parametrize("wrong", [("--train", "0"), ("--seed", "-1"), ("--size", "x")])
def test_wrong_settings(tmp_path, wrong):
    assert make(tmp_path / "out", *SMALL, *wrong).returncode == 2
    assert list(tmp_path.iterdir()) == []
