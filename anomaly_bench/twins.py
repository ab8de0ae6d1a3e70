"""A training that a finished run has done already: two evaluations of it need only one."""

import hashlib
import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

from anomaly_bench import record, versions
from anomaly_bench.compose import Job, learned_by
from anomaly_bench.detector import Detector
from anomaly_bench.errors import SettingError
from anomaly_bench.history import read_losses
from anomaly_bench.training.checkpoint import load_tensors, save_weights
from anomaly_bench.training.trainer import Learned

log = logging.getLogger("anomaly_bench")

LAST = "last.safetensors"
"""Weights after the last epoch, in the folder of a run that is scored with those of another."""

SAME = (
    *("training_hash", "data_fingerprint", "case", "class", "seed"),
    *("device", "precision", "threads", "versions", "machine", "git"),
)
"""What `run.json` says alike of two runs whose trainings end in the same weights."""


def training_of(values: dict[str, Any]) -> tuple[str | None, bool]:
    """What a job of a sweep has in common with its twins, None without any, and whether it takes over from them.

    Args:
        values: of its config, without Hydra's.
    """
    learned = json.dumps(learned_by(values), sort_keys=True)
    if values["rerun"] or str(versions.git_revision()).endswith("-dirty"):
        return None, False
    looks = values["trainer"]["eval_every"] or values["evaluation"]["epoch"] == "best_test"
    return hashlib.sha256(learned.encode()).hexdigest(), not looks


def twin_of(job: Job) -> Path | None:
    """The folder of a finished run that trained as `job` would, and is scored otherwise; None without one.

    A job that has to look at every epoch finds none: a finished run keeps only its last.
    """
    if job.trainer.eval_every or job.values["rerun"]:
        return None
    mine = record.read_json(job.folder / "run.json")
    names = record.run_names(job.names["data"], job.names["protocol"], job.split.case, job.seed)
    for folder in sorted(job.folder.parent.glob(names)):  # one method may have several names
        kept = record.read_json(folder / "run.json")
        finished = folder != job.folder and record.read_json(folder / "metrics.json")
        alike = "resumed_from" not in kept and all(kept.get(key) == mine[key] for key in SAME)
        if finished and alike and is_whole(weights_of(folder)):
            if not str(mine["git"]).endswith("-dirty"):
                return folder
            log.info("learned anew, not taken from %s: the checkout has changes not committed", folder)
            return None
    return None


def weights_of(twin: Path) -> Path:
    """The file of the weights after the twin's last epoch."""
    last = twin / LAST
    return last if last.exists() else twin / "model.safetensors"


def is_whole(path: Path) -> bool:
    """Whether a file of weights can be read; a warning where not."""
    try:
        load_tensors(path)
    except SettingError as error:
        log.warning("%s; what is in it is learned again", error)
        return False
    return True


def take_over(job: Job, detector: Detector, twin: Path) -> Learned:
    """Give the detector what the twin's had learned after its last epoch, and tell how that went."""
    detector.load_state_dict(load_tensors(weights_of(twin))[0])
    detector.eval()
    steps = {stage["name"]: stage["step"] for stage in record.read_json(twin / "run.json")["stages"]}
    history = [replace(line, auroc=None, step=steps[line.name]) for line in read_losses(twin / "losses.csv")]
    record.write_json(
        job.folder / "run.json", record.read_json(job.folder / "run.json") | {"trained_in": twin.name}
    )
    log.info("trained already, in %s", twin)
    return Learned(history, record.read_json(twin / "metrics.json")["train_seconds"])


def keep_last(job: Job, detector: Detector) -> None:
    """Keep the last epoch's weights before others are put in their place."""
    save_weights(job.folder / LAST, detector)
