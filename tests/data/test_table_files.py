import numpy as np
import pandas as pd
import pytest
import torch
from people_table import written

from anomaly_bench.data import table, table_files
from anomaly_bench.data.dataset import Column
from anomaly_bench.errors import SettingError


def test_tables_in_a_folder_come_sorted_and_hidden_ones_not_at_all(tmp_path):
    names = ["c.csv", "a.npz", "e/a.mat", "b.CSV", "d.parquet"]
    for name in (*names, ".hidden.csv", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert table_files.list_tables([tmp_path]) == [tmp_path / name for name in sorted(names)]


def test_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.array([{}]), y=np.zeros(1))
    with pytest.raises(SettingError, match=r"a\.npz: cannot be read: .*allow_pickle"):
        table.load(root=tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", table_files.SUFFIXES)
def test_damaged_files(tmp_path, suffix):
    path = tmp_path / f"broken{suffix}"
    path.write_bytes(b"\0\1 no table" if suffix != ".csv" else b"")
    with pytest.raises(SettingError, match=f"broken{suffix}: cannot be read"):
        table.load(root=path, label="y")


def test_a_reader_that_is_not_installed(tmp_path, monkeypatch):
    def lacking(*_: object, **__: object) -> None:
        raise ImportError("no pyarrow", name="pyarrow")

    monkeypatch.setattr(pd, "read_parquet", lacking)
    with pytest.raises(SettingError, match=r"pyarrow is needed to read it; install anomaly-bench\[tables\]"):
        table.load(root=written(tmp_path, ".parquet"), label="kind")


@pytest.mark.parametrize(
    ("trained_on", "categories", "new", "expected"),
    [
        ("007 abc 007", ("007", "abc"), "007 007", [[1, 0], [1, 0]]),
        ("1 2 unknown", ("1", "2", "unknown"), "1 - 2", [[1, 0, 0], [0, 0, 0], [0, 1, 0]]),
        ("TRUE FALSE -", ("FALSE", "TRUE"), "TRUE FALSE", [[0, 1], [1, 0]]),
        (f"{10**20} 007", ("007", f"{10**20}"), "007 7", [[1, 0], [0, 0]]),
    ],
)
def test_categories_are_the_text_of_the_file(tmp_path, trained_on, categories, new, expected):
    path = tmp_path / "codes.csv"

    def write(values):
        lines = [f"{value.strip('-')},1" for value in values.split()]
        path.write_text("\n".join(["code,y", *lines, ""]))

    write(trained_on)
    data = table.load(root=path, label="y")
    assert data.columns == (Column("code", categories),)
    assert torch.equal(table.read_rows(path, data.columns), data.x)
    write(new)
    assert table.read_rows(path, data.columns).tolist() == expected


def test_parquet_says_itself_what_is_text(tmp_path):
    frame = pd.DataFrame({"code": ["007", "1", None], "number": [7, 1, 2], "y": [0, 0, 0]})
    path = written(tmp_path, ".parquet", frame)
    data = table.load(root=path, label="y")
    assert data.columns == (Column("code", ("007", "1")), Column("number"))
    assert table.read_rows(path, data.columns).tolist() == [[1, 0, 7], [0, 1, 1], [0, 0, 2]]
