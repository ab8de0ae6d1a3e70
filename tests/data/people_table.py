"""A small table of people, as a file."""

from pathlib import Path

import pandas as pd

FRAME = pd.DataFrame(
    {
        "age": [31, 40, None, 28, 55],
        "colour": ["red", "blue", "red", None, "blue"],
        "smokes": [True, False, False, True, False],
        "kind": ["ok", "ok", "fraud", "ok", "fraud"],
    }
)


def written(folder: Path, suffix: str, frame: pd.DataFrame = FRAME) -> Path:
    """The path of a new file that holds the frame, `.csv` or `.parquet`."""
    path = folder / f"people{suffix}"
    match suffix:
        case ".csv":
            frame.to_csv(path, index=False)
        case ".parquet":
            frame.to_parquet(path)
    return path
