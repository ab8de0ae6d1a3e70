import pytest
import torch
from torch import nn
from torch.nn.functional import avg_pool2d, conv2d, linear, relu

from anomaly_bench.errors import SettingError
from anomaly_bench.networks.wide_resnet import Block, WideResNet


def small(depth=10, widen_factor=1, shape=(3, 32, 32)) -> WideResNet:
    torch.manual_seed(0)
    return WideResNet(shape, 5, depth, widen_factor, width=4)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def normed(x, norm):
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    scale, shift = norm.weight[:, None, None], norm.bias[:, None, None]
    return (x - mean) / (var + 1e-5).sqrt() * scale + shift


def plainly(net: WideResNet, x):
    """The network in training mode, its blocks written out."""
    first, *blocks, last, _, _, _ = net.features
    x = conv2d(x, first.weight, padding=1)
    for number, block in enumerate(blocks):
        stride = 2 if number in (1, 2) else 1
        one, norm, _, two = block.path
        active = relu(normed(x, block.activate[0]))
        y = conv2d(active, one.weight, stride=stride, padding=1)
        y = conv2d(relu(normed(y, norm)), two.weight, padding=1)
        x = y + (conv2d(active, block.shortcut.weight, stride=stride) if block.shortcut else x)
    return linear(avg_pool2d(relu(normed(x, last)), 8).flatten(1), net.head.weight, net.head.bias)


@pytest.mark.parametrize("side", [32, 64])
def test_it_is_the_network_written_out(side):
    net = small(shape=(3, side, side)).train()
    for p in net.parameters():
        nn.init.normal_(p, std=0.3)
    x = torch.randn(4, 3, side, side)
    torch.testing.assert_close(net(x), plainly(net, x), rtol=1e-3, atol=1e-4)


def test_sizes_are_the_papers():
    blocks = [m for m in WideResNet((3, 32, 32), 72, 10, 4).modules() if isinstance(m, Block)]
    assert [b.path[0].in_channels for b in blocks] == [16, 64, 128]
    assert [b.path[3].out_channels for b in blocks] == [64, 128, 256]
    deep = WideResNet((3, 64, 64), 72, 16, 8)
    assert sum(isinstance(m, Block) for m in deep.modules()) == 6
    assert [b.shortcut is None for b in deep.modules() if isinstance(b, Block)] == [False, True] * 3
    assert deep.head.in_features == 2048
    # WRN-16-8 for ten classes of 32 pixels has 11.0 million weights, its paper's Table 3 says.
    assert parameters(WideResNet((3, 32, 32), 10, 16, 8)) == pytest.approx(11.0e6, rel=0.01)


def test_first_weights():
    net = WideResNet((3, 32, 32), 72, 10, 4)
    two = net.features[3].path[3]
    assert two.weight.std().item() == pytest.approx((2 / (256 * 9)) ** 0.5, rel=0.02)
    assert not net.head.bias.any()
    assert net.head.weight.abs().max().item() == pytest.approx(1 / 16, rel=0.01)


@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 33, 33), (2, 64, 32)])
def test_any_size(shape):
    assert small(shape=shape)(torch.zeros(2, *shape)).shape == (2, 5)


def test_depths_that_are_none_are_refused():
    with pytest.raises(SettingError, match=r"model\.depth=12: allowed is 6 n \+ 4"):
        small(depth=12)
    with pytest.raises(SettingError, match=r"model\.widen_factor=0"):
        small(widen_factor=0)
