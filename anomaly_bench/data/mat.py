"""Plain arrays of a MATLAB file, read by a process of its own: SciPy's reader can crash on a damaged file."""

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

PLAIN = "fiubSU"
"""Kinds of arrays that hold numbers or text; cells and structures are left out."""


def read_apart(path: Path) -> dict[str, np.ndarray]:
    """Arrays of a MATLAB file of a version before 7.3.

    Raises:
        ValueError: it cannot be read.
    """
    with TemporaryDirectory() as folder:
        out = Path(folder) / "arrays.npz"
        command = [
            sys.executable,
            "-c",
            f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import main; main()",
        ]
        done = subprocess.run(
            [*command, str(path), str(out)], capture_output=True, text=True, errors="replace"
        )
        if done.returncode < 0:
            raise ValueError(f"its reader crashed on it, by signal {-done.returncode}")
        if done.returncode:
            raise ValueError(done.stderr.strip().rpartition("\n")[2])
        with np.load(out) as file:
            return {key[1:]: file[key] for key in file.files}


def main() -> None:
    """Read one file and write its arrays to another: what the process does."""
    from scipy.io import loadmat

    given, out = sys.argv[1:]
    arrays = loadmat(given)
    kept = {key: value for key, value in arrays.items() if key[:2] != "__" and isinstance(value, np.ndarray)}
    kept = {f"_{key}": value for key, value in kept.items() if value.dtype.kind in PLAIN}  # none is `file`
    with Path(out).open("wb") as file:
        np.savez(file, **kept)  # pyright: ignore[reportArgumentType]
