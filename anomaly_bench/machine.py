"""The machine a process runs on, and what it may use of it: cores and memory, within its control group's bounds."""

import contextlib
import os
import platform
import re
from pathlib import Path


def cores() -> int:
    """The cores that this process may use: those of its affinity, and no more than its control group's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota, _, period = _first_line("/sys/fs/cgroup/cpu.max").partition(" ")
    return max(1, min(allowed, round(int(quota) / int(period)))) if quota.isdecimal() else allowed


def free_gib() -> float:
    """Memory that can be had without swapping, in GiB, as far as Linux tells; elsewhere half of all there is, or 4."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = {name: int(rest.split()[0]) for name, _, rest in (line.partition(":") for line in lines)}
        limit, used = (_first_line(f"/sys/fs/cgroup/memory.{name}") for name in ("max", "current"))
        left = int(limit) - int(used) if limit.isdecimal() and used.isdecimal() else float("inf")
        return min(free["MemAvailable"] * 2**10, left) / 2**30
    if hasattr(os, "sysconf"):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**31
    return 4.0


def described() -> dict[str, str | int | float | None]:
    """The processor's name, the cores this process may use, the memory in GiB, and the operating system."""
    return {
        "cpu": _cpu_name(),
        "cores": cores(),
        "memory_gib": _memory_gib(),
        "platform": platform.platform(),
    }


def _cpu_name() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    named = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return named[1].strip() if named else platform.processor() or platform.machine()


def _memory_gib() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, ValueError, OSError):
        return None


def _first_line(path: str) -> str:
    try:
        return Path(path).read_text().partition("\n")[0]
    except OSError:
        return ""
