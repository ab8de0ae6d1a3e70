"""A data set that processes share: the same after as before, in memory once, and written whole."""

import json
import sys
from dataclasses import fields, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch

from anomaly_bench.data import digits, shared
from anomaly_bench.data.dataset import Dataset


@pytest.fixture
def rows():
    """Rows of numbers from files, with whatever a data set can have."""
    return Dataset(
        name="rows",
        x=torch.randn(50, 7),
        classes=np.arange(50) % 3,
        class_names=("0.normal", "1.abnormal/a b", "Ω"),
        official_train=np.arange(50) < 20,
        source="folder",
        files=tuple(f"train/{number}.png" for number in range(50)),
        mean=0.1,
        std=1 / 3,
        masks=np.arange(200).reshape(50, 2, 2) % 3 == 0,
    )


@pytest.mark.parametrize("kind", ["images", "rows"])
def test_nothing_changes(kind, rows, tmp_path):
    dataset = digits.load(limit=30) if kind == "images" else rows
    shared.save(dataset, tmp_path / "deep/er/place")
    found = shared.load(tmp_path / "deep/er/place")
    for field in fields(Dataset):
        before, after = getattr(dataset, field.name), getattr(found, field.name)
        assert np.array_equal(before, after), field.name
        assert type(after) is type(before) or isinstance(after, type(before)), field.name
    assert found.x.dtype == dataset.x.dtype
    assert found.fingerprint() == dataset.fingerprint() == replace(found).fingerprint()


class Column(NamedTuple):
    name: str
    values: tuple[str, ...] | None = None


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ((Column("age"), Column("colour", ("red", "blue"))), tuple[Column, ...] | None),
        (None, tuple[Column, ...] | None),
        (("a", "b"), tuple[str, ...]),
        (0.25, float),
        ("folder", str | None),
    ],
)
def test_json_changes_no_value(value, kind):
    found = shared.typed(json.loads(json.dumps(value)), kind)
    assert found == value
    assert repr(found) == repr(value)


def test_the_fingerprint_is_not_computed_again(rows, tmp_path, monkeypatch):
    shared.save(rows, tmp_path / "place")
    monkeypatch.setattr("anomaly_bench.data.dataset.hashlib", None)
    assert shared.load(tmp_path / "place").fingerprint() == rows.fingerprint()


def test_another_content_has_another_fingerprint(rows):
    first = rows.fingerprint()
    assert replace(rows, x=rows.x + 1).fingerprint() != first


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_rows_lie_in_memory_once(rows, tmp_path):
    """Reading every row of two mappings makes no page of either private."""
    shared.save(replace(rows, x=torch.ones(2**16, 32)), tmp_path / "place")
    both = [shared.load(tmp_path / "place") for _ in range(2)]
    assert sum(float(one.x.sum()) for one in both) == 2**22
    text = Path("/proc/self/smaps").read_text()
    maps = [part.split("VmFlags")[0] for part in text.split(str(tmp_path / "place/x.npy"))[1:]]
    assert len(maps) == 2
    for part in maps:
        sizes = {line.split(":")[0]: line.split()[1] for line in part.splitlines() if line.endswith("kB")}
        assert int(sizes["Rss"]) >= 2**13
        assert sizes["Private_Dirty"] == sizes["Anonymous"] == "0"


def test_what_one_process_writes_no_other_sees(rows, tmp_path):
    shared.save(rows, tmp_path / "place")
    mine, other = (shared.load(tmp_path / "place") for _ in range(2))
    mine.x.zero_()
    assert torch.equal(other.x, rows.x)
    assert torch.equal(shared.load(tmp_path / "place").x, rows.x)


def test_a_data_set_is_there_whole_or_not_at_all(rows, tmp_path):
    with pytest.raises(TypeError):
        shared.save(replace(rows, files={"not", "plain"}), tmp_path / "place")
    assert list(tmp_path.iterdir()) == []
    shared.save(rows, tmp_path / "place")
    assert [path.name for path in tmp_path.iterdir()] == ["place"]
