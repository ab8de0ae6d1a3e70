"""What is known of a run before it starts: what it is, of which data, by which versions, on which machine."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from anomaly_bench import machine, versions
from anomaly_bench.compose import Job
from anomaly_bench.rows import fingerprints
from anomaly_bench.targets import declares
from anomaly_bench.training import parallel


def provenance(job: Job) -> dict[str, Any]:
    """What is known of a run before it starts."""
    index = job.split.class_index
    return {
        "model": job.names["model"],
        "data": job.names["data"],
        "protocol": job.names["protocol"],
        "case": job.split.case,
        "class": None if index is None else job.dataset.class_names[index],
        "class_index": index,
        "seed": job.seed,
        "evaluation": {"name": job.names["evaluation"], **job.evaluation},
        "settings_hash": job.settings_hash,
        "training_hash": job.training_hash,
        "overrides": job.overrides,
        "shape": list(job.dataset.shape),
        "data_source": job.dataset.source,
        "data_formats": sorted({Path(file).suffix.lower() for file in job.dataset.files or ()}),
        "data_fingerprint": job.dataset.fingerprint(),
        "data_classes": list(job.dataset.class_names),
        **facts_of_rows(job),
        "n_train": len(job.split.train),
        "n_test": len(job.split.test),
        "n_anomalous": int(job.split.anomalous.sum()),
        **facts_of_validation(job),
        "transductive": job.split.transductive,
        "pretrained": declares(job.settings.model, "pretrained"),
        "device": str(job.trainer.device),
        "precision": job.trainer.precision,
        "threads": torch.get_num_threads(),
        "deterministic": job.values["deterministic"],
        **({"processes": parallel.processes()} if parallel.processes() > 1 else {}),
        "versions": versions.of_packages(),
        "machine": machine.described(),
        "git": versions.git_revision(),
        "started": now(),
    }


def facts_of_validation(job: Job) -> dict[str, Any]:
    """What is known of the validation rows, where there are some."""
    if job.validation is None:
        return {}
    rows, anomalous = job.validation.rows, job.validation.anomalous
    kinds = np.unique(job.dataset.classes[rows[anomalous]])
    return {
        "n_validation": len(rows),
        "n_validation_anomalous": int(anomalous.sum()),
        "validation_anomalies": [job.dataset.class_names[kind] for kind in kinds],
    }


def facts_of_rows(job: Job) -> dict[str, Any]:
    """What is known of rows of numbers only: columns, scaling, missing numbers, rows that come more than once."""
    if job.scaler is None:
        return {}
    x, split = job.dataset.x, job.split
    blocks = x.split(max(1, 2**22 // x.shape[1]))  # 32 MB of products at once
    hashes = torch.cat([fingerprints(block + 0.0) for block in blocks]).numpy()  # for which -0 is 0
    return {
        "columns": columns_of(job),
        "scale": job.dataset.scale,
        "data_note": job.dataset.note,
        "known_ratio": split.ratio,
        "n_missing": int(x.isnan().sum()),
        "n_distinct": len(np.unique(hashes)),
        "n_test_seen_in_training": int(np.isin(hashes[split.test], hashes[split.train]).sum()),
    }


def columns_of(job: Job) -> list[str | list[str]]:
    """The columns of a table: a name for numbers, a name and its values for a category."""
    return [[name, *values] if values is not None else name for name, values in job.dataset.columns or ()]


def now() -> str:
    """The time, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
