import logging
from decimal import Decimal

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.io import savemat

from anomaly_bench.data import table
from anomaly_bench.data.dataset import Column
from anomaly_bench.errors import SettingError

FRAME = pd.DataFrame(
    {
        "age": [31, 40, None, 28, 55],
        "colour": ["red", "blue", "red", None, "blue"],
        "smokes": [True, False, False, True, False],
        "kind": ["ok", "ok", "fraud", "ok", "fraud"],
    }
)
X = np.arange(12, dtype=np.float64).reshape(4, 3)
Y = np.array([0, 0, 1, 0])


def written(folder, suffix, frame=FRAME):
    path = folder / f"people{suffix}"
    match suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".parquet":
            frame.to_parquet(path)
    return path


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
    assert "people.csv: its first column has no name and numbers the rows: it is left out" in caplog.text
    caplog.clear()
    FRAME.set_index("age").to_csv(path)
    assert table.load(root=path, label="kind").columns[0] == Column("age")
    FRAME.rename(columns={"age": ""}).to_csv(path, index=False)  # with gaps it is no number of a row
    assert len(table.load(root=path, label="kind").columns) == 3
    assert "no name" not in caplog.text


def test_missing_categories_are_said_too(tmp_path, caplog):
    frame = pd.DataFrame({"colour": ["red", None, "blue", None], "size": [1, 2, 3, 4], "kind": list("aaab")})
    frame.to_csv(tmp_path / "a.csv", index=False)
    table.load(root=tmp_path / "a.csv", label="kind")
    assert "a.csv: 2 missing categories in 1 of 2 columns: " in caplog.text
    assert "missing numbers" not in caplog.text


@pytest.mark.parametrize("suffix", [".csv", ".npz"])
def test_numbers_that_float32_makes_equal_are_told_of(tmp_path, suffix, caplog):
    path, day = tmp_path / f"times{suffix}", np.linspace(0, 60, 40)
    x = {
        "time": 1.7e9 + day,
        "year": 1.7e9 + 5e5 * day,
        "code": 1e9 * (day > 30),
        "small": day,
        "gap": 0 * day,
    }
    x["gap"][:] = np.nan
    kind = np.arange(40) % 2
    if suffix == ".csv":
        pd.DataFrame(x | {"kind": kind}).to_csv(path, index=False)
    else:
        np.savez(path, X=np.stack(list(x.values()), 1), columns=np.array(list(x)), kind=kind)
    table.load(root=path, label="kind")
    assert "columns time: different numbers become equal in float32" in caplog.text


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


def test_a_column_without_any_value_is_one_of_missing_numbers(tmp_path, caplog):
    frame = pd.DataFrame({"empty": np.array([None, None], object), "x": [1, 2], "y": [0, 1]})
    data = table.load(root=written(tmp_path, ".parquet", frame), label="y")
    assert data.columns == (Column("empty"), Column("x"))
    assert data.x[:, 0].isnan().all()
    assert "2 missing numbers in 1 of 2 columns" in caplog.text


def test_columns_may_be_named_by_numbers(tmp_path):
    data = table.load(root=written(tmp_path, ".parquet", pd.DataFrame({0: [5, 6], 1: [0, 1]})), label="1")
    assert data.columns == (Column("0"),)
    assert data.x.tolist() == [[5], [6]]
    assert table.read_rows(tmp_path / "people.parquet", data.columns).tolist() == [[5], [6]]


def test_tables_in_a_folder_come_sorted_and_hidden_ones_not_at_all(tmp_path):
    names = ["c.csv", "a.npz", "e/a.mat", "b.CSV", "d.parquet"]
    for name in (*names, ".hidden.csv", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert table.list_tables([tmp_path]) == [tmp_path / name for name in sorted(names)]


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
        ({"root": "nowhere.csv"}, r"nowhere\.csv: there is no such file"),
        ({"root": "table.xlsx"}, r"table\.xlsx: not a table"),
        ({"limit": 0}, r"data\.limit=0: allowed"),
        ({"label": "age"}, "1 of 5 rows have no label"),
    ],
)
def test_refusals(tmp_path, change, message):
    with pytest.raises(SettingError, match=message):
        table.load(**{"root": written(tmp_path, ".csv"), "label": "kind"} | change)


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        ({"x": [1, np.inf], "y": [0, 1]}, "1 numbers are infinite"),
        ({"x": [1, 1e300], "y": [0, 1]}, "too large for float32"),
        ({"name": [f"n{i}" for i in range(1001)], "y": [0] * 1001}, "column name has 1001 different values"),
        ({"x": range(1001), "y": [f"n{i}" for i in range(1001)]}, "1001 different labels, such as n0"),
        ({"x": [1, 2], "y": [1.0000001, 1.0000002]}, "2 different labels, such as 1: not classes"),
        ({"x": [[1], [2]], "y": [0, 1]}, "column x holds lists, not numbers or categories: remove"),
        ({"y": [0, 1]}, "no columns but the label"),
        ({"x": [], "y": []}, "no rows"),
    ],
)
def test_contents_that_cannot_be_learned_from(tmp_path, frame, message):
    suffix = ".parquet" if "lists" in message else ".csv"
    with pytest.raises(SettingError, match=message):
        table.load(root=written(tmp_path, suffix, pd.DataFrame(frame)), label="y")


def test_a_thousand_categories_are_taken(tmp_path):
    frame = pd.DataFrame({"name": [f"n{i}" for i in range(1000)] * 2, "y": [0] * 2000})
    assert table.load(root=written(tmp_path, ".csv", frame), label="y").shape == (1000,)


def test_decimals_are_numbers(tmp_path):
    frame = pd.DataFrame({"price": [Decimal("1.5"), None, Decimal("2.25")], "y": [0, 0, 1]})
    data = table.load(root=written(tmp_path, ".parquet", frame), label="y")
    assert data.columns == (Column("price"),)
    np.testing.assert_array_equal(data.x[:, 0].numpy(), [1.5, np.nan, 2.25])
    again = table.read_rows(tmp_path / "people.parquet", data.columns)
    np.testing.assert_array_equal(again.numpy(), data.x.numpy())


@pytest.mark.parametrize(
    ("values", "said"),
    [
        (
            "1.5 2.5 unknown -",
            "holds numbers, but for '-', 'unknown' in 2 rows: leave these empty, or put a letter",
        ),
        (" ".join(f"{i} {i}" for i in range(21)) + " ? ? ?", r"holds numbers, but for '\?' in 3 rows"),
        (
            " ".join(f"{i}.5 {chr(97 + i)} {chr(97 + i)}" for i in range(12)),
            "holds numbers, but for 'a', .*'j', ... in 24 rows",
        ),
        ("inf 1e3 -7.25", "holds numbers, but for 'inf' in 1 rows"),
    ],
)
def test_numbers_among_words_are_no_categories(tmp_path, values, said):
    frame = pd.DataFrame({"size": values.split(), "x": 0, "y": 0})
    with pytest.raises(SettingError, match=rf"people\.parquet: column size {said}"):
        table.load(root=written(tmp_path, ".parquet", frame), label="y")


def test_numbers_that_are_written_as_text(tmp_path):
    frame = pd.DataFrame({"size": ["1.5", "2.5", None], "y": 0})
    with pytest.raises(
        SettingError,
        match=r"column size holds numbers, written as text: save them as numbers, or put a letter",
    ):
        table.load(root=written(tmp_path, ".parquet", frame), label="y")


@pytest.mark.parametrize(
    "values",
    [
        [f"{i:03}" for i in range(50)],  # codes
        [*map(str, range(20)), "other"],  # few enough to be classes of something
        ["1.5", "a", "b"],  # most are words
        ["True", None, "False"],
    ],
)
def test_codes_and_words_are_categories(tmp_path, values):
    frame = pd.DataFrame({"code": values * 2, "y": 0})
    data = table.load(root=written(tmp_path, ".parquet", frame), label="y")
    assert data.columns == (Column("code", tuple(sorted(filter(None, values)))),)
    new = pd.DataFrame({"code": range(40)})  # as a CSV file may have them, where all are numbers
    assert table.read_rows(written(tmp_path, ".csv", new), data.columns).shape == (
        40,
        len(data.columns[0][1]),
    )


def test_names_are_no_categories(tmp_path):
    frame = pd.DataFrame({"who": ["a", "a", "b", "b"] * 2 + [f"n{i:02}" for i in range(12)], "y": 0})
    path = written(tmp_path, ".csv", frame)
    with pytest.raises(
        SettingError, match=r"column who has values of their own in 12 of 20 rows, such as 'n\d"
    ):
        table.load(root=path, label="y")
    assert len(table.load(root=written(tmp_path, ".csv", frame[1:]), label="y").columns[0][1]) == 14
    frame.loc[10:, "who"] = "c"
    assert len(table.load(root=written(tmp_path, ".csv", frame), label="y").columns[0][1]) == 5


def test_which_columns_became_categories_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO, "anomaly_bench")
    table.load(root=written(tmp_path, ".csv"), label="kind")
    assert "people.csv: columns colour are categories: 2 columns of 0 and 1" in caplog.text
    caplog.clear()
    table.load(root=written(tmp_path, ".csv", FRAME[["age", "kind"]]), label="kind")
    assert "categories" not in caplog.text


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


def test_bytes_that_are_text_are_taken_and_others_refused(tmp_path):
    frame = pd.DataFrame({"a": ["caf\xe9".encode(), b"tea"], "x": 1, "y": [b"ok", b"bad"]})
    data = table.load(root=written(tmp_path, ".parquet", frame), label="y")
    assert (data.columns[0], data.class_names) == (Column("a", ("caf\xe9", "tea")), ("bad", "ok"))
    raw = written(tmp_path, ".parquet", frame.assign(a=[b"\xff", b"tea"]))
    for read in (lambda: table.load(root=raw, label="y"), lambda: table.read_rows(raw, data.columns)):
        with pytest.raises(SettingError, match=r"people\.parquet: column a holds bytes that are no UTF-8"):
            read()
    for name, labels in (("good", ["caf\xe9".encode(), b"tea"]), ("bad", [b"\xff", b"tea"])):
        np.savez(tmp_path / f"{name}.npz", X=np.ones((2, 1)), y=np.array(labels))
    assert table.load(root=tmp_path / "good.npz").class_names == ("caf\xe9", "tea")
    with pytest.raises(SettingError, match=r"bad\.npz: the labels hold bytes that are no UTF-8"):
        table.load(root=tmp_path / "bad.npz")


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


def test_objects_are_not_unpickled(tmp_path):
    np.savez(tmp_path / "a.npz", X=np.array([{}]), y=Y)
    with pytest.raises(SettingError, match=r"a\.npz: cannot be read: .*allow_pickle"):
        table.load(root=tmp_path / "a.npz")


@pytest.mark.parametrize("suffix", table.SUFFIXES)
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
