"""The first and last layers as matrix products."""

import pytest
import torch
from torch import nn

from anomaly_bench.networks.dcgan import FromPoint, OverAll, reinitialised


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
