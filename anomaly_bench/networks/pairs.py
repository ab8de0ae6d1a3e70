"""Encoders and decoders by name: `conv` is the convolutional autoencoder of GeoTrans, `dense` takes rows too."""

from collections.abc import Sequence

from torch import nn

from anomaly_bench.errors import SettingError, check_choice
from anomaly_bench.networks.cae import ConvDecoder, ConvEncoder
from anomaly_bench.networks.dense import DenseDecoder, DenseEncoder


def encoder(
    network: str, shape: tuple[int, ...], code: int, width: int, hidden: Sequence[int], bounded: bool = True
) -> nn.Sequential:
    """Rows `[N, *shape]` to codes `[N, code]`, in (-1, 1) where they are `bounded` and the network is `conv`.

    Args:
        network: `conv` or `dense`.
        width: filters of the first stage of `conv`.
        hidden: units of the layers between row and code of `dense`.
    """
    check(network, shape)
    if network == "dense":
        return DenseEncoder(shape, code, hidden)
    net = ConvEncoder(shape, code, width)
    if not bounded:
        del net[-1]
    return net


def decoder(
    network: str, shape: tuple[int, ...], code: int, width: int, hidden: Sequence[int], bounded: bool = True
) -> nn.Sequential:
    """The encoder's mirror: codes `[N, code]` to rows `[N, *shape]`; `bounded` images are in (-1, 1)."""
    check(network, shape)
    if network == "dense":
        net = DenseDecoder(shape, code, hidden)
        return net.append(nn.Tanh()) if bounded and len(shape) == 3 else net
    net = ConvDecoder(shape, code, width)
    if not bounded:
        del net[-1]
    return net


def check(network: str, shape: tuple[int, ...]) -> None:
    """Refuse a network that there is not, and rows of numbers where images are needed."""
    check_choice("network", network, ("conv", "dense"))
    if network == "conv" and len(shape) != 3:
        raise SettingError(
            f"model.network=conv: it needs images, found rows of shape {shape}; model.network=dense takes both"
        )
