import logging
from decimal import Decimal

import numpy as np
import pandas as pd
import pytest
from people_table import FRAME, written

from anomaly_bench.data import table
from anomaly_bench.data.dataset import Column
from anomaly_bench.errors import SettingError


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


def test_a_column_without_any_value_is_one_of_missing_numbers(tmp_path, caplog):
    frame = pd.DataFrame({"empty": np.array([None, None], object), "x": [1, 2], "y": [0, 1]})
    data = table.load(root=written(tmp_path, ".parquet", frame), label="y")
    assert data.columns == (Column("empty"), Column("x"))
    assert data.x[:, 0].isnan().all()
    assert "2 missing numbers in 1 of 2 columns" in caplog.text


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
