"""Every method that has a config, put through the checks that hold for all."""

from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import pytest
from conformance import CHECKS, Case
from hydra import compose, initialize_config_dir
from omegaconf import DictConfig

from anomaly_bench.compose import build
from anomaly_bench.detector import Detector

CONFIGS = Path(__file__).parents[1] / "configs"
MODELS = sorted(path.stem for path in (CONFIGS / "model").glob("*.yaml"))

TOY = {
    "batch_size": 12,
    "epochs": 20,
    "encoder_steps": 60,
    "lr": 2e-3,
    "encoder_lr": 1e-3,
    "nz": 8,
    "code": 8,
    "width": 4,
    "ngf": 4,
    "ndf": 4,
    "descent_steps": 30,
    "z_lr": 0.05,
    "hidden": 32,
    "ema_decay": 0.9,
    "d_lr": 2e-3,
    "g_lr": 2e-3,
    "pretrain": 2,
}
"""Stands in for these keys of any model's config, at any depth."""

OWN: dict[str, dict[str, object]] = {
    "alad": {"epochs": 12},  # five networks; more only costs time
    "fence_gan_cifar10": {"epochs": 14},  # convolutions of 5 x 5; more only costs time
    "f_anogan": {"epochs": 8},  # of several updates of the critic a step; more only costs time
    "ocsvm_ae": {"code": 64, "lr": 5e-4},  # codes of few entries, or pressed against -1 and 1, are all alike
}
"""What else a model needs to find toys that lie on their side."""

UNMOVED: dict[str, dict[str, str]] = {
    "f_anogan": {
        r"criticise\.(head|features\.2\.(path\.5|shortcut\.1))\.bias": "cancels in D(x) - D(G(z))",
    },
}
"""By model: parameters that training need not move, as a pattern of their names, and why."""

GOOD_CONTROL: dict[str, str] = {
    "ocsvm_ae": "on random features, its one-class SVM tells these toys apart already",
}
"""By model: why training need not improve on the untrained control."""

ON_ROWS = {"alad_arrhythmia", "alad_kdd", "egbad_kdd", "fence_gan_kdd"}
"""Models whose config is for rows, though their method takes images as well; another config of it shows that."""


@cache
def settings(name: str) -> DictConfig:
    """A model's config at toy size."""
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        model = compose(f"model/{name}").model
    replace_values(model, TOY | OWN.get(name, {}))
    return model


def replace_values(config: DictConfig, values: dict[str, object]) -> None:
    """Set what `config` has among `values`, at any depth."""
    for key in config:
        if key in values:
            config[key] = values[key]
        elif isinstance(config[key], DictConfig):
            replace_values(config[key], values)


def built(name: str, shape: tuple[int, ...]) -> Detector:
    """A fresh detector of a model's config."""
    return build(settings(name), shape)


@pytest.fixture(scope="module", params=MODELS)
def case(request: pytest.FixtureRequest) -> Case:
    """One model; what it has learned is shared by its checks."""
    name = request.param
    unmoved, good_control = UNMOVED.get(name, {}), name in GOOD_CONTROL
    return Case(partial(built, name), unmoved, good_control, name in ON_ROWS)


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_model(case: Case, check: Callable[[Case], None]) -> None:
    check(case)
