"""One run, from a composed job to a finished folder: control, learn, score, measure, record."""

import contextlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from omegaconf import OmegaConf

from anomaly_bench import metrics, record
from anomaly_bench.compose import SCALER, Job
from anomaly_bench.detector import Detector
from anomaly_bench.errors import SettingError, described
from anomaly_bench.history import losses_frame
from anomaly_bench.measuring import (
    HINDSIGHT,
    TRAINING_SAMPLE,
    best_epoch,
    control_numbers,
    in_hindsight,
    pixel_numbers,
    scores_of,
    some,
    test_order,
    thresholds_of,
    validated,
    warn_of_flat,
)
from anomaly_bench.provenance import columns_of, now, provenance
from anomaly_bench.report.pictures import Shown, draw_run
from anomaly_bench.rows import Rows
from anomaly_bench.tracking import NOTE, Follower
from anomaly_bench.training import parallel
from anomaly_bench.training.checkpoint import (
    Checkpoint,
    DamagedError,
    Epoch,
    kept_fact,
    load_tensors,
    previous_of,
    save_tensors,
    save_weights,
)
from anomaly_bench.training.determinism import deterministic
from anomaly_bench.training.scoring import explain_rows
from anomaly_bench.training.trainer import Learned
from anomaly_bench.twins import SAME, keep_last, take_over, twin_of

log = logging.getLogger("anomaly_bench")

LEVELS = np.r_[np.arange(100) / 100, np.arange(991, 1001) / 1000]
"""At which quantiles of training scores are kept: each percent, and the last one finer, where thresholds lie."""

ALREADY = "finished already: %s (rerun=true computes it again)"

KEEP, BEST = "checkpoint.safetensors", "best.safetensors"
UNFINISHED_ONLY = (KEEP, previous_of(Path(KEEP)).name, BEST)


def run(job: Job) -> None:
    """Compute one run, go on with it, or find it finished; another process that has it is waited for.

    Of several processes that torchrun has started, the first does so, and the others learn with it.

    Raises:
        SettingError: for what a user can put right. The run's folder then holds `error.json`, as after any error.
    """
    if parallel.rank():
        with deterministic(job.values["deterministic"]):
            learn_along(job)
        return
    if not os.path.exists(job.folder / "metrics.json"):  # noqa: PTH110, of a name that cannot be it is False
        check_that_it_builds(job)
    if os.path.exists(job.folder) and not os.access(job.folder, os.W_OK):  # noqa: PTH110
        find_finished(job)
        return
    open_folder(job.folder)
    with record.alone(job.folder):
        record.sweep_up(job.folder)
        if finished(job) and not job.values["rerun"]:
            check_columns(job)
            log.info(ALREADY, job.folder)
            join(job)
            remove(job, *UNFINISHED_ONLY)
            follower(job).end()
            parallel.tell(False, job.trainer.device)
            return
        follow = follower(job)
        try:
            with deterministic(job.values["deterministic"]):
                begin(job)
                parallel.tell(True, job.trainer.device)
                compute(job, follow)
            follow.end()
        except Exception as error:
            follow.end(give_up(job, error))
            raise


def find_finished(job: Job) -> None:
    """Find a run in a folder that may not be written to; refuse it where there is something to compute."""
    if not finished(job) or job.values["rerun"]:
        raise SettingError(f"runs_dir={str(job.folder.parent)!r}: {job.folder} may not be written to")
    check_columns(job)
    log.info(ALREADY, job.folder)
    parallel.tell(False, job.trainer.device)


def check_that_it_builds(job: Job) -> None:
    """Refuse settings that the method cannot be built with, before there is a folder."""
    try:
        job.build()
    except SettingError:
        raise
    except Exception as error:  # sizes that networks cannot have come to anything
        typed = [text for text in job.overrides if text.lstrip("+").startswith(("model.", "data."))]
        raise SettingError(
            f"{' '.join(typed or ['model=' + job.names['model']])}: it cannot be built so: {described(error)}"
        ) from error


def open_folder(folder: Path) -> None:
    """Make a run's folder. One that holds links is refused: what they lead to would be written over."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise SettingError(
            f"runs_dir={str(folder.parent)!r}: no folder can be made there: {error}"
        ) from error
    for path in folder.rglob("*"):
        if path.is_symlink():
            raise SettingError(
                f"{path}: it is a link, and a run writes to none; remove it or set runs_dir=..."
            )


def follower(job: Job) -> Follower:
    """Who tells the tracker that was chosen, if one was, of this run."""
    told = job.values | {"chosen": job.names, "case": job.split.case}
    return Follower(job.tracker(), job.values["tracker"], job.folder, told)


def learn_along(job: Job) -> None:
    """What a process does that is not the first of its run: its part of every step, and nothing else."""
    if not parallel.tell(False, job.trainer.device):
        return
    train = job.rows(job.split.train)
    with contextlib.suppress(SettingError):  # the first process meets the same, and records it
        job.trainer.learn(job.build(), train, seed=job.seed, keep=job.folder / KEEP)
    parallel.leave()


def finished(job: Job) -> bool:
    """Whether the run's records say so, and can be read."""
    whole = "auroc" in record.read_json(job.folder / "metrics.json") and "finished" in record.read_json(
        job.folder / "run.json"
    )
    if whole and not (job.folder / "model.safetensors").exists():
        log.warning("%s: its weights are gone; rerun=true makes them again", job.folder)
    return whole


def check_columns(job: Job) -> None:
    """Refuse a finished run of the same numbers under other names of columns: `score` goes by its names."""
    kept = record.read_json(job.folder / "run.json").get("columns")
    if kept and job.dataset.columns and kept != columns_of(job):
        raise SettingError(
            f"data={job.names['data']}: {job.folder} is a finished run of the same numbers under other names of "
            "columns; rerun=true computes it again with these, another runs_dir keeps both"
        )


def begin(job: Job) -> None:
    """Open the run's folder; what failed there before, or is to be computed again, makes way."""
    remove(
        job,
        "metrics.json",
        "error.json",
        *(("run.json", NOTE, *UNFINISHED_ONLY) if job.values["rerun"] else ()),
    )
    record.write_text(job.folder / "config.yaml", OmegaConf.to_yaml(job.settings, resolve=True))
    if job.evaluation["epoch"] == "best_test" and best_is_lost(job.folder):
        log.warning("%s: the weights of the best epoch cannot be read; the run starts anew", job.folder)
        remove(job, *UNFINISHED_ONLY)
    kept = record.read_json(job.folder / "run.json")
    goes_on = "settings_hash" in kept and Checkpoint.last(job.folder / KEEP) is not None
    record.write_json(
        job.folder / "run.json", gone_on(kept, provenance(job)) if goes_on else started(job, kept)
    )
    join(job)


def started(job: Job, kept: dict[str, Any]) -> dict[str, Any]:
    """What `run.json` says of a run that begins; of one that was given up, what it is part of is left."""
    return provenance(job) | {name: kept[name] for name in ("experiments",) if name in kept}


def gone_on(kept: dict[str, Any], here: dict[str, Any]) -> dict[str, Any]:
    """What `run.json` says of a run that goes on; where it does so otherwise than it began, how it began."""
    before = {name: kept.get(name) for name in SAME if kept.get(name) != here[name]}
    earlier = kept.get("resumed_from")
    begun = [*(earlier if isinstance(earlier, list) else []), *([before] if before else [])]
    return kept | {name: here[name] for name in before} | ({"resumed_from": begun} if begun else {})


def best_is_lost(folder: Path) -> bool:
    """Whether the epochs kept speak of a best one whose weights are not there any more, or are damaged."""
    best = -1.0
    if (folder / BEST).exists():
        try:
            best = float(load_tensors(folder / BEST)[1]["auroc"])
        except (DamagedError, KeyError, ValueError):
            return True
    kept = Checkpoint.last(folder / KEEP)
    return kept is not None and any(line.auroc is not None and line.auroc > best for line in kept.history)


def remove(job: Job, *names: str) -> None:
    """Remove files of the run's folder, where they are there."""
    for name in names:
        (job.folder / name).unlink(missing_ok=True)


def join(job: Job) -> None:
    """Add the experiment and the evaluation that ask for this run to those that it is of, which `run.json` names."""
    kept = record.read_json(job.folder / "run.json")
    names, told = kept.get("experiments") or [], kept.get("evaluations") or []
    added, asked = job.names.get("experiment"), job.names["evaluation"]
    more = {"experiments": [*names, added]} if added and added not in names else {}
    if asked not in told and asked != kept["evaluation"]["name"]:
        more["evaluations"] = [*told, asked]
    if more:
        record.write_json(job.folder / "run.json", kept | more)


def compute(job: Job, follow: Follower) -> None:
    """The run itself; `metrics.json` is written last."""
    order = test_order(job)
    train, test = job.rows(job.split.train), job.rows(job.split.test[order])
    anomalous = job.split.anomalous[order]
    control = control_numbers(job, train, test, anomalous)

    detector = job.build()
    learned = learn(job, detector, train, evaluator(job, detector, test, anomalous), follow)

    started = time.perf_counter()
    scores = scores_of(job, detector, test)
    seconds = time.perf_counter() - started
    training_scores = scores_of(job, detector, job.rows(some(job.split.train, TRAINING_SAMPLE, job.seed)))
    thresholds = thresholds_of(job, detector, scores, anomalous, training_scores)
    threshold = thresholds[HINDSIGHT] if job.evaluation["hindsight"] else next(iter(thresholds.values()))
    classes = job.dataset.classes[job.split.test[order]]
    numbers = metrics.measure(scores, anomalous, threshold) | {
        "auroc_interval": metrics.auroc_interval(scores, anomalous),
        **control,
        **validated(job, detector),
        "per_class": metrics.per_class(scores, anomalous, classes, job.dataset.class_names),
        **pixel_numbers(job, detector, test, anomalous),
        "train_seconds": learned.seconds,
        "train_images_per_s": rows_seen(learned, train) / learned.seconds,
        "score_ms_per_image": 1000 * seconds / len(test),
        "n_train": len(train),
        "n_test": len(test),
        "n_anomalous": int(anomalous.sum()),
        **best_epoch(learned.history),
        **in_hindsight(job, detector, train, test, anomalous),
    }
    warn_of_flat(scores)
    write_tables(job, scores, anomalous, order, learned.history)
    save_weights(job.folder / "model.safetensors", detector)
    if job.scaler is not None:
        save_tensors(job.folder / SCALER, job.scaler._asdict(), {})
    draw(job, detector, test, (scores, anomalous, thresholds), learned.history)
    finish(job, learned, training_scores, numbers)


def learn(
    job: Job, detector: Detector, train: Rows, evaluate: Callable[[], float], follow: Follower
) -> Learned:
    """Train the detector, or take over what another evaluation's run has trained; then what is to be scored."""
    if parallel.processes() == 1 and (twin := twin_of(job)) is not None:
        return take_over(job, detector, twin)
    learned = job.trainer.learn(
        detector, train, seed=job.seed, keep=job.folder / KEEP, evaluate=evaluate, tell=follow.tell
    )
    parallel.leave()
    if job.evaluation["epoch"] == "best_test" and (job.folder / BEST).exists():
        keep_last(job, detector)
        detector.load_state_dict(load_tensors(job.folder / BEST)[0])
    return learned


def evaluator(job: Job, detector: Detector, test: Rows, anomalous: np.ndarray) -> Callable[[], float]:
    """What the trainer calls between epochs: the test AUROC. Where the best epoch is wanted, it keeps its weights."""
    best = job.folder / BEST

    def evaluate() -> float:
        auroc = metrics.auroc(scores_of(job, detector, test), anomalous)
        if job.evaluation["epoch"] == "best_test":
            kept = kept_fact(best, "auroc")
            if kept is None or auroc > kept:
                save_weights(best, detector, auroc=auroc)
        return auroc

    return evaluate


def rows_seen(learned: Learned, train: Rows) -> int:
    """Training rows seen over all epochs; each of them once where there are no epochs."""
    return sum(line.rows for line in learned.history) or len(train)


def write_tables(
    job: Job, scores: np.ndarray, anomalous: np.ndarray, order: np.ndarray, history: list[Epoch]
) -> None:
    """`scores.csv`, in the order of the data set, and `losses.csv`."""
    rows, files = job.split.test[order], job.dataset.files
    named = {"file": [files[row] for row in rows]} if files else {"row": rows}
    classes = [job.dataset.class_names[number] for number in job.dataset.classes[rows]]
    frame = pd.DataFrame(named | {"class": classes, "label": anomalous.astype(int), "score": scores})
    record.write_csv(job.folder / "scores.csv", frame.iloc[np.argsort(rows)])
    record.write_csv(job.folder / "losses.csv", losses_frame(history))


def draw(
    job: Job,
    detector: Detector,
    test: Rows,
    scored: tuple[np.ndarray, np.ndarray, dict[str, float]],
    history: list[Epoch],
) -> None:
    """The run's figures, of scores, truth and thresholds; one that cannot be drawn is told of, and no failure."""
    try:
        draw_run(
            job.folder / "figures",
            job.title,
            scored,
            losses_frame(history),
            lambda positions: shown(job, detector, test, positions),
        )
    except Exception as error:  # the numbers are there, whatever a picture lacks
        log.warning("%s: not every picture could be drawn: %s", job.folder, described(error))


def shown(job: Job, detector: Detector, test: Rows, positions: np.ndarray) -> Shown:
    """What the detector shows of some test rows, images on [0, 1]."""
    numbers = torch.from_numpy(positions).to(test.device)
    rows = test.subset(numbers)
    explained = explain_rows(
        detector, rows, precision=job.trainer.precision, batch_size=job.evaluation["batch_size"]
    )

    def on_unit(x: torch.Tensor) -> np.ndarray:
        return (x * job.dataset.std + job.dataset.mean).clamp(0, 1).numpy()

    rebuilt = explained.reconstruction
    return Shown(
        on_unit(test.take(numbers).cpu()),
        None if rebuilt is None else on_unit(rebuilt),
        None if explained.map is None else explained.map.numpy(),
        None if explained.features is None else explained.features.numpy(),
    )


def finish(job: Job, learned: Learned, training_scores: np.ndarray, numbers: dict[str, Any]) -> None:
    """Complete `run.json`, write `metrics.json`, and drop what only an unfinished run needs."""
    done = {
        line.stage: {"name": line.name, "epochs_done": line.epoch, "step": line.step}
        for line in learned.history
    }
    kept = record.read_json(job.folder / "run.json") | {
        "stages": list(done.values()),
        "epochs_done": len(learned.history),
        "training_scores": {"levels": LEVELS, "quantiles": np.quantile(training_scores, LEVELS)},
        "finished": now(),
    }
    record.write_json(job.folder / "run.json", kept)
    record.write_json(job.folder / "metrics.json", numbers)
    remove(job, *UNFINISHED_ONLY)


def give_up(job: Job, error: Exception) -> str:
    """Record a failed run, with the epochs it had; gives the reason."""
    said = str(error) if isinstance(error, SettingError) else described(error)
    failure = {"error": said, "when": now(), "overrides": job.overrides}
    with contextlib.suppress(OSError, SettingError):  # what went wrong may be the disk, or the memory
        record.write_json(job.folder / "error.json", failure)
        if (kept := Checkpoint.last(job.folder / KEEP)) is not None:
            record.write_csv(job.folder / "losses.csv", losses_frame(kept.history))
    return said
