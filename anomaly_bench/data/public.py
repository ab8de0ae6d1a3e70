"""The public image sets that torchvision knows, from its files or from class folders."""

import contextlib
import io
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from filelock import FileLock
from torchvision import datasets

from anomaly_bench.data import folder
from anomaly_bench.data.dataset import Dataset, resized
from anomaly_bench.data.settings import check_image_size, data_root, kept_rows
from anomaly_bench.errors import SettingError, one_line

DIGITS = tuple("0123456789")
CIFAR100 = {
    "aquatic_mammals": "beaver dolphin otter seal whale",
    "fish": "aquarium_fish flatfish ray shark trout",
    "flowers": "orchid poppy rose sunflower tulip",
    "food_containers": "bottle bowl can cup plate",
    "fruit_and_vegetables": "apple mushroom orange pear sweet_pepper",
    "household_electrical_devices": "clock keyboard lamp telephone television",
    "household_furniture": "bed chair couch table wardrobe",
    "insects": "bee beetle butterfly caterpillar cockroach",
    "large_carnivores": "bear leopard lion tiger wolf",
    "large_man-made_outdoor_things": "bridge castle house road skyscraper",
    "large_natural_outdoor_scenes": "cloud forest mountain plain sea",
    "large_omnivores_and_herbivores": "camel cattle chimpanzee elephant kangaroo",
    "medium_mammals": "fox porcupine possum raccoon skunk",
    "non-insect_invertebrates": "crab lobster snail spider worm",
    "people": "baby boy girl man woman",
    "reptiles": "crocodile dinosaur lizard snake turtle",
    "small_mammals": "hamster mouse rabbit shrew squirrel",
    "trees": "maple_tree oak_tree palm_tree pine_tree willow_tree",
    "vehicles_1": "bicycle bus motorcycle pickup_truck train",
    "vehicles_2": "lawn_mower rocket streetcar tank tractor",
}
"""The 20 coarse classes and the fine ones in each; labels of both kinds count in alphabetical order."""

COARSE_OF_FINE = {fine: coarse for coarse, fines in CIFAR100.items() for fine in fines.split()}

CLASS_NAMES = {
    "mnist": DIGITS,
    "fashion_mnist": (
        *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
        *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
    ),
    "cifar10": (
        *("airplane", "automobile", "bird", "cat", "deer"),
        *("dog", "frog", "horse", "ship", "truck"),
    ),
    "cifar100": tuple(CIFAR100),
    "svhn": DIGITS,
}
CHANNELS: dict[str, Literal[1, 3]] = {"mnist": 1, "fashion_mnist": 1, "cifar10": 3, "cifar100": 3, "svhn": 3}


def load(
    name: str,
    root: str | Path | None = None,
    image_size: int | None = 32,
    limit: int | None = None,
    download: bool = False,
    mean: float = 0.5,
    std: float = 0.5,
) -> Dataset:
    """Read `<root>/<name>`: torchvision's files, or class folders `{train,test}/<class>` if it holds these.

    Both give `uint8` images `[N, C, image_size, image_size]`, the official training part first, and the same
    class names in the order of the labels; CIFAR-100 has its 20 coarse classes.

    Args:
        name: `mnist`, `fashion_mnist`, `cifar10`, `cifar100` or `svhn`.
        root: folder of all data sets; None is ANOMALY_BENCH_DATA, else the user's cache.
        image_size: in pixels; None keeps the set's own (28 or 32).
        limit: rows kept of each part, spread evenly over the classes; None keeps all.
        download: let torchvision fetch what is missing; it checks what it has fetched.
        mean, std: with which pixels on [0, 1] are scaled for a detector.

    Raises:
        SettingError: the set is not there, or cannot be fetched.
    """
    if name not in CLASS_NAMES:
        raise SettingError(f"data.name={name}: no such public set; allowed are {', '.join(CLASS_NAMES)}")
    check_image_size(image_size)
    place = data_root(root) / name
    if (place / "train").is_dir() and (place / "test").is_dir():
        return from_class_folders(name, place, image_size, limit, mean, std)
    (x_train, y_train), (x_test, y_test) = [
        official_part(name, place, part, download) for part in (True, False)
    ]
    classes = np.concatenate([y_train, y_test])
    official_train = np.arange(len(classes)) < len(y_train)
    rows = kept_rows(classes, official_train, limit)
    if limit is not None:
        x_train = x_train[rows[official_train[rows]]]
        x_test = x_test[rows[~official_train[rows]] - len(y_train)]
    return Dataset(
        name=name,
        x=resized(np.concatenate([x_train, x_test]), image_size),
        classes=classes[rows],
        class_names=CLASS_NAMES[name],
        official_train=official_train[rows],
        source="torchvision",
        mean=mean,
        std=std,
    )


def official_part(name: str, place: Path, train: bool, download: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images `uint8` `[N, H, W, C]` and labels int64 `[N]` of one part."""
    fetching = one_at_a_time(place) if download else contextlib.nullcontext()
    with not_found_said(name, place, download), fetching, progress_on_terminals_only():
        images, labels = by_torchvision(name, place, train, download)
        if len(images) != len(labels) or not len(images):
            raise ValueError(f"{len(images)} images, {len(labels)} labels")
        if labels.min() < 0 or labels.max() >= len(CLASS_NAMES[name]):
            raise ValueError(
                f"labels {labels.min()} to {labels.max()}, not 0 to {len(CLASS_NAMES[name]) - 1}"
            )
        return images, labels


def by_torchvision(name: str, place: Path, train: bool, download: bool) -> tuple[np.ndarray, np.ndarray]:
    """Images and labels of one part, as torchvision reads them."""
    match name:
        case "svhn":
            part = datasets.SVHN(place, "train" if train else "test", download=download)
            return part.data.transpose(0, 2, 3, 1), part.labels.astype(np.int64)
        case "cifar10":
            part = datasets.CIFAR10(place, train, download=download)
            return part.data, np.array(part.targets, dtype=np.int64)
        case "cifar100":
            part = datasets.CIFAR100(place, train, download=download)
            names = CLASS_NAMES[name]
            coarse = np.array([names.index(COARSE_OF_FINE[fine]) for fine in sorted(COARSE_OF_FINE)])
            return part.data, coarse[part.targets]
        case "mnist":
            part = datasets.MNIST(place, train, download=download)
        case _:
            part = datasets.FashionMNIST(place, train, download=download)
    return part.data.numpy()[..., None], part.targets.numpy()


@contextlib.contextmanager
def one_at_a_time(place: Path) -> Iterator[None]:
    """Without another process that fetches into a folder: torchvision takes its half-written files for whole ones.

    Where nothing can be written, nothing is fetched, and a set that is there can be read all the same.
    """
    place.mkdir(parents=True, exist_ok=True)
    with FileLock(place / "lock") if os.access(place, os.W_OK) else contextlib.nullcontext():
        yield


@contextlib.contextmanager
def not_found_said(name: str, place: Path, fetched: bool) -> Iterator[None]:
    """Turn torchvision's errors about missing, damaged or unreachable files into one line that helps."""
    try:
        yield
    except (RuntimeError, OSError, AssertionError, EOFError, ValueError, LookupError, TypeError) as error:
        if (
            not isinstance(error, OSError) and "download" not in str(error).lower()
        ):  # as torchvision's own say
            raise SettingError(
                f"data={name}: {place} is damaged ({one_line(error) or type(error).__name__}); "
                "remove it, and fetch it again with data.download=true"
            ) from error
        what, fetch = (
            ("could not be fetched to", "try again")
            if fetched
            else ("not found in", "fetch it with data.download=true")
        )
        said = "" if "download=True" in str(error) else f" ({one_line(error)})"  # advice of torchvision's own
        raise SettingError(
            f"data={name}: {what} {place}{said}; {fetch}, name the folder that holds "
            f"{name}/ with data.root=..., or put class folders in {place}/{{train,test}}/<class>/"
        ) from error


@contextlib.contextmanager
def progress_on_terminals_only() -> Iterator[None]:
    """torchvision shows progress whether or not someone can see it; here it goes to a terminal or nowhere."""
    if sys.stderr.isatty():
        yield
        return
    with contextlib.redirect_stderr(io.StringIO()):
        yield


def from_class_folders(
    name: str, place: Path, image_size: int | None, limit: int | None, mean: float, std: float
) -> Dataset:
    """The set from folders named for its classes, labels or, for CIFAR-100, fine classes."""
    found = folder.load(name, place, image_size, CHANNELS[name], "stretch", limit, mean, std)
    labels = label_of_folder(name)
    unknown = [part for part in found.class_names if plain(part) not in labels]
    if unknown:
        allowed = ", ".join(CLASS_NAMES[name])
        raise SettingError(f"data.root: {place} has class folders {unknown[:3]}; {name} has only {allowed}")
    new = np.array([labels[plain(part)] for part in found.class_names])
    missing = sorted(set(range(len(CLASS_NAMES[name]))) - set(new))
    if missing:
        absent = ", ".join(CLASS_NAMES[name][label] for label in missing)
        raise SettingError(f"data.root: {place} has no class folder for {absent}")
    return replace(found, name=name, classes=new[found.classes], class_names=CLASS_NAMES[name])


def label_of_folder(name: str) -> dict[str, int]:
    """The label that a class folder's name, in plain letters, stands for."""
    names = CLASS_NAMES[name]
    labels = {plain(class_name): label for label, class_name in enumerate(names)}
    if name == "cifar100":
        labels |= {plain(fine): names.index(coarse) for fine, coarse in COARSE_OF_FINE.items()}
    return labels


def plain(text: str) -> str:
    """Lower-case letters and digits only, so that `Ankle boot` and `ankle_boot` are one."""
    return "".join(letter for letter in text.lower() if letter.isalnum())
