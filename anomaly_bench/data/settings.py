"""What every loader needs of its settings: where data lies, which sizes are allowed, which rows are kept."""

import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from anomaly_bench.arguments import PIXELS
from anomaly_bench.errors import SettingError

log = logging.getLogger("anomaly_bench")


def user_cache() -> Path:
    """The folder `anomaly-bench` in `$XDG_CACHE_HOME`, else in `~/.cache`."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "anomaly-bench"


def data_root(root: str | Path | None) -> Path:
    """The folder of all data sets: `root`, else `$ANOMALY_BENCH_DATA`, else the user's cache."""
    chosen = root or os.environ.get("ANOMALY_BENCH_DATA")
    return Path(chosen).expanduser() if chosen else user_cache()


def as_text(name: str) -> str:
    """A name of a file as text that every file can hold: bytes that are no text are spelled out."""
    return name.encode("utf-8", "backslashreplace").decode()


def within(files: Iterable[Path], *folders: Path) -> list[Path]:
    """The plain files among those found in folders; links that lead out of the folders are left out, with a warning.

    A link to a file that its owner did not put there would bring it among the data, and a pipe would be waited for.
    """
    allowed = [os.path.realpath(folder) for folder in folders]
    kept, outside = [], []
    for path in files:
        if path.is_symlink() and not any(Path(os.path.realpath(path)).is_relative_to(one) for one in allowed):
            outside.append(path)
        elif path.is_file():
            kept.append(path)
    if outside:
        log.warning(
            "%d links lead out of %s and are left out, the first is %s",
            *(len(outside), repr(str(folders[0])), repr(str(outside[0]))),
        )
    return kept


def check_image_size(image_size: int | None) -> None:
    """Refuse an `image_size` that is neither null nor a number of pixels."""
    if image_size is not None and not (type(image_size) is int and 1 <= image_size <= 4096):
        raise SettingError(f"data.image_size={image_size}: must be {PIXELS}")


def check_limit(limit: int) -> None:
    """Refuse a `limit` that is no number of rows."""
    if type(limit) is not int or limit < 1:
        raise SettingError(f"data.limit={limit}: allowed is a number of rows from 1, or null for all")


def kept_rows(classes: np.ndarray, official_train: np.ndarray, limit: int | None) -> np.ndarray:
    """Rows, ascending, of at most `limit` rows of each part, spread evenly over the classes.

    Of each class the first ones are kept; a class with too few leaves its share to the others.

    Args:
        classes: int64 `[N]`.
        official_train: bool `[N]`.
        limit: rows kept of the training part, and of the test part; None keeps all.
    """
    if limit is None:
        return np.arange(len(classes))
    check_limit(limit)
    kept = [_spread(np.flatnonzero(part), classes, limit) for part in (official_train, ~official_train)]
    return np.sort(np.concatenate(kept))


def _spread(rows: np.ndarray, classes: np.ndarray, limit: int) -> np.ndarray:
    rank = np.zeros(len(rows), dtype=np.int64)  # of each row within its class
    for index in np.unique(classes[rows]):
        members = classes[rows] == index
        rank[members] = np.arange(members.sum())
    return rows[np.lexsort((classes[rows], rank))[:limit]]


@contextlib.contextmanager
def readable() -> Iterator[None]:
    """A folder that cannot be looked into is a SettingError, not one without files."""
    try:
        yield
    except OSError as error:
        raise SettingError(f"{error.filename}: it cannot be looked into: {error.strerror}") from error


def files_below(folder: Path) -> Iterator[Path]:
    """Every file in a folder and below that is not hidden, nor lies in a hidden folder."""

    def give_up(error: OSError) -> None:
        raise error

    links = []
    with readable():
        for where, folders, names in os.walk(folder, onerror=give_up):
            links += [path for name in visible(folders) if (path := Path(where, name)).is_symlink()]
            folders[:] = visible(folders)
            yield from (Path(where, name) for name in visible(names))
    say_what_is_not_followed(links, folder)


def visible(names: Iterable[str]) -> list[str]:
    """The names that are not hidden."""
    return [name for name in names if not name.startswith(".")]


def say_what_is_not_followed(links: Sequence[Path], folder: Path) -> None:
    """A notice of links to folders, which are left out: they may lead anywhere, or in a circle."""
    if links:
        log.warning(
            "%d links to folders in %s are left out, the first is %s",
            *(len(links), repr(str(folder)), repr(str(links[0]))),
        )


def found_below(folder: Path, wanted: Callable[[str], bool]) -> list[Path]:
    """The plain files in a folder and below whose names are wanted, sorted; how many others there are is told."""
    kept, others = [], []
    for path in sorted(files_below(folder)):
        (kept if wanted(path.name) else others).append(path)
    if others:
        log.info(
            "%d other files in %s are left out, the first is %s",
            *(len(others), repr(str(folder)), repr(str(others[0]))),
        )
    return within(kept, folder)
