import pytest
import torch

from anomaly_bench.errors import SettingError
from anomaly_bench.training import device as devices
from anomaly_bench.training.device import available_devices, cpu_flag, pick_device, pick_precision

CPU = torch.device("cpu")


def test_auto_is_the_first_accelerator_else_the_cpu() -> None:
    expected = (
        "cuda:0" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    )
    assert str(pick_device("auto")) == expected


def test_cpu_is_always_there() -> None:
    assert available_devices()[0] == "cpu"
    assert pick_device("cpu") == CPU


@pytest.mark.parametrize("wanted", ["cuda:99", "tpu", "gpu", "cuda:", "CPU", ""])
def test_a_device_that_is_not_there_is_refused_with_those_that_are(wanted: str) -> None:
    with pytest.raises(SettingError, match=f"trainer.device={wanted}: .* auto, cpu"):
        pick_device(wanted)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has cuda")
@pytest.mark.parametrize("wanted", ["cuda", "cuda:0"])
def test_missing_cuda_is_refused(wanted: str) -> None:
    with pytest.raises(SettingError, match=f"trainer.device={wanted}: not on this machine"):
        pick_device(wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="this machine has no cuda")
def test_cuda_is_the_first_of_them() -> None:
    assert str(pick_device("cuda")) == "cuda:0"


@pytest.mark.parametrize("wanted", ["fp32", "bf16"])
def test_a_precision_that_is_asked_for_is_taken(wanted: str) -> None:
    assert pick_precision(wanted, CPU) == wanted


@pytest.mark.parametrize(
    ("told", "precision"),
    [
        ("GenuineIntel amx_bf16 avx512_bf16", "bf16"),
        ("GenuineIntel avx512_bf16", "fp32"),
        ("AuthenticAMD avx512_bf16", "bf16"),
        ("AuthenticAMD avx512f", "fp32"),
        ("AuthenticAMD avx512_bf16_of_another", "fp32"),
    ],
)
def test_auto_is_bf16_where_the_processor_is_faster_in_it(
    told: str, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(devices, "cpu_flag", lambda asked: asked in told.split())
    assert pick_precision("auto", CPU) == precision
    assert pick_precision("auto", torch.device("mps")) == "fp32"


@pytest.mark.parametrize("wanted", ["fp16", "float32", ""])
def test_unknown_precisions_are_refused(wanted: str) -> None:
    with pytest.raises(SettingError, match=f"trainer.precision={wanted}: allowed are auto, fp32, bf16"):
        pick_precision(wanted, CPU)


def test_a_flag_is_a_whole_word() -> None:
    assert not cpu_flag("no_such_flag")
    assert not cpu_flag("")
