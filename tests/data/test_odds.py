import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from sklearn import datasets

from anomaly_bench.data import odds
from anomaly_bench.errors import SettingError
from anomaly_bench.protocols import TabularHalf
from anomaly_bench.rows import fingerprints


@pytest.fixture
def real_tables():
    """The folder of data sets, where this machine has the prepared tables."""
    root = os.environ.get("ANOMALY_BENCH_DATA")
    if not root or not (Path(root) / "tabular/thyroid.npz").is_file():
        pytest.skip("needs tabular/*.npz under ANOMALY_BENCH_DATA")
    return Path(root)


@pytest.fixture
def connections(monkeypatch):
    """Three network connections as scikit-learn gives them, in place of its download."""
    frame = pd.DataFrame(
        {
            "duration": [0, 5, 9],
            "protocol_type": [b"tcp", b"udp", b"tcp"],
            "service": [b"http", b"smtp", b"http"],
            "flag": [b"SF", b"SF", b"S0"],
            "src_bytes": [181, 0, 10**9],
        },
        dtype=object,
    )
    calls = []

    def fetch(**arguments):
        calls.append(arguments)
        return SimpleNamespace(data=frame, target=[b"normal.", b"smurf.", b"neptune."])

    monkeypatch.setattr(datasets, "fetch_kddcup99", fetch)
    return calls


def test_fetched_once_encoded_and_kept(tmp_path, connections):
    data = odds.load("kddcup99", tmp_path, download=True)
    assert [name for name, _ in data.columns] == [
        *("protocol_type=tcp", "protocol_type=udp", "service=http", "service=smtp", "flag=S0", "flag=SF"),
        *("duration", "src_bytes"),
    ]
    np.testing.assert_array_equal(data.x[1].numpy(), [0, 1, 0, 1, 0, 1, 5, 0])
    assert (data.class_names, data.classes.tolist()) == (("attack", "normal."), [1, 0, 0])
    assert data.source == "scikit-learn"
    again = odds.load("kddcup99", tmp_path)
    assert again.fingerprint() == data.fingerprint()
    assert len(connections) == 1
    assert [path.name for path in (tmp_path / "kddcup99").iterdir()] == ["kddcup99_10.npz"]
    assert not Path(connections[0]["data_home"]).exists()  # scikit-learn's pickle is gone


@pytest.fixture
def prepared(tmp_path):
    """A prepared file of 40 normal connections among 60 attacks, which have the odd numbers."""
    normal = np.arange(100) % 5 < 2
    x = 2 * np.arange(100) + ~normal
    (tmp_path / "tabular").mkdir()
    np.savez(tmp_path / "tabular/kddcup99_10.npz", X=x[:, None], y=normal, note="of two kinds")
    return tmp_path


def test_the_reverse_has_all_normal_rows_and_a_fourth_as_many_attacks(prepared):
    data = odds.load("kddcup99_rev", prepared, scale="standard")
    numbers = data.x[:, 0].long().numpy()
    assert (data.class_names, np.bincount(data.classes).tolist()) == (("normal.", "attack"), [40, 10])
    assert np.array_equal(numbers % 2, data.classes)
    assert (np.diff(numbers) > 0).all()
    assert (data.scale, data.note) == ("standard", "of two kinds")
    assert data.source == "prepared file kddcup99_10.npz"
    assert odds.load("kddcup99_rev", prepared).fingerprint() == data.fingerprint()


@pytest.mark.parametrize(
    ("y", "said"),
    [([0, 1, np.nan], "nan"), ([0, 1, 2], "2"), (["0", "1", "o"], "0, 1, o"), ([-1, 1, 0.5], "-1.0, 0.5")],
)
def test_a_label_that_is_neither_0_nor_1_is_refused(tmp_path, y, said):
    (tmp_path / "tabular").mkdir()
    np.savez(tmp_path / "tabular/thyroid.npz", X=np.ones((3, 2)), y=np.array(y))
    with pytest.raises(SettingError, match=rf"thyroid\.npz: y holds {said}; allowed are 0 and, of"):
        odds.load("thyroid", tmp_path)


def test_a_limit_keeps_rows_and_their_classes_together(prepared):
    data = odds.load("kddcup99", prepared, limit=21)
    numbers = data.x[:, 0].long().numpy()
    assert np.array_equal(numbers % 2, 1 - data.classes)
    assert (len(numbers), numbers[0], numbers[-1]) == (21, 0, 199)


def test_both_roles_are_read_from_one_file(prepared):
    (prepared / "tabular").rename(prepared / "kddcup99")
    assert len(odds.load("kddcup99", prepared).x) == 100
    assert len(odds.load("kddcup99_rev", prepared).x) == 50


def test_only_what_can_be_fetched_is(tmp_path, connections):
    with pytest.raises(SettingError, match=r"data=thyroid: no .*\(from ODDS\)"):
        odds.load("thyroid", tmp_path, download=True)
    assert connections == []


def test_no_network(tmp_path, monkeypatch):
    def unreachable(**_):
        raise OSError("no route")

    monkeypatch.setattr(datasets, "fetch_kddcup99", unreachable)
    with pytest.raises(SettingError, match=r"data=kddcup99: cannot be fetched \(no route\); put .*_10\.npz"):
        odds.load("kddcup99_rev", tmp_path, download=True)


@pytest.mark.parametrize("name", odds.TABLES)
def test_not_there(tmp_path, name):
    with pytest.raises(SettingError, match=rf"data={name}: no .*{odds.TABLES[name].file}"):
        odds.load(name, tmp_path)


def test_no_such_table(tmp_path):
    with pytest.raises(SettingError, match=r"data\.name=iris: no such table; allowed are kddcup99, "):
        odds.load("iris", tmp_path)


@pytest.mark.parametrize(
    ("name", "rows", "columns", "anomalous"),
    [("thyroid", 3772, 6, 93), ("arrhythmia", 452, 274, 66)],
)
def test_real_tables_are_the_papers(real_tables, name, rows, columns, anomalous):
    data = odds.load(name, real_tables)
    assert (*data.x.shape, int(data.classes.sum())) == (rows, columns, anomalous)
    split = TabularHalf(0).split(data, 0)
    assert len(split.test) == rows // 2
    assert split.ratio == odds_ratio(name)


def odds_ratio(name):
    return {"thyroid": 0.025, "arrhythmia": 0.15}[name]


@pytest.mark.slow
def test_both_roles_of_kdd_cup_99(real_tables):
    data = odds.load("kddcup99", real_tables)
    assert (*data.x.shape, int(data.classes.sum())) == (494021, 118, 97278)
    assert len(np.unique(fingerprints(data.x))) == 145584
    reverse = odds.load("kddcup99_rev", real_tables)
    assert (len(reverse.x), int(reverse.classes.sum())) == (121597, 24319)
    assert reverse.class_names == ("normal.", "attack")
    normal = np.sort(fingerprints(data.x)[data.classes == 1])
    assert np.array_equal(np.sort(fingerprints(reverse.x)[reverse.classes == 0]), normal)
