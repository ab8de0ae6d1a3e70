"""The layers and first weights of GANomaly, and its first and last layers as matrix products."""

import pytest
import torch
from layers import assert_first_weights, layers_of
from torch import nn

from anomaly_bench.networks.dcgan import (
    Decoder,
    Discriminator,
    Encoder,
    FromPoint,
    OverAll,
    dcgan_init,
    reinitialised,
)


def test_layers_at_32_pixels_are_those_of_ganomaly() -> None:
    features = [
        "conv 4/2/1 3-64 no bias, leaky 0.2",
        "conv 4/2/1 64-128 no bias, bn, leaky 0.2",
        "conv 4/2/1 128-256 no bias, bn, leaky 0.2",
    ]
    assert layers_of(Encoder(32, 3, 100, 64)) == [*features, "conv 4/1/0 256-100 no bias"]
    assert layers_of(Discriminator(32, 3, 64)) == [*features, "conv 4/1/0 256-1 no bias"]
    assert layers_of(Decoder(32, 3, 100, 64)) == [
        "convT 4/1/0 100-256 no bias, bn, relu",
        "convT 4/2/1 256-128 no bias, bn, relu",
        "convT 4/2/1 128-64 no bias, bn, relu",
        "convT 4/2/1 64-3 no bias, tanh",
    ]


def test_an_extra_layer_is_a_convolution_of_3_with_norm_and_activation_after_the_first_stage() -> None:
    first, extra, _ = layers_of(Encoder(16, 1, 5, 8, extralayers=1).features)
    assert first == "conv 4/2/1 1-8 no bias, leaky 0.2"
    assert extra == "conv 3/1/1 8-8 no bias, bn, leaky 0.2"


@pytest.mark.parametrize("network", [Encoder, Decoder])
def test_first_weights_are_those_of_dcgan(network: type[nn.Module]) -> None:
    torch.manual_seed(0)
    net = network(32, 3, 100, 64).apply(dcgan_init)
    assert_first_weights(net, 0.02)
    norms = [module for module in net.modules() if isinstance(module, nn.BatchNorm2d)]
    scales = torch.cat([norm.weight for norm in norms])
    assert scales.mean().item() == pytest.approx(1, abs=0.005)
    assert scales.std().item() == pytest.approx(0.02, abs=0.003)
    assert not any(norm.bias.any() for norm in norms)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("ours", "general", "shape"),
    [
        (OverAll(3, 5, 4), nn.Conv2d(3, 5, 4), (2, 3, 4, 4)),
        (FromPoint(3, 5, 4), nn.ConvTranspose2d(3, 5, 4), (2, 3, 1, 1)),
        (FromPoint(3, 5, 4, bias=False), nn.ConvTranspose2d(3, 5, 4, bias=False), (2, 3, 1, 1)),
    ],
)
def test_a_product_is_the_convolution(
    ours: nn.Module, general: nn.Module, shape: tuple[int, ...], memory_format: torch.memory_format
) -> None:
    for layer in (ours, general):
        layer.double().to(memory_format=memory_format)  # pyright: ignore[reportCallIssue]
    general.load_state_dict(ours.state_dict())
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
    y, expected = ours(x), general(x)
    torch.testing.assert_close(y, expected)
    slope = torch.randn_like(expected)
    for got, wanted in zip(
        torch.autograd.grad(y, [x, *ours.parameters()], slope),
        torch.autograd.grad(expected, [x, *general.parameters()], slope),
        strict=True,
    ):
        torch.testing.assert_close(got, wanted)


def test_a_collapsed_network_starts_anew_and_only_then() -> None:
    network, fresh = nn.Linear(3, 2), nn.Linear(3, 2)
    before = network.weight.detach().clone()
    assert reinitialised(network, fresh, torch.tensor(False)) == 0
    assert torch.equal(network.weight, before)
    assert reinitialised(network, fresh, torch.tensor(True)) == 1
    assert torch.equal(network.weight, fresh.weight)
    assert torch.equal(network.bias, fresh.bias)
