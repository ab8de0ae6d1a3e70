"""Settings held against the arguments of what takes them."""

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import pytest

from anomaly_bench.arguments import MOST, check_arguments
from anomaly_bench.errors import SettingError


class Made:
    def __init__(
        self,
        shape: tuple[int, ...],
        lr: float = 1e-3,
        lr_critic: float = 1e-3,
        encoder_lr: float | None = None,
        warmth: float = 0.0,
        batch_size: int | None = None,
        sizes: Sequence[int] = (1,),
        folder: Path | None = None,
        of_class: int | str = 0,
        channels: Literal[1, 3] | None = None,
        untyped=None,
    ) -> None: ...


def anything(**settings: object) -> None: ...


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        *((name, 0, "must be above 0") for name in ("lr", "lr_critic", "encoder_lr")),
        ("batch_size", 0, "must be at least 1"),
        ("batch_size", MOST + 1, "must be a whole number from 0 to 2147483647 or null"),
        ("batch_size", -1, "must be a whole number from 0"),
        ("sizes", [1, 2.5], "must be a list, each a whole number"),
        ("sizes", 3, "must be a list, each a whole number"),
        ("folder", True, "must be a path or null"),
        *(("channels", value, "must be 1 or 3 or null$") for value in (2, "grey", True)),
        *(
            (name, 1, "no such setting; there are lr, lr_critic, encoder_lr, warmth")
            for name in ("heat", "_heat_")
        ),
    ],
)
def test_what_does_not_fit_is_named(setting, value, said):
    with pytest.raises(SettingError, match=f"^model.{setting}={value}: {said}".replace("[", "\\[")):
        check_arguments("model", {setting: value}, Made)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(("warmth", 0), ("encoder_lr", None), ("batch_size", None), ("batch_size", 1), ("batch_size", MOST)),
        *(
            ("sizes", [3, 0]),
            ("sizes", (3,)),
            ("folder", "here"),
            ("of_class", -1),
            ("channels", 3),
            ("channels", None),
            ("untyped", object()),
            ("_target_", "Made"),
        ),
    ],
)
def test_what_fits_is_taken(setting, value):
    check_arguments("model", {setting: value}, Made)


def test_what_takes_any_setting_takes_any():
    check_arguments("model", {"heat": 1}, anything)
    with pytest.raises(SettingError, match=r"model\.lr=0: must be above 0"):
        check_arguments("model", {"lr": 0}, anything)
