"""Files that are damaged, odd, or made to do harm: read for what they are, or refused in one line."""

import contextlib
import io
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import savemat

from anomaly_bench.data import folder, table, table_files
from anomaly_bench.data.decode import Failure, decode, is_grey
from anomaly_bench.errors import SettingError

KINDS = ("png", "jpg", "bmp", "tiff", "webp", "gif", "ppm")
MARK = "EXECUTED"
NO_SHRINKING_OF_FOLDERS = {
    "deadline": None,
    "derandomize": True,
    "database": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
}


class Executes:
    def __reduce__(self) -> tuple:
        return os.system, (f"touch {MARK}",)


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """An empty working folder, in which nothing may have been executed at the end."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    assert not Path(MARK).exists()


def picture() -> Image.Image:
    return Image.fromarray(np.random.RandomState(0).randint(0, 255, (20, 30, 3), dtype=np.uint8))


def png(width: int, height: int, pixels: bytes) -> bytes:
    """A PNG whose header says what it likes."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")


# ------------------------------------------------------------------------------ images


@pytest.mark.parametrize("kind", KINDS)
def test_a_truncated_image_is_refused(kind):
    picture().save(f"whole.{kind}")
    whole = Path(f"whole.{kind}").read_bytes()
    for length in (0, 1, 8, 20, len(whole) // 2, len(whole) * 4 // 5):
        Path(f"cut.{kind}").write_bytes(whole[:length])
        with pytest.raises(Failure):
            decode(f"cut.{kind}", (3, 8, 8), "stretch")


@given(
    kind=st.sampled_from(KINDS), changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4)
)
@hypothesis_settings(max_examples=150, **NO_SHRINKING_OF_FOLDERS)
@pytest.mark.filterwarnings("ignore")  # of Pillow, on what is damaged
def test_a_damaged_image_is_decoded_or_refused(kind, changes):
    picture().save(f"whole.{kind}")
    damaged = bytearray(Path(f"whole.{kind}").read_bytes())
    for where, byte in changes:
        damaged[int(where * (len(damaged) - 1))] = byte
    Path(f"damaged.{kind}").write_bytes(damaged)
    with contextlib.suppress(Failure):
        assert decode(f"damaged.{kind}", (3, 8, 8), "stretch").shape == (8, 8, 3)
    is_grey(f"damaged.{kind}")


@pytest.mark.parametrize(
    "size", [(0, 0), (0, 5), (5, 0), (2**31 - 1, 2**31 - 1), (60_000, 60_000), (30_000, 6_000)]
)
def test_sizes_that_no_image_has_are_refused_from_the_header(size, monkeypatch):
    Path("x.png").write_bytes(png(*size, b"\0" * 99))
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    with pytest.raises(Failure):
        decode("x.png", (1, 8, 8), "stretch")


def test_odd_images_are_read():
    Image.new("L", (1, 1), 9).save("one.png")
    for fit in ("stretch", "crop"):
        assert (decode("one.png", (3, 8, 8), fit) == 9).all()
    Image.new("L", (1, 5000), 9).save("thin.png")
    assert decode("thin.png", (1, 8, 8), "pad").max() <= 9
    Image.fromarray(np.full((20, 20), 65535, dtype=np.uint16)).save("sixteen.png")
    assert (decode("sixteen.png", (1, 8, 8), "stretch") == 255).all()
    Image.new("CMYK", (20, 20), (0, 255, 255, 0)).save("cmyk.jpg", quality=95)
    red, green, blue = decode("cmyk.jpg", (3, 8, 8), "stretch")[4, 4].astype(int)
    assert red > 240 > 15 > max(green, blue)
    several = [Image.new("L", (20, 20), 40 * number) for number in range(4)]
    several[1].save("moving.gif", save_all=True, append_images=several[2:])
    assert (decode("moving.gif", (1, 8, 8), "stretch") == 40).all()
    held = Image.Exif()
    held[0x112] = 6
    picture().save("held.jpg", exif=held, quality=95)
    assert decode("held.jpg", (3, 20, 30), None).shape == (20, 30, 3)
    picture().save("truly.png")
    Path("truly.png").rename("said.jpg")
    assert (decode("said.jpg", (3, 20, 30), None) == np.asarray(picture())).all()


def set_of_images(root: Path) -> Path:
    for path in ("train/0.normal/0.png", "test/0.normal/0.png", "test/1.abnormal/0.png"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 7).save(root / path)
    return root


def test_links_out_of_the_folder_are_left_out_and_said(place, caplog):
    root = set_of_images(place / "set")
    Image.new("L", (8, 8), 99).save("private.png")
    inside, out = root / "test/1.abnormal/inside.png", root / "test/1.abnormal/out.png"
    inside.symlink_to(root / "train/0.normal/0.png")
    out.symlink_to(place / "private.png")
    (root / "test/1.abnormal/up").symlink_to(root / "test")
    (root / "test/1.abnormal/self.png").symlink_to("self.png")
    os.mkfifo(root / "test/1.abnormal/pipe.png")
    data = folder.load(root=root, image_size=8)
    assert data.files is not None
    assert [path for path in data.files if "abnormal" in path] == [
        "test/1.abnormal/0.png",
        "test/1.abnormal/inside.png",
    ]
    assert (data.x == 7).all()
    assert "1 links lead out" in caplog.text
    listed = folder.list_images([root / "test"])
    assert out not in listed
    assert inside not in listed  # for it leads out of what was asked for
    assert len(listed) == 2
    assert folder.list_images([out]) == [out]  # asked for by name


def test_links_to_folders_are_left_out_and_said(place, caplog):
    root = set_of_images(place / "set")
    (root / "test/1.abnormal/up").symlink_to(root / "test")
    said = f"1 links to folders in '{root}{{}}' are left out, the first is '{root}/test/1.abnormal/up'"
    folder.load(root=root, image_size=8)
    assert said.format("") in caplog.text
    caplog.clear()
    assert len(folder.list_images([root / "test"])) == 2
    assert said.format("/test") in caplog.text


def test_hidden_folders_and_other_files_are_left_out(place, caplog):
    caplog.set_level("INFO", "anomaly_bench")
    root = set_of_images(place / "set") / "test"
    for name in (
        ".ipynb_checkpoints/0.png",
        ".ipynb_checkpoints/0.csv",
        ".link/0.png",
        ".DS_Store",
        "b.txt",
        "a.heic",
    ):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).touch()
    assert len(folder.list_images([root])) == 2
    assert caplog.text.count("left out") == 1
    assert f"2 other files in '{root}' are left out, the first is '{root}/a.heic'" in caplog.text
    (root / "0.csv").touch()
    assert table_files.list_tables([root]) == [root / "0.csv"]
    assert f"4 other files in '{root}' are left out" in caplog.text


def test_tables_in_folders_are_plain_files(place, caplog):
    (place / "tables").mkdir()
    for name in ("tables/a.csv", "private.csv"):
        Path(name).write_text("a\n1\n")
    (place / "tables/b.csv").symlink_to(place / "private.csv")
    os.mkfifo(place / "tables/c.csv")
    assert table_files.list_tables([place / "tables"]) == [place / "tables/a.csv"]
    assert "1 links lead out" in caplog.text


# ------------------------------------------------------------------------------ tables


@contextlib.contextmanager
def refused_in_a_line():
    """What happens inside may be refused."""
    said = ""
    try:
        yield
    except SettingError as error:
        said = str(error)
    assert "\n" not in said


def loaded(content: str | bytes, name: str = "t.csv", label: str | None = "y"):
    Path(name).write_bytes(content.encode() if isinstance(content, str) else content)
    return table.load(root=name, label=label)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "No columns"),
        ("\n\n", "No columns"),
        ("a,y\n", "no rows"),
        ("y\n0\n1\n", "no columns but the label"),
        ("a,b,y\n1,2,0\n1,2,3,4\n", "Expected 3 fields in line 3"),
        ("a,b,y\n1,2,0,9\n1,2,1,9\n", "cannot be read: a line has more values than the first has names"),
        ("a;b;y\n1;2;0\n1;2;1\n", "parted by ';'; save it with commas"),
        ("a;b;y\n1,5;2;0\n1,2;2,5;1\n", "parted by ';'; save it with commas"),
        ("a\tb\ty\n1\t2\t0\n", r"parted by '\t'; save it with commas"),
        ("a,b,y\n1,2,0\n1\n", "1 of 2 rows have no label"),
        ("a,y\n1,\n2,1\n", "1 of 2 rows have no label"),
        ("a,y\ninf,0\n2,1\n", "1 numbers are infinite"),
        ("a,y\n1e999,0\n2,1\n", "1 numbers are infinite"),
        ("y,y,a\n1,0,1\n1,1,2\n", "two columns of that name"),
        ("b,Y\n1,0\n", "data.label=y: there is no such column in t.csv; there are b, Y"),
        ('a,y\n"1,0\n2,1\n', "cannot be read"),
        ("a,y\n1,0\n".encode("utf-16"), "its text is not UTF-8"),
        ("a,y\ncaf\xe9,0\n".encode("latin-1"), "its text is not UTF-8"),
        (bytes(range(256)) * 4, "t.csv"),
    ],
)
def test_tables_that_are_none_are_refused(content, said):
    with pytest.raises(SettingError) as error:
        loaded(content)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_odd_tables_are_read():
    assert loaded("﻿y,a\n0,1\n1,2\n").class_names == ("0", "1")
    assert loaded("a,y\n1,0\n").x.shape == (1, 1)
    constant = loaded("a,b,y\n1,1,0\n1,2,1\n")
    assert constant.x.tolist() == [[1, 1], [1, 2]]
    hostile = loaded("=1+1,<script>,y\n1,2,=cmd|x\n3,4,-0.5\n")
    assert hostile.columns is not None
    assert [column.name for column in hostile.columns] == ["=1+1", "<script>"]
    assert set(hostile.class_names) == {"=cmd|x", "-0.5"}


@given(
    content=st.one_of(
        st.binary(max_size=60), st.text(alphabet="ay01,\"\n\r;=\t '-.e", max_size=60).map(str.encode)
    )
)
@hypothesis_settings(max_examples=200, **NO_SHRINKING_OF_FOLDERS)
def test_any_text_is_a_table_or_refused(content):
    with refused_in_a_line():
        data = loaded(b"a,y\n" + content)
        assert len(data.x) == len(data.classes) > 0


def arrays(**content: object) -> bytes:
    file = io.BytesIO()
    np.savez(file, **content)  # pyright: ignore[reportArgumentType]
    return file.getvalue()


def of_a_size_made_up() -> bytes:
    array, file = io.BytesIO(), io.BytesIO()
    np.lib.format.write_array_header_1_0(
        array, {"descr": "<f8", "fortran_order": False, "shape": (10**7, 10**6)}
    )
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("X.npy", array.getvalue() + b"\0" * 99)
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        arrays(X=np.array([[Executes()]], dtype=object), y=np.zeros(1)),
        arrays(X=np.ones((3, 2)), y=np.array([0, 1, Executes()], dtype=object)),
        pickle.dumps(Executes()),
        arrays(X=np.ones((3, 2)), y=np.array([0, 1, np.nan])),
        arrays(X=np.ones((3, 2)), y=np.ones(3), columns=np.array(3)),
        arrays(X=np.ones((3, 2)), y=np.ones(3), columns=np.ones((2, 2))),
        arrays(X=np.ones((3, 2), complex), y=np.ones(3)),
        arrays(X=np.ones((0, 2)), y=np.ones(0)),
        arrays(X=np.full((3, 2), np.inf), y=np.ones(3)),
        arrays(X=np.ones((3, 2)), y=np.ones(3))[:200],
        of_a_size_made_up(),
        b"",
    ],
)
def test_arrays_that_are_none_are_refused_and_never_unpickled(content):
    with pytest.raises(SettingError) as error:
        loaded(content, "t.npz", None)
    assert "\n" not in str(error.value)


def mat() -> bytes:
    savemat("whole.mat", {"X": np.arange(6.0).reshape(3, 2), "y": np.ones(3)})
    return Path("whole.mat").read_bytes()


def parquet() -> bytes:
    pd.DataFrame({"a": [1, 2], "b": ["x", "y"], "y": [0, 1]}).to_parquet("whole.parquet")
    return Path("whole.parquet").read_bytes()


@pytest.mark.parametrize(("make", "name", "every"), [(mat, "t.mat", 41), (parquet, "t.parquet", 11)])
def test_damaged_files_of_arrays_are_read_or_refused(make: Callable[[], bytes], name: str, every: int):
    whole = make()
    for length in (0, 4, len(whole) // 2, len(whole) - 2):
        with pytest.raises(SettingError):
            loaded(whole[:length], name, "y")
    for place in range(0, len(whole), every):
        damaged = bytearray(whole)
        damaged[place] ^= 0xFF
        with refused_in_a_line():
            loaded(bytes(damaged), name, "y")


def test_a_reader_that_crashes_is_told(monkeypatch):
    mat()
    assert table.load(root="whole.mat").x.tolist() == [[0, 1], [2, 3], [4, 5]]
    monkeypatch.setattr(table_files.read_apart.__globals__["sys"], "executable", "/bin/false")
    with pytest.raises(SettingError, match=r"whole\.mat: cannot be read"):
        table.load(root="whole.mat")
    Path("dies").write_text("#!/bin/sh\nkill -SEGV $$\n")
    Path("dies").chmod(0o755)
    monkeypatch.setattr(table_files.read_apart.__globals__["sys"], "executable", "./dies")
    with pytest.raises(SettingError, match="crashed on it, by signal 11"):
        table.load(root="whole.mat")


def test_a_label_of_lists_is_refused():
    pd.DataFrame({"a": [1, 2], "y": [[0], [1]]}).to_parquet("t.parquet")
    with pytest.raises(SettingError, match="not classes"):
        table.load(root="t.parquet", label="y")
    savemat("cell.mat", {"X": np.array([[{"a": 1}]], dtype=object), "y": np.ones(1)})
    with pytest.raises(SettingError, match="an array X of numbers"):
        table.load(root="cell.mat")
    Path("junk.mat").write_bytes(b"\0" * 512 + b"\x89HDF\r\n\x1a\n" + b"junk" * 99)
    with pytest.raises(SettingError, match="cannot be read"):
        table.load(root="junk.mat")
