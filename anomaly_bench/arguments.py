"""Settings held against what the function that takes them says of its arguments, before anything is loaded or built."""

import inspect
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from anomaly_bench.errors import SettingError

MOST = 2**31 - 1
"""The largest whole number; with larger ones sizes overflow, and no run would end."""

OWN_KEYS = ("_target_", "_partial_", "_recursive_", "_convert_", "_args_")
"""Keys of a config that are no arguments."""

MISSING = "???"
"""What stands in a config for a value that has to be given."""

PIXELS = "a whole number from 1 to 4096, or null"
"""What `data.image_size` allows."""

WORDS = {
    int: f"a whole number from 0 to {MOST}",
    float: "a finite number",
    bool: "true or false",
    str: "a text",
}
WORDS |= {NoneType: "null", Path: "a path"}


def check_arguments(
    group: str,
    values: Mapping[str, Any],
    function: Callable[..., Any],
    sources: Mapping[str, str] | None = None,
) -> None:
    """Refuse a setting that `function`, or the constructor of a class, has no argument for or that is of another type.

    What has no type is let through. A number has to be finite, a whole number from 0, a batch size from 1, and a
    learning rate (`lr`, `lr_*` or `*_lr`) above 0.

    Args:
        group: in whose name settings are typed, such as `model`.
        values: of the group, as plain values.
        function: that takes them.
        sources: settings outside the group that values come from, by name, as `abnormal_class`.

    Raises:
        SettingError: naming the setting, what was found, and what is allowed.
    """
    parameters = inspect.signature(function).parameters
    anything = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters.values())
    hints = get_type_hints(function.__init__ if isinstance(function, type) else function)
    for name, value in values.items():
        if name in OWN_KEYS:
            continue
        setting = (sources or {}).get(name, f"{group}.{name}")
        typed = f"{setting}={'null' if value is None else value}"
        if value == MISSING:
            raise SettingError(f"{setting}: has to be given, as in {setting}=VALUE")
        if name not in parameters and not anything:
            raise SettingError(
                f"{typed}: no such setting; there are {', '.join(name for name in parameters if name != 'shape')}"
            )
        if not is_of(hint := hints.get(name, Any), value):
            allowed = PIXELS if name == "image_size" and hint == int | None else in_words(hint)
            raise SettingError(f"{typed}: must be {allowed}")
        if name == "batch_size" and value is not None and value < 1:
            raise SettingError(f"{typed}: must be at least 1")
        if is_rate(name) and isinstance(value, int | float) and value <= 0:
            raise SettingError(f"{typed}: must be above 0")


def is_rate(name: str) -> bool:
    """Whether an argument of this name is a learning rate."""
    return name == "lr" or name.startswith("lr_") or name.endswith("_lr")


def is_of(hint: Any, value: Any) -> bool:
    """Whether a plain value can stand for an argument of this type; of types that are not plain, any can."""
    if get_origin(hint) in (Union, UnionType):
        if type(value) is int and {int, str} <= set(get_args(hint)):
            return abs(value) <= MOST  # below 0 it can be a name
        return any(is_of(one, value) for one in get_args(hint))
    if get_origin(hint) in (Sequence, list, tuple):
        (inner, *_) = get_args(hint)
        return isinstance(value, list | tuple) and all(is_of(inner, one) for one in value)
    if get_origin(hint) is Literal:
        return type(value) in map(type, get_args(hint)) and value in get_args(hint)
    if get_origin(hint) is Callable:  # a config stands for it
        return not isinstance(value, str | int | float)
    if hint is bool or isinstance(value, bool):
        return hint not in (int, float, str, Path, NoneType) and (hint is not bool or isinstance(value, bool))
    if hint is int:
        return isinstance(value, int) and 0 <= value <= MOST
    if hint is float:
        return isinstance(value, int | float) and math.isfinite(value)
    if hint in (str, Path):
        return isinstance(value, str)
    return value is None if hint is NoneType else True


def in_words(hint: Any) -> str:
    """What a type allows."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(in_words(one) for one in get_args(hint))
    if get_origin(hint) in (Sequence, list, tuple):
        return f"a list, each {in_words(get_args(hint)[0])}"
    if get_origin(hint) is Literal:
        return " or ".join(map(str, get_args(hint)))
    if get_origin(hint) is Callable:
        return "a config with a _target_"
    return WORDS.get(hint, str(hint))
