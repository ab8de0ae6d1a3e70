import logging
import struct
import threading
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from anomaly_bench.data import public
from anomaly_bench.errors import SettingError


def class_folders(root, draw, names):
    for part in ("train", "test"):
        for value, name in enumerate(names):
            draw(root / part / name / "0.png", 2 * value)


def test_class_folders_take_the_known_order(tmp_path, draw):
    names = sorted(public.CLASS_NAMES["cifar10"], reverse=True)
    class_folders(tmp_path / "cifar10", draw, [name.upper() for name in names])
    data = public.load("cifar10", tmp_path)
    assert data.class_names == public.CLASS_NAMES["cifar10"]
    assert data.class_names[3] == "cat"
    assert data.source == "folder"
    assert data.shape == (3, 32, 32)
    assert data.official_train.sum() == 10
    for label, value, file in zip(data.classes, data.x[:, 0, 0, 0], data.files, strict=True):
        assert file.split("/")[1].lower() == data.class_names[label] == names[value // 2]


def test_cifar100_folders_are_coarse_or_fine(tmp_path, draw):
    fine = sorted(public.COARSE_OF_FINE)
    class_folders(tmp_path / "fine/cifar100", draw, fine)
    class_folders(tmp_path / "coarse/cifar100", draw, public.CIFAR100)
    by_fine = public.load("cifar100", tmp_path / "fine", image_size=8)
    assert np.bincount(by_fine.classes).tolist() == [10] * 20
    beaver = by_fine.files.index("train/beaver/0.png")
    assert by_fine.class_names[by_fine.classes[beaver]] == "aquatic_mammals"
    assert public.load("cifar100", tmp_path / "coarse").class_names == by_fine.class_names


def test_the_table_of_cifar100_is_whole():
    assert len(public.COARSE_OF_FINE) == 100
    assert [len(fines.split()) for fines in public.CIFAR100.values()] == [5] * 20
    assert list(public.CIFAR100) == sorted(public.CIFAR100)


@pytest.mark.parametrize("folder_name", ["T-shirt_top", "t-shirt top", "TshirtTop"])
def test_folder_names_are_matched_plainly(tmp_path, draw, folder_name):
    class_folders(tmp_path / "fashion_mnist", draw, [folder_name, *public.CLASS_NAMES["fashion_mnist"][1:]])
    data = public.load("fashion_mnist", tmp_path)
    assert data.class_names[0] == "T-shirt/top"
    assert data.shape == (1, 32, 32)


def test_class_folders_take_the_settings_of_a_run(tmp_path, draw):
    class_folders(tmp_path / "cifar10", draw, public.CLASS_NAMES["cifar10"])
    data = public.load("cifar10", tmp_path, limit=3, mean=0.1, std=0.2)
    assert data.official_train.tolist() == [True] * 3 + [False] * 3
    assert (data.mean, data.std) == (0.1, 0.2)


def test_unknown_and_missing_class_folders(tmp_path, draw):
    class_folders(tmp_path / "a/cifar10", draw, [*public.CLASS_NAMES["cifar10"], "zebra"])
    class_folders(tmp_path / "b/cifar10", draw, public.CLASS_NAMES["cifar10"][:-1])
    with pytest.raises(SettingError, match=r"zebra.*only airplane, automobile"):
        public.load("cifar10", tmp_path / "a")
    with pytest.raises(SettingError, match="no class folder for truck"):
        public.load("cifar10", tmp_path / "b")


@pytest.mark.parametrize("name", public.CLASS_NAMES)
def test_missing_sets_say_where_and_what_to_do(tmp_path, name):
    with pytest.raises(SettingError) as error:
        public.load(name, tmp_path)
    said = str(error.value)
    for part in (
        f"data={name}",
        str(tmp_path / name),
        "data.download=true",
        "data.root=",
        "/{train,test}/<class>/",
    ):
        assert part in said
    assert "\n" not in said
    assert "download=True" not in said  # how torchvision says it


def test_a_failed_download_says_what_to_do(tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(datasets.MNIST, "mirrors", [f"file://{tmp_path}/nothing/"])
    with pytest.raises(SettingError, match="Error downloading"):
        public.load("mnist", tmp_path, download=True)
    assert capfd.readouterr().err == ""


@pytest.fixture
def fetched(monkeypatch):
    """Stands for torchvision's MNIST: what each process finds of a set that takes a while to write."""
    found = []

    class Mnist:
        data, targets = torch.zeros(2, 28, 28, dtype=torch.uint8), torch.arange(2)

        def __init__(self, place, train, download):
            file = place / f"{train}"
            if download and not file.exists():
                file.touch()
                time.sleep(0.1)
                file.write_text("whole")
            found.append(file.read_text())

    monkeypatch.setattr(datasets, "MNIST", Mnist)
    return found


@pytest.mark.parametrize("limit", [None, 1])
def test_a_limit_is_of_each_part(tmp_path, fetched, monkeypatch, limit):
    n = {True: 5, False: 3}

    def part(name, place, train, download):
        pixels = np.arange(n[train], dtype=np.uint8) + (0 if train else 100)
        return np.broadcast_to(pixels[:, None, None, None], (n[train], 2, 2, 1)), np.zeros(n[train], np.int64)

    monkeypatch.setattr(public, "official_part", part)
    data = public.load("mnist", tmp_path, None, limit)
    values = [*range(5), 100, 101, 102] if limit is None else [0, 100]
    assert data.x[:, 0, 0, 0].tolist() == values
    assert data.official_train.tolist() == [value < 100 for value in values]


def test_one_process_fetches_and_the_others_wait_for_it(tmp_path, fetched):
    several = [
        threading.Thread(target=public.load, args=("mnist", tmp_path), kwargs={"download": True})
        for _ in range(3)
    ]
    for one in several:
        one.start()
    for one in several:
        one.join()
    assert fetched == ["whole"] * 6


def test_a_set_in_a_folder_that_cannot_be_written_is_read(tmp_path, fetched, monkeypatch):
    public.load("mnist", tmp_path, download=True)
    (tmp_path / "mnist/lock").unlink()
    monkeypatch.setattr(public.os, "access", lambda *_: False)
    public.load("mnist", tmp_path, download=True)
    assert not (tmp_path / "mnist/lock").exists()
    assert fetched == ["whole"] * 4


def test_pixels_are_scaled_as_a_run_has_it(tmp_path, fetched):
    data = public.load("mnist", tmp_path, download=True, mean=0.1, std=0.2)
    assert (data.mean, data.std) == (0.1, 0.2)


@pytest.mark.parametrize("error", [OSError("it ends\ntoo early"), RuntimeError("Error downloading\nit")])
def test_a_set_that_is_not_there_is_told_in_a_line(tmp_path, monkeypatch, error):
    def missing(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(datasets, "MNIST", missing)
    said = " ".join(str(error).split())
    with pytest.raises(SettingError, match=rf"data=mnist: not found in .* \({said}\)"):
        public.load("mnist", tmp_path)
    with pytest.raises(SettingError, match=r"data=mnist: could not be fetched to .*; try again, name"):
        public.load("mnist", tmp_path, download=True)


def idx(kind: int, shape: tuple[int, ...], content: bytes) -> bytes:
    """A file of MNIST, as its header says."""
    return struct.pack(f">HBB{len(shape)}I", 0, kind, len(shape), *shape) + content


@pytest.mark.parametrize(
    ("images", "labels", "said"),
    [
        (idx(8, (2, 28, 28), bytes(2 * 784)), idx(8, (2,), b"\x01\x0b"), "labels 1 to 11, not 0 to 9"),
        (idx(8, (2, 28, 28), bytes(2 * 784)), idx(8, (1,), b"\x01"), "2 images, 1 labels"),
        (idx(8, (0, 28, 28), b""), idx(8, (0,), b""), ""),
        (idx(8, (2, 28, 28), bytes(700)), idx(8, (2,), b"\x01\x02"), r"shape '\[2, 28, 28\]' is invalid"),
        (idx(11, (2, 28, 28), bytes(4 * 784)), idx(8, (2,), b"\x01\x02"), "dtype"),
        (idx(8, (2, 28, 28), bytes(2 * 784)), b"", ""),
        (idx(8, (2, 28, 28), bytes(2 * 784)), b"\x00\x00\x09\x01", ""),
        (idx(8, (2, 28, 28), bytes(2 * 784)), idx(20, (2,), b"\x01\x02"), "AssertionError"),
    ],
    ids=["labels", "counts", "none", "short", "type", "no labels", "header", "kind"],
)
def test_a_damaged_set_is_told_in_a_line(tmp_path, images, labels, said):
    raw = tmp_path / "mnist/MNIST/raw"
    raw.mkdir(parents=True)
    for part in ("train", "t10k"):
        (raw / f"{part}-images-idx3-ubyte").write_bytes(images)
        (raw / f"{part}-labels-idx1-ubyte").write_bytes(labels)
    with pytest.raises(SettingError, match=rf"data=mnist: {tmp_path}/mnist is damaged \(.*{said}.*") as error:
        public.load("mnist", tmp_path)
    assert str(error.value).endswith("; remove it, and fetch it again with data.download=true")
    assert "\n" not in str(error.value)


def test_an_image_size_that_cannot_be(tmp_path):
    with pytest.raises(SettingError, match=r"data\.image_size=0"):
        public.load("mnist", tmp_path, image_size=0)


def test_unknown_set(tmp_path):
    with pytest.raises(SettingError, match=r"data\.name=imagenet.*mnist, fashion_mnist"):
        public.load("imagenet", tmp_path)


def test_other_file_layouts_of_torchvision(tmp_path, monkeypatch):
    """Colour sets come in other shapes and types from torchvision; here with four rows and two."""
    pixels = np.arange(4 * 32 * 32 * 3, dtype=np.uint32).reshape(4, 32, 32, 3).astype(np.uint8)

    class Cifar:
        def __init__(self, _, train, **__):
            count = 4 if train else 2
            self.data, self.targets = pixels[:count], [0, 4, 1, 99][:count]

    class Svhn:
        def __init__(self, _, split, **__):
            count = {"train": 4, "test": 2}[split]
            self.data, self.labels = pixels[:count].transpose(0, 3, 1, 2), np.array([0, 4, 1, 9])[:count]

    class Cifar10(Cifar):
        def __init__(self, *given, **more):
            super().__init__(*given, **more)
            self.targets = [0, 4, 1, 9][: len(self.data)]

    monkeypatch.setattr(datasets, "CIFAR10", Cifar10)
    monkeypatch.setattr(datasets, "CIFAR100", Cifar)
    monkeypatch.setattr(datasets, "SVHN", Svhn)
    for name in ("cifar10", "cifar100", "svhn"):
        data = public.load(name, tmp_path)
        assert np.array_equal(data.x[:4].permute(0, 2, 3, 1).numpy(), pixels)
        assert data.classes.dtype == np.int64
        assert data.official_train.tolist() == [True] * 4 + [False] * 2
    coarse = public.load("cifar100", tmp_path)
    named = [coarse.class_names[label] for label in coarse.classes[:4]]  # apple, beaver, aquarium_fish, worm
    assert named == ["fruit_and_vegetables", "aquatic_mammals", "fish", "non-insect_invertebrates"]


def test_fashion_is_not_taken_for_digits(tmp_path, monkeypatch):
    class Fashion:
        def __init__(self, _, train, **__):
            self.data = torch.full((3 if train else 2, 28, 28), 7, dtype=torch.uint8)
            self.targets = torch.arange(len(self.data))

    monkeypatch.setattr(datasets, "FashionMNIST", Fashion)
    data = public.load("fashion_mnist", tmp_path, image_size=None)
    assert data.official_train.tolist() == [True] * 3 + [False] * 2
    assert (data.shape, data.classes.tolist()) == ((1, 28, 28), [0, 1, 2, 0, 1])
    assert (data.x == 7).all()


def test_real_mnist(real_data):
    data = public.load("mnist", real_data, image_size=None, limit=200)
    raw = datasets.MNIST(real_data / "mnist", train=True)
    assert data.source == "torchvision"
    assert data.x.shape == (400, 1, 28, 28)
    assert np.bincount(data.classes[data.official_train]).tolist() == [20] * 10
    first = int(np.flatnonzero(raw.targets == 5)[0])
    row = int(np.flatnonzero(data.classes == 5)[0])
    assert torch.equal(data.x[row, 0], raw.data[first])


def test_mnist_from_files_and_from_folders_agree(real_data, tmp_path):
    files = public.load("mnist", real_data, limit=40)
    native = public.load("mnist", real_data, image_size=None, limit=40)
    for row, (image, label) in enumerate(zip(native.x, native.classes, strict=True)):
        part = "train" if native.official_train[row] else "test"
        (tmp_path / "mnist" / part / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image[0].numpy()).save(tmp_path / "mnist" / part / str(label) / f"{row:03d}.png")
    folders = public.load("mnist", tmp_path)
    order = np.lexsort((files.classes, ~files.official_train))
    assert folders.class_names == files.class_names
    assert np.array_equal(folders.classes, files.classes[order])
    assert (folders.x.int() - files.x[order].int()).abs().max() <= 1  # both resize bilinearly, antialiased


def test_nothing_is_logged_for_files(real_data, caplog):
    with caplog.at_level(logging.INFO, "anomaly_bench"):
        public.load("mnist", real_data, limit=10)
    assert caplog.text == ""
