"""Many image files at a time, over the cores of the machine."""

from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from itertools import repeat
from multiprocessing import current_process, get_context
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from anomaly_bench.data.decode import WHITE, decode_all, decode_chunk
from anomaly_bench.errors import SettingError
from anomaly_bench.machine import cores

CHUNK = 256  # files decoded as one piece of work, at most
ENOUGH_FOR_PROCESSES = 20_000  # files; threads take seconds for fewer, about what processes take to start
ENOUGH_FOR_THREADS = 4_000  # bytes of a file; over smaller ones threads mostly wait for each other


def decode_files(
    paths: Sequence[str | Path], shape: tuple[int, int, int], fit: str | None, white: int | None = WHITE
) -> Tensor:
    """Image files as `uint8` `[N, C, H, W]`, decoded as for training.

    Args:
        paths: of the files.
        shape: `(C, H, W)`, the detector's.
        fit: as in `load`; None takes only files of exactly H x W.
        white: which value of 16-bit grey becomes 255; None is the highest of each file.

    Raises:
        SettingError: files that cannot be decoded.
    """
    x, failures = decode_each(paths, shape, fit, white)
    if failures:
        raise unreadable(failures, len(paths))
    return x


def decode_each(
    paths: Sequence[str | Path], shape: tuple[int, int, int], fit: str | None, white: int | None = WHITE
) -> tuple[Tensor, list[tuple[str, str]]]:
    """As `decode_files`; path and reason of each file that cannot be decoded, whose pixels mean nothing."""
    out = np.empty((len(paths), *shape), dtype=np.uint8)
    names = [str(path) for path in paths]
    pieces = in_pieces(len(names))
    with threads(names) as pool:
        chunks, parts = [names[piece] for piece in pieces], [out[piece] for piece in pieces]
        done = pool.map(decode_all, chunks, parts, repeat(fit), repeat(white))
        failures = [failure for failed in done for failure in failed]
    return torch.from_numpy(out), failures


def decode_in_parallel(npy: Path, paths: Sequence[str], fit: str | None) -> list[tuple[str, str]]:
    """Decode files into the rows of a `.npy` file, chunk by chunk over the cores; gives those that failed."""
    try:
        return decode_by(workers(paths), npy, paths, fit)
    except BrokenProcessPool:  # a process imports the caller's script, which may do all its work again
        return decode_by(threads(paths), npy, paths, fit)


def decode_by(pool: Executor, npy: Path, paths: Sequence[str], fit: str | None) -> list[tuple[str, str]]:
    """As `decode_in_parallel`, by these workers, which end with it."""
    pieces = in_pieces(len(paths))
    failures = []
    with (
        pool,
        tqdm(total=len(paths), desc="decoding", unit="file", leave=False, disable=None) as bar,
    ):
        starts, chunks = [piece.start for piece in pieces], [paths[piece] for piece in pieces]
        for chunk, failed in zip(
            chunks, pool.map(decode_chunk, repeat(npy), starts, chunks, repeat(fit)), strict=True
        ):
            failures += failed
            bar.update(len(chunk))
    return failures


def in_pieces(n_files: int) -> list[slice]:
    """Pieces of work, some for each core, so that all cores end at about the same time."""
    size = max(1, min(CHUNK, n_files // (4 * cores())))
    return [slice(start, start + size) for start in range(0, n_files, size)]


def workers(paths: Sequence[str]) -> Executor:
    """Processes for many files, threads for few; also threads in a process that may not start others."""
    number = cores()
    if number == 1 or len(paths) < ENOUGH_FOR_PROCESSES or current_process().daemon:
        return threads(paths)
    return ProcessPoolExecutor(number, get_context("spawn"))


def threads(paths: Sequence[str]) -> ThreadPoolExecutor:
    """A thread for each core, or one thread where files are so small that more of them would be slower."""
    sample = map(Path, paths[:: max(1, len(paths) // 256)])
    sizes = [path.stat().st_size for path in sample if path.exists()]
    return ThreadPoolExecutor(cores() if sum(sizes) > ENOUGH_FOR_THREADS * len(sizes) else 1)


def unreadable(failures: Sequence[tuple[str, str]], n_files: int) -> SettingError:
    """The error of files which cannot be decoded."""
    return SettingError(f"{named(failures, n_files)}; remove or repair them")


def named(failures: Sequence[tuple[str, str]], n_files: int) -> str:
    """Which files cannot be decoded, and why, in words."""
    first = "; ".join(f"{path!r} ({reason})" for path, reason in failures[:3])
    more = "; ..." if len(failures) > 3 else ""
    return f"{len(failures)} of {n_files} image files cannot be read: {first}{more}"
