"""A loaded data set as files that several processes map: it lies in memory once, however many use it."""

import json
from dataclasses import fields
from pathlib import Path
from tempfile import TemporaryDirectory
from types import NoneType, UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

import numpy as np
import torch
from torch import Tensor

from anomaly_bench.data.dataset import Dataset


def save(dataset: Dataset, folder: Path) -> None:
    """Write a data set and its fingerprint to a folder that is not there yet, whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(prefix=".", suffix=".tmp", dir=folder.parent) as name:
        temporary = Path(name)
        values: dict[str, Any] = {}
        for field in fields(dataset):
            value = getattr(dataset, field.name)
            if isinstance(value, Tensor | np.ndarray):
                np.save(temporary / f"{field.name}.npy", np.asarray(value))
            else:
                values[field.name] = value
        text = json.dumps({"values": values, "fingerprint": dataset.fingerprint()})
        (temporary / "values.json").write_text(text, encoding="utf-8")
        temporary.rename(folder)


def load(folder: Path) -> Dataset:
    """Map what `save` wrote. The pages are those of every other process that maps it, as long as nobody writes."""
    kept = json.loads((folder / "values.json").read_text(encoding="utf-8"))
    kinds = get_type_hints(Dataset)
    values = {name: typed(value, kinds[name]) for name, value in kept["values"].items()}
    for path in folder.glob("*.npy"):
        values[path.stem] = np.load(path, mmap_mode="c")
    values["x"] = torch.from_numpy(values["x"])
    dataset = Dataset(**values)
    vars(dataset)["_fingerprint"] = kept["fingerprint"]
    return dataset


def typed(value: Any, kind: Any) -> Any:
    """What JSON makes of a value, as the `kind` that it was: tuples and named tuples, at any depth."""
    if value is None:
        return None
    if get_origin(kind) in (Union, UnionType):
        kind = next(one for one in get_args(kind) if one is not NoneType)
    if get_origin(kind) is tuple:
        return tuple(typed(one, get_args(kind)[0]) for one in value)
    if hasattr(kind, "_fields"):
        return kind(*map(typed, value, get_type_hints(kind).values()))
    return value
