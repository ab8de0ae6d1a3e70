"""The LeNet pair of Deep SVDD: no biases, and batch norm without parameters, so that no output can be constant."""

from collections.abc import Sequence

from torch import nn

from anomaly_bench.errors import SettingError
from anomaly_bench.networks.mlp import check_sizes

SLOPE = 0.01


def normalised(filters: int) -> list[nn.Module]:
    """Batch norm without parameters, and a leaky ReLU."""
    return [nn.BatchNorm2d(filters, eps=1e-4, affine=False), nn.LeakyReLU(SLOPE)]


def xavier(module: nn.Module) -> None:
    """For `module.apply`: the first weights of convolutions in CIFAR-10's autoencoder, uniform, for a leaky ReLU."""
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.xavier_uniform_(module.weight, nn.init.calculate_gain("leaky_relu", SLOPE))


def check_lenet_shape(shape: tuple[int, ...], channels: Sequence[int]) -> int:
    """The side of square images `(C, S, S)` that can be halved once for each of the `channels`."""
    check_sizes(channels=channels)
    step = 2 ** len(channels)
    if len(shape) != 3 or shape[1] != shape[2] or shape[1] % step:
        raise SettingError(
            f"data.image_size: found images of shape {shape}; model.channels={list(channels)} takes square "
            f"ones with sides that are multiples of {step}"
        )
    return shape[1]


class LeNetEncoder(nn.Sequential):
    """Images `[N, C, S, S]` to `[N, rep]`: 5 x 5 convolutions, each halved by max pooling, and a linear layer."""

    def __init__(self, shape: tuple[int, ...], channels: Sequence[int], rep: int) -> None:
        side = check_lenet_shape(shape, channels) >> len(channels)
        check_sizes(rep=rep)
        layers: list[nn.Module] = []
        for inputs, filters in zip([shape[0], *channels], channels, strict=False):
            conv = nn.Conv2d(inputs, filters, 5, padding=2, bias=False)
            layers += [conv, *normalised(filters), nn.MaxPool2d(2)]
        super().__init__(*layers, nn.Flatten(), nn.Linear(channels[-1] * side**2, rep, bias=False))


class LeNetDecoder(nn.Sequential):
    """`[N, rep]` to images `[N, C, S, S]` in (0, 1): nearest upsampling and 5 x 5 transposed convolutions.

    The official networks start from a 4 x 4 grid and double it three times: that of MNIST (two channels
    given) before each convolution, with one that crops 16 to 14 pixels; that of CIFAR-10 (three) after each
    but the last, with batch norm on its input.
    """

    def __init__(self, shape: tuple[int, ...], channels: Sequence[int], rep: int) -> None:
        side, first = check_lenet_shape(shape, channels), len(channels) < 3
        doublings = len(channels) + first
        grid = -(-side // 2**doublings)
        if rep % grid**2:
            raise SettingError(
                f"data.image_size: found {side} pixels, for which model.rep={rep} has to be a multiple of {grid**2}"
            )
        crop = (grid * 2 ** (doublings - 1) - side // 2) // 2  # before the last doubling
        layers: list[nn.Module] = [] if first else [nn.BatchNorm1d(rep, eps=1e-4, affine=False)]
        layers += [nn.Unflatten(1, (rep // grid**2, grid, grid)), nn.LeakyReLU(SLOPE)]
        inputs, filters = rep // grid**2, [*reversed(channels), shape[0]]
        for number, outputs in enumerate(filters):
            last = number == len(filters) - 1
            if first:
                layers.append(nn.Upsample(scale_factor=2))
            padding = 2 + crop * (number == len(filters) - 2)
            layers.append(nn.ConvTranspose2d(inputs, outputs, 5, padding=padding, bias=False))
            if not last:
                layers += normalised(outputs)
                if not first:
                    layers.append(nn.Upsample(scale_factor=2))
            inputs = outputs
        super().__init__(*layers, nn.Sigmoid())
