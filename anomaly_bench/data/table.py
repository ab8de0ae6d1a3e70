"""Tables: CSV and Parquet files of columns, `.npz` and `.mat` files of arrays.

A column of numbers (or of true and false) stays one column. Any other column is a category and becomes one 0/1
column for each value that a row of the file has, training row or not, in alphabetical order, as it is written there;
a missing value, or one that only another file has, is 0 in all of them. So a value that no training row has is a
column that is 0 in all of these. A missing number stays NaN here, and becomes a median of training rows when the
rows are scaled. Refused are columns of numbers with some words among them, of names, and of lists.
"""

import logging
import re
from collections import Counter
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from anomaly_bench.data.columns import (
    MOST_CATEGORIES,
    as_numbers,
    check_present,
    column_of,
    encoded,
    holds_lists,
    listed,
    numbered,
    numbers,
    say_what_are_categories,
    say_what_collapses,
    say_what_is_missing,
    some,
)
from anomaly_bench.data.dataset import Column, Dataset
from anomaly_bench.data.settings import check_limit
from anomaly_bench.data.table_files import SUFFIXES, read
from anomaly_bench.errors import SettingError

log = logging.getLogger("anomaly_bench")

ARRAY_LABEL = "y"

NAMELESS = re.compile(r"Unnamed: \d+(\.\d+)?")
"""What pandas calls a column without a name."""


def load(
    name: str = "table",
    root: str | Path | None = None,
    label: int | str | None = None,
    scale: str | None = "minmax",
    limit: int | None = None,
) -> Dataset:
    """Read one file as float32 rows `[N, D]`.

    The classes are the values of the label column: numbers in ascending order, any others the most frequent
    first, so that class 0 is the normal one under most conventions.

    Args:
        name: of the data set.
        root: the file: `.csv` or `.parquet` with named columns, `.npz` or `.mat` with an array `X` `[N, D]`.
        label: the column, or array `[N]`, of classes; None is `y` in an `.npz` or `.mat`.
        scale: `minmax`, `standard` or None, fitted once the split is known.
        limit: rows kept, evenly spaced; None keeps all.

    Raises:
        SettingError: there is no such file or label, or something in it is no number and no category.
    """
    path, label = file_at(root), None if label is None else str(label)
    content = read(path)
    if isinstance(content, pd.DataFrame):
        x, columns, labels = of_frame(content, path, label)
    else:
        x, columns, labels = of_arrays(content, path, label or ARRAY_LABEL)
    kept = spread_rows(len(x), limit)
    x = x[torch.from_numpy(kept)]
    class_names, classes = named_classes(labels[kept], path)
    say_what_is_missing(x, columns, path)
    return Dataset(
        name=name,
        x=x,
        classes=classes,
        class_names=class_names,
        official_train=np.ones(len(x), dtype=bool),
        source=f"file {path.name}",
        columns=columns,
        scale=scale,
    )


def file_at(root: str | Path | None) -> Path:
    """The file that `data.root` names; what is none is refused in its name."""
    needed = f"the table's file is needed, one of {', '.join(SUFFIXES)}"
    if not root:
        raise SettingError(f"data.root={'null' if root is None else ''}: {needed}")
    path = Path(root).expanduser()
    if path.is_dir():
        raise SettingError(f"data.root={root}: it is a folder; {needed}")
    if path.suffix.lower() in SUFFIXES and not path.is_file():
        raise SettingError(f"data.root={root}: there is no such file; {needed}")
    return path


def read_rows(path: Path, columns: Sequence[Column]) -> Tensor:
    """The rows of another file with the same columns, float32 `[N, D]`; what else is in it is left out."""
    content = read(path, columns)
    if isinstance(content, pd.DataFrame):
        x = encoded(content, columns, path)
    else:
        x = numbers(in_order(content, columns, path), path)
    say_what_is_missing(x, columns, path)
    return x


def in_order(arrays: dict[str, np.ndarray], columns: Sequence[Column], path: Path) -> np.ndarray:
    """The array `X` with the columns in their order: by their names where the file has names, else as they stand."""
    x = matrix(arrays, path)
    categories = any(column.categories is not None for column in columns)
    if "columns" in arrays and not categories:
        place = {name: number for number, name in enumerate(names_of(arrays, x, path))}
        check_present(place, columns, path)
        return x[:, [place[column.name] for column in columns]]
    if categories or x.shape[1] != len(columns):
        raise SettingError(f"{path}: X has {x.shape[1]} columns; the run was trained on {listed(columns)}")
    return x


def of_frame(
    frame: pd.DataFrame, path: Path, label: str | None
) -> tuple[Tensor, tuple[Column, ...], np.ndarray]:
    """Rows, columns and labels of a frame."""
    frame = without_index(frame.rename(columns=str), path)
    if f"{label}.1" in frame and comes_twice(str(label), path):  # a second one would be learned from
        raise SettingError(f"data.label={label}: {path.name} has two columns of that name; rename one")
    if label not in frame:
        what = "null: name the column of classes" if label is None else f"{label}: there is no such column"
        raise SettingError(
            f"data.label={what} in {path.name}; there are {some([str(name) for name in frame])}"
        )
    columns = tuple(column_of(name, values, path) for name, values in frame.items() if name != label)
    x = encoded(frame, columns, path)
    say_what_are_categories(columns, path)
    say_what_counts_the_rows(frame.drop(columns=str(label)), path)
    counted = [column.name for column in columns if column.categories is None]
    if counted:
        say_what_collapses(counted, np.column_stack([as_numbers(frame[name]) for name in counted]), path)
    return x, columns, labels_of(pd.Series(frame[label]), path).to_numpy()


def comes_twice(name: str, path: Path) -> bool:
    """Whether two columns of a CSV file have this name; pandas gives the second another."""
    return (
        path.suffix.lower() == ".csv"
        and list(pd.read_csv(path, header=None, nrows=1, dtype=str).iloc[0]).count(name) > 1
    )


def labels_of(values: pd.Series, path: Path) -> pd.Series:
    """A column of classes; in a CSV file a word that pandas takes for a gap, such as None or NA, is one of them."""
    are_numbers = pd.api.types.is_numeric_dtype(values) and values.notna().any()
    if path.suffix.lower() != ".csv" or are_numbers or not values.isna().any():
        return values
    options: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "low_memory": False}
    return pd.read_csv(path, usecols=[values.name], index_col=False, **options)[values.name]


def without_index(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Without first columns of whole numbers that have no name, as pandas writes an index: order may tell classes."""
    index = list(takewhile(lambda name: NAMELESS.fullmatch(name) and frame[name].dtype.kind == "i", frame))
    if index:
        log.warning(
            "%s: its first column%s no name and numbers the rows: left out",
            *(path, " has" if len(index) == 1 else f"s, {len(index)} of them, have"),
        )
    return frame.drop(columns=index)


def say_what_counts_the_rows(frame: pd.DataFrame, path: Path) -> None:
    """Tell of columns of whole numbers, each one more than the last: order may tell classes."""
    for name, values in frame.items():
        if values.dtype.kind == "i" and len(values) > 2 and (values.diff().iloc[1:] == 1).all():
            log.warning("%s: column %s counts the rows: remove it, if it tells nothing else", path, name)


def of_arrays(
    arrays: dict[str, np.ndarray], path: Path, label: str
) -> tuple[Tensor, tuple[Column, ...], np.ndarray]:
    """Rows, columns and labels of arrays; columns without names are numbered."""
    x = matrix(arrays, path)
    if label not in arrays or arrays[label].size != len(x):
        raise SettingError(
            f"data.label={label}: one class for each of the {len(x)} rows of {path.name} is needed; "
            f"there are {some([f'{key} {value.shape}' for key, value in arrays.items()])}"
        )
    names = names_of(arrays, x, path)
    say_what_collapses(names, x, path)
    return numbers(x, path), tuple(map(Column, names)), arrays[label].ravel()


def names_of(arrays: dict[str, np.ndarray], x: np.ndarray, path: Path) -> list[str]:
    """The names of the columns of `x`, numbers where the file has none."""
    if "columns" not in arrays:
        return numbered(x.shape[1])
    names = arrays["columns"]
    if names.shape != (x.shape[1],):
        raise SettingError(f"{path}: X has {x.shape[1]} columns, and {names.size} names for them")
    names = [str(name) for name in names]
    if len(set(names)) < len(names):
        twice = next(name for name, count in Counter(names).items() if count > 1)
        raise SettingError(f"{path}: it has two columns called {twice!r}; rename one")
    return names


def matrix(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    """The array `X` of numbers, `[N, D]`."""
    x = arrays.get("X")
    if x is None or x.ndim != 2 or x.dtype.kind not in "fiub":
        found = some([f"{key} {value.dtype} {value.shape}" for key, value in arrays.items()])
        raise SettingError(f"{path}: an array X of numbers, rows x columns, is needed; there are {found}")
    return x


def named_classes(labels: np.ndarray, path: Path) -> tuple[tuple[str, ...], np.ndarray]:
    """Class names, and the class of each row as int64 `[N]`."""
    if holds_lists(labels):
        raise SettingError(f"{path}: the labels hold lists, not classes")
    missing = int(pd.isna(labels).sum())
    if missing:
        raise SettingError(f"{path}: {missing} of {len(labels)} rows have no label")
    if labels.dtype.kind not in "biuf":
        labels = words_of(labels, path)
    values, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    order = np.arange(len(values)) if values.dtype.kind in "biuf" else np.argsort(-counts, kind="stable")
    names = [f"{value:g}" if values.dtype.kind == "f" else str(value) for value in values[order]]
    if len(set(names)) < len(names) or len(names) > MOST_CATEGORIES:
        raise SettingError(f"{path}: {len(names)} different labels, such as {names[0]}: not classes")
    return tuple(names), np.argsort(order)[classes.ravel()]


def words_of(labels: np.ndarray, path: Path) -> np.ndarray:
    """Labels as text."""
    try:
        return pd.Series(labels).astype(str).to_numpy(str)
    except UnicodeDecodeError as error:
        raise SettingError(f"{path}: the labels hold bytes that are no UTF-8: save them as text") from error


def spread_rows(n: int, limit: int | None) -> np.ndarray:
    """Row numbers of at most `limit` of `n` rows, evenly spaced, so that the share of each class stays."""
    if limit is None:
        return np.arange(n)
    check_limit(limit)
    return np.linspace(0, n - 1, min(limit, n)).round().astype(np.int64)
