"""Finished runs for the tests of what comes after a run, and the files that they were made from."""

from pathlib import Path

import numpy as np
import pandas as pd
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from PIL import Image
from sklearn.datasets import load_digits

from anomaly_bench.compose import Job
from anomaly_bench.compose import compose as compose_run
from anomaly_bench.run import run
from anomaly_bench.schema import Settings

CONFIGS = Path(__file__).parents[1] / "configs"


def finished(runs: Path, **choices: str) -> Path:
    """The folder of a run under `runs`; a setting `model__nz` is `model.nz`."""
    job = job_of(runs, **choices)
    run(job)
    return job.folder


def job_of(runs: Path, **choices: str) -> Job:
    """A run under `runs`, to be done."""
    overrides = [f"{name.replace('__', '.')}={value}" for name, value in choices.items()]
    ConfigStore.instance().store("schema", Settings)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        settings = compose("config", [*overrides, f"runs_dir={runs}"])
    names = {"protocol": "leave_one_class_out", "evaluation": "clean"} | choices
    return compose_run(
        settings, {group: names[group] for group in ("model", "data", "protocol", "evaluation")}, overrides
    )


def digit_files(root: Path, size: int = 16) -> Path:
    """Zeros as normal images and ones as anomalies, in GANomaly's layout."""
    images, labels = load_digits(return_X_y=True)
    for label, parts in ((0, {"train/0.normal": 40, "test/0.normal": 20}), (1, {"test/1.abnormal": 20})):
        of_label = iter(images[labels == label])
        for part, count in parts.items():
            (root / part).mkdir(parents=True)
            for number in range(count):
                grey = Image.fromarray((next(of_label).reshape(8, 8) * 15.9).astype(np.uint8))
                grey.resize((size, size), Image.Resampling.BILINEAR).save(root / part / f"{number:02}.png")
    return root


def people(path: Path, n: int = 120) -> Path:
    """A table with a category and a gap; the tall ones are rare."""
    draw = np.random.RandomState(0)
    rare = draw.rand(n) < 0.2
    frame = pd.DataFrame(
        {
            "height": np.where(rare, 230, 170) + 5 * draw.randn(n),
            "income": 1e6 * draw.rand(n),
            "hair": draw.choice(["fair", "dark"], n),
            "kind": np.where(rare, "b", "a"),
        }
    )
    frame.loc[3, "income"] = np.nan
    frame.to_csv(path, index=False)
    return path
