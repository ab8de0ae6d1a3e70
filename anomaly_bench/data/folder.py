"""Image folders: GANomaly's layout, MVTec's, and any `{train,test}/<class>` folders.

    train/0.normal/*  test/0.normal/*  test/1.abnormal[/<subclass>]/*   as in the official GANomaly code
    train/good/*      test/good/*      test/<defect>/*                  MVTec
    train/<class>/*   test/<class>/*                                    anything else

In each, `ground_truth/<class>/<name>_mask.png` marks the anomalous pixels of `test/<class>/<name>.png`; either may
have another suffix, and `_mask` may be left out.
Files are decoded once, in parallel, into one array in a cache folder, and read from there as long as no file
is added, removed or changed.
"""

import logging
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from anomaly_bench.data.cache import pixels
from anomaly_bench.data.dataset import Dataset
from anomaly_bench.data.decode import Failure, is_grey, size_of
from anomaly_bench.data.pool import decode_files, unreadable
from anomaly_bench.data.settings import (
    as_text,
    check_image_size,
    data_root,
    found_below,
    kept_rows,
    readable,
    say_what_is_not_followed,
    within,
)
from anomaly_bench.errors import SettingError

log = logging.getLogger("anomaly_bench")

SUFFIXES = (".png", ".jpg", ".jpeg", ".jfif", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".pgm", ".ppm")
FITS = ("stretch", "pad", "crop")
LAYOUTS = (
    "expected train/<class>/* and test/<class>/*, such as train/0.normal test/0.normal test/1.abnormal, "
    "or train/good test/good test/<defect>"
)


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
    channels: Literal[1, 3] | None = None,
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
    log.info("data: %s, %s: %s; images of %s", name, folder, kept, "x".join(map(str, shape)))
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
    with readable():
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
    with os.scandir(folder) as entries:
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


def known_masks(folder: Path, paths: Sequence[str]) -> dict[str, str]:
    """The masks under `ground_truth/`, by the path without suffix of their image; those without one are told of."""
    known = {
        f"test/{found.class_name}/{Path(name).stem.removesuffix('_mask')}": f"{found.class_name}/{name}"
        for found in in_class_folders(folder, "ground_truth")
        for name in found.names
    }
    stray = sorted(known.keys() - {path.rpartition(".")[0] for path in paths})
    if stray:
        log.warning(
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
