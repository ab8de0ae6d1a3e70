import logging

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from people_table import FRAME, written
from scipy.io import savemat

from anomaly_bench.data import table
from anomaly_bench.data.dataset import Column
from anomaly_bench.errors import SettingError

X = np.arange(12, dtype=np.float64).reshape(4, 3)
Y = np.array([0, 0, 1, 0])


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_columns_of_any_kind(tmp_path, suffix, caplog):
    data = table.load(root=written(tmp_path, suffix), label="kind")
    assert data.columns == (Column("age"), Column("colour", ("blue", "red")), Column("smokes"))
    assert data.x.dtype == torch.float32
    np.testing.assert_array_equal(
        data.x.numpy(), [[31, 0, 1, 1], [40, 1, 0, 0], [np.nan, 0, 1, 0], [28, 0, 0, 1], [55, 1, 0, 0]]
    )
    assert (data.class_names, data.classes.tolist()) == (("ok", "fraud"), [0, 0, 1, 0, 1])
    assert data.source == f"file people{suffix}"
    assert "1 missing numbers in 1 of 3 columns: each becomes the median" in caplog.text
    assert "1 missing categories in 1 of 3 columns: each becomes 0 in" in caplog.text


def test_a_column_that_numbers_the_rows_is_not_learned_from(tmp_path, caplog):
    path = tmp_path / "people.csv"
    FRAME.sample(frac=1, random_state=0).to_csv(path)
    assert [name for name, _ in table.load(root=path, label="kind").columns] == ["age", "colour", "smokes"]
    assert "people.csv: its first column has no name and numbers the rows: left out" in caplog.text
    caplog.clear()
    FRAME.set_index("age").to_csv(path)
    assert table.load(root=path, label="kind").columns[0] == Column("age")
    FRAME.rename(columns={"age": ""}).to_csv(path, index=False)  # with gaps it is no number of a row
    assert len(table.load(root=path, label="kind").columns) == 3
    assert "no name" not in caplog.text


def test_no_index_that_pandas_writes_is_learned_from(tmp_path, caplog):
    path = tmp_path / "people.csv"
    FRAME.to_csv(path)
    pd.read_csv(path).to_csv(path)  # twice, as who forgets `index=False`
    assert [name for name, _ in table.load(root=path, label="kind").columns] == ["age", "colour", "smokes"]
    assert "its first columns, 2 of them, have no name and numbers the rows: left out" in caplog.text
    pd.concat([FRAME, FRAME]).to_csv(path)  # whose numbers come twice
    assert [name for name, _ in table.load(root=path, label="kind").columns] == ["age", "colour", "smokes"]
    caplog.clear()
    FRAME.assign(id=range(7, 7 + len(FRAME))).to_csv(path, index=False)
    assert len(table.load(root=path, label="kind").columns) == 4
    assert "people.csv: column id counts the rows: remove it" in caplog.text


def test_a_label_may_be_a_number_that_names_a_column(tmp_path):
    path = written(tmp_path, ".csv", pd.DataFrame([[0.5, 1], [0.7, 0], [0.1, 1]]))
    assert table.load(root=path, label=1).classes.tolist() == [1, 0, 1]


def test_files_of_arrays_agree(tmp_path):
    np.savez(tmp_path / "a.npz", X=X, y=Y)
    savemat(tmp_path / "b.mat", {"X": X, "y": Y[:, None]})  # as ODDS has them
    with h5py.File(tmp_path / "c.mat", "w", userblock_size=512) as file:  # and those of version 7.3
        file["X"], file["y"] = X.T, Y[None].astype(float)
        file.create_group("#refs#")  # where MATLAB keeps what cells hold
    sets = [table.load(root=tmp_path / name) for name in ("a.npz", "b.mat", "c.mat")]
    for data in sets:
        np.testing.assert_array_equal(data.x.numpy(), X)
        assert (data.class_names, data.classes.tolist()) == (("0", "1"), [0, 0, 1, 0])
        assert data.columns == (Column("x0"), Column("x1"), Column("x2"))
    assert len({data.fingerprint() for data in sets}) == 1


def test_other_rows_are_encoded_alike(tmp_path, caplog):
    data = table.load(root=written(tmp_path, ".csv"), label="kind")
    new = pd.DataFrame({"more": [1, 2], "smokes": [0, 1], "colour": ["green", "red"], "age": [1, 2]})
    with caplog.at_level(logging.WARNING, "anomaly_bench"):
        x = table.read_rows(written(tmp_path, ".parquet", new), data.columns)
    assert x.tolist() == [[1, 0, 0, 0], [2, 0, 1, 1]]
    assert "column colour: unknown values count as missing: green" in caplog.text
    np.savez(tmp_path / "new.npz", X=X)
    with pytest.raises(SettingError, match="X has 3 columns; the run was trained on 3 columns: age, colour"):
        table.read_rows(tmp_path / "new.npz", data.columns)
    np.savez(tmp_path / "old.npz", X=X, y=Y)
    columns = table.load(root=tmp_path / "old.npz").columns
    np.testing.assert_array_equal(table.read_rows(tmp_path / "new.npz", columns).numpy(), X)
    np.savez(tmp_path / "narrow.npz", X=X[:, :2])
    with pytest.raises(SettingError, match="X has 2 columns; the run was trained on 3 columns: x0, x1, x2"):
        table.read_rows(tmp_path / "narrow.npz", columns)


def test_a_category_does_not_depend_on_where_in_the_file_it_stands(tmp_path):
    half = 2**14  # rows: the parser's block, were such a wide file read in blocks
    rows = [("01", "02", "03")[row % 3] for row in range(half)] + [
        ("01", "A1")[row % 2] for row in range(half)
    ]
    frame = pd.DataFrame({"code": rows, "y": 0} | {f"x{number}": 0 for number in range(60)})
    data = table.load(root=written(tmp_path, ".csv", frame), label="y")
    assert data.columns[0] == Column("code", ("01", "02", "03", "A1"))


def test_columns_may_be_named_by_numbers(tmp_path):
    data = table.load(root=written(tmp_path, ".parquet", pd.DataFrame({0: [5, 6], 1: [0, 1]})), label="1")
    assert data.columns == (Column("0"),)
    assert data.x.tolist() == [[5], [6]]
    assert table.read_rows(tmp_path / "people.parquet", data.columns).tolist() == [[5], [6]]


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        ([1, 1, 0], ("0", "1"), [1, 1, 0]),  # numbers keep their order
        ([2.5, -1, 2.5], ("-1", "2.5"), [1, 0, 1]),
        ([True, False, True], ("False", "True"), [1, 0, 1]),
        (["b", "a", "b"], ("b", "a"), [0, 1, 0]),  # of words, the most frequent is first
    ],
)
def test_classes(tmp_path, labels, names, classes):
    frame = pd.DataFrame({"x": range(len(labels)), "y": labels})
    data = table.load(root=written(tmp_path, ".csv", frame), label="y")
    assert (data.class_names, data.classes.tolist()) == (names, classes)


def test_a_limit_keeps_the_shares(tmp_path):
    frame = pd.DataFrame({"x": range(1000), "y": [0] * 900 + [1] * 100})
    data = table.load(root=written(tmp_path, ".csv", frame), label="y", limit=50)
    assert (len(data.x), int(data.classes.sum())) == (50, 5)
    rows = data.x[:, 0].numpy()
    assert (rows[0], rows[-1]) == (0, 999)
    assert np.array_equal(rows >= 900, data.classes == 1)
    assert len(table.load(root=tmp_path / "people.csv", label="y", limit=2000).x) == 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": None}, r"data\.label=null: .*there are age, colour, smokes, kind"),
        ({"label": "class"}, r"data\.label=class: .*there are age, colour, smokes, kind"),
        ({"root": None}, r"data\.root=null: .*\.csv, \.parquet, \.npz, \.mat"),
        ({"root": ""}, r"^data\.root=: the table's file is needed"),
        ({"root": "."}, r"^data\.root=\.: it is a folder; the table's file is needed"),
        ({"root": "nowhere.csv"}, r"^data\.root=nowhere\.csv: there is no such file"),
        ({"root": "table.xlsx"}, r"table\.xlsx: not a table"),
        ({"limit": 0}, r"data\.limit=0: allowed"),
        ({"label": "age"}, "1 of 5 rows have no label"),
    ],
)
def test_refusals(tmp_path, change, message):
    with pytest.raises(SettingError, match=message):
        table.load(**{"root": written(tmp_path, ".csv"), "label": "kind"} | change)


@pytest.mark.parametrize("label", ["None", "NA", "N/A", "null", "nan"])
def test_a_class_may_be_called_what_pandas_takes_for_a_gap(tmp_path, label):
    frame = pd.DataFrame({"x": [1, 2, 3], "y": [label, "leak", label]})
    data = table.load(root=written(tmp_path, ".csv", frame), label="y")
    assert (data.class_names, data.classes.tolist()) == ((label, "leak"), [0, 1, 0])
    frame.loc[1, "y"] = None
    with pytest.raises(SettingError, match="1 of 3 rows have no label"):
        table.load(root=written(tmp_path, ".csv", frame), label="y")
    frame["y"] = [0, 1, label]  # of numbers it is a gap
    with pytest.raises(SettingError, match="1 of 3 rows have no label"):
        table.load(root=written(tmp_path, ".csv", frame), label="y")


def test_arrays_with_names_are_matched_by_them(tmp_path):
    np.savez(tmp_path / "old.npz", X=X, y=Y, columns=np.array(["a", "b", "c"]))
    columns = table.load(root=tmp_path / "old.npz").columns
    np.savez(
        tmp_path / "new.npz", X=np.c_[X[:, [2, 0]], Y, X[:, 1]], columns=np.array(["c", "a", "more", "b"])
    )
    np.testing.assert_array_equal(table.read_rows(tmp_path / "new.npz", columns).numpy(), X)
    np.savez(tmp_path / "other.npz", X=X, columns=np.array(["a", "b", "d"]))
    with pytest.raises(SettingError, match=r"other\.npz: it has no column c; needed are 3 columns: a, b, c"):
        table.read_rows(tmp_path / "other.npz", columns)


def test_arrays_whose_columns_share_a_name_are_refused(tmp_path):
    np.savez(tmp_path / "x.npz", X=X, y=Y, columns=np.array(["a", "b", "a"]))
    with pytest.raises(SettingError, match=r"x\.npz: it has two columns called 'a'; rename one"):
        table.load(root=tmp_path / "x.npz")


def test_a_label_that_comes_twice_is_refused_and_one_that_has_a_namesake_is_not(tmp_path):
    (tmp_path / "twice.csv").write_text("y,x,y\n0,5,a\n1,6,b\n0,7,a\n")
    with pytest.raises(SettingError, match=r"data\.label=y: twice\.csv has two columns of that name"):
        table.load(root=tmp_path / "twice.csv", label="y")
    frame = pd.DataFrame({"y": [0, 1, 0], "y.1": [5, 6, 7]})
    for suffix in (".csv", ".parquet"):
        data = table.load(root=written(tmp_path, suffix, frame), label="y")
        assert (data.columns, data.classes.tolist()) == ((Column("y.1"),), [0, 1, 0])


def test_a_table_without_columns_has_no_label(tmp_path):
    with pytest.raises(SettingError, match=r"data\.label=kind: there is no such column"):
        table.load(root=written(tmp_path, ".parquet", pd.DataFrame(index=range(3))), label="kind")


def test_new_rows_with_gaps_are_told_of(tmp_path, caplog):
    table.read_rows(written(tmp_path, ".csv"), [Column("age"), Column("colour", ("blue", "red"))])
    assert "people.csv: 1 missing numbers in 1 of 2 columns: each becomes the median" in caplog.text
    assert "people.csv: 1 missing categories in 1 of 2 columns" in caplog.text


def test_words_in_a_column_of_numbers(tmp_path):
    path = written(tmp_path, ".csv", pd.DataFrame({"x": ["1", "two"]}))
    with pytest.raises(SettingError, match=r"column x: .*numbers are needed"):
        table.read_rows(path, [Column("x")])
    with pytest.raises(SettingError, match="no column z; needed are 2 columns: x, z"):
        table.read_rows(path, [Column("x"), Column("z")])
    path = written(tmp_path, ".parquet", pd.DataFrame({"x": [[1], [2]]}))
    with pytest.raises(SettingError, match=r"column x: .*numbers are needed"):
        table.read_rows(path, [Column("x")])
