"""What a shallow method is fitted to: the rows themselves, or the features of a detector that learns first."""

import re
from collections.abc import Callable, Iterator
from dataclasses import replace

from torch import Tensor

from anomaly_bench.detector import Detector, Rows, Stage
from anomaly_bench.errors import SettingError


def part(group: str, build: Callable[..., Detector], shape: tuple[int, ...]) -> Detector:
    """What `build(shape=shape)` gives, a detector within one; its refusals name settings below `model.{group}`."""
    try:
        return build(shape=shape)
    except SettingError as error:
        below = rf"\bmodel\.(?!{re.escape(group)}\b)"
        raise SettingError(re.sub(below, f"model.{group}.", str(error))) from error


def stages_of(features: Detector | None, train: Rows) -> Iterator[Stage]:
    """The stages in which the features are learned, none of which leaves a score of the shallow method."""
    if features is not None:
        for stage in features.stages(train):
            yield replace(stage, scorable=False)


def vectors_of(features: Detector | None, x: Tensor) -> Tensor:
    """What stands for rows `[N, *shape]`, `[N, D]`: their features, or they themselves, flattened."""
    if features is None:
        return x.flatten(1)
    found = features.represent(x)
    if found.dim() != 2:
        raise SettingError(
            "model.features.patches=true: this model takes one vector an image; knn takes patches"
        )
    return found
