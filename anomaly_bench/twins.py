"""A training that a finished run has done already: two evaluations of it need only one."""

import logging
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors.torch import load_file

from anomaly_bench import record
from anomaly_bench.compose import Job
from anomaly_bench.detector import Detector
from anomaly_bench.training.checkpoint import Epoch, save_weights
from anomaly_bench.training.trainer import Learned

log = logging.getLogger("anomaly_bench")

LAST = "last.safetensors"
"""Weights after the last epoch, in the folder of a run that is scored with those of another."""

SAME = ("training_hash", "data_fingerprint", "device", "precision", "threads", "versions", "machine", "git")
"""What `run.json` says alike of two runs whose trainings end in the same weights."""

FACTS = ("stage", "name", "epoch", "rows", "seconds", "auroc")


def twin_of(job: Job) -> Path | None:
    """The folder of a finished run that trained as `job` would, and was evaluated otherwise; None without one.

    A job that has to look at every epoch finds none: a finished run keeps only its last.
    """
    if job.trainer.eval_every or job.values["rerun"]:
        return None
    mine = record.read_json(job.folder / "run.json")
    if str(mine["git"]).endswith("-dirty"):
        return None
    alike = f"{job.folder.name.removesuffix(job.settings_hash)}*"
    for folder in sorted(job.folder.parent.glob(alike)):
        kept = record.read_json(folder / "run.json")
        finished = folder != job.folder and (folder / "metrics.json").exists()
        if finished and all(kept.get(key) == mine[key] for key in SAME):
            return folder
    return None


def take_over(job: Job, detector: Detector, twin: Path) -> Learned:
    """Give the detector what the twin's had learned after its last epoch, and tell how that went."""
    last = twin / LAST
    detector.load_state_dict(load_file(last if last.exists() else twin / "model.safetensors"))
    detector.eval()
    kept = record.read_json(twin / "run.json")
    record.write_json(
        job.folder / "run.json", record.read_json(job.folder / "run.json") | {"trained_in": twin.name}
    )
    log.info("trained already, in %s", twin)
    seconds = record.read_json(twin / "metrics.json")["train_seconds"]
    return Learned(history_of(pd.read_csv(twin / "losses.csv"), kept["stages"]), seconds)


def keep_last(job: Job, detector: Detector) -> None:
    """Keep the last epoch's weights before others are put in their place."""
    save_weights(job.folder / LAST, detector)


def history_of(losses: pd.DataFrame, stages: list[dict[str, Any]]) -> list[Epoch]:
    """The epochs that `losses.csv` tells of; what they scored on the test rows is left out."""
    how = {stage["name"]: stage["step"] for stage in stages}
    epochs = []
    for line in losses.to_dict("records"):
        named = {str(name): value for name, value in line.items() if name not in FACTS and pd.notna(value)}
        epochs.append(
            Epoch(
                int(line["stage"]),
                str(line["name"]),
                int(line["epoch"]),
                named,
                int(line["rows"]),
                float(line["seconds"]),
                step=how[line["name"]],
            )
        )
    return epochs
