"""Convolutions that only score, on a CPU: what every call of them does anew is done once.

oneDNN lays out weights in blocks of its own, and can activate in the pass that computes; of one image, that is half of
the time. The layers themselves are the readable twins: `trainer.fold=false` scores by them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized

ACTIVATIONS = {nn.ReLU: "relu", nn.LeakyReLU: "leaky_relu"}
"""What oneDNN calls them."""

Convolution = nn.Conv2d | nn.ConvTranspose2d
LayOut = Callable[[Tensor], Tensor]
Compute = Callable[[Tensor, Tensor, Tensor | None], Tensor]


@runtime_checkable
class Product(Protocol):
    """A convolution that lays out its weights and computes by itself."""

    def laid_out(self, weight: Tensor) -> Tensor:
        """Weights as `product` takes them."""
        ...

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Feature maps of images, by laid out weights."""
        ...


class Packed(nn.Module):
    """A convolution, and the activation after it, whose weights are laid out at the first call.

    Where gradients are wanted, or of what oneDNN does not take, it is the two layers.

    Args:
        layer, activation: what it does.
        lay_out: gives the weights as `compute` wants them, of weights in the precision of the images.
        compute: gives feature maps of images, laid out weights and a bias, in one precision.
    """

    def __init__(self, layer: Convolution, activation: nn.Module, lay_out: LayOut, compute: Compute) -> None:
        super().__init__()
        self.layer, self.activation = layer, activation
        self.lay_out, self.compute = lay_out, compute
        self.kept: tuple[torch.dtype, Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """Activated feature maps."""
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if torch.is_grad_enabled() or x.dim() != 4 or not computes(dtype):
            return self.activation(self.layer(x))
        if self.kept is None or self.kept[0] != dtype:
            weight, bias = self.layer.weight.detach().to(dtype), self.layer.bias
            self.kept = dtype, self.lay_out(weight), None if bias is None else bias.detach().to(dtype)
        return self.compute(x.to(dtype), *self.kept[1:])


@cache
def computes(dtype: torch.dtype) -> bool:
    """Whether oneDNN computes with such numbers here."""
    return dtype == torch.float32 or (
        dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported()
    )


@contextmanager
def packed(network: nn.Module) -> Iterator[None]:
    """Inside, convolutions of a network on a CPU are packed; their weights may not change there."""
    places = list(places_to_pack(network)) if torch.backends.mkldnn.is_available() else []
    for parent, name, _, after in places:
        parent._modules[name] = after
    try:
        yield
    finally:
        for parent, name, before, _ in places:
            parent._modules[name] = before


def places_to_pack(network: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Module, nn.Module]]:
    """Each parent and name of a child that changes, the child, and what takes its place."""
    for parent in network.modules():
        children = [(name, child) for name, child in parent._modules.items() if child is not None]
        for number, (name, layer) in enumerate(children):
            if not isinstance(layer, Convolution) or not packable(layer):
                continue
            if isinstance(layer, Product):
                yield parent, name, layer, Packed(layer, nn.Identity(), layer.laid_out, layer.product)
            elif type(layer) in (nn.Conv2d, nn.ConvTranspose2d):
                following = children[number + 1 :] if isinstance(parent, nn.Sequential) else []
                place, activation = next_activation(following)
                yield parent, name, layer, Packed(layer, activation, *of_onednn(layer, activation))
                if place:
                    yield parent, place, activation, nn.Identity()


def packable(layer: Convolution) -> bool:
    """Whether nothing looks at the layer but through its output, and oneDNN has all that it does."""
    plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
    return plain and not hooked(layer) and not is_parametrized(layer) and layer.weight.dtype == torch.float32


def next_activation(following: list[tuple[str, nn.Module]]) -> tuple[str, nn.Module]:
    """Name of the next layer that does anything, and itself, if oneDNN has that activation; else no name."""
    for name, layer in following:
        if type(layer) is not nn.Identity:
            plain = type(layer) in ACTIVATIONS and not hooked(layer)
            return (name, layer) if plain else ("", nn.Identity())
    return "", nn.Identity()


def hooked(layer: nn.Module) -> bool:
    """Whether somebody looks at what goes into the layer, or comes out."""
    return bool(layer._forward_hooks or layer._forward_pre_hooks)


def of_onednn(layer: Convolution, activation: nn.Module) -> tuple[LayOut, Compute]:
    """How oneDNN lays out the layer's weights, and computes it and its activation."""
    transposed = isinstance(layer, nn.ConvTranspose2d)
    name = "convolution_transpose" if transposed else "convolution"
    outer = (layer.output_padding,) if transposed else ()
    how = layer.padding, *outer, layer.stride, layer.dilation, layer.groups
    kind = ACTIVATIONS.get(type(activation), "none")
    slopes = [activation.negative_slope] if isinstance(activation, nn.LeakyReLU) else []
    reorder = getattr(torch.ops.mkldnn, f"_reorder_{name}_weight")
    pointwise = getattr(torch.ops.mkldnn, f"_{name}_pointwise")
    return (
        lambda weight: reorder(weight.contiguous(), *how),
        lambda x, weight, bias: pointwise(x, weight, bias, *how, kind, slopes, ""),
    )
