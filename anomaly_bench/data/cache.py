"""The cache of decoded images: one array for the files of a folder, which is read as long as none of them changes."""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor

from anomaly_bench.data.decode import WHITE, peak_of
from anomaly_bench.data.pool import decode_in_parallel, unreadable
from anomaly_bench.data.settings import user_cache
from anomaly_bench.errors import SettingError
from anomaly_bench.machine import free_gib

log = logging.getLogger("anomaly_bench")

CACHE_VERSION = 1  # raised whenever decoding gives other pixels, so that older cache files are not used
TWELVE_BITS = 4095  # the highest value of the cameras that have most bits of those that do not fill 16
DAY = 86_400  # seconds; a decoding that has written nothing for as long is dead


def pixels(
    folder: Path,
    files: Sequence[str],
    stamps: np.ndarray,
    shape: tuple[int, int, int],
    fit: str | None,
    limit: int | None,
) -> Tensor:
    """`uint8` `[N, C, H, W]` of the files, from the cache where it holds exactly these, else decoded into it.

    A cache file is named for the folder and the settings, then for the files' paths, sizes and times.
    """
    cache = Path(os.environ.get("ANOMALY_BENCH_CACHE") or user_cache()).expanduser()
    settings = short_hash(repr((os.fspath(folder.resolve()), shape, fit, limit, CACHE_VERSION)).encode())
    content = short_hash(os.fsencode("\0".join(files)), stamps.tobytes())
    npy = cache / f"{settings}-{content}.npy"
    paths = [f"{folder}/{file}" for file in files]
    if not npy.exists():
        decode_into(npy, paths, shape, fit)
    try:
        x = mapped(npy)
    except (ValueError, EOFError):  # it was cut short
        npy.unlink(missing_ok=True)
        decode_into(npy, paths, shape, fit)
        x = mapped(npy)
    clear(cache, settings, npy)
    return x


def mapped(npy: Path) -> Tensor:
    """The array of a `.npy` file: in memory, or mapped where it would take more than half of it."""
    return torch.from_numpy(
        np.load(npy, mmap_mode="c" if npy.stat().st_size / 2**30 > free_gib() / 2 else None)
    )


def clear(cache: Path, settings: str, npy: Path) -> None:
    """Remove what the cache has of these settings beside `npy`: older contents, and decodings that were killed."""
    for path in cache.glob(f"{settings}-*"):
        with contextlib.suppress(FileNotFoundError):  # another process clears too, or has completed its own
            dead = path.suffix == ".tmp" and time.time() - path.stat().st_mtime > DAY
            if dead or (path.suffix == ".npy" and path != npy):
                path.unlink()


def decode_into(npy: Path, paths: Sequence[str], shape: tuple[int, int, int], fit: str | None) -> None:
    """Decode files into a new `.npy` file, `uint8` `[N, C, H, W]`, which appears only when it is complete."""
    started = npy.with_suffix(f".{uuid4().hex}.tmp")
    size = len(paths) * int(np.prod(shape))
    try:
        npy.parent.mkdir(parents=True, exist_ok=True)
        if shutil.disk_usage(npy.parent).free < size:
            raise OSError(f"{size / 2**20:.0f} MiB are needed, and not free")
        np.lib.format.open_memmap(started, "w+", np.uint8, (len(paths), *shape))
        reserve(started)
        failures = decode_in_parallel(started, paths, fit)
        if failures:
            raise unreadable(failures, len(paths))
        say_what_is_dark(paths)
        started.replace(npy)
    except OSError as error:
        raise SettingError(
            f"ANOMALY_BENCH_CACHE={npy.parent}: {error}; set it to a folder that can be written"
        ) from error
    finally:
        if started.exists():
            started.unlink()


def say_what_is_dark(paths: Sequence[str]) -> None:
    """A notice of 16-bit images that hold the values of fewer bits, by an even sample of the files."""
    peaks = []
    for path in paths[:: max(1, len(paths) // 64)]:
        peak = peak_of(path)
        if peak is not None and peak > TWELVE_BITS:
            return
        peaks.append(peak)
    dark = [peak for peak in peaks if peak is not None]
    if dark:
        log.warning(
            "data: the values of %d 16-bit images, of %d files looked at, reach only %d of %d, and lose most of their "
            "levels: scale them to %d before",
            *(len(dark), len(peaks), max(dark), WHITE, WHITE),
        )


def reserve(path: Path) -> None:
    """Have the disk keep a file's bytes free, where it can: a mapped file that finds none kills the process."""
    if not hasattr(os, "posix_fallocate"):
        return
    with path.open("r+b") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise


def short_hash(*parts: bytes) -> str:
    """16 hexadecimal digits that stand for the parts, one after the other."""
    return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()
