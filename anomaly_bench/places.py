"""Where the configs lie."""

from pathlib import Path

HERE = Path(__file__).resolve().parent
CONFIGS = next(path for path in (HERE / "configs", HERE.parent / "configs") if path.is_dir())
"""The configs in the wheel, else those of the checkout."""
