"""From settings to what one run is made of: data, split, trainer, detector, and the folder they end in."""

import hashlib
import os
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from anomaly_bench import record
from anomaly_bench.data import shared
from anomaly_bench.data.dataset import Dataset
from anomaly_bench.data.scaling import Scaler, fit_scaler
from anomaly_bench.detector import Detector
from anomaly_bench.errors import SettingError
from anomaly_bench.protocols import Split
from anomaly_bench.rows import Rows
from anomaly_bench.schema import on_data as on_data  # configs of methods use it
from anomaly_bench.sweep import SHARED
from anomaly_bench.training.checkpoint import load_tensors
from anomaly_bench.training.trainer import Trainer

NOT_HASHED = ("runs_dir", "rerun", "abnormal_class", "normal_class", "seed", "point", "data", "trainer")
"""Settings that cannot change the numbers, that stand in the run's name, or are hashed by what they come to."""


SCORING_ONLY = ("epoch", "batch_norm", "test_order", "hindsight", "batch_size", "quantile")
"""Switches of `evaluation` that leave training as it is."""

SCALER = "scaler.safetensors"
"""The file of a run that holds its fitted scaler."""


@dataclass(frozen=True)
class Job:
    """Everything one run is made of.

    Attributes:
        settings: the composed config, and `values` the same as plain values.
        names: what was chosen of the groups `model`, `data`, `protocol`, `evaluation` and, if it was, `experiment`.
        overrides: what the user typed.
        scaler: of rows of numbers, fitted as `evaluation.scaling` has it; None for images.
        settings_hash: of every setting that can change the numbers, but for class and seed.
        training_hash: of those among them that can change what is learned.
    """

    settings: DictConfig
    values: dict[str, Any]
    names: dict[str, str]
    overrides: list[str]
    dataset: Dataset
    split: Split
    scaler: Scaler | None
    trainer: Trainer
    folder: Path
    settings_hash: str
    training_hash: str

    @property
    def seed(self) -> int:
        """Of the split, the first weights and the batches."""
        return self.values["seed"]

    @property
    def evaluation(self) -> dict[str, Any]:
        """The switches of `evaluation`."""
        return self.values["evaluation"]

    @cached_property
    def x(self) -> Tensor:
        """All rows of the data set as a detector takes them: images as they are, rows of numbers scaled."""
        return self.dataset.x if self.scaler is None else self.scaler(self.dataset.x)

    @property
    def title(self) -> str:
        """What the run is, in a few words."""
        synthetic = " (synthetic data)" if self.dataset.source == "synthetic" else ""
        return (
            f"{self.names['model']} on {self.names['data']}{synthetic}, {self.split.case}, seed {self.seed}"
        )

    def rows(self, x: Tensor) -> Rows:
        """Rows of the data set's kind on the trainer's device."""
        return self.trainer.rows(x, self.dataset.mean, self.dataset.std)

    def build(self) -> Detector:
        """The detector with its first weights, which the seed decides, on the trainer's device."""
        torch.manual_seed(self.seed)
        return self.trainer.place(build(self.settings.model, self.dataset.shape))


def compose(settings: DictConfig, names: dict[str, str], overrides: list[str]) -> Job:
    """Load the data, split them, and name the run."""
    values = plain(settings)
    dataset = load_data(data_yaml(settings))
    split = instantiate(settings.protocol).split(dataset, settings.seed)
    if declares(settings.model, "transductive"):
        split = replace(split, train=split.test)
    # The best epoch cannot be told without looking at every one.
    eval_every = values["trainer"]["eval_every"] or int(values["evaluation"]["epoch"] == "best_test")
    trainer = Trainer(**values["trainer"] | {"eval_every": eval_every})
    counted = (
        {key: value for key, value in values.items() if key not in NOT_HASHED}
        | {"data": [dataset.fingerprint(), *scale_of(dataset)]}
        | {"trainer": values["trainer"] | {"device": None, "precision": trainer.precision}}
    )
    digest = record.settings_hash(counted)
    name = record.run_name(
        names["data"], names["protocol"], names["model"], split.case, settings.seed, digest
    )
    folder = Path(settings.runs_dir) / name
    scaler = scaler_for(dataset, split, values["evaluation"]["scaling"])
    learning = training_hash(counted)
    return Job(settings, values, names, overrides, dataset, split, scaler, trainer, folder, digest, learning)


def training_hash(counted: dict[str, Any]) -> str:
    """Of the counted settings, those that can change what is learned."""
    evaluation = {key: value for key, value in counted["evaluation"].items() if key not in SCORING_ONLY}
    return record.settings_hash(
        counted | {"evaluation": evaluation, "trainer": counted["trainer"] | {"eval_every": 0, "fold": True}}
    )


def scale_of(dataset: Dataset) -> list[Any]:
    """What decides how a data set's rows are scaled."""
    return [dataset.mean, dataset.std] if dataset.x.dtype == torch.uint8 else [dataset.scale]


def scaler_for(dataset: Dataset, split: Split, fitted_on: str) -> Scaler | None:
    """The scaler of rows of numbers, fitted on the training rows, or on `all`; None for images."""
    if dataset.x.dtype == torch.uint8:
        return None
    x = dataset.x if fitted_on == "all" else dataset.x[torch.from_numpy(split.train)]
    return fit_scaler(x, dataset.scale)


@lru_cache(maxsize=2)
def load_data(yaml: str) -> Dataset:
    """The data set of a `data` config, once for all runs of a process; mapped, where workers share it."""
    place = shared_place(yaml)
    if place is not None and place.exists():
        return shared.load(place)
    return instantiate(OmegaConf.create(yaml))


def share_data(settings: DictConfig) -> None:
    """Load the data set of `settings` once for all workers of a sweep."""
    yaml = data_yaml(settings)
    place = shared_place(yaml)
    assert place is not None
    shared.save(instantiate(OmegaConf.create(yaml)), place)


def data_yaml(settings: DictConfig) -> str:
    """What says which data set it is."""
    return OmegaConf.to_yaml(settings.data, resolve=True)


def shared_place(yaml: str) -> Path | None:
    """Where the workers of a sweep share a data set; None in a process that is not one."""
    folder = os.environ.get(SHARED)
    return Path(folder) / hashlib.sha256(yaml.encode()).hexdigest() if folder else None


def plain(settings: DictConfig) -> dict[str, Any]:
    """The settings as plain values, enumerations by name."""
    values = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(settings, resolve=True)))
    assert isinstance(values, dict)
    values["evaluation"].pop("by_method", None)
    return {str(key): value for key, value in values.items()}


def build(model: DictConfig, shape: tuple[int, ...]) -> Detector:
    """The detector of a `model` config for rows of `shape`."""
    check_targets(model)
    return instantiate(model)(shape=shape)


def check_targets(model: Any) -> None:
    """Refuse every `_target_` that is not a detector: a foreign run's config must not call what it likes."""
    if not isinstance(model, DictConfig):
        return
    for key, value in model.items():
        if key != "_target_":
            check_targets(value)
        elif not (isinstance(found := located(str(value)), type) and issubclass(found, Detector)):
            raise SettingError(f"model._target_={value}: not a Detector of this or an installed package")
        elif lacking := sorted(found.__abstractmethods__):
            raise SettingError(f"model._target_={value}: it lacks {', '.join(lacking)}")


def declares(model: Any, name: str) -> bool:
    """Whether a `model` config, or one inside it, is of a detector that says `name` of itself."""
    if not isinstance(model, DictConfig):
        return False
    own = getattr(located(str(model.get("_target_"))), name, False)
    return own or any(declares(value, name) for value in model.values())


def located(target: str) -> Any:
    """What a dotted path names; None where there is nothing."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except (ImportError, ValueError):
        return None


@dataclass(frozen=True)
class Trained:
    """A finished run, ready to score: its detector in place, its trainer, and what its folder says."""

    detector: Detector
    trainer: Trainer
    scaler: Scaler | None
    values: dict[str, Any]
    run: dict[str, Any]
    metrics: dict[str, Any]


def load_run(folder: Path, device: str = "auto") -> Trained:
    """Load a finished run onto a device, executing nothing it holds; another folder is a SettingError."""
    figures = record.read_json(folder / "metrics.json")
    if not figures:
        raise SettingError(f"{folder}: not the folder of a finished run (no metrics.json in it)")
    kept = record.read_json(folder / "run.json")
    settings = OmegaConf.load(folder / "config.yaml")
    assert isinstance(settings, DictConfig)
    values = plain(settings)
    trainer = Trainer(**values["trainer"] | {"device": device, "precision": kept["precision"]})
    detector = build(settings.model, tuple(kept["shape"]))
    detector.load_state_dict(load_tensors(folder / "model.safetensors")[0])
    scaler = folder / SCALER
    scaling = Scaler(**load_tensors(scaler)[0]) if scaler.exists() else None
    return Trained(trainer.place(detector).eval(), trainer, scaling, values, kept, figures)
