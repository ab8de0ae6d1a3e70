"""The tables of the DAGMM paper: KDD Cup 1999 (10 %) in both roles, and ODDS' thyroid and arrhythmia.

Zong et al., ICLR 2018, Table 1. Each is read from one prepared `.npz` file with `X` `[N, D]` and `y` `[N]`,
1 for anomalous; KDD Cup 1999 is made by scikit-learn's download where there is none.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple
from uuid import uuid4

import numpy as np
import pandas as pd
import torch

from anomaly_bench.data.columns import column_of, encoded, some
from anomaly_bench.data.dataset import Dataset
from anomaly_bench.data.settings import data_root
from anomaly_bench.data.table import of_arrays, spread_rows
from anomaly_bench.data.table_files import read
from anomaly_bench.errors import SettingError, one_line


class Table(NamedTuple):
    """One of the sets: its file and the names of the classes 0, the normal one, and 1."""

    file: str
    class_names: tuple[str, str]


TABLES = {
    "kddcup99": Table("kddcup99_10.npz", ("attack", "normal.")),
    "kddcup99_rev": Table("kddcup99_10.npz", ("normal.", "attack")),
    "thyroid": Table("thyroid.npz", ("normal", "hyperfunction")),
    "arrhythmia": Table("arrhythmia.npz", ("normal", "rare arrhythmia")),
}
SYMBOLIC = ("protocol_type", "service", "flag")
REV_SEED = 0
"""Of the attacks that are drawn for `kddcup99_rev`, the same for every seed of a run."""


def load(
    name: str,
    root: str | Path | None = None,
    scale: str | None = "minmax",
    limit: int | None = None,
    download: bool = False,
) -> Dataset:
    """Read `<root>/<name>/<file>`, or `<root>/tabular/<file>`, as float32 rows `[N, D]`.

    Args:
        name: `kddcup99`, in which "normal." connections are the rarer and so the anomalous ones;
            `kddcup99_rev`, in which a fourth as many attacks, drawn at random, are; `thyroid`; `arrhythmia`.
        root: folder of all data sets; None is ANOMALY_BENCH_DATA, else the user's cache.
        scale: `minmax`, `standard` or None, fitted once the split is known.
        limit: rows kept, evenly spaced; None keeps all.
        download: let scikit-learn fetch KDD Cup 1999 where it is not there.

    Raises:
        SettingError: the file is not there, or cannot be fetched.
    """
    if name not in TABLES:
        raise SettingError(f"data.name={name}: no such table; allowed are {', '.join(TABLES)}")
    table, kdd = TABLES[name], name.startswith("kddcup99")
    path = found(name, table.file, data_root(root), kdd and download)
    arrays = read(path)
    assert isinstance(arrays, dict)
    x, columns, y = of_arrays(arrays, path, "y")
    if y.dtype.kind not in "biuf" or not np.isin(y, (0, 1)).all():
        others = [str(value) for value in np.unique(y[~np.isin(y, (0, 1))])]
        raise SettingError(f"{path}: y holds {some(others)}; allowed are 0 and, of anomalous rows, 1")
    classes = y.astype(np.int64)
    if name == "kddcup99_rev":
        attacks = np.flatnonzero(classes == 0)
        drawn = np.random.RandomState(REV_SEED).permutation(attacks)[: int((classes == 1).sum()) // 4]
        rows = np.sort(np.concatenate([np.flatnonzero(classes == 1), drawn]))
        x, classes = x[torch.from_numpy(rows)], 1 - classes[rows]
    kept = spread_rows(len(x), limit)
    return Dataset(
        name=name,
        x=x[torch.from_numpy(kept)],
        classes=classes[kept],
        class_names=table.class_names,
        official_train=np.ones(len(kept), dtype=bool),
        source=str(arrays.get("source", f"prepared file {table.file}")),
        columns=columns,
        scale=scale,
        note=str(arrays["note"]) if "note" in arrays else None,
    )


def found(name: str, file: str, root: Path, download: bool) -> Path:
    """Where the file is; KDD Cup 1999 may be made first."""
    folders = dict.fromkeys((name, name.removesuffix("_rev"), "tabular"))
    places = [root / folder / file for folder in folders]
    for path in places:
        if path.is_file():
            return path
    if not download:
        hint = "or fetch it with data.download=true" if name.startswith("kddcup99") else "from ODDS"
        raise SettingError(
            f"data={name}: no {' nor '.join(map(str, places))}; put the file there ({hint}), or name the "
            "folder above with data.root=..."
        )
    fetch_kddcup99(root / "kddcup99" / file)
    return root / "kddcup99" / file


def fetch_kddcup99(path: Path) -> None:
    """Write scikit-learn's KDD Cup 1999 (10 %) as a prepared file: 118 columns, one-hot ones first, unscaled.

    scikit-learn keeps its own copy as a pickle; it goes to a folder that is removed again, and only arrays stay.
    """
    from sklearn import datasets

    path.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        try:
            bunch: Any = datasets.fetch_kddcup99(data_home=folder, as_frame=True)
        except OSError as error:
            raise SettingError(
                f"data={path.parent.name}: cannot be fetched ({one_line(error)}); "
                f"put the prepared file at {path}"
            ) from error
        frame = pd.DataFrame(bunch.data)
        normal = np.array([text(label) for label in bunch.target]) == "normal."
    numeric = [name for name in frame if name not in SYMBOLIC]
    frame = pd.concat([frame[[*SYMBOLIC]].map(text), frame[numeric].astype(np.float64)], axis=1)
    columns = [column_of(name, values, path) for name, values in frame.items()]
    names = [
        name if categories is None else f"{name}={value}"
        for name, categories in columns
        for value in categories or ("",)
    ]
    x = encoded(frame, columns, path)
    temporary = path.with_name(f".{uuid4().hex}.npz")
    try:
        np.savez_compressed(
            temporary,
            X=x.numpy(),
            y=normal.astype(np.uint8),
            columns=np.array(names),
            source=np.array("scikit-learn"),
            note=np.array("KDD Cup 1999, 10 %: y = 1 is 'normal.' traffic, the rarer kind. Not scaled."),
        )
        temporary.rename(path)
    finally:
        temporary.unlink(missing_ok=True)


def text(value: object) -> str:
    """scikit-learn has bytes where the file has words."""
    return value.decode() if isinstance(value, bytes) else str(value)
