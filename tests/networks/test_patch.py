import pytest
import torch
from torch import nn
from torch.nn.functional import leaky_relu, pad

from anomaly_bench.errors import SettingError
from anomaly_bench.networks.patch import PatchNetwork, moved, patches_at, random_pixels, varied
from anomaly_bench.training.packing import packed

REACH = {17: 17, 33: 32, 65: 60}
"""Pooling leaves out the last pixel of 33, and the last five of 65."""


def network(p: int, channels: int = 2) -> PatchNetwork:
    torch.manual_seed(0)
    net = PatchNetwork(p, channels, width=4, d=6)
    for parameter in net.parameters():
        nn.init.normal_(parameter, std=0.2)
    return net


@pytest.mark.parametrize("p", REACH)
def test_a_pixel_is_described_as_the_patch_around_it(p):
    net, x = network(p), torch.rand(2, 2, 20, 13) * 2 - 1
    with torch.no_grad():
        dense = net.dense(x)
        assert dense.shape == (2, 6, 20, 13)
        framed = pad(x, [p // 2] * 4, value=-1.0)
        for row, column in ((0, 0), (19, 12), (7, 5), (8, 5), (7, 6), (11, 0)):
            patch = framed[:, :, row : row + p, column : column + p]
            torch.testing.assert_close(dense[:, :, row, column], net(patch), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("p", REACH)
def test_it_sees_all_of_the_patch_but_what_pooling_leaves_out(p):
    net = network(p).double()
    seen = torch.zeros(p, p, dtype=torch.bool)
    for _ in range(8):  # what is not the largest of its pool has no gradient
        patch = torch.randn(2, 2, p, p, dtype=torch.double).requires_grad_()
        net(patch).square().sum().backward()
        seen |= (patch.grad != 0).any(0).any(0)
    assert net.reach == REACH[p]
    assert seen[: net.reach, : net.reach].all()
    assert not seen[net.reach :].any()
    assert not seen[:, net.reach :].any()


def test_layers_are_the_papers():
    layers = {
        17: [(6, 128, 1), (5, 256, 1), (5, 256, 1), (4, 128, 1)],
        33: [(5, 128, 1), 1, (5, 256, 2), 2, (2, 256, 4), (4, 128, 4)],
        65: [(5, 128, 1), 1, (5, 128, 2), 2, (5, 256, 4), 4, (4, 256, 8), (1, 128, 8)],
    }
    for p, expected in layers.items():
        net, found = PatchNetwork(p, 3), []
        for layer in net.layers:
            if isinstance(layer, nn.Conv2d):
                found.append((layer.kernel_size[0], layer.out_channels, layer.dilation[0]))
            elif isinstance(layer, nn.MaxPool2d):
                assert (layer.kernel_size, layer.stride) == (2, 1)
                found.append(layer.dilation)
        assert found == expected
        assert net(torch.zeros(1, 3, p, p)).shape == (1, 128)
        assert all(m.negative_slope == 5e-3 for m in net.modules() if isinstance(m, nn.LeakyReLU))


@pytest.mark.parametrize("p", REACH)
def test_it_describes_the_same_where_convolutions_are_packed(p):
    net, x = network(p), torch.rand(2, 2, 20, 13) * 2 - 1
    patches = torch.rand(2, 2, p, p) * 2 - 1
    with torch.no_grad():
        expected, of_patches = net.dense(x), net.train()(patches)
        with packed(net.eval()):
            torch.testing.assert_close(net.dense(x), expected, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(net(patches), of_patches, rtol=1e-4, atol=1e-4)


def test_the_smallest_network_written_out():
    net, x = network(17), torch.randn(3, 2, 17, 17)
    expected = x
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    for number, conv in enumerate(convs):
        windows = expected.unfold(2, conv.kernel_size[0], 1).unfold(3, conv.kernel_size[0], 1)
        expected = torch.einsum("ncxyij,fcij->nfxy", windows, conv.weight) + conv.bias[:, None, None]
        if number < 3:
            expected = leaky_relu(expected, 0.005)
    torch.testing.assert_close(net(x), expected.flatten(1), rtol=1e-4, atol=1e-4)


def test_other_sizes_are_refused():
    with pytest.raises(SettingError, match=r"model\.patch_sizes: found 21, allowed are 17, 33, 65"):
        PatchNetwork(21, 1)
    with pytest.raises(SettingError, match=r"model\.width=0"):
        PatchNetwork(17, 1, width=0)


# ------------------------------------------------------------------------------ patches


def test_patches_lie_around_their_pixels():
    x = torch.rand(3, 2, 9, 12)
    top, left = torch.tensor([0, 8, 4]), torch.tensor([0, 11, 6])
    patches = patches_at(x, top, left, 5)
    for number in range(3):
        for i in range(5):
            for j in range(5):
                row, column = int(top[number]) + i - 2, int(left[number]) + j - 2
                inside = 0 <= row < 9 and 0 <= column < 12
                expected = x[number, :, row, column] if inside else torch.full((2,), -1.0)
                assert torch.equal(patches[number, :, i, j], expected)


def test_pixels_are_anywhere_and_move_a_little():
    torch.manual_seed(0)
    x = torch.zeros(500, 1, 4, 7)
    top, left = random_pixels(x)
    assert set(top.tolist()) == set(range(4))
    assert set(left.tolist()) == set(range(7))
    for place, by in zip((top, left), moved(x, top, left, 2), strict=True):
        assert set((by - place).tolist()) == {-2, -1, 0, 1, 2}
    assert max(moved(x, top, left, 2)[0].tolist()) == 3


def test_variation_is_of_light_and_noise():
    torch.manual_seed(0)
    patches = torch.full((200, 1, 17, 17), 0.5)
    changed = varied(patches).add(1).div(1.5)
    assert changed.flatten(1).mean(1).min().item() == pytest.approx(0.9, abs=0.02)
    assert changed.flatten(1).mean(1).max().item() == pytest.approx(1.1, abs=0.02)
    assert changed.flatten(1).std(1).mean().item() == pytest.approx(0.05 / 1.5, rel=0.05)
