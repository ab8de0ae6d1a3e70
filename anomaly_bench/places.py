"""Where the configs lie."""

from pathlib import Path

HERE = Path(__file__).resolve().parent
CONFIGS = next(path for path in (HERE / "configs", HERE.parent / "configs") if path.is_dir())
"""The configs in the wheel, else those of the checkout."""


def names_in(group: str) -> list[str]:
    """What configs there are in a group, such as `model`."""
    return sorted(path.stem for path in (CONFIGS / group).glob("*.yaml"))
