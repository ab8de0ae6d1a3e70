"""What a run says of itself before it starts."""

from datetime import datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from finished import digit_files, job_of

from anomaly_bench.data.dataset import Column
from anomaly_bench.provenance import facts_of_rows, facts_of_validation, provenance


def test_a_run_on_images_names_its_class_its_files_and_its_rows(tmp_path: Path) -> None:
    bags = digit_files(tmp_path / "bags")
    (bags / "test/0.normal/00.png").rename(bags / "test/0.normal/00.PNG")
    job = job_of(
        tmp_path / "runs",
        **{
            "model": "ae",
            "data": "folder",
            "protocol": "leave_one_class_out",
            "data__root": str(bags),
            "data__image_size": "16",
        },
        abnormal_class="1.abnormal",
    )
    facts = provenance(job)
    assert (facts["class_index"], facts["class"]) == (1, "1.abnormal")
    assert facts["data_classes"] == ["0.normal", "1.abnormal"]
    assert facts["data_formats"] == [".png"]
    assert (facts["n_train"], facts["n_test"], facts["n_anomalous"]) == (48, 32, 20)
    assert (facts["transductive"], facts["pretrained"]) == (False, False)
    assert not {"columns", "n_missing", "n_validation", "processes"} & facts.keys()
    assert datetime.fromisoformat(facts["started"]).utcoffset() == timedelta(0)


def job_on_rows(**others: object) -> SimpleNamespace:
    """As much of a job as is asked for here: rows that come more than once, two for training, four for the test."""
    dataset = SimpleNamespace(
        x=torch.tensor([[0.0], [1.0], [1.0], [float("nan")], [-0.0], [0.0]]),
        columns=(Column("height"), Column("hair", ("dark", "fair"))),
        classes=np.array([0, 1, 1, 2, 0, 0]),
        class_names=("a", "b", "c"),
        scale="minmax",
        note=None,
    )
    split = SimpleNamespace(train=np.array([0, 1]), test=np.array([2, 3, 4, 5]), ratio=0.25)
    return SimpleNamespace(dataset=dataset, split=split, scaler=True, validation=None, **others)


def test_rows_that_come_more_than_once_are_counted() -> None:
    facts = facts_of_rows(job_on_rows())  # pyright: ignore[reportArgumentType]
    assert (facts["n_missing"], facts["n_distinct"], facts["n_test_seen_in_training"]) == (1, 3, 3)
    assert facts["columns"] == ["height", ["hair", "dark", "fair"]]
    assert (facts["scale"], facts["known_ratio"]) == ("minmax", 0.25)


def test_only_the_anomalies_among_the_validation_rows_are_named() -> None:
    job = job_on_rows()
    assert facts_of_validation(job) == {}  # pyright: ignore[reportArgumentType]
    anomalous = np.array([False, True, True, False])
    job.validation = SimpleNamespace(rows=np.array([0, 1, 3, 4]), anomalous=anomalous)
    assert facts_of_validation(job) == {  # pyright: ignore[reportArgumentType]
        "n_validation": 4,
        "n_validation_anomalous": 2,
        "validation_anomalies": ["b", "c"],
    }
