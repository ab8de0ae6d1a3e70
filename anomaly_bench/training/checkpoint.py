"""What is kept of an unfinished run: safetensors files, renamed into place, that hold no code and know their sum."""

import json
import logging
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.optim import Optimizer

from anomaly_bench.errors import SettingError
from anomaly_bench.record import replacing

log = logging.getLogger("anomaly_bench")

SUM = "crc32"
"""Under which a file's metadata hold the check sum of its tensors and of the other metadata."""


class DamagedError(SettingError):
    """A file is not what was written."""


@dataclass(frozen=True)
class Epoch:
    """One finished epoch.

    Attributes:
        stage: number of its stage, from 0, and `name` that stage's name.
        epoch: from 1 within its stage.
        losses: means over its steps.
        rows: training rows seen.
        seconds: of training, without evaluation.
        auroc: on the test rows, where epochs are evaluated. It has seen the test labels.
        step: how its steps ran: `eager`, `graph` or `inductor`, and why if not as wanted.
    """

    stage: int
    name: str
    epoch: int
    losses: dict[str, float]
    rows: int
    seconds: float
    auroc: float | None = None
    step: str = "eager"


@dataclass
class Checkpoint:
    """Where a run stands: so many epochs of stage `stage` are done, and with them all of this was so.

    Attributes:
        stage, epoch: number of the stage, and its epochs done.
        over: the stage is done, by its epochs or by its own rule.
        history: every epoch so far.
        tensors: weights, optimiser state and random states, by prefix (`model.`, `optimizer.`, `random.`).
        groups: the optimisers' settings.
    """

    stage: int
    epoch: int
    over: bool
    history: list[Epoch]
    tensors: dict[str, Tensor]
    groups: list[list[dict]] = field(default_factory=list)

    def save(self, path: Path) -> None:
        """Write to a temporary file, then rename; what was there is kept as the `previous` one."""
        facts = {
            "stage": self.stage,
            "epoch": self.epoch,
            "over": self.over,
            "history": [vars(line) for line in self.history],
            "groups": self.groups,
        }
        save_tensors(path, self.tensors, {"checkpoint": json.dumps(facts)}, previous_of(path))

    @classmethod
    def load(cls, path: Path) -> "Checkpoint":
        """Read it back, onto the CPU; a file that is none is a SettingError."""
        tensors, metadata = load_tensors(path)
        try:
            facts = json.loads(metadata["checkpoint"])
            facts["history"] = [Epoch(**line) for line in facts["history"]]
            kept = cls(tensors=tensors, **facts)
            kept.check()
            return kept
        except (KeyError, ValueError, TypeError, RecursionError) as error:
            raise DamagedError(
                f"{path}: not a checkpoint ({error}); rerun=true starts the run anew"
            ) from error

    @classmethod
    def last(cls, path: Path) -> "Checkpoint | None":
        """The last that is whole: `path`, else the one before it, else None. A damaged one is removed."""
        for file in filter(Path.exists, (path, previous_of(path))):
            try:
                return cls.load(file)
            except DamagedError:
                file.unlink()  # lest it take the place of the one before it
                log.warning("%s is damaged; the run goes on from what was kept before it", file)
        return None

    def check(self) -> None:
        """Raise a TypeError where facts are not of their types, as in a file that no run has written."""
        plain = {"stage": int, "epoch": int, "rows": int, "name": str, "step": str, "losses": dict}
        for one in (self, *self.history):
            for name, value in vars(one).items():
                if name in plain and type(value) is not plain[name]:
                    raise TypeError(f"its {name} is {value!r}")
            if isinstance(one, Epoch):
                numbers = [one.seconds, *([] if one.auroc is None else [one.auroc]), *one.losses.values()]
                if not all(type(number) in (int, float) for number in numbers):
                    raise TypeError(f"an epoch has {numbers}")
        if not isinstance(self.over, bool) or not isinstance(self.groups, list):
            raise TypeError("it does not say where the run stands")

    @property
    def model(self) -> dict[str, Tensor]:
        """The detector's `state_dict`."""
        return self.part("model.")

    def part(self, prefix: str) -> dict[str, Tensor]:
        """The tensors under `prefix`, named without it."""
        return {name.removeprefix(prefix): x for name, x in self.tensors.items() if name.startswith(prefix)}

    def restore_optimizers(self, optimizers: Sequence[Optimizer]) -> None:
        """Give each optimiser its state back, laid out in memory as its parameters are."""
        for number, (optimizer, groups) in enumerate(zip(optimizers, self.groups, strict=True)):
            parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
            state: dict[int, dict[str, Tensor]] = {}
            for name, tensor in self.part(f"optimizer.{number}.").items():
                index, key = name.split(".", 1)
                state.setdefault(int(index), {})[key] = laid_out_as(parameters[int(index)], tensor)
            optimizer.load_state_dict({"state": state, "param_groups": groups})


def laid_out_as(parameter: Tensor, tensor: Tensor) -> Tensor:
    """`tensor` in the memory format and on the device of `parameter`, if it has its shape."""
    return torch.empty_like(parameter).copy_(tensor) if tensor.shape == parameter.shape else tensor


def optimizer_tensors(optimizers: Sequence[Optimizer]) -> tuple[dict[str, Tensor], list[list[dict]]]:
    """The optimisers' state as tensors by name, and their settings as plain values."""
    tensors: dict[str, Tensor] = {}
    groups = []
    for number, optimizer in enumerate(optimizers):
        kept = optimizer.state_dict()
        groups.append(kept["param_groups"])
        for index, entries in kept["state"].items():
            for key, value in entries.items():
                if value is not None:
                    tensors[f"optimizer.{number}.{index}.{key}"] = torch.as_tensor(value)
    return tensors, groups


def random_state(device: torch.device, order: torch.Generator) -> dict[str, Tensor]:
    """Every random state that a run draws from."""
    states = {"random.cpu": torch.get_rng_state(), "random.order": order.get_state()}
    if device.type == "cuda":
        states["random.cuda"] = torch.cuda.get_rng_state(device)
    if device.type == "mps":
        states["random.mps"] = torch.mps.get_rng_state()
    return states


def restore_random_state(states: dict[str, Tensor], device: torch.device, order: torch.Generator) -> None:
    """Set the random states that `random_state` gave, `random.` taken off their names."""
    torch.set_rng_state(states["cpu"])
    order.set_state(states["order"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
    if device.type == "mps" and "mps" in states:
        torch.mps.set_rng_state(states["mps"])


def save_weights(path: Path, detector: nn.Module, **facts: float) -> None:
    """A detector's weights and fitted state as a safetensors file, with some numbers beside them."""
    save_tensors(path, dict(detector.state_dict()), {name: repr(value) for name, value in facts.items()})


def kept_fact(path: Path, name: str) -> float | None:
    """A number that `save_weights` put beside the weights; None where there is no such file."""
    if not path.exists():
        return None
    with safe_open(path, "pt") as file:
        return float(file.metadata()[name])


def save_tensors(
    path: Path, tensors: dict[str, Tensor], metadata: dict[str, str], previous: Path | None = None
) -> None:
    """Write a safetensors file to a temporary name, then rename; what was there may be kept as `previous`."""
    plain = {name: x.detach().to("cpu", copy=True).contiguous() for name, x in tensors.items()}
    with replacing(path) as temporary:
        temporary.write_bytes(save(plain, metadata | {SUM: check_sum(plain, metadata)}))
        if previous is not None and path.exists():
            os.replace(path, previous)  # noqa: PTH105 - as in `replacing`


def load_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors, onto the CPU, and metadata of a safetensors file.

    Raises:
        DamagedError: it is none, or not what was written.
        SettingError: it cannot be read now, for lack of memory, say.
    """
    if path.exists() and not path.is_file():
        raise DamagedError(f"{path}: it is no plain file")  # a pipe would be waited for
    try:
        with safe_open(path, "pt") as file:
            metadata = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, ValueError, AttributeError) as error:
        raise DamagedError(f"{path}: not a safetensors file, or damaged ({error})") from error
    except (OSError, RuntimeError, MemoryError) as error:
        raise SettingError(f"{path}: cannot be read ({error})") from error
    written = metadata.pop(SUM, None)  # files of older versions have none
    if written is not None and written != check_sum(tensors, metadata):
        raise DamagedError(f"{path}: damaged (its check sum is not {written})")
    return tensors, metadata


def check_sum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Eight hexadecimal digits of contiguous tensors on the CPU, their names and kinds, and the metadata."""
    kinds = [(name, str(tensors[name].dtype), tuple(tensors[name].shape)) for name in sorted(tensors)]
    digits = zlib.crc32(repr((sorted(metadata.items()), kinds)).encode())
    for name, *_ in kinds:
        digits = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy().data, digits)
    return f"{digits:08x}"


def previous_of(path: Path) -> Path:
    """Where the checkpoint before the last is kept."""
    return path.with_name(f"previous-{path.name}")
