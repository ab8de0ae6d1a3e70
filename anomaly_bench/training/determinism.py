"""Runs that give the same bits again, on a GPU and whatever the number of threads, at the price of speed."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from threadpoolctl import threadpool_limits

from anomaly_bench.errors import SettingError

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"
"""Where cuBLAS is told to work in memory of a fixed size, without which its sums depend on what else runs."""

FIXED = (":4096:8", ":16:8")
"""The values with which it is deterministic; the first is faster and takes 24 MiB of a GPU's memory."""


@contextmanager
def deterministic(wanted: bool = True) -> Iterator[None]:
    """Inside, torch computes with operations only that give the same bits every time; after it all is as before.

    On the CPU all that computes does so in one thread, since sums are cut up by the number of threads.

    Raises:
        SettingError: an operation has no such form on this device, or `CUBLAS_WORKSPACE_CONFIG` forbids it.
    """
    if not wanted:
        yield
        return
    told = os.environ.get(WORKSPACE)
    if told not in (None, *FIXED):
        raise SettingError(
            f"deterministic=true: {WORKSPACE}={told} forbids it; allowed are {', '.join(FIXED)}"
        )
    enabled = torch.are_deterministic_algorithms_enabled()
    lenient = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    chosen = cudnn.deterministic, cudnn.benchmark
    threads = torch.get_num_threads()
    os.environ.setdefault(WORKSPACE, FIXED[0])
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    torch.set_num_threads(1)
    try:
        with threadpool_limits(1):
            yield
    except RuntimeError as error:
        if "deterministic" not in str(error):
            raise
        operation = str(error).partition(" does not")[0]
        raise SettingError(
            f"deterministic=true: {operation[:200]} has no deterministic form on this device, and is needed"
        ) from error
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(enabled, warn_only=lenient)
        cudnn.deterministic, cudnn.benchmark = chosen
        if told is None:
            del os.environ[WORKSPACE]
