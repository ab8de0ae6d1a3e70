"""A finished run from its folder: its detector, ready to score. Nothing that the folder holds is executed."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from anomaly_bench import record
from anomaly_bench.compose import SCALER, plain
from anomaly_bench.data.scaling import Scaler
from anomaly_bench.detector import Detector
from anomaly_bench.errors import SettingError, described, one_line
from anomaly_bench.targets import build, check_targets
from anomaly_bench.training.checkpoint import load_tensors
from anomaly_bench.training.trainer import Trainer

OWN_METHODS = "anomaly_bench.detectors"
"""The package of the methods that any run's folder may name."""


@dataclass(frozen=True)
class Trained:
    """A finished run, ready to score: its detector in place, its trainer, and what its folder says."""

    detector: Detector
    trainer: Trainer
    scaler: Scaler | None
    values: dict[str, Any]
    run: dict[str, Any]
    metrics: dict[str, Any]


def load_run(folder: Path, device: str = "auto", packages: Sequence[str] = ()) -> Trained:
    """Load a finished run onto a device. It may be a stranger's: nothing that its folder holds is executed.

    Its config names the class of its method. That has to lie in `anomaly_bench.detectors`, or in one of the
    `packages` that the caller trusts: another is not even imported, since importing runs code.

    Raises:
        SettingError: another folder, or files in it that are not what a run writes.
    """
    figures = record.read_json(folder / "metrics.json")
    if not figures:
        raise SettingError(
            f"{folder}: not the folder of a finished run (no metrics.json in it that can be read)"
        )
    kept = record.read_json(folder / "run.json")
    if not {"precision", "shape"} <= kept.keys():
        raise SettingError(f"{folder / 'run.json'}: missing, or not what a finished run writes")
    settings = read_config(folder)
    check_targets(settings.get("model"), [OWN_METHODS, *packages])
    tensors = load_tensors(folder / "model.safetensors")[0]
    scaler = folder / SCALER
    scaling = load_tensors(scaler)[0] if scaler.exists() else None
    try:
        values = plain(settings)
        if not isinstance(values.get("data"), dict) or "batch_norm" not in values.get("evaluation", ()):
            raise ValueError("config.yaml lacks data or evaluation")
        trainer = Trainer(**values["trainer"] | {"device": device, "precision": kept["precision"]})
        detector = build(settings.model, tuple(kept["shape"]))
        detector.load_state_dict(tensors)
        scaling = None if scaling is None else scaler_of(scaling, kept["shape"])
        return Trained(trainer.place(detector).eval(), trainer, scaling, values, kept, figures)
    except SettingError:
        raise
    except Exception as error:  # from a method's constructor, or of a foreign file, anything may come
        raise SettingError(
            f"{folder}: its files do not fit together, or are of another version: {described(error)}"
        ) from error


def scaler_of(tensors: dict[str, Tensor], shape: Sequence[int]) -> Scaler:
    """The scaler that a run kept, which must be of as many columns as its rows."""
    scaler = Scaler(**tensors)
    if any(part.shape != tuple(shape) or part.dtype != torch.float32 for part in scaler):
        raise ValueError(f"{SCALER} is not of rows of shape {list(shape)}")
    return scaler


def read_config(folder: Path) -> DictConfig:
    """The `config.yaml` of a run, as runs write it: every value in place, no reference to anything else."""
    path = folder / "config.yaml"
    try:
        text = record.own_file(path, record.LARGEST_CONFIG).read_text(encoding="utf-8")
        settings = OmegaConf.create(record.plain_yaml(text))
        if not isinstance(settings, DictConfig):
            raise ValueError("it holds no settings")
        if "${" in str(OmegaConf.to_container(settings)):
            raise ValueError("it has interpolations")
    except (OSError, ValueError, RecursionError, yaml.YAMLError, OmegaConfBaseException) as error:
        raise SettingError(f"{path}: not the config of a finished run: {one_line(error)}") from error
    return settings
