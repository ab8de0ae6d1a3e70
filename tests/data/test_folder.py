import dataclasses
import errno
import logging
import os
import shutil
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_bench import machine
from anomaly_bench.data import folder
from anomaly_bench.errors import SettingError


@pytest.fixture
def ganomaly(tmp_path, draw):
    """A set in GANomaly's layout; the value of each image tells where it came from."""
    root = tmp_path / "set"
    for number, suffix in enumerate(("png", "JPG", "bmp", "tiff", "webp", "pgm")):
        draw(root / f"train/0.normal/{number}.{suffix}", 10 + number, size=(8 + number, 8))
    draw(root / "test/0.normal/a.gif", 50)
    draw(root / "test/1.abnormal/gun/a.png", 100)
    draw(root / "test/1.abnormal/knife/b.jpeg", 150, size=(30, 20))
    return root


def test_ganomaly_layout(ganomaly, draw):
    draw(ganomaly / "train/0.normal/.hidden.png", 0)
    (ganomaly / "train/0.normal/notes.txt").write_text("no image")
    data = folder.load(root=ganomaly, image_size=8, channels=1)
    assert data.class_names == ("0.normal", "1.abnormal/gun", "1.abnormal/knife")
    assert data.classes.tolist() == [0] * 7 + [1, 2]
    assert data.official_train.tolist() == [True] * 6 + [False] * 3
    assert data.files[0] == "train/0.normal/0.png"
    assert data.files[-1] == "test/1.abnormal/knife/b.jpeg"
    assert data.source == "folder"
    assert data.x.shape == (9, 1, 8, 8)
    assert data.x.dtype == torch.uint8
    expected = torch.tensor([10, 11, 12, 13, 14, 15, 50, 100, 150])
    assert (data.x.float().mean((1, 2, 3)) - expected).abs().max() <= 2  # webp and jpeg lose a little


def test_mvtec_layout(tmp_path, draw):
    draw(tmp_path / "train/good/0.png", 1)
    draw(tmp_path / "test/good/0.png", 2)
    draw(tmp_path / "test/crack/0.png", 3)
    draw(tmp_path / "ground_truth/crack/0_mask.png", 4)
    data = folder.load(root=tmp_path, image_size=8)
    assert data.class_names == ("crack", "good")
    assert data.x[:, 0, 0, 0].tolist() == [1, 3, 2]
    assert data.masks is not None
    assert data.masks.all((1, 2)).tolist() == [False, True, False]
    assert not data.masks[[0, 2]].any()


@pytest.mark.parametrize("mask", ["ground_truth/gun/a_mask.png", "ground_truth/gun/a.bmp"])
def test_a_mask_marks_its_brighter_half_where_the_image_is(tmp_path, draw, mask):
    draw(tmp_path / "train/good/a.png", 1)
    draw(tmp_path / "test/good/a.png", 1)
    draw(tmp_path / "test/gun/a.jpg", 1, size=(16, 16))
    draw(tmp_path / "test/gun/b.png", 1)
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8, :8] = 1  # of 0 and 1, as some sets have them
    (tmp_path / mask).parent.mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / mask)
    data = folder.load(root=tmp_path, image_size=8)
    expected = np.zeros((4, 8, 8), bool)
    expected[data.files.index("test/gun/a.jpg"), :4, :4] = True
    assert np.array_equal(data.masks, expected)
    (tmp_path / mask).unlink()
    unmarked = folder.load(root=tmp_path, image_size=8)
    assert unmarked.masks is None
    assert unmarked.fingerprint() != data.fingerprint()


def test_each_mask_has_a_scale_of_its_own_and_its_image_may_have_points_in_its_name(tmp_path, draw):
    for path in ("train/good/a.png", "test/good/a.png", "test/gun/a.1.png", "test/gun/a.2.png"):
        draw(tmp_path / path, 1)
    draw(tmp_path / "ground_truth/gun/a.1_mask.png", 1)
    draw(tmp_path / "ground_truth/gun/a.2_mask.png", 255)
    data = folder.load(root=tmp_path, image_size=8)
    assert data.masks.all((1, 2)).tolist() == [False, False, True, True]


@pytest.mark.parametrize("peak", [1, 255, 300, 65535])
def test_a_mask_of_16_bits_marks_what_one_of_8_bits_marks(tmp_path, draw, peak):
    for path in ("train/good/a.png", "test/good/a.png", "test/gun/a.png"):
        draw(tmp_path / path, 1)
    (tmp_path / "ground_truth/gun").mkdir(parents=True)
    pixels = np.zeros((8, 8), np.uint16)
    pixels[:4] = peak
    pixels[4] = peak // 3
    Image.fromarray(pixels).save(tmp_path / "ground_truth/gun/a_mask.png")
    data = folder.load(root=tmp_path, image_size=8)
    assert np.array_equal(data.masks[data.files.index("test/gun/a.png")], pixels == peak)


def test_masks_without_an_image_are_told_of(tmp_path, draw, caplog):
    for path in ("train/good/a.png", "test/good/a.png", "test/gun/a.png", "test/gun/b.png"):
        draw(tmp_path / path, 1)
    for path in ("gun/a_mask.png", "gun/b_mask.png"):
        draw(tmp_path / "ground_truth" / path, 1)
    folder.load(root=tmp_path, image_size=8, limit=2)  # which leaves b.png out, and not without a word
    assert "masks under" not in caplog.text
    for path in ("gun/c_mask.png", "knife/a.png"):
        draw(tmp_path / "ground_truth" / path, 1)
    folder.load(root=tmp_path, image_size=8)
    assert (
        "2 of 4 masks under ground_truth/ belong to no image under test/, the first is 'gun/c_mask.png'"
        in caplog.text
    )


def sixteen_bits(path, peak):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array([[0, peak]], np.uint16)).save(path)


def test_images_of_16_bits_that_hold_fewer_are_told_of(tmp_path, draw, caplog):
    for number, peak in enumerate((900, 1023, 4)):
        sixteen_bits(tmp_path / f"train/a/{number}.png", peak)
    draw(tmp_path / "test/a/0.png", 255)
    folder.load(root=tmp_path, image_size=2)
    assert "the values of 3 16-bit images, of 4 files looked at, reach only 1023 of 65535, " in caplog.text
    caplog.clear()
    sixteen_bits(tmp_path / "test/a/1.png", 4096)
    folder.load(root=tmp_path, image_size=2)
    assert "16-bit" not in caplog.text


def test_a_mask_of_another_size_is_not_stretched_where_images_keep_theirs(tmp_path, draw):
    for path in ("train/good/a.png", "test/good/a.png", "test/gun/a.png"):
        draw(tmp_path / path, 1)
    draw(tmp_path / "ground_truth/gun/a_mask.png", 1, size=(4, 4))
    with pytest.raises(SettingError, match=r"a_mask\.png.*4x4, not 8x8"):
        folder.load(root=tmp_path, image_size=None)


def test_a_mask_that_cannot_be_read_is_named(tmp_path, draw):
    for path in ("train/good/a.png", "test/good/a.png", "test/gun/a.png"):
        draw(tmp_path / path, 1)
    (tmp_path / "ground_truth/gun").mkdir(parents=True)
    (tmp_path / "ground_truth/gun/a_mask.png").write_bytes(b"none")
    with pytest.raises(SettingError, match=r"1 of 1 image files cannot be read: .*a_mask\.png"):
        folder.load(root=tmp_path, image_size=8)


def test_channels(tmp_path, draw):
    draw(tmp_path / "train/a/0.png", 9)
    draw(tmp_path / "test/a/0.png", 9)
    assert folder.load(root=tmp_path).shape == (1, 64, 64)
    assert folder.load(root=tmp_path, channels=3).shape == (3, 64, 64)
    draw(tmp_path / "test/a/1.png", 9, mode="RGB")
    mixed = folder.load(root=tmp_path)
    assert mixed.shape == (3, 64, 64)
    assert (mixed.x == 9).all()
    assert folder.load(root=tmp_path, channels=1).shape == (1, 64, 64)


def test_pixels_are_scaled_as_a_run_has_it(ganomaly):
    data = folder.load(root=ganomaly, image_size=8, mean=0.1, std=0.2)
    assert (data.mean, data.std) == (0.1, 0.2)


def test_hidden_folders_are_left_out(ganomaly, draw):
    draw(ganomaly / "train/.cache/a.png", 0)
    draw(ganomaly / "test/0.normal/.thumbnails/a.png", 0)
    assert folder.load(root=ganomaly, image_size=8).class_names == (
        *("0.normal", "1.abnormal/gun", "1.abnormal/knife"),
    )


def test_synthetic_is_said(ganomaly):
    (ganomaly / "SYNTHETIC.txt").write_text("drawn")
    assert folder.load(root=ganomaly).source == "synthetic"


def test_what_was_found_is_logged(ganomaly, caplog):
    with caplog.at_level(logging.INFO, "anomaly_bench"):
        folder.load(root=ganomaly)
    assert "train 6 '0.normal'; test 1 '0.normal', 1 '1.abnormal/gun', 1 '1.abnormal/knife'" in caplog.text


def cache_files(tmp_path):
    return {file.name: file.stat().st_mtime_ns for file in (tmp_path / "cache").iterdir()}


def test_unchanged_files_are_decoded_once(ganomaly, tmp_path, monkeypatch):
    first = folder.load(root=ganomaly)
    cached = cache_files(tmp_path)
    assert len(cached) == 1

    def never(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(folder, "decode_chunk", never)
    again = folder.load(root=ganomaly)
    assert cache_files(tmp_path) == cached
    assert again.fingerprint() == first.fingerprint()


@pytest.mark.parametrize("change", ["rewritten", "touched", "added", "removed", "renamed", "moved"])
def test_a_changed_folder_is_decoded_again(ganomaly, tmp_path, draw, change):
    folder.load(root=ganomaly, image_size=8)
    cached = cache_files(tmp_path)
    file = ganomaly / "train/0.normal/0.png"
    if change == "rewritten":
        draw(file, 77)
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1000))
    if change == "touched":
        os.utime(file, ns=(0, file.stat().st_mtime_ns + 1))
    if change == "added":
        draw(ganomaly / "train/0.normal/new.png", 77)
    if change == "removed":
        file.unlink()
    if change == "renamed":
        file.rename(file.with_name("z.png"))
    if change == "moved":
        file.rename(ganomaly / "test/0.normal/0.png")
    data = folder.load(root=ganomaly, image_size=8)
    now = cache_files(tmp_path)
    assert len(now) == 1  # the old one is gone
    assert now.keys() != cached.keys()
    assert (77 in data.x[:, 0, 0, 0]) == (change in ("rewritten", "added"))


def test_a_folder_in_the_place_of_one_of_the_same_sizes_and_times_is_decoded_again(tmp_path, draw):
    for place, value in (("set", 1), ("other", 2)):
        for part in ("train", "test"):
            os.utime(draw(tmp_path / place / part / "a/0.pgm", value), ns=(0, 10**9))
    assert (folder.load(root=tmp_path / "set", image_size=8).x == 1).all()
    shutil.rmtree(tmp_path / "set")
    (tmp_path / "other").rename(tmp_path / "set")
    assert (folder.load(root=tmp_path / "set", image_size=8).x == 2).all()


def test_a_file_is_known_by_its_path_and_each_number_of_its_stamp(tmp_path, draw):
    """Each alone, for most changes of a file change several."""
    for value in (1, 2):
        draw(tmp_path / f"{value}.pgm", value)

    def value(name, *stamp):
        files, stamps = (name,), np.array([stamp])
        return int(folder.pixels(tmp_path, files, stamps, (1, 8, 8), "stretch", None)[0, 0, 0, 0])

    assert value("1.pgm", 1, 1, 1, 1) == 1
    assert value("2.pgm", 1, 1, 1, 1) == 2
    for number in range(4):
        value("1.pgm", 1, 1, 1, 1)
        draw(tmp_path / "1.pgm", 3)
        assert value("1.pgm", 1, 1, 1, 1) == 1
        assert value("1.pgm", *(1 + (at == number) for at in range(4))) == 3
        draw(tmp_path / "1.pgm", 1)
    stat = SimpleNamespace(st_size=1, st_mtime_ns=2, st_ctime_ns=3, st_ino=4)
    assert folder.stamp(stat) == (1, 2, 3, 4)


@pytest.mark.parametrize("free_gib", [0.0, 99.0])
@pytest.mark.parametrize("length", [0, 20, -1])
def test_a_cache_file_that_was_cut_short_is_made_again(ganomaly, tmp_path, monkeypatch, length, free_gib):
    monkeypatch.setattr(folder, "free_gib", lambda: free_gib)
    expected = folder.load(root=ganomaly, image_size=8).x.clone()
    (npy,) = (tmp_path / "cache").iterdir()
    npy.write_bytes(npy.read_bytes()[:length])
    assert torch.equal(folder.load(root=ganomaly, image_size=8).x, expected)
    assert np.load(npy).shape == expected.shape


def test_a_decoding_that_was_killed_is_cleared_and_one_under_way_is_not(ganomaly, tmp_path):
    folder.load(root=ganomaly, image_size=16)
    folder.load(root=ganomaly, image_size=8)
    other, kept = sorted((tmp_path / "cache").iterdir(), key=lambda file: file.stat().st_size)[::-1]
    dead, alive, foreign = (
        one.with_suffix(f".{name}.tmp") for one, name in ((kept, "dead"), (kept, "alive"), (other, "dead"))
    )
    for file in (kept, dead, alive, foreign):
        file.touch()
        if file != alive:
            os.utime(file, (0, time.time() - folder.DAY - 1))
    folder.load(root=ganomaly, image_size=8)
    assert cache_files(tmp_path).keys() == {file.name for file in (other, kept, alive, foreign)}


def two_files(root, draw, times):
    """Two files of one size, 0.pgm and 1.pgm, and one to test."""
    draw(root / "test/a/0.pgm", 3)
    files = [draw(root / f"train/a/{number}.pgm", 1 + number) for number in range(2)]
    for file, ns in zip(files, times, strict=True):
        os.utime(file, ns=(ns, ns))
    assert folder.load(root=root, image_size=8).x[:, 0, 0, 0].tolist() == [1, 2, 3]
    return files


def test_files_that_exchange_their_names(tmp_path, draw):
    first, second = two_files(tmp_path, draw, (10**9, 2 * 10**9))
    first.rename(tmp_path / "kept")
    second.rename(first)
    (tmp_path / "kept").rename(second)
    assert folder.load(root=tmp_path, image_size=8).x[:, 0, 0, 0].tolist() == [2, 1, 3]


def test_files_of_one_size_and_time_that_change_their_order(tmp_path, draw):
    first, _ = two_files(tmp_path, draw, (10**9, 10**9))
    first.rename(first.with_name("2.pgm"))
    assert folder.load(root=tmp_path, image_size=8).x[:, 0, 0, 0].tolist() == [2, 1, 3]


def test_files_come_by_part_then_class_then_name(tmp_path, draw):
    names = ("b/1.png", "b/0.PNG", "a/x/2.png", "a/1.png", "a b/1.png", "a/x.png/3.png")
    for number, name in enumerate(names):
        draw(tmp_path / "train" / name, number)
        draw(tmp_path / "test" / name, number)
    data = folder.load(root=tmp_path, image_size=8)
    order = ("a/1.png", "a b/1.png", "a/x/2.png", "a/x.png/3.png", "b/0.PNG", "b/1.png")
    assert data.files == tuple(f"{part}/{name}" for part in ("train", "test") for name in order)
    assert data.class_names == ("a", "a b", "a/x", "a/x.png", "b")
    assert data.classes.tolist() == [0, 1, 2, 3, 4, 4] * 2
    assert data.x[:, 0, 0, 0].tolist() == [names.index(name) for name in order] * 2


def test_settings_have_cache_files_of_their_own(ganomaly, tmp_path):
    for settings in ({}, {"image_size": 16}, {"fit": "pad"}, {"channels": 1}, {"limit": 2}):
        folder.load(root=ganomaly, **settings)
    assert len(cache_files(tmp_path)) == 5


def test_fingerprint_is_of_the_content(ganomaly, tmp_path):
    shutil.copytree(ganomaly, tmp_path / "elsewhere")
    here = folder.load(root=ganomaly)
    there = folder.load(root=tmp_path / "elsewhere")
    assert here.fingerprint() == there.fingerprint()
    assert dataclasses.replace(here, x=here.x + 1).fingerprint() != here.fingerprint()


def test_a_relative_folder_is_another_one_elsewhere(tmp_path, draw, monkeypatch):
    for value, place in enumerate(("one", "two")):
        for part in ("train", "test"):
            os.utime(draw(tmp_path / place / "set" / part / "a/0.pgm", value), ns=(0, 10**9))
        monkeypatch.chdir(tmp_path / place)
        assert (folder.load(root="set", image_size=8).x == value).all()


def test_in_memory_and_mapped_are_equal_and_writable(ganomaly, monkeypatch):
    in_memory = folder.load(root=ganomaly)
    monkeypatch.setattr(folder, "free_gib", lambda: 0.0)
    mapped = folder.load(root=ganomaly)
    assert torch.equal(in_memory.x, mapped.x)
    mapped.x.fill_(0)  # a copy on write: the cache keeps what it has
    assert torch.equal(folder.load(root=ganomaly).x, in_memory.x)


def test_the_control_group_bounds_cores_and_memory(ganomaly, monkeypatch):
    folder.load(root=ganomaly)
    limits = {"cpu.max": "300000 100000", "memory.max": str(2**30), "memory.current": str(2**30 - 2**10)}
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(machine, "_first_line", lambda path: limits[path.rpartition("/")[2]])
    monkeypatch.setattr(folder, "ENOUGH_FOR_THREADS", 0)
    with folder.workers([str(ganomaly / "train/0.normal/0.png")]) as threads:
        assert threads._max_workers == 3
    modes = []

    def load(path, mmap_mode):
        modes.append(mmap_mode)
        return np.lib.format.open_memmap(path, mode="c")

    monkeypatch.setattr(np, "load", load)
    folder.load(root=ganomaly)
    assert modes == ["c"]


def test_processes_threads_and_scoring_decode_alike(ganomaly, monkeypatch, tmp_path):
    by_threads = folder.load(root=ganomaly)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(folder, "ENOUGH_FOR_PROCESSES", 0)
    monkeypatch.setattr(folder, "CHUNK", 4)
    by_processes = folder.load(root=ganomaly)
    scored = folder.decode_files([ganomaly / file for file in by_threads.files], (3, 64, 64), "stretch")
    assert torch.equal(by_processes.x, by_threads.x)
    assert torch.equal(scored, by_threads.x)


@pytest.mark.parametrize("n_files", [1, 7, 8, 9, 300, 5000])
def test_work_is_shared_evenly_and_nothing_is_left_out(n_files, monkeypatch):
    monkeypatch.setattr(folder, "cores", lambda: 4)
    pieces = folder.in_pieces(n_files)
    assert [row for piece in pieces for row in range(n_files)[piece]] == list(range(n_files))
    assert len(pieces) >= min(n_files, 16)
    assert max(len(range(n_files)[piece]) for piece in pieces) <= folder.CHUNK


def test_small_files_have_one_thread_and_large_ones_all_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(folder, "cores", lambda: 4)
    noise = np.random.default_rng(0)
    for size in (8, 64):
        path = tmp_path / f"{size}.png"
        Image.fromarray(noise.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
        with folder.workers([str(path), str(tmp_path / "gone.png")]) as pool:
            assert pool._max_workers == (1 if size == 8 else 4)
    with folder.workers([str(tmp_path / "gone.png")]) as pool:
        assert pool._max_workers == 1


def test_two_at_once(ganomaly, tmp_path, monkeypatch):
    expected = folder.load(root=ganomaly)
    shutil.rmtree(tmp_path / "cache")
    slowly = folder.decode_chunk

    def slow(*given):
        time.sleep(0.05)  # so that both are at it
        return slowly(*given)

    monkeypatch.setattr(folder, "decode_chunk", slow)
    found = []
    both = [threading.Thread(target=lambda: found.append(folder.load(root=ganomaly))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert [torch.equal(data.x, expected.x) for data in found] == [True, True]
    assert len(cache_files(tmp_path)) == 1


def test_unreadable_files_are_named_and_leave_nothing(ganomaly, tmp_path):
    (ganomaly / "test/0.normal/broken.png").write_bytes(b"nothing")
    whole = (ganomaly / "train/0.normal/0.png").read_bytes()
    (ganomaly / "test/0.normal/short.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        SettingError, match=r"^2 of 11 image files cannot be read: .*broken\.png.*short\.png"
    ) as error:
        folder.load(root=ganomaly)
    assert "Remove or repair" in str(error.value)
    assert "\n" not in str(error.value)
    assert cache_files(tmp_path) == {}


def test_own_size_must_be_one(ganomaly, tmp_path, draw):
    with pytest.raises(SettingError, match=r"9x8, not 8x8: set data\.image_size"):
        folder.load(root=ganomaly, image_size=None)
    (ganomaly / "train/0.normal/0.png").write_bytes(b"nothing")
    with pytest.raises(SettingError, match=r"^1 of 9 image files cannot be read: .*0\.png"):
        folder.load(root=ganomaly, image_size=None)
    draw(tmp_path / "even/train/a/0.png", 1, size=(12, 10))
    draw(tmp_path / "even/test/a/0.png", 2, size=(12, 10))
    assert folder.load(root=tmp_path / "even", image_size=None).shape == (1, 10, 12)


@pytest.mark.parametrize(
    "made", [[], ["train"], ["train/a/0.png"], ["train/0.png", "test/0.png"], ["a/0.png"]]
)
def test_other_layouts_are_answered_with_the_layouts(tmp_path, draw, made):
    root = tmp_path / "set"
    root.mkdir()
    for path in made:
        draw(root / path, 0) if path.endswith("png") else (root / path).mkdir()
    with pytest.raises(
        SettingError, match=r"data\.root=.*no images.*expected train/<class>/\* and test/<class>"
    ) as error:
        folder.load(root=root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"root": "/no/such/folder"}, r"data\.root=.*no such folder"),
        ({"root": None}, r"data\.root=.*no such folder; set data\.root=FOLDER"),
        ({"fit": "zoom"}, r"data\.fit=zoom: allowed are stretch, pad, crop"),
        ({"channels": 2}, r"data\.channels=2"),
        ({"image_size": 0}, r"data\.image_size=0"),
        ({"limit": 0}, r"data\.limit=0"),
    ],
)
def test_settings_that_cannot_work(ganomaly, settings, said, monkeypatch):
    monkeypatch.delenv("ANOMALY_BENCH_DATA", raising=False)
    with pytest.raises(SettingError, match=said):
        folder.load(**{"root": ganomaly} | settings)


def test_root_defaults_to_the_name_under_the_data_root(ganomaly, monkeypatch):
    monkeypatch.setenv("ANOMALY_BENCH_DATA", str(ganomaly.parent))
    assert len(folder.load("set").x) == 9


def test_a_cache_that_cannot_be_written(ganomaly, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ANOMALY_BENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(SettingError, match=r"ANOMALY_BENCH_CACHE=.*can be written"):
        folder.load(root=ganomaly)


def test_a_cache_without_room_is_told_before_anything_is_decoded(ganomaly, monkeypatch):
    monkeypatch.setattr(folder.shutil, "disk_usage", lambda _: SimpleNamespace(free=9 * 8 * 8 * 3 - 1))
    monkeypatch.setattr(folder, "decode_in_parallel", pytest.fail)
    with pytest.raises(SettingError, match=r"ANOMALY_BENCH_CACHE=.*are needed, and not free"):
        folder.load(root=ganomaly, image_size=8, channels=3)


def test_a_disk_that_fills_up_meanwhile_is_told_before_anything_is_decoded(ganomaly, tmp_path, monkeypatch):
    def full(_, start, size):
        assert (start, size) == (0, 128 + 9 * 8 * 8 * 3)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with monkeypatch.context() as inside:
        inside.setattr(folder, "decode_in_parallel", pytest.fail)
        with pytest.raises(SettingError, match=r"ANOMALY_BENCH_CACHE=.*No space left on device"):
            folder.load(root=ganomaly, image_size=8, channels=3)
    assert cache_files(tmp_path) == {}

    def unable(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unable)
    assert len(folder.load(root=ganomaly, image_size=8).x) == 9


def test_limit_is_even_over_classes_and_keeps_the_first(tmp_path, draw):
    for part in ("train", "test"):
        for class_name, count in (("a", 9), ("b", 2), ("c", 9)):
            for number in range(count):
                draw(tmp_path / part / class_name / f"{number}.png", number)
    data = folder.load(root=tmp_path, limit=8, image_size=8)
    assert data.files[:8] == tuple(
        f"train/{name}.png" for name in ("a/0", "a/1", "a/2", "b/0", "b/1", "c/0", "c/1", "c/2")
    )
    assert (~data.official_train).sum() == 8
    assert data.x[:3, 0, 0, 0].tolist() == [0, 1, 2]


def test_names_are_data(tmp_path, draw, caplog):
    strange = "{x} $(touch y) %s 'q'"
    draw(tmp_path / "train" / strange / "%d {}.png", 1)
    draw(tmp_path / "test" / strange / "\x1b[31m.png", 2)
    (tmp_path / "test" / strange / "bad\n.png").write_bytes(b"")
    with pytest.raises(SettingError) as error:
        folder.load(root=tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "test" / strange / "bad\n.png").unlink()
    assert folder.load(root=tmp_path).class_names == (strange,)


def test_names_need_not_be_text(tmp_path, draw):
    odd = os.fsdecode(b"\xff.png")
    draw(tmp_path / "test/a/0.png", 2)
    try:
        draw(tmp_path / "train/a" / odd, 1)
    except OSError:
        pytest.skip("this file system has only names that are text")
    assert folder.load(root=tmp_path).files == (r"train/a/\udcff.png", "test/a/0.png")


def test_a_class_folder_may_be_a_link_and_links_below_are_not_followed(tmp_path, draw):
    draw(tmp_path / "far/0.png", 1)
    draw(tmp_path / "set/train/a/0.png", 1)
    (tmp_path / "set/test").mkdir()
    (tmp_path / "set/test/a").symlink_to(tmp_path / "far")
    (tmp_path / "set/train/a/loop").symlink_to(tmp_path / "set/train")
    assert folder.load(root=tmp_path / "set").files == ("train/a/0.png", "test/a/0.png")


def test_list_images(ganomaly, tmp_path, draw):
    draw(ganomaly / "test/.hidden.png", 0)
    found = folder.list_images([ganomaly])
    assert len(found) == 9
    assert found == sorted(found)
    one = ganomaly / "test/0.normal/a.gif"
    assert folder.list_images([one, ganomaly / "test"]) == folder.list_images([ganomaly / "test"])
    assert folder.list_images([one]) == [one]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match="no images"):
        folder.list_images([tmp_path / "empty"])
    with pytest.raises(SettingError, match="no such file"):
        folder.list_images([one, tmp_path / "nothing.png"])


@pytest.mark.parametrize(
    "read", [lambda root: folder.load(root=root, image_size=8), lambda root: folder.list_images([root])]
)
def test_a_folder_that_cannot_be_looked_into_is_named(ganomaly, monkeypatch, read):
    scan, closed = os.scandir, str(ganomaly / "test/1.abnormal/gun")

    def scandir(path):
        if os.fspath(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SettingError, match=f"{closed}: it cannot be looked into: Permission denied"):
        read(ganomaly)


def test_new_files_that_cannot_be_read(tmp_path, draw):
    good = draw(tmp_path / "good.png", 5)
    (tmp_path / "bad.png").write_bytes(b"")
    assert (folder.decode_files([good], (3, 4, 4), "crop") == 5).all()
    with pytest.raises(SettingError, match=r"1 of 2 image files cannot be read: .*bad\.png"):
        folder.decode_files([good, tmp_path / "bad.png"], (1, 4, 4), "stretch")


def test_many_files_are_listed_once_each(tmp_path):
    """More files than two full pieces of work, in order."""
    for part, count in (("train", 2 * folder.CHUNK + 3), ("test", 1)):
        (tmp_path / part / "a").mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((1, 1), number % 251, dtype=np.uint8)).save(
                tmp_path / part / "a" / f"{number:04d}.pgm"
            )
    data = folder.load(root=tmp_path, image_size=1)
    expected = [number % 251 for number in range(2 * folder.CHUNK + 3)] + [0]
    assert data.x.ravel().tolist() == expected


def test_names_are_said_with_their_letters_and_without_control_characters(tmp_path, draw, caplog):
    caplog.set_level(logging.INFO, "anomaly_bench")
    for kind in ("nägel", "日本", "a\nb", "\udcff", "\u202eevil"):
        draw(tmp_path / f"train/{kind}/0.png", 1)
        draw(tmp_path / f"test/{kind}/0.png", 1)
    folder.load(root=tmp_path, image_size=8)
    assert r"'nägel'" in caplog.text
    assert r"'日本'" in caplog.text
    for escaped in (r"'a\nb'", r"'\udcff'", r"'\u202eevil'"):
        assert escaped in caplog.text
    (tmp_path / "test/nägel/0.png").write_bytes(b"no image")
    with pytest.raises(SettingError, match=r"test/nägel/0\.png'"):
        folder.load(root=tmp_path, image_size=8)
