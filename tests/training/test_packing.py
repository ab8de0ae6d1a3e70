from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from anomaly_bench.networks.dcgan import FromPoint, OverAll
from anomaly_bench.training import packing
from anomaly_bench.training.packing import Packed, packed

pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch is without oneDNN")

LAYERS = {
    "plain": nn.Conv2d(4, 6, 3),
    "strided": nn.Conv2d(4, 6, 4, 2, 1, bias=False),
    "grey": nn.Conv2d(1, 6, 4, 2, 1),
    "grouped": nn.Conv2d(4, 8, 3, padding=1, groups=2),
    "dilated": nn.Conv2d(4, 6, (3, 2), dilation=2),
    "transposed": nn.ConvTranspose2d(4, 6, 4, 2, 1, bias=False),
    "transposed_to_grey": nn.ConvTranspose2d(4, 1, 4, 2, 1),
    "transposed_and_grown": nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1),
    "transposed_and_grouped": nn.ConvTranspose2d(4, 6, 3, groups=2),
}
ACTIVATIONS = {"none": nn.Tanh(), "relu": nn.ReLU(inplace=True), "leaky": nn.LeakyReLU(0.3)}


def images(channels: int = 4, n: int = 3) -> Tensor:
    return torch.randn(n, channels, 8, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry each time that oneDNN lays out weights."""
    laid_out: list[str] = []
    plain = packing.of_onednn

    def counting(*args: nn.Module) -> tuple[packing.LayOut, packing.Compute]:
        lay_out, compute = plain(*args)  # pyright: ignore[reportArgumentType]
        return lambda weight: (laid_out.append("weights"), lay_out(weight))[1], compute

    monkeypatch.setattr(packing, "of_onednn", counting)
    return laid_out


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_packed_layers_compute_the_same(layer: str, activation: str, channels_last: bool) -> None:
    network = nn.Sequential(LAYERS[layer], nn.Identity(), ACTIVATIONS[activation], nn.Sigmoid()).eval()
    x = images(LAYERS[layer].in_channels)
    if channels_last:
        network = network.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = network(x)
        with packed(network):
            kinds = [type(child).__name__ for child in network]
            assert kinds[0] == "Packed"
            assert (kinds[2] == "Identity") == (activation != "none"), (
                "the activation was computed twice, or left out"
            )
            for part in (x, x[:1], x.repeat(5, 1, 1, 1)):
                torch.testing.assert_close(network(part)[:1], expected[:1])


def test_in_bfloat16_they_compute_as_autocast_does() -> None:
    network = nn.Sequential(LAYERS["strided"], nn.LeakyReLU(0.2), nn.Conv2d(6, 3, 2)).eval()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        expected = network(images())
        with packed(network):
            found = network(images())
            with torch.autocast("cpu", enabled=False):
                exact = network(images())
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0.02, atol=0.02)
    with torch.no_grad():
        torch.testing.assert_close(exact, network(images()))


def test_where_bfloat16_is_not_there_the_layers_compute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "computes", lambda dtype: dtype == torch.float32)
    network = nn.Sequential(LAYERS["plain"], nn.ReLU())
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), packed(network):
        assert network(images()).min() == 0
        assert network[0].kept is None


def test_one_image_without_a_batch_is_taken_as_the_layers_take_it() -> None:
    network = nn.Sequential(LAYERS["plain"], nn.ReLU())
    with torch.no_grad():
        expected = network(images()[0])
        with packed(network):
            torch.testing.assert_close(network(images()[0]), expected)


def test_weights_are_laid_out_once(counted: list[str]) -> None:
    network = nn.Sequential(LAYERS["plain"], nn.ReLU(), LAYERS["transposed"])
    network[2] = nn.ConvTranspose2d(6, 2, 3)
    with torch.no_grad(), packed(network):
        for n in (3, 3, 2):
            network(images(n=n))
    assert counted == ["weights"] * 2


def test_gradients_are_those_of_the_layers() -> None:
    """Some scores are made of gradients."""
    network = nn.Sequential(LAYERS["strided"], nn.LeakyReLU(0.2), nn.Conv2d(6, 1, 4))
    x = images().requires_grad_()
    (expected,) = torch.autograd.grad(network(x).sum(), x)
    with torch.no_grad(), packed(network), torch.enable_grad():
        (found,) = torch.autograd.grad(network(x).sum(), x)
    torch.testing.assert_close(found, expected)


class Own(nn.Conv2d):
    """A convolution with a forward of its own."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) * 2


def strange_layers() -> Iterator[nn.Module]:
    yield Own(4, 6, 3)
    yield nn.Conv2d(4, 6, 3, padding="same")
    yield nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect")
    yield nn.Conv2d(4, 6, 3).double()
    yield spectral_norm(nn.Conv2d(4, 6, 3))
    for watch in (nn.Module.register_forward_hook, nn.Module.register_forward_pre_hook):
        watch(watched := nn.Conv2d(4, 6, 3), lambda *_: None)
        yield watched


@pytest.mark.parametrize("layer", list(strange_layers()), ids=lambda layer: type(layer).__name__)
def test_what_is_more_than_a_convolution_is_left_alone(layer: nn.Module) -> None:
    network = nn.Sequential(layer, nn.ReLU())
    with packed(network):
        assert network[0] is layer
        assert isinstance(network[1], nn.ReLU)


def test_an_activation_behind_another_layer_stays_behind_it() -> None:
    network = nn.Sequential(LAYERS["plain"], nn.InstanceNorm2d(6), nn.ReLU())
    with torch.no_grad():
        expected = network(images())
        with packed(network):
            torch.testing.assert_close(network(images()), expected)


def test_an_activation_that_is_looked_at_is_computed_by_itself() -> None:
    network, seen = nn.Sequential(LAYERS["plain"], nn.ReLU()), []
    network[1].register_forward_hook(lambda _, inputs, out: seen.append(out))
    with torch.no_grad(), packed(network):
        out = network(images())
    assert [x is out for x in seen] == [True]


class Aside(nn.Module):
    """An activation that is named after a convolution, and is no part of it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act = nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x) + self.act(x)


def test_outside_sequences_activations_stay() -> None:
    network = Aside()
    with torch.no_grad():
        expected = network(images())
        with packed(network):
            assert isinstance(network.conv, Packed)
            torch.testing.assert_close(network(images()), expected)


def test_everything_is_put_back_after_an_error() -> None:
    inner = nn.Sequential(LAYERS["strided"], nn.Tanh())
    network = nn.Sequential(LAYERS["plain"], nn.ReLU(), inner)
    before = [*network, *inner]
    names = list(network.state_dict())
    with pytest.raises(KeyError), packed(network):
        raise KeyError
    assert all(ours is layer for ours, layer in zip([*network, *inner], before, strict=True))
    assert list(network.state_dict()) == names


@pytest.mark.parametrize(
    ("layer", "x"), [(OverAll(4, 5, 8), images()), (FromPoint(4, 5, 8), images()[:, :, :1, :1])]
)
def test_products_keep_their_own_layout(layer: nn.Module, x: Tensor) -> None:
    network = nn.Sequential(layer, nn.ReLU()).to(memory_format=torch.channels_last)
    with torch.no_grad():
        expected = network(x)
        with packed(network):
            torch.testing.assert_close(network(x), expected, rtol=0, atol=0)
            ready = network[0]
            assert isinstance(ready, Packed)
            kept = ready.kept
            network(x)
            assert ready.kept is kept
            with torch.autocast("cpu", torch.bfloat16):
                rounded = network(x)
            assert ready.kept is not None
            has_bf16 = (
                torch.ops.mkldnn._is_mkldnn_bf16_supported()
            )  # else the layer computes as it would unpacked
            assert ready.kept[0] == (torch.bfloat16 if has_bf16 else torch.float32)
    torch.testing.assert_close(rounded.float(), expected, rtol=0.02, atol=0.02)
