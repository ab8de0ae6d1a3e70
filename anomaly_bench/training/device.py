"""Where a run computes, and in which precision."""

from pathlib import Path

import torch

from anomaly_bench.errors import SettingError

PRECISIONS = ("auto", "fp32", "bf16")

MULTIPLY_IN_BF16 = ("amx_bf16", "avx512_bf16")
"""Flags, as Linux has them, of processors that have such instructions."""


def pick_device(wanted: str) -> torch.device:
    """The device of `trainer.device=auto|cpu|cuda[:i]|mps`; one that is not there is a SettingError."""
    found = available_devices()
    if wanted == "auto":
        return torch.device(found[-1] if len(found) == 1 else found[1])
    if wanted == "cuda" and len(found) > 1 and found[1].startswith("cuda"):
        return torch.device("cuda:0")
    if wanted in found:
        return torch.device(wanted)
    raise SettingError(
        f"trainer.device={wanted}: not on this machine; allowed here: auto, {', '.join(found)}"
    )


def available_devices() -> list[str]:
    """`cpu` first, then what accelerators there are."""
    cuda = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def pick_precision(wanted: str, device: torch.device) -> str:
    """`fp32` or `bf16` for `trainer.precision=auto|fp32|bf16`; `auto` is bf16 where the hardware multiplies in it."""
    if wanted not in PRECISIONS:
        raise SettingError(f"trainer.precision={wanted}: allowed are {', '.join(PRECISIONS)}")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if device.type == "cpu" and any(map(cpu_flag, MULTIPLY_IN_BF16)) else "fp32"


def cpu_flag(flag: str) -> bool:
    """Whether the processor has `flag`, as far as Linux tells."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and flag in cpuinfo.read_text().split()
