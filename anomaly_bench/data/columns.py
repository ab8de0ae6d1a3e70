"""Columns of a table: which are numbers and which categories, what is refused or told of, and the rows they become."""

import logging
from collections.abc import Container, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from anomaly_bench.data.dataset import Column
from anomaly_bench.errors import SettingError

log = logging.getLogger("anomaly_bench")

MOST_CATEGORIES = 1000
"""Values of one text column; more are names or numbers of rows, not categories."""

MOST_CODES = 20
"""Whole numbers among the values of one text column; of more it is a column of numbers."""

FEWEST_ROWS = 20
"""Rows of a text column; of fewer nobody can say whether their values are names."""

FEWEST_STEPS = 1000
"""Numbers that float32 should have between the smallest and the largest of a column."""


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
            log.warning("%s: column %s: unknown values count as missing: %s", path, name, some(unknown))
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


def numbered(n: int) -> list[str]:
    """Names for columns that have none."""
    return [f"x{number}" for number in range(n)]


def say_what_are_categories(columns: Sequence[Column], path: Path) -> None:
    """A notice of the columns that are no numbers, and how many they become."""
    widths = {column.name: len(column.categories) for column in columns if column.categories is not None}
    if widths:
        log.info(
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
            log.warning(
                "%s: %d missing %s in %d of %d columns: each becomes %s",
                *(path, number, what, of, len(columns), becomes),
            )


def say_what_collapses(names: Sequence[str], x: np.ndarray, path: Path) -> None:
    """A notice of columns, such as times in seconds, whose different numbers are few or one in float32."""
    found = [names[number] for number in narrow(x) if collapses(x[:, number])]
    if found:
        log.warning(
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
