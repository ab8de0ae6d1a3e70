"""A loaded data set as files that several processes map: it lies in memory once, however many use it."""

import json
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from anomaly_bench.data.dataset import Dataset


def save(dataset: Dataset, folder: Path) -> None:
    """Write a data set and its fingerprint to a folder that is not there yet, whole or not at all."""
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.tmp")
    temporary.mkdir(parents=True)
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
    values: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in kept["values"].items()
    }
    for path in folder.glob("*.npy"):
        values[path.stem] = np.load(path, mmap_mode="c")
    values["x"] = torch.from_numpy(values["x"])
    dataset = Dataset(**values)
    vars(dataset)["_fingerprint"] = kept["fingerprint"]
    return dataset
