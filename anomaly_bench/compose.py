"""From settings to what one run is made of: data, split, trainer, detector, and the folder they end in."""

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import hydra
import numpy as np
import torch
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from anomaly_bench import record
from anomaly_bench.arguments import MOST
from anomaly_bench.data import shared
from anomaly_bench.data.dataset import Dataset
from anomaly_bench.data.scaling import Scaler, fit_scaler
from anomaly_bench.detector import Detector
from anomaly_bench.errors import SettingError
from anomaly_bench.places import CONFIGS
from anomaly_bench.protocols import Split, check_seed
from anomaly_bench.rows import Rows
from anomaly_bench.schema import Settings
from anomaly_bench.sweep import SHARED
from anomaly_bench.targets import build, check_group, check_targets, declares, located
from anomaly_bench.training.trainer import Trainer
from anomaly_bench.validation import Validation, check_blind, hold_out

NOT_HASHED = (
    "runs_dir",
    "rerun",
    "abnormal_class",
    "normal_class",
    "seed",
    "point",
    "data",
    "trainer",
    "tracker",
)
"""Settings that cannot change the numbers, that stand in the run's name, or are hashed by what they come to."""


CLASS_KEYS = ("abnormal_class", "normal_class")
"""What a protocol may ask for."""

SCORING_ONLY = ("epoch", "batch_norm", "test_order", "hindsight", "batch_size", "quantile")
"""Switches of `evaluation` that leave training as it is."""

VALIDATION = ("validation", "validation_class")
"""Switches of `evaluation` that hold rows out."""

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
        validation: rows that hyper-parameters may be chosen by, where some are held out.
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
    validation: Validation | None = None

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

    def rows(self, chosen: np.ndarray) -> Rows:
        """These rows of the data set, by their numbers, on the trainer's device."""
        return self.trainer.rows(self.x, self.dataset.mean, self.dataset.std, torch.from_numpy(chosen))

    def build(self) -> Detector:
        """The detector with its first weights, which the seed decides, on the trainer's device."""
        torch.manual_seed(self.seed)
        return self.trainer.place(build(self.settings.model, self.dataset.shape))

    def tracker(self) -> Callable[..., Any] | None:
        """What makes the tracker that was chosen, if one was."""
        return instantiate(self.settings.tracker) if self.settings.tracker else None


def settings_of(overrides: Sequence[str]) -> tuple[DictConfig, dict[str, str]]:
    """What the command line composes from `overrides`: the settings, and what was chosen of each group.

    It works inside a program of Hydra's too.
    """
    ConfigStore.instance().store("schema", Settings)
    program, GlobalHydra.instance().hydra = GlobalHydra.instance().hydra, None
    try:
        with hydra.initialize_config_dir(str(CONFIGS), version_base="1.3"):
            settings = hydra.compose("config", list(overrides), return_hydra_config=True)
    finally:
        GlobalHydra.instance().hydra = program
    chosen = settings.hydra.runtime.choices
    groups = ("model", "data", "protocol", "evaluation", "experiment")
    names = {group: str(chosen[group]) for group in groups if chosen.get(group) is not None}
    return own(settings), names


def own(settings: DictConfig) -> DictConfig:
    """The composed config without Hydra's part of it."""
    return OmegaConf.masked_copy(settings, [key for key in settings if key != "hydra"])  # type: ignore


def compose(settings: DictConfig, names: dict[str, str], overrides: list[str]) -> Job:
    """Load the data, split them, and name the run."""
    check_keys(settings)
    values = plain(settings)
    for group in ("data", "protocol", *(["tracker"] if settings.tracker else [])):
        check_group(group, settings[group])
    check_evaluation(values["evaluation"])
    check_targets(settings.model)
    check_class_keys(settings.protocol, names["protocol"], overrides)
    check_seed(settings.seed)
    dataset = load_data(data_yaml(settings))
    split, validation = split_of(settings, names["data"], dataset)
    if validation is not None:
        check_blind(values["evaluation"])
    # The best epoch cannot be told without looking at every one.
    eval_every = values["trainer"]["eval_every"] or int(values["evaluation"]["epoch"] == "best_test")
    trainer = Trainer(**values["trainer"] | {"eval_every": eval_every})
    counted = counted_of(values, dataset, trainer)
    digest = record.settings_hash(counted)
    name = record.run_name(
        names["data"], names["protocol"], names["model"], split.case, settings.seed, digest
    )
    return Job(
        settings=settings,
        values=values,
        names=names,
        overrides=overrides,
        dataset=dataset,
        split=split,
        scaler=scaler_for(dataset, split, values["evaluation"]["scaling"]),
        trainer=trainer,
        folder=Path(settings.runs_dir) / name,
        settings_hash=digest,
        training_hash=record.settings_hash(learned_by(counted)),
        validation=validation,
    )


def split_of(settings: DictConfig, data: str, dataset: Dataset) -> tuple[Split, Validation | None]:
    """The split that the protocol makes of the data set called `data`, and what is held out of it to choose by."""
    split = instantiate(settings.protocol).split(dataset, settings.seed)
    if declares(settings.model, "transductive"):
        split = replace(split, train=split.test)
    share, of_class = (settings.evaluation[name] for name in VALIDATION)
    split, validation = hold_out(split, dataset, settings.seed, share, of_class)
    if len(split.train) < 2:  # one row has no spread, and no batch norm takes it
        raise SettingError(
            f"data={data}, {split.case}: {len(split.train)} training row; at least two are needed"
        )
    return split, validation


def counted_of(values: dict[str, Any], dataset: Dataset, trainer: Trainer) -> dict[str, Any]:
    """The settings that can change the numbers, but for class and seed; data and precision by what they come to."""
    return (
        record.without_later(without(values, NOT_HASHED))
        | {"data": [dataset.fingerprint(), *scale_of(dataset)]}
        | {"trainer": values["trainer"] | {"device": None, "precision": trainer.precision}}
    )


def check_keys(settings: DictConfig) -> None:
    """Refuse settings that a `+` has added where nothing takes them."""
    known = OmegaConf.structured(Settings)
    for prefix, given, there in (
        ("", settings, {*known, "experiment"}),
        *((f"{group}.", settings[group], {*known[group]}) for group in ("trainer", "evaluation")),
    ):
        for key in map(str, given):
            if key not in there:
                names = ", ".join(sorted(there - {"by_method"}))
                raise SettingError(f"{prefix}{key}={given[key]}: no such setting; there are {names}")


def check_class_keys(protocol: DictConfig, name: str, overrides: Sequence[str]) -> None:
    """Refuse `normal_class=3` where the protocol asks for `abnormal_class`: the run would be of another class."""
    typed = {key.lstrip("+"): text for text in overrides for key in [text.partition("=")[0]]}
    read = [key for key in CLASS_KEYS if key in protocol]
    for key in CLASS_KEYS:
        if key in typed and key not in read and not typed.keys() & set(read):
            what = f"reads {read[0]}" if read else "reads no class: the names of folders say who is normal"
            raise SettingError(f"{typed[key]}: protocol={name} {what}")


def learned_by(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without those that change how a run is scored only."""
    scored_by = getattr(located(settings["model"]["_target_"]), "scored_by", ())
    return settings | {
        "evaluation": without(settings["evaluation"], SCORING_ONLY),
        "model": without(settings["model"], scored_by),
        "trainer": settings["trainer"] | {"eval_every": 0, "fold": True},
    }


def without(values: dict[str, Any], names: Sequence[str]) -> dict[str, Any]:
    """The values but those of these names."""
    return {key: value for key, value in values.items() if key not in names}


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
    return read_data(yaml)


def read_data(yaml: str) -> Dataset:
    """The data set of a `data` config as its files are now."""
    return instantiate(OmegaConf.create(yaml))


def share_data(settings: DictConfig) -> None:
    """Load the data set of `settings` once for all workers of a sweep, where none has that died before it said so."""
    check_group("data", settings.data)
    yaml = data_yaml(settings)
    place = shared_place(yaml)
    assert place is not None
    if not place.exists():
        shared.save(read_data(yaml), place)


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
    if values["evaluation"].get("validation") is None:
        for name in VALIDATION:  # the run is the one it was before there were these settings
            values["evaluation"].pop(name, None)
    return {str(key): value for key, value in values.items()}


def check_evaluation(evaluation: dict[str, Any]) -> None:
    """Refuse switches of `evaluation` that are out of range."""
    if not 1 <= evaluation["batch_size"] <= MOST:
        raise SettingError(
            f"evaluation.batch_size={evaluation['batch_size']}: allowed is a number of rows from 1 to {MOST}"
        )
    if evaluation["batch_norm"] == "batch" and evaluation["batch_size"] == 1:
        raise SettingError(
            "evaluation.batch_norm=batch evaluation.batch_size=1: one row has no statistics; allowed is a batch_size "
            "from 2, or batch_norm=eval"
        )
    if not 0 <= evaluation["quantile"] <= 1:
        raise SettingError(f"evaluation.quantile={evaluation['quantile']}: allowed is a share from 0 to 1")
