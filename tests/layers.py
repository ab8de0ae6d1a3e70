"""What a network is made of, as the tables of papers have it, and how its first weights are spread."""

import math

import pytest
from torch import nn


def layers_of(network: nn.Module) -> list[str]:
    """Its layers in the order in which they are registered, a line from each convolution or linear layer on.

    `conv k/s/p a-b` has kernel k, stride s and padding p and makes a channels b, `convT` is a transposed one. Of
    batch norm only what torch has otherwise is said; what changes the shape alone and dropout of nothing are not.
    """
    lines: list[str] = []
    for said in filter(None, map(in_words, network.modules())):
        if not lines or said.startswith(("conv", "linear")):
            lines.append(said)
        else:
            lines[-1] += f", {said}"
    return lines


def in_words(layer: nn.Module) -> str:
    """One layer; nothing for what only holds others."""
    match layer:
        case nn.Conv2d() | nn.ConvTranspose2d():
            name = "conv" if isinstance(layer, nn.Conv2d) else "convT"
            sizes = "/".join(str(pair[0]) for pair in (layer.kernel_size, layer.stride, layer.padding))
            bias = "" if layer.bias is not None else " no bias"
            return f"{name} {sizes} {layer.in_channels}-{layer.out_channels}{bias}"
        case nn.Linear():
            bias = "" if layer.bias is not None else " no bias"
            return f"linear {layer.in_features}-{layer.out_features}{bias}"
        case nn.BatchNorm1d() | nn.BatchNorm2d():
            return "bn" + f" eps {layer.eps:g}" * (layer.eps != 1e-5) + " no affine" * (not layer.affine)
        case nn.LeakyReLU():
            return f"leaky {layer.negative_slope:g}" if layer.negative_slope else "relu"
        case nn.Dropout():
            return f"dropout {layer.p:g}" if layer.p else ""
        case nn.MaxPool2d():
            return f"maxpool {layer.kernel_size}/{layer.stride}"
        case nn.Upsample():
            return f"{layer.mode} x{layer.scale_factor:g}"
        case nn.Flatten() | nn.Unflatten() | nn.Identity():
            return ""
    return "" if any(layer.children()) else type(layer).__name__.lower()


def assert_first_weights(network: nn.Module, deviation: float | None = None) -> None:
    """Those of all convolutions and linear layers have this standard deviation, or without one Xavier's of each.

    Off by at most four times what chance explains.
    """
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.ConvTranspose2d | nn.Linear)]
    assert layers
    for layer in layers:
        outputs, inputs, *kernel = layer.weight.shape
        expected = deviation or math.sqrt(2 / ((inputs + outputs) * math.prod(kernel)))
        chance = 1 / math.sqrt(2 * layer.weight.numel())
        assert layer.weight.std().item() == pytest.approx(expected, rel=4 * chance), layer
