"""The types of the settings that are ours; what a method, a data set or a protocol takes is its own."""

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from omegaconf import DictConfig, OmegaConf


class WhichEpoch(Enum):
    """Whose weights are scored."""

    last = "last"
    best_test = "best_test"


class BatchNorm(Enum):
    """What batch norm normalises by while scoring."""

    eval = "eval"
    batch = "batch"


class TestOrder(Enum):
    """How test rows are put into batches."""

    shuffled = "shuffled"
    by_class = "by_class"


class Scaling(Enum):
    """What scalers are fitted on."""

    train = "train"
    all = "all"


@dataclass
class Evaluation:
    """`evaluation.*`: each switch off in `clean`."""

    epoch: WhichEpoch = WhichEpoch.last
    batch_norm: BatchNorm = BatchNorm.eval
    test_order: TestOrder = TestOrder.shuffled
    scaling: Scaling = Scaling.train
    hindsight: bool = False
    batch_size: int = 256
    quantile: float = 0.95
    validation: float | None = None
    validation_class: int | str | None = None
    by_method: Any = None


@dataclass
class TrainerSettings:
    """`trainer.*`, as `anomaly_bench.training.trainer.Trainer` takes them."""

    device: str = "auto"
    precision: str = "auto"
    batch_size: int | None = None
    epoch_scale: float = 1.0
    max_epochs: int | None = None
    eval_every: int = 0
    channels_last: bool = True
    compile: str = "auto"
    gemm: bool = True
    fold: bool = True


@dataclass
class Settings:
    """All top-level keys."""

    data: Any = None
    protocol: Any = None
    model: Any = None
    trainer: TrainerSettings = field(default_factory=TrainerSettings)
    evaluation: Evaluation = field(default_factory=Evaluation)
    abnormal_class: int | str = 0
    normal_class: int | str = 0
    seed: int = 0
    deterministic: bool = False
    point: Any = None
    tracker: Any = None
    runs_dir: str = "runs"
    rerun: bool = False


def on_data(by_name: Any, otherwise: Any, *, _root_: DictConfig) -> Any:
    """What a method has on the data set that was chosen: `hidden: ${on_data:{thyroid:[12,4]},[60,30,10]}`."""
    found = by_name.get(OmegaConf.select(_root_, "data.name"), otherwise)
    return OmegaConf.create(found) if isinstance(found, list) else found


OmegaConf.register_new_resolver("on_data", on_data, replace=True)
