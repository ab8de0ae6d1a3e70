import errno
import os
import shutil
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_bench.data import cache, folder, pool
from anomaly_bench.errors import SettingError


def test_unchanged_files_are_decoded_once(ganomaly, monkeypatch, cache_files):
    first = folder.load(root=ganomaly)
    cached = cache_files()
    assert len(cached) == 1

    def never(*_):
        raise AssertionError("decoded again")

    monkeypatch.setattr(pool, "decode_chunk", never)
    again = folder.load(root=ganomaly)
    assert cache_files() == cached
    assert again.fingerprint() == first.fingerprint()


@pytest.mark.parametrize("change", ["rewritten", "touched", "added", "removed", "renamed", "moved"])
def test_a_changed_folder_is_decoded_again(ganomaly, draw, change, cache_files):
    folder.load(root=ganomaly, image_size=8)
    cached = cache_files()
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
    now = cache_files()
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
        return int(cache.pixels(tmp_path, files, stamps, (1, 8, 8), "stretch", None)[0, 0, 0, 0])

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
    monkeypatch.setattr(cache, "free_gib", lambda: free_gib)
    expected = folder.load(root=ganomaly, image_size=8).x.clone()
    (npy,) = (tmp_path / "cache").iterdir()
    npy.write_bytes(npy.read_bytes()[:length])
    assert torch.equal(folder.load(root=ganomaly, image_size=8).x, expected)
    assert np.load(npy).shape == expected.shape


def test_a_decoding_that_was_killed_is_cleared_and_one_under_way_is_not(ganomaly, tmp_path, cache_files):
    folder.load(root=ganomaly, image_size=16)
    folder.load(root=ganomaly, image_size=8)
    other, kept = sorted((tmp_path / "cache").iterdir(), key=lambda file: file.stat().st_size)[::-1]
    dead, alive, foreign = (
        one.with_suffix(f".{name}.tmp") for one, name in ((kept, "dead"), (kept, "alive"), (other, "dead"))
    )
    for file in (kept, dead, alive, foreign):
        file.touch()
        if file != alive:
            os.utime(file, (0, time.time() - cache.DAY - 1))
    folder.load(root=ganomaly, image_size=8)
    assert cache_files().keys() == {file.name for file in (other, kept, alive, foreign)}


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


def test_settings_have_cache_files_of_their_own(ganomaly, cache_files):
    for settings in ({}, {"image_size": 16}, {"fit": "pad"}, {"channels": 1}, {"limit": 2}):
        folder.load(root=ganomaly, **settings)
    assert len(cache_files()) == 5


def test_a_relative_folder_is_another_one_elsewhere(tmp_path, draw, monkeypatch):
    for value, place in enumerate(("one", "two")):
        for part in ("train", "test"):
            os.utime(draw(tmp_path / place / "set" / part / "a/0.pgm", value), ns=(0, 10**9))
        monkeypatch.chdir(tmp_path / place)
        assert (folder.load(root="set", image_size=8).x == value).all()


def test_in_memory_and_mapped_are_equal_and_writable(ganomaly, monkeypatch):
    in_memory = folder.load(root=ganomaly)
    monkeypatch.setattr(cache, "free_gib", lambda: 0.0)
    mapped = folder.load(root=ganomaly)
    assert torch.equal(in_memory.x, mapped.x)
    mapped.x.fill_(0)  # a copy on write: the cache keeps what it has
    assert torch.equal(folder.load(root=ganomaly).x, in_memory.x)


def test_two_at_once(ganomaly, tmp_path, monkeypatch, cache_files):
    expected = folder.load(root=ganomaly)
    shutil.rmtree(tmp_path / "cache")
    slowly = pool.decode_chunk

    def slow(*given):
        time.sleep(0.05)  # so that both are at it
        return slowly(*given)

    monkeypatch.setattr(pool, "decode_chunk", slow)
    found = []
    both = [threading.Thread(target=lambda: found.append(folder.load(root=ganomaly))) for _ in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert [torch.equal(data.x, expected.x) for data in found] == [True, True]
    assert len(cache_files()) == 1


def test_a_cache_that_cannot_be_written(ganomaly, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("ANOMALY_BENCH_CACHE", str(tmp_path / "file"))
    with pytest.raises(SettingError, match=r"ANOMALY_BENCH_CACHE=.*can be written"):
        folder.load(root=ganomaly)


def test_a_cache_without_room_is_told_before_anything_is_decoded(ganomaly, monkeypatch):
    monkeypatch.setattr(cache.shutil, "disk_usage", lambda _: SimpleNamespace(free=9 * 8 * 8 * 3 - 1))
    monkeypatch.setattr(cache, "decode_in_parallel", pytest.fail)
    with pytest.raises(SettingError, match=r"ANOMALY_BENCH_CACHE=.*are needed, and not free"):
        folder.load(root=ganomaly, image_size=8, channels=3)


def test_a_disk_that_fills_up_meanwhile_is_told_before_anything_is_decoded(
    ganomaly, monkeypatch, cache_files
):
    def full(_, start, size):
        assert (start, size) == (0, 128 + 9 * 8 * 8 * 3)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with monkeypatch.context() as inside:
        inside.setattr(cache, "decode_in_parallel", pytest.fail)
        with pytest.raises(SettingError, match=r"ANOMALY_BENCH_CACHE=.*No space left on device"):
            folder.load(root=ganomaly, image_size=8, channels=3)
    assert cache_files() == {}

    def unable(*_):
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr(os, "posix_fallocate", unable)
    assert len(folder.load(root=ganomaly, image_size=8).x) == 9


def draw_sixteen_bits(path, peak):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.array([[0, peak]], np.uint16)).save(path)


def test_images_of_16_bits_that_hold_fewer_are_told_of(tmp_path, draw, caplog):
    for number, peak in enumerate((900, 1023, 4)):
        draw_sixteen_bits(tmp_path / f"train/a/{number}.png", peak)
    draw(tmp_path / "test/a/0.png", 255)
    folder.load(root=tmp_path, image_size=2)
    assert "the values of 3 16-bit images, of 4 files looked at, reach only 1023 of 65535, " in caplog.text
    caplog.clear()
    draw_sixteen_bits(tmp_path / "test/a/1.png", 4096)
    folder.load(root=tmp_path, image_size=2)
    assert "16-bit" not in caplog.text
