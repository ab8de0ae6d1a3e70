"""Files of tables, as what they hold: a frame of columns, or arrays by name. Nothing is unpickled."""

import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from anomaly_bench.data.dataset import Column
from anomaly_bench.data.mat import read_apart
from anomaly_bench.data.settings import found_below
from anomaly_bench.errors import SettingError, one_line

SUFFIXES = (".csv", ".parquet", ".npz", ".mat")
HDF5 = b"\x89HDF\r\n\x1a\n"


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
            f"{path}: {error.name or 'pyarrow'} is needed to read it; install anomaly-bench[tables]"
        ) from error
    except (
        Exception
    ) as error:  # on damaged files, readers raise nearly anything, MemoryError for sizes made up
        raise SettingError(
            f"{path}: cannot be read: {one_line(error)[:300] or type(error).__name__}"
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
