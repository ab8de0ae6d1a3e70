import math

import pytest
import torch
from layers import layers_of
from torch import nn
from torch.nn.functional import interpolate, layer_norm

from anomaly_bench.networks import resnet
from anomaly_bench.networks.resnet import Critic, Encoder, Generator


def test_filters_at_64_pixels_are_the_official_ones() -> None:
    assert resnet.widths(64, 64) == [64, 128, 256, 512, 512]
    assert resnet.widths(32, 64) == [64, 128, 256, 512]
    assert resnet.widths(16, 64) == [64, 128, 256]
    assert resnet.widths(128, 16, 16) == [16, 32, 64, 128, 256, 256]


def test_layers_at_64_pixels_are_those_of_f_anogan() -> None:
    assert layers_of(Generator(64, 1, 128, 64)) == [
        "linear 128-8192, bn eps 0.001, relu, nearest x2",
        "conv 3/1/1 512-512 no bias, bn eps 0.001, relu",
        "conv 3/1/1 512-512",
        "conv 1/1/0 512-512, nearest x2, bn eps 0.001, relu, nearest x2",
        "conv 3/1/1 512-256 no bias, bn eps 0.001, relu",
        "conv 3/1/1 256-256",
        "conv 1/1/0 512-256, nearest x2, bn eps 0.001, relu, nearest x2",
        "conv 3/1/1 256-128 no bias, bn eps 0.001, relu",
        "conv 3/1/1 128-128",
        "conv 1/1/0 256-128, nearest x2, bn eps 0.001, relu, nearest x2",
        "conv 3/1/1 128-64 no bias, bn eps 0.001, relu",
        "conv 3/1/1 64-64",
        "conv 1/1/0 128-64, nearest x2, bn eps 0.001, relu",
        "conv 3/1/1 64-1, tanh",
    ]
    features = [
        "conv 3/1/1 1-64, groupnorm, relu",
        "conv 3/1/1 64-64 no bias, groupnorm, relu",
        "conv 3/1/1 64-128, avgpool2d, avgpool2d",
        "conv 1/1/0 64-128, groupnorm, relu",
        "conv 3/1/1 128-128 no bias, groupnorm, relu",
        "conv 3/1/1 128-256, avgpool2d, avgpool2d",
        "conv 1/1/0 128-256, groupnorm, relu",
        "conv 3/1/1 256-256 no bias, groupnorm, relu",
        "conv 3/1/1 256-512, avgpool2d, avgpool2d",
        "conv 1/1/0 256-512, groupnorm, relu",
        "conv 3/1/1 512-512 no bias, groupnorm, relu",
        "conv 3/1/1 512-512, avgpool2d, avgpool2d",
        "conv 1/1/0 512-512",
    ]
    assert layers_of(Critic(64, 1, 64)) == [*features, "linear 8192-1"]
    normed = [line.replace("groupnorm", "bn eps 0.001") for line in features]
    assert layers_of(Encoder(64, 1, 128, 64)) == [*normed, "linear 8192-128"]


@pytest.mark.parametrize("size", [16, 32, 64, 128])
@pytest.mark.parametrize("nc", [1, 3])
def test_shapes(size: int, nc: int) -> None:
    images = Generator(size, nc, 5, 2)(torch.randn(2, 5))
    assert images.shape == (2, nc, size, size)
    assert images.abs().max() <= 1
    features, values = Critic(size, nc, 2)(images)
    assert features.shape == (2, 16 * resnet.widths(size, 2)[-1])
    assert values.shape == (2,)
    assert Encoder(size, nc, 5, 2)(images).shape == (2, 5)


def test_features_of_the_official_critic() -> None:
    assert Critic(64, 1, 64).features.out_features == 8192


def test_layer_norm_is_over_a_whole_image() -> None:
    x = torch.randn(3, 4, 5, 5)
    norm = resnet.layer_norm(4)
    assert isinstance(norm, nn.GroupNorm)
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    expected = layer_norm(x, (4, 5, 5)) * norm.weight.view(4, 1, 1) + norm.bias.view(4, 1, 1)
    torch.testing.assert_close(norm(x), expected)


def test_critic_values_do_not_depend_on_the_batch() -> None:
    critic, x = Critic(16, 1, 2), torch.randn(5, 1, 16, 16)
    torch.testing.assert_close(critic(x)[1][2:3], critic(x[2:3])[1])


def test_up_block_is_the_official_order() -> None:
    block, x = resnet.up_block(4, 2), torch.randn(3, 4, 4, 4)
    norm1, _, _, conv1, norm2, _, conv2 = block.path
    convolution = block.shortcut[0]
    nn.init.normal_(convolution.bias)
    shortcut = convolution(interpolate(x, scale_factor=2, mode="nearest"))
    path = conv1(interpolate(norm1(x).relu(), scale_factor=2, mode="nearest"))
    torch.testing.assert_close(block(x), shortcut + conv2(norm2(path).relu()))


def test_down_block_is_the_official_order() -> None:
    block, x = resnet.down_block(2, 4, resnet.layer_norm), torch.randn(3, 2, 4, 4)
    norm1, _, conv1, norm2, _, conv2, _ = block.path
    pool = nn.AvgPool2d(2)
    shortcut = block.shortcut[1](pool(x))
    path = conv2(norm2(conv1(norm1(x).relu())).relu())
    torch.testing.assert_close(block(x), shortcut + pool(path))


def test_first_weights_have_the_official_spread() -> None:
    main, shortcut = resnet.conv3(64, 128), resnet.down_block(64, 128, resnet.layer_norm).shortcut[1]
    assert main.weight.std().item() == pytest.approx(math.sqrt(4 / (9 * (64 + 128))), rel=0.02)
    assert shortcut.weight.std().item() == pytest.approx(math.sqrt(2 / (64 + 128)), rel=0.03)
    assert not main.bias.any()
