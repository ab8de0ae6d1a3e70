"""Tables: CSV and Parquet files of columns, `.npz` and `.mat` files of arrays.

A column of numbers (or of true and false) stays one column. Any other column is a category and becomes one 0/1
column for each value that a row of the file has, training row or not, in alphabetical order, as it is written there;
a missing value, or one that only another file has, is 0 in all of them. So a value that no training row has is a
column that is 0 in all of these. A missing number stays NaN here, and becomes a median of training rows when the
rows are scaled. Refused are columns of numbers with some words among them, of names, and of lists.
"""

import logging
import warnings
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from anomaly_bench.data.dataset import Column, Dataset
from anomaly_bench.data.mat import read_apart
from anomaly_bench.data.settings import found_below
from anomaly_bench.errors import SettingError

LOG = logging.getLogger("anomaly_bench")

SUFFIXES = (".csv", ".parquet", ".npz", ".mat")
MOST_CATEGORIES = 1000
"""Values of one text column; more are names or numbers of rows, not categories."""

MOST_CODES = 20
"""Whole numbers among the values of one text column; of more it is a column of numbers."""

FEWEST_ROWS = 20
"""Rows of a text column; of fewer nobody can say whether their values are names."""

FEWEST_STEPS = 1000
"""Numbers that float32 should have between the smallest and the largest of a column."""

ARRAY_LABEL = "y"
HDF5 = b"\x89HDF\r\n\x1a\n"


def load(
    name: str = "table",
    root: str | Path | None = None,
    label: str | None = None,
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
    if root is None:
        raise SettingError(f"data.root=null: the table's file is needed, one of {', '.join(SUFFIXES)}")
    path = Path(root).expanduser()
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
        names = names_of(arrays, x, path)
        check_present(names, columns, path)
        return x[:, [names.index(column.name) for column in columns]]
    if categories or x.shape[1] != len(columns):
        raise SettingError(f"{path}: X has {x.shape[1]} columns; the run was trained on {listed(columns)}")
    return x


def list_tables(paths: Sequence[Path]) -> list[Path]:
    """Tables as they are given; a folder stands for the tables in it and below, sorted, as `within` takes them.

    Raises:
        SettingError: a folder without tables.
    """
    found: list[Path] = []
    for path in paths:
        inside = [path]
        if path.is_dir():
            inside = found_below(path, lambda name: name.lower().endswith(SUFFIXES))
        if not inside:
            raise SettingError(f"{path}: no tables there ({' '.join(SUFFIXES)})")
        found += inside
    return found


def read(path: Path, columns: Sequence[Column] | None = None) -> pd.DataFrame | dict[str, np.ndarray]:
    """A frame for files of columns, arrays by name for files of arrays. Nothing is unpickled.

    Args:
        path: of the file.
        columns: those that are known, so that a CSV file is read as the one they were found in.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise SettingError(f"{path}: not a table; allowed are {', '.join(SUFFIXES)} files")
    if not path.is_file():
        raise SettingError(f"{path}: there is no such file")
    try:
        match path.suffix.lower():
            case ".csv":
                return read_csv(path, columns)
            case ".parquet":
                return pd.read_parquet(path)
            case ".npz":
                with path.open("rb") as opened, np.load(opened) as file:
                    return {key: file[key] for key in file.files}
            case _:
                return read_mat(path)
    except UnicodeDecodeError as error:
        raise SettingError(f"{path}: cannot be read: its text is not UTF-8; save it so") from error
    except ImportError as error:
        raise SettingError(
            f"{path}: {error.name} is needed to read it; install anomaly-bench[tables]"
        ) from error
    except (
        Exception
    ) as error:  # on damaged files, readers raise nearly anything, MemoryError for sizes made up
        raise SettingError(
            f"{path}: cannot be read: {' '.join(str(error).split())[:300] or type(error).__name__}"
        ) from error


def read_csv(path: Path, columns: Sequence[Column] | None) -> pd.DataFrame:
    """A frame whose categories, of `columns` or else those found, have the text that stands in the file."""
    header = pd.read_csv(path, nrows=0).columns.tolist()
    if len(header) == 1 and (signs := [sign for sign in (";", "\t", "|") if sign in header[0]]):
        raise ValueError(
            f"its values are parted by {signs[0]!r}; save it with commas, and points in its numbers"
        )

    def frame_with(texts: Iterable[str]) -> pd.DataFrame:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pd.errors.ParserWarning)
            try:
                return pd.read_csv(path, index_col=False, low_memory=False, dtype=dict.fromkeys(texts, str))
            except pd.errors.ParserWarning as error:
                raise ValueError("a line has more values than the first has names") from error

    if columns is not None:
        return frame_with(column.name for column in columns if column.categories is not None)
    frame = frame_with(())
    parsed = [  # true and false with gaps, integers beyond 64 bits
        str(name)
        for name, values in frame.items()
        if values.dtype == object and pd.api.types.infer_dtype(values) != "string"
    ]
    return frame_with(parsed) if parsed else frame


def read_mat(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a MATLAB file; those of version 7.3 are HDF5, behind 512 bytes, and lie transposed."""
    with path.open("rb") as file:
        is_hdf5 = HDF5 in file.read(512 + len(HDF5))
    if is_hdf5:
        import h5py

        with h5py.File(path) as hdf5:
            return {key: value[()].T for key, value in hdf5.items() if isinstance(value, h5py.Dataset)}
    return read_apart(path)


def of_frame(
    frame: pd.DataFrame, path: Path, label: str | None
) -> tuple[Tensor, tuple[Column, ...], np.ndarray]:
    """Rows, columns and labels of a frame."""
    frame = without_index(frame.rename(columns=str), path)
    if f"{label}.1" in frame:  # pandas' name for a second one, which would be learned from
        raise SettingError(f"data.label={label}: {path.name} has two columns of that name; rename one")
    if label not in frame:
        what = "null: name the column of classes" if label is None else f"{label}: there is no such column"
        raise SettingError(
            f"data.label={what} in {path.name}; there are {some([str(name) for name in frame])}"
        )
    columns = tuple(column_of(name, values, path) for name, values in frame.items() if name != label)
    x = encoded(frame, columns, path)
    say_what_are_categories(columns, path)
    counted = [column.name for column in columns if column.categories is None]
    if counted:
        say_what_collapses(counted, np.column_stack([as_numbers(frame[name]) for name in counted]), path)
    return x, columns, labels_of(pd.Series(frame[label]), path).to_numpy()


def labels_of(values: pd.Series, path: Path) -> pd.Series:
    """A column of classes; in a CSV file a word that pandas takes for a gap, such as None or NA, is one of them."""
    are_numbers = pd.api.types.is_numeric_dtype(values) and values.notna().any()
    if path.suffix.lower() != ".csv" or are_numbers or not values.isna().any():
        return values
    options: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "low_memory": False}
    return pd.read_csv(path, usecols=[values.name], index_col=False, **options)[values.name]


def without_index(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Without a first column that has no name and numbers the rows, as pandas writes one: order may tell classes."""
    first = frame.columns[0]
    if first != "Unnamed: 0" or frame[first].dtype.kind != "i" or not frame[first].is_unique:
        return frame
    LOG.warning("%s: its first column has no name and numbers the rows: it is left out", path)
    return frame.drop(columns=first)


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
    return [str(name) for name in names]


def numbered(n: int) -> list[str]:
    """Names for columns that have none."""
    return [f"x{number}" for number in range(n)]


def matrix(arrays: dict[str, np.ndarray], path: Path) -> np.ndarray:
    """The array `X` of numbers, `[N, D]`."""
    x = arrays.get("X")
    if x is None or x.ndim != 2 or x.dtype.kind not in "fiub":
        found = some([f"{key} {value.dtype} {value.shape}" for key, value in arrays.items()])
        raise SettingError(f"{path}: an array X of numbers, rows x columns, is needed; there are {found}")
    return x


def column_of(name: object, values: pd.Series, path: Path) -> Column:
    """What kind of column it is."""
    name = str(name)
    numeric = pd.api.types.is_numeric_dtype(values) or pd.api.types.infer_dtype(values) == "decimal"
    if numeric or values.isna().all():
        return Column(name)
    counts = texts(name, values, path).value_counts().sort_index()
    categories = sorted(counts.index)
    check_not_numbers(name, counts, path)
    if len(categories) > MOST_CATEGORIES:
        raise SettingError(
            f"{path}: column {name} has {len(categories)} different values, such as {categories[0]!r}; at "
            f"most {MOST_CATEGORIES} can be categories: remove the column"
        )
    if len(values) >= FEWEST_ROWS and 2 * (counts == 1).sum() > len(values):
        raise SettingError(
            f"{path}: column {name} has values of their own in {(counts == 1).sum()} of {len(values)} rows, such as "
            f"{counts.idxmin()!r}; these are names, not categories: remove the column"
        )
    return Column(name, tuple(categories))


def texts(name: str, values: pd.Series, path: Path) -> pd.Series:
    """The values of a column as text, missing ones as None."""
    if values.dtype == object and holds_lists(values):
        raise SettingError(f"{path}: column {name} holds lists, not numbers or categories: remove the column")
    try:
        return values.astype(str).where(values.notna(), None)
    except UnicodeDecodeError as error:
        raise SettingError(
            f"{path}: column {name} holds bytes that are no UTF-8: remove the column"
        ) from error


def holds_lists(values: Iterable[object]) -> bool:
    """Whether any value is several."""
    return any(isinstance(value, list | tuple | dict | set | np.ndarray) for value in values)


def check_not_numbers(name: str, counts: pd.Series, path: Path) -> None:
    """Refuse a column of numbers that is one of text for some words in it, by the rows of each of its values."""
    values = pd.Series(counts.index)
    parsed: Any = pd.to_numeric(values, errors="coerce")
    codes = values.str.match(r"0\d").to_numpy(bool)  # such as 007
    is_number = np.isfinite(parsed.to_numpy(np.float64)) & ~codes
    found = parsed[is_number]
    if 2 * len(found) < len(counts) or not (len(found) > MOST_CODES or (found % 1 > 0).any()):
        return
    others = values[~is_number].tolist()
    said = "written as text: save them as numbers"
    if others:
        said = (
            f"but for {some(list(map(repr, others)))} in {counts.loc[others].sum()} rows: leave these empty"
        )
    raise SettingError(
        f"{path}: column {name} holds numbers, {said}, or put a letter before each number where they are codes"
    )


def encoded(frame: pd.DataFrame, columns: Sequence[Column], path: Path) -> Tensor:
    """The columns of a frame as float32 `[N, D]`."""
    frame = frame.rename(columns=str)
    check_present(frame, columns, path)
    parts = []
    for name, categories in columns:
        values: Any = frame[name]
        if categories is None:
            try:
                parts.append(as_numbers(values)[:, None])
            except (ValueError, TypeError) as error:
                raise SettingError(f"{path}: column {name}: {error}; numbers are needed") from error
            continue
        values = texts(name, values, path)
        unknown = sorted(set(values.dropna()) - set(categories))
        if unknown:
            LOG.warning("%s: column %s: unknown values count as missing: %s", path, name, some(unknown))
        parts.append((values.to_numpy(object)[:, None] == np.array(categories, object)).astype(np.float32))
    if not parts:
        raise SettingError(f"{path}: it has no columns but the label")
    with np.errstate(over="ignore"):
        return numbers(np.concatenate([part.astype(np.float32) for part in parts], axis=1), path)


def check_present(names: Container[str], columns: Sequence[Column], path: Path) -> None:
    """Refuse a file without some of the columns."""
    lacking = [column.name for column in columns if column.name not in names]
    if lacking:
        raise SettingError(f"{path}: it has no column {some(lacking)}; needed are {listed(columns)}")


def as_numbers(values: Any) -> np.ndarray:
    """A column as float64, NaN where a number is missing."""
    column: Any = pd.to_numeric(values)
    return column.to_numpy(np.float64, na_value=np.nan)


def numbers(x: np.ndarray, path: Path) -> Tensor:
    """As float32, in which NaN is a missing number; infinite ones are refused."""
    with np.errstate(over="ignore"):
        rows = torch.from_numpy(np.ascontiguousarray(x, dtype=np.float32))
    infinite = int(rows.isinf().sum())
    if infinite:
        raise SettingError(f"{path}: {infinite} numbers are infinite, or too large for float32")
    if not rows.numel():
        raise SettingError(f"{path}: no rows or no columns")
    return rows


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
    if type(limit) is not int or limit < 1:
        raise SettingError(f"data.limit={limit}: allowed is a number of rows from 1, or null for all")
    return np.linspace(0, n - 1, min(limit, n)).round().astype(np.int64)


def say_what_are_categories(columns: Sequence[Column], path: Path) -> None:
    """A notice of the columns that are no numbers, and how many they become."""
    widths = {column.name: len(column.categories) for column in columns if column.categories is not None}
    if widths:
        LOG.info(
            "%s: columns %s are categories: %d columns of 0 and 1",
            *(path, some(list(widths)), sum(widths.values())),
        )


def say_what_is_missing(x: Tensor, columns: Sequence[Column], path: Path) -> None:
    """Notices of missing numbers and categories, and what becomes of them."""
    gaps = x.isnan()
    ends = np.cumsum([len(column.categories or (0,)) for column in columns])
    encoded = [
        (end, len(column.categories)) for column, end in zip(columns, ends, strict=True) if column.categories
    ]
    without = [int((x[:, end - width : end] == 0).all(1).sum()) for end, width in encoded]
    for what, number, of, becomes in (
        ("numbers", int(gaps.sum()), int(gaps.any(0).sum()), "the median of its column's training rows"),
        ("categories", sum(without), sum(map(bool, without)), "0 in every category of its column"),
    ):
        if number:
            LOG.warning(
                "%s: %d missing %s in %d of %d columns: each becomes %s",
                *(path, number, what, of, len(columns), becomes),
            )


def say_what_collapses(names: Sequence[str], x: np.ndarray, path: Path) -> None:
    """A notice of columns, such as times in seconds, whose different numbers are few or one in float32."""
    found = [names[number] for number in narrow(x) if collapses(x[:, number])]
    if found:
        LOG.warning(
            "%s: columns %s: different numbers become equal in float32; subtract the smallest of each column",
            *(path, some(found)),
        )


def narrow(x: np.ndarray) -> list[int]:
    """The columns of `[N, D]`, not constant, between whose ends float32 has few numbers."""
    if not len(x) or np.can_cast(x.dtype, np.float32):
        return []
    with np.errstate(over="ignore", invalid="ignore"):
        low, high = (ends.reduce(x, axis=0).astype(np.float64) for ends in (np.fmin, np.fmax))
        steps = np.spacing(np.maximum(np.abs(low), np.abs(high)).astype(np.float32))
        return list(map(int, np.flatnonzero((high > low) & (high - low <= FEWEST_STEPS * steps))))


def collapses(values: np.ndarray) -> bool:
    """Whether different numbers of a column become equal in float32."""
    values = values[np.isfinite(values)]
    return len(np.unique(values.astype(np.float32))) < len(np.unique(values))


def listed(columns: Sequence[Column]) -> str:
    """Column names for a message."""
    return f"{len(columns)} columns: {some([column.name for column in columns])}"


def some(names: Sequence[str]) -> str:
    """Up to ten names."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
