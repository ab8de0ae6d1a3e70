"""What the configs of a run name by `_target_`: found, held against what it takes, and built."""

import re
import warnings
from collections.abc import Iterator, Sequence
from importlib import import_module
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig, ListConfig, OmegaConf

from anomaly_bench.arguments import check_arguments
from anomaly_bench.detector import Detector
from anomaly_bench.errors import SettingError, described
from anomaly_bench.schema import on_data as on_data  # configs of methods use it


def check_group(group: str, config: Any) -> None:
    """Refuse what the target of the group `data`, `protocol` or `tracker` cannot take."""
    if not isinstance(config, DictConfig) or "_target_" not in config:
        raise SettingError(f"{group}={config}: a config with a _target_ is needed")
    typed = f"{group}._target_={(target := config['_target_'])}"
    if not callable(found := imported(str(target), typed)):
        raise SettingError(f"{typed}: there is no such function")
    check_arguments(group, plain_part(config), found, sources(config))


def check_targets(model: Any, packages: Sequence[str] | None = None, group: str = "model") -> None:
    """Refuse a `model` config with a `_target_`, at any depth, that is no detector, or with arguments it cannot take.

    Args:
        model: the config.
        packages: that targets may lie in, a module of no other is imported; None for any.
        group: in whose name settings are typed.
    """
    if isinstance(model, ListConfig):
        for number, value in enumerate(model):
            check_targets(value, packages, f"{group}.{number}")
    if not isinstance(model, DictConfig):
        if group == "model":
            raise SettingError(f"{group}={model}: a config with a _target_ is needed")
        return
    for key, value in model.items():
        if key != "_target_":
            check_targets(value, packages, f"{group}.{key}")
    if group != "model" and "_target_" not in model:
        return
    typed = f"{group}._target_={(target := model.get('_target_'))}"
    if not isinstance(target, str):
        raise SettingError(f"{typed}: the path of a Detector is needed")
    if packages is not None and not any(target.startswith(f"{package}.") for package in packages):
        raise SettingError(
            f"{typed}: a run's folder may name methods of {', '.join(packages)} only; to let it name one of "
            f"your own, add --allow {target.partition('.')[0]}"
        )
    if not (isinstance(found := imported(target, typed), type) and issubclass(found, Detector)):
        raise SettingError(f"{typed}: not a Detector of this or an installed package")
    if lacking := sorted(found.__abstractmethods__):
        raise SettingError(f"{typed}: it lacks {', '.join(lacking)}")
    check_arguments(group, plain_part(model), found, sources(model))


def declares(model: Any, name: str) -> bool:
    """Whether a `model` config, or one inside it, is of a detector that says `name` of itself."""
    if not isinstance(model, DictConfig):
        return False
    own = getattr(located(str(model.get("_target_"))), name, False)
    return own or any(declares(value, name) for value in model.values())


def build(model: DictConfig, shape: tuple[int, ...]) -> Detector:
    """The detector of a `model` config, whose targets were checked, for rows of `shape`.

    Raises:
        SettingError: it refuses its settings, or one of them is so small that a layer would be empty.
    """
    small = ", ".join(smallest(model))
    refusal = SettingError(f"model: a layer would be empty; too small is one of {small}")
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Initializing zero-element tensors")
            detector = instantiate(model)(shape=shape)
    except ZeroDivisionError as error:  # first weights are scaled by the number of inputs
        if not small:
            raise
        raise refusal from error
    if small and not all(parameter.numel() for parameter in detector.parameters()):
        raise refusal
    return detector


def smallest(model: Any, group: str = "model") -> Iterator[str]:
    """Settings of a `model` config, at any depth, that are 0 or 1 as a whole number, as they are typed."""
    for key, value in model.items() if isinstance(model, DictConfig) else enumerate(model):
        if isinstance(value, DictConfig | ListConfig):
            yield from smallest(value, f"{group}.{key}")
        elif type(value) is int and value < 2:
            yield f"{group}.{key}={value}"


def located(target: str) -> Any:
    """What a dotted path names; None where there is nothing."""
    module, _, name = target.rpartition(".")
    try:
        return getattr(import_module(module), name, None)
    except (ImportError, ValueError, TypeError):  # TypeError of names that begin with a point
        return None


def imported(target: str, typed: str) -> Any:
    """What a dotted path names; refuses, as `typed`, one that names nothing, or whose module fails.

    Raises:
        SettingError: saying whether the package, the name, or something that the module needs is not there.
    """
    module, _, name = target.rpartition(".")
    package = module.partition(".")[0]
    if not (module and all(part.isidentifier() for part in target.split("."))):
        raise SettingError(f"{typed}: a path such as package.module.Name is needed")
    try:
        found = import_module(module)
    except Exception as error:  # a module of the user's own may raise anything
        lacking = error.name or "" if isinstance(error, ModuleNotFoundError) else ""
        why = f"importing {module} failed: {described(error)}"
        if lacking == package:
            why = f"no package {package}: set PYTHONPATH or install it"
        elif f"{module}.".startswith(f"{lacking}."):
            parent, _, missing = lacking.rpartition(".")
            why = f"{parent} has no {missing}"
        raise SettingError(f"{typed}: {why}") from error
    if not hasattr(found, name):
        raise SettingError(f"{typed}: {module} has no {name}")
    return getattr(found, name)


def sources(config: DictConfig) -> dict[str, str]:
    """Names in a config whose value is that of another setting, `${abnormal_class}`, and which one."""
    values = OmegaConf.to_container(config)
    assert isinstance(values, dict)
    found = {str(name): re.fullmatch(r"\$\{(\w+)\}", str(value)) for name, value in values.items()}
    return {name: match[1] for name, match in found.items() if match}


def plain_part(config: DictConfig) -> dict[str, Any]:
    """A config as plain values, its interpolations resolved."""
    values = OmegaConf.to_container(config, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}
