"""Trains and scores deep anomaly detectors, and writes the papers' AUROC tables."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from anomaly_bench.estimator import AnomalyDetector, load_data, load_split

__version__ = "0.1.0"
__all__ = ["AnomalyDetector", "load_data", "load_split"]


def __getattr__(name: str) -> Any:
    """What is for use from Python, imported when it is asked for: the command line starts without torch."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from anomaly_bench import estimator

    return getattr(estimator, name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
