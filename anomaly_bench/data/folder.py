"""Image folders: GANomaly's layout, MVTec's, and any `{train,test}/<class>` folders.

    train/0.normal/*  test/0.normal/*  test/1.abnormal[/<subclass>]/*   as in the official GANomaly code
    train/good/*      test/good/*      test/<defect>/*                  MVTec
    train/<class>/*   test/<class>/*                                    anything else

In each, `ground_truth/<class>/<name>_mask.png` marks the anomalous pixels of `test/<class>/<name>.png`; either may
have another suffix, and `_mask` may be left out.
Files are decoded once, in parallel, into one array in a cache folder, and read from there as long as no file
is added, removed or changed.
"""

import contextlib
import errno
import hashlib
import logging
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from itertools import repeat
from multiprocessing import current_process, get_context
from pathlib import Path
from typing import NamedTuple
from uuid import uuid4

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from anomaly_bench.data.dataset import Dataset
from anomaly_bench.data.decode import WHITE, Failure, decode_all, decode_chunk, is_grey, peak_of, size_of
from anomaly_bench.data.settings import (
    as_text,
    check_image_size,
    data_root,
    found_below,
    kept_rows,
    readable,
    say_what_is_not_followed,
    user_cache,
    within,
)
from anomaly_bench.errors import SettingError
from anomaly_bench.machine import cores, free_gib

LOG = logging.getLogger("anomaly_bench")

SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm")
FITS = ("stretch", "pad", "crop")
LAYOUTS = (
    "expected train/<class>/* and test/<class>/*, such as train/0.normal test/0.normal test/1.abnormal, "
    "or train/good test/good test/<defect>"
)

CACHE_VERSION = 1  # raised whenever decoding gives other pixels, so that older cache files are not used
TWELVE_BITS = 4095  # the highest value of the cameras that have most bits of those that do not fill 16
DAY = 86_400  # seconds; a decoding that has written nothing for as long is dead
CHUNK = 256  # files decoded as one piece of work, at most
ENOUGH_FOR_PROCESSES = 20_000  # files; threads take seconds for fewer, about what processes take to start
ENOUGH_FOR_THREADS = 4_000  # bytes of a file; over smaller ones threads mostly wait for each other


class ClassFolder(NamedTuple):
    """The images of one class, or sub-class, in one part."""

    train: bool  # lies under `train/`
    class_name: str  # the folders between `train/` or `test/` and the files
    names: list[str]  # of the files, sorted
    stamps: list[tuple[int, ...]]  # of each file, see `stamp`

    @property
    def paths(self) -> list[str]:
        """Of the files, relative to the data set's folder, with `/`."""
        part = "train" if self.train else "test"
        return [f"{part}/{self.class_name}/{name}" for name in self.names]


def load(
    name: str = "folder",
    root: str | Path | None = None,
    image_size: int | None = 64,
    channels: int | None = None,
    fit: str = "stretch",
    limit: int | None = None,
    mean: float = 0.5,
    std: float = 0.5,
) -> Dataset:
    """Read `<root>/{train,test}/<class>[/<subclass>]/*` as `uint8` images `[N, C, image_size, image_size]`.

    Args:
        name: of the data set.
        root: its folder; None is `<data root>/<name>`.
        image_size: in pixels; None keeps the files' size, which must then be one.
        channels: 1, 3, or None: 1 if the headers of an even sample of the files are all grey, else 3.
        fit: `stretch`, `pad` (aspect kept, black borders), or `crop` (shorter side to `image_size`, then the
            centre, as the official GANomaly code has it).
        limit: rows kept of each part, spread evenly over the classes; None keeps all.
        mean, std: with which pixels on [0, 1] are scaled for a detector.

    Raises:
        SettingError: no such folder, another layout, or files that cannot be decoded.
    """
    check_image_size(image_size)
    if fit not in FITS:
        raise SettingError(f"data.fit={fit}: allowed are {', '.join(FITS)}")
    if channels not in (1, 3, None):
        raise SettingError(f"data.channels={channels}: allowed are 1, 3 or null")
    folder = Path(root).expanduser() if root else data_root(None) / name
    folders = find_files(folder)
    counts = [len(found.names) for found in folders]
    class_names = tuple(sorted({found.class_name for found in folders}))
    classes = np.repeat([class_names.index(found.class_name) for found in folders], counts)
    official_train = np.repeat([found.train for found in folders], counts)
    rows = kept_rows(classes, official_train, limit)
    classes, official_train = classes[rows], official_train[rows]
    paths = [path for found in folders for path in found.paths]
    files = tuple(paths[row] for row in rows.tolist())
    stamps = np.concatenate([found.stamps for found in folders])[rows]
    shape = shape_of(folder, files, image_size, channels)
    kept = said(classes, official_train, class_names)
    LOG.info("data: %s, %s: %s; images of %s", name, folder, kept, "x".join(map(str, shape)))
    return Dataset(
        name=name,
        x=pixels(folder, files, stamps, shape, None if image_size is None else fit, limit),
        classes=classes,
        class_names=tuple(map(as_text, class_names)),
        official_train=official_train,
        source="synthetic" if (folder / "SYNTHETIC.txt").exists() else "folder",
        files=tuple(map(as_text, files)),
        mean=mean,
        std=std,
        masks=masks_of(folder, files, known_masks(folder, paths), shape, None if image_size is None else fit),
    )


def find_files(folder: Path) -> list[ClassFolder]:
    """All images under `folder/{train,test}/<class>`: training part first, then by class, then by path."""
    if not folder.is_dir():
        raise SettingError(f"data.root={folder}: no such folder; set data.root=FOLDER: {LAYOUTS}")
    train, test = (sorted(in_class_folders(folder, part)) for part in ("train", "test"))
    for part, found in (("train", train), ("test", test)):
        if not found:
            raise SettingError(f"data.root={folder}: no images in class folders under {part}/; {LAYOUTS}")
    return train + test


def in_class_folders(folder: Path, part: str) -> Iterator[ClassFolder]:
    """The images of a part, `train` or `test`.

    A class folder may be a link. Below it no link to a folder is followed, and one to a file only if that lies in the
    data set's folder, or where the class folder does.
    """
    if not (folder / part).is_dir():
        return
    for class_folder in (folder / part).iterdir():
        if class_folder.is_dir() and not class_folder.name.startswith("."):
            yield from walk(str(class_folder), class_folder.name, part == "train", (folder, class_folder))


def walk(folder: str, class_name: str, train: bool, around: tuple[Path, ...]) -> Iterator[ClassFolder]:
    """The images of a folder, and of its sub-classes' folders, but for hidden names and links out of `around`."""
    found = {}
    links, not_followed = [], []
    with readable(), os.scandir(folder) as entries:
        for entry in entries:
            if is_image(entry.name) and entry.is_symlink():
                links.append(Path(entry.path))
            elif is_image(entry.name) and entry.is_file():
                found[entry.name] = stamp(entry.stat())
            elif entry.name.startswith(".") or not entry.is_dir():
                continue
            elif entry.is_symlink():
                not_followed.append(Path(entry.path))
            else:
                yield from walk(entry.path, f"{class_name}/{entry.name}", train, around)
    say_what_is_not_followed(not_followed, around[0])
    for path in within(links, *around):
        found[path.name] = stamp(path.stat())
    if found:
        names = sorted(found)
        yield ClassFolder(train, class_name, names, [found[name] for name in names])


def stamp(stat: os.stat_result) -> tuple[int, ...]:
    """Size in bytes, times of content and entry in ns, number of a file: one changes when the file does."""
    return stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino % 2**63  # in 64 bits, with a sign


def is_image(name: str) -> bool:
    """Whether a file name ends like an image's, and is not hidden."""
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")


def said(classes: np.ndarray, official_train: np.ndarray, class_names: Sequence[str]) -> str:
    """How many images of each class each part has, in words."""
    parts = []
    for part, rows in (("train", official_train), ("test", ~official_train)):
        numbers = np.bincount(classes[rows], minlength=len(class_names))
        of_class = [f"{number} {name!r}" for number, name in zip(numbers, class_names, strict=True) if number]
        parts.append(f"{part} {', '.join(of_class)}")
    return "; ".join(parts)


def shape_of(
    folder: Path, files: Sequence[str], image_size: int | None, channels: int | None
) -> tuple[int, int, int]:
    """`(C, H, W)` of the data set; what the settings leave open is read from the files' headers."""
    if channels is None:
        sample = files[:: max(1, len(files) // 256)]
        channels = 1 if all(is_grey(f"{folder}/{file}") for file in sample) else 3
    if image_size is not None:
        return channels, image_size, image_size
    first = f"{folder}/{files[0]}"
    try:
        return channels, *size_of(first)
    except Failure as failure:
        raise unreadable([(first, str(failure))], len(files)) from failure


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


def known_masks(folder: Path, paths: Sequence[str]) -> dict[str, str]:
    """The masks under `ground_truth/`, by the path without suffix of their image; those without one are told of."""
    known = {
        f"test/{found.class_name}/{Path(name).stem.removesuffix('_mask')}": f"{found.class_name}/{name}"
        for found in in_class_folders(folder, "ground_truth")
        for name in found.names
    }
    stray = sorted(known.keys() - {path.rpartition(".")[0] for path in paths})
    if stray:
        LOG.warning(
            "data: %d of %d masks under ground_truth/ belong to no image under test/, the first is %s",
            *(len(stray), len(known), repr(known[stray[0]])),
        )
    return known


def masks_of(
    folder: Path, files: Sequence[str], known: dict[str, str], shape: tuple[int, int, int], fit: str | None
) -> np.ndarray | None:
    """Bool `[N, H, W]`, the pixels of the files that the known masks mark; None where these mark none of them.

    A pixel is marked where its mask is brighter than half of the mask's brightest.
    """
    marked = {row: mask for row, file in enumerate(files) if (mask := known.get(file.rpartition(".")[0]))}
    if not marked:
        return None
    paths = [f"{folder}/ground_truth/{mask}" for mask in marked.values()]
    decoded = decode_files(paths, (1, *shape[1:]), fit, white=None).numpy()[:, 0]
    masks = np.zeros((len(files), *shape[1:]), bool)
    masks[list(marked)] = decoded > decoded.max((1, 2), keepdims=True) // 2
    return masks


def short_hash(*parts: bytes) -> str:
    """16 hexadecimal digits that stand for the parts, one after the other."""
    return hashlib.blake2b(b"".join(parts), digest_size=8).hexdigest()


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
        LOG.warning(
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


def decode_in_parallel(npy: Path, paths: Sequence[str], fit: str | None) -> list[tuple[str, str]]:
    """Decode files into the rows of a `.npy` file, chunk by chunk over the cores; gives those that failed."""
    pieces = in_pieces(len(paths))
    failures = []
    with (
        workers(paths) as pool,
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
    return SettingError(f"{named(failures, n_files)}. Remove or repair them")


def named(failures: Sequence[tuple[str, str]], n_files: int) -> str:
    """Which files cannot be decoded, and why, in words."""
    first = "; ".join(f"{path!r} ({reason})" for path, reason in failures[:3])
    more = "; ..." if len(failures) > 3 else ""
    return f"{len(failures)} of {n_files} image files cannot be read: {first}{more}"


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


def list_images(paths: Sequence[Path]) -> list[Path]:
    """The images that files and folders come to, sorted, each once; folders are searched with all below them.

    Raises:
        SettingError: a path that does not exist, or no image at all.
    """
    found: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise SettingError(f"{path}: no such file or folder")
        if path.is_file():
            found.add(path)
            continue
        found.update(found_below(path, is_image))
    if not found:
        raise SettingError(f"{', '.join(map(str, paths))}: no images there ({' '.join(SUFFIXES)})")
    return sorted(found)
