import shutil
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import NoReturn

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_bench import machine
from anomaly_bench.data import folder, pool
from anomaly_bench.errors import SettingError


def test_processes_threads_and_scoring_decode_alike(ganomaly, monkeypatch, tmp_path):
    by_threads = folder.load(root=ganomaly)
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(pool, "ENOUGH_FOR_PROCESSES", 0)
    monkeypatch.setattr(pool, "CHUNK", 4)
    by_processes = folder.load(root=ganomaly)
    scored = pool.decode_files([ganomaly / file for file in by_threads.files], (3, 64, 64), "stretch")
    assert torch.equal(by_processes.x, by_threads.x)
    assert torch.equal(scored, by_threads.x)


def test_where_processes_cannot_start_threads_decode(ganomaly, monkeypatch, tmp_path):
    """As in a script that does its work on import, which each process would do again."""

    class Broken(ThreadPoolExecutor):
        def map(self, *_: object, **__: object) -> NoReturn:
            raise BrokenProcessPool

    by_threads = folder.load(root=ganomaly).x.clone()
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(pool, "workers", lambda _: Broken(1))
    assert torch.equal(folder.load(root=ganomaly).x, by_threads)


@pytest.mark.parametrize("n_files", [1, 7, 8, 9, 300, 5000])
def test_work_is_shared_evenly_and_nothing_is_left_out(n_files, monkeypatch):
    monkeypatch.setattr(pool, "cores", lambda: 4)
    pieces = pool.in_pieces(n_files)
    assert [row for piece in pieces for row in range(n_files)[piece]] == list(range(n_files))
    assert len(pieces) >= min(n_files, 16)
    assert max(len(range(n_files)[piece]) for piece in pieces) <= pool.CHUNK


def test_small_files_have_one_thread_and_large_ones_all_cores(tmp_path, monkeypatch):
    monkeypatch.setattr(pool, "cores", lambda: 4)
    noise = np.random.default_rng(0)
    for size in (8, 64):
        path = tmp_path / f"{size}.png"
        Image.fromarray(noise.integers(0, 256, (size, size, 3), dtype=np.uint8)).save(path)
        with pool.workers([str(path), str(tmp_path / "gone.png")]) as workers:
            assert workers._max_workers == (1 if size == 8 else 4)
    with pool.workers([str(tmp_path / "gone.png")]) as workers:
        assert workers._max_workers == 1


def test_new_files_that_cannot_be_read(tmp_path, draw):
    good = draw(tmp_path / "good.png", 5)
    (tmp_path / "bad.png").write_bytes(b"")
    assert (pool.decode_files([good], (3, 4, 4), "crop") == 5).all()
    with pytest.raises(SettingError, match=r"1 of 2 image files cannot be read: .*bad\.png"):
        pool.decode_files([good, tmp_path / "bad.png"], (1, 4, 4), "stretch")


def test_many_files_are_listed_once_each(tmp_path):
    """More files than two full pieces of work, in order."""
    for part, count in (("train", 2 * pool.CHUNK + 3), ("test", 1)):
        (tmp_path / part / "a").mkdir(parents=True)
        for number in range(count):
            Image.fromarray(np.full((1, 1), number % 251, dtype=np.uint8)).save(
                tmp_path / part / "a" / f"{number:04d}.pgm"
            )
    data = folder.load(root=tmp_path, image_size=1)
    expected = [number % 251 for number in range(2 * pool.CHUNK + 3)] + [0]
    assert data.x.ravel().tolist() == expected


def test_unreadable_files_are_named_and_leave_nothing(ganomaly, cache_files):
    (ganomaly / "test/0.normal/broken.png").write_bytes(b"nothing")
    whole = (ganomaly / "train/0.normal/0.png").read_bytes()
    (ganomaly / "test/0.normal/short.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(
        SettingError, match=r"^2 of 11 image files cannot be read: .*broken\.png.*short\.png"
    ) as error:
        folder.load(root=ganomaly)
    assert "remove or repair" in str(error.value)
    assert "\n" not in str(error.value)
    assert cache_files() == {}


def test_the_control_group_bounds_cores_and_memory(ganomaly, monkeypatch):
    folder.load(root=ganomaly)
    limits = {"cpu.max": "300000 100000", "memory.max": str(2**30), "memory.current": str(2**30 - 2**10)}
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(64)), raising=False)
    monkeypatch.setattr(machine, "_first_line", lambda path: limits[path.rpartition("/")[2]])
    monkeypatch.setattr(pool, "ENOUGH_FOR_THREADS", 0)
    with pool.workers([str(ganomaly / "train/0.normal/0.png")]) as threads:
        assert threads._max_workers == 3
    modes = []

    def load(path, mmap_mode):
        modes.append(mmap_mode)
        return np.lib.format.open_memmap(path, mode="c")

    monkeypatch.setattr(np, "load", load)
    folder.load(root=ganomaly)
    assert modes == ["c"]
