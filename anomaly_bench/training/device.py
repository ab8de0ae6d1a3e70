"""Where a run computes, and in which precision."""

from pathlib import Path

import torch

from anomaly_bench.errors import SettingError

PRECISIONS = ("auto", "fp32", "bf16")


def pick_device(wanted: str, setting: str = "trainer.device=") -> torch.device:
    """The device of `trainer.device=auto|cpu|cuda[:i]|mps`; one that is not there is a SettingError.

    Args:
        wanted: its name.
        setting: how the setting is typed, before the name.
    """
    found = available_devices()
    if wanted == "auto":
        return torch.device(found[-1] if len(found) == 1 else found[1])
    if wanted == "cuda" and len(found) > 1 and found[1].startswith("cuda"):
        return torch.device("cuda:0")
    if wanted in found:
        return torch.device(wanted)
    raise SettingError(f"{setting}{wanted}: not on this machine; allowed here: auto, {', '.join(found)}")


def available_devices() -> list[str]:
    """`cpu` first, then what accelerators there are."""
    cuda = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    return ["cpu", *cuda, *(["mps"] if torch.backends.mps.is_available() else [])]


def pick_precision(wanted: str, device: torch.device) -> str:
    """`fp32` or `bf16` for `trainer.precision=auto|fp32|bf16`; `auto` is bf16 where the hardware is faster in it."""
    if wanted not in PRECISIONS:
        raise SettingError(f"trainer.precision={wanted}: allowed are {', '.join(PRECISIONS)}")
    if wanted != "auto":
        return wanted
    if device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp32"
    return "bf16" if device.type == "cpu" and fast_in_bf16() else "fp32"


def fast_in_bf16() -> bool:
    """Whether this CPU multiplies faster in bf16: AMX does, AVX512-BF16 on AMD's; on Intel's it is slower than fp32."""
    return cpu_flag("amx_bf16") or (cpu_flag("avx512_bf16") and cpu_flag("AuthenticAMD"))


def cpu_flag(flag: str) -> bool:
    """Whether Linux names `flag`, or a maker, in what it tells of the processor."""
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.exists() and flag in cpuinfo.read_text().split()
