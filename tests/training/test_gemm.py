"""The stand-ins against the operators they stand for, in float64."""

from itertools import product

import pytest
import torch
from torch import Tensor

from anomaly_bench.training import gemm

aten = torch.ops.aten

LAYERS = {  # of a kernel [O, C, KH, KW], or [C, O, KH, KW] where transposed
    "strided": {"x": (3, 32, 8, 8), "weight": (40, 32, 4, 4), "stride": (2, 2), "padding": (1, 1)},
    "odd sides": {"x": (3, 32, 9, 7), "weight": (32, 32, 5, 3), "stride": (2, 3), "padding": (2, 1)},
    "transposed": {
        "x": (3, 40, 4, 4),
        "weight": (40, 32, 4, 4),
        "stride": (2, 2),
        "padding": (1, 1),
        "transposed": True,
    },
}

LEFT_ALONE = {
    "few channels": {"x": (3, 3, 8, 8), "weight": (40, 3, 4, 4), "stride": (2, 2), "padding": (1, 1)},
    "not strided": {"x": (3, 32, 8, 8), "weight": (32, 32, 3, 3), "stride": (1, 1), "padding": (1, 1)},
    "in groups": {
        "x": (3, 64, 8, 8),
        "weight": (64, 32, 4, 4),
        "stride": (2, 2),
        "padding": (1, 1),
        "groups": 2,
    },
    "dilated": {
        "x": (3, 32, 9, 9),
        "weight": (32, 32, 3, 3),
        "stride": (2, 2),
        "padding": (1, 1),
        "dilation": (2, 2),
    },
}


def tensors(layer: dict, memory_format: torch.memory_format) -> tuple[Tensor, Tensor, Tensor, tuple]:
    """Images, kernel and bias of a layer, and its other arguments in the operator's order."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        torch.randn(layer[name], generator=generator, dtype=torch.float64).to(memory_format=memory_format)
        for name in ("x", "weight")
    )
    transposed = layer.get("transposed", False)
    bias = torch.randn(weight.shape[int(transposed)], generator=generator, dtype=torch.float64)
    rest = (layer["stride"], layer["padding"], layer.get("dilation", (1, 1)), transposed, (0, 0))
    return x, weight, bias, (*rest, layer.get("groups", 1))


IN_BFLOAT16 = {
    "many channels": {"x": (3, 40, 8, 8), "weight": (256, 40, 4, 4), "stride": (2, 2), "padding": (1, 1)},
    "many channels, odd sides": {
        "x": (3, 5, 11, 8),
        "weight": (256, 5, 5, 3),
        "stride": (2, 3),
        "padding": (0, 1),
    },
    "many channels, transposed": {
        "x": (3, 256, 4, 4),
        "weight": (256, 40, 4, 4),
        "stride": (2, 2),
        "padding": (1, 1),
        "transposed": True,
    },
    "grey": {"x": (3, 1, 8, 8), "weight": (40, 1, 4, 4), "stride": (2, 2), "padding": (1, 1)},
    "grey, not strided": {"x": (3, 1, 8, 8), "weight": (4, 1, 3, 3), "stride": (1, 1), "padding": (1, 1)},
}


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("name", [*LAYERS, *IN_BFLOAT16])
def test_results_are_those_of_the_operator(
    name: str, memory_format: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gemm, "PRECISION", torch.float64 if name in IN_BFLOAT16 else torch.bfloat16)
    x, weight, bias, rest = tensors((LAYERS | IN_BFLOAT16)[name], memory_format)
    said = []
    for shift in (None, bias):
        expected, got = aten.convolution(x, weight, shift, *rest), gemm.convolution(x, weight, shift, *rest)
        said.append(got is not NotImplemented)
        if got is not NotImplemented:
            torch.testing.assert_close(got, expected)
    gradient = torch.randn_like(aten.convolution(x, weight, None, *rest))
    for mask in product([True, False], repeat=3):
        expected = aten.convolution_backward(gradient, x, weight, bias.shape, *rest, mask)
        got = gemm.convolution_backward(gradient, x, weight, bias.shape, *rest, mask)
        said.append(got is not NotImplemented)
        if got is NotImplemented:
            continue
        for ours, theirs, wanted in zip(got, expected, mask, strict=True):
            assert (ours is not None) == wanted
            if wanted:
                torch.testing.assert_close(ours, theirs)
    assert any(said)


@pytest.mark.parametrize("name", LEFT_ALONE)
def test_other_layers_are_left_to_the_operator(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemm, "PRECISION", torch.float64)
    x, weight, bias, rest = tensors(LEFT_ALONE[name], torch.contiguous_format)
    gradient = torch.randn_like(aten.convolution(x, weight, None, *rest))
    for function, arguments in (
        (gemm.convolution, (x, weight, bias, *rest)),
        (gemm.convolution_backward, (gradient, x, weight, bias.shape, *rest, (True, True, True))),
    ):
        assert function(*arguments) is NotImplemented
