"""The epochs of a run as `losses.csv` tells of them: one line an epoch."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from anomaly_bench import record
from anomaly_bench.training.checkpoint import Epoch

FACTS = ("stage", "name", "epoch", "rows", "seconds", "auroc")
"""What the columns are that are no losses."""


def losses_frame(history: Sequence[Epoch]) -> pd.DataFrame:
    """One line an epoch: its stage, rows, seconds, losses and, where it was evaluated, AUROC."""
    lines = [{name: getattr(line, name) for name in FACTS} | line.losses for line in history]
    return pd.DataFrame(lines).dropna(axis="columns", how="all") if lines else pd.DataFrame(columns=FACTS)


def read_losses(path: Path) -> list[Epoch]:
    """The epochs of a `losses.csv`."""
    try:
        path = record.own_file(path)  # in which a stage may be called 1, or null
        frame = pd.read_csv(path, dtype={"name": str}, keep_default_na=False, na_values=[""])
    except pd.errors.EmptyDataError:  # older versions wrote no header where there are no epochs
        return []
    history = []
    for line in frame.to_dict("records"):
        known = {record.typed_text(str(name)): value for name, value in line.items() if pd.notna(value)}
        known["name"] = record.typed_text(known["name"])
        facts = {name: known.pop(name) for name in FACTS if name in known}
        history.append(Epoch(**facts, losses=known))
    return history
