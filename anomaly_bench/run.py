"""One run, from settings to a finished folder: compose, control, learn, score, measure, record."""

import contextlib
import logging
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
from anomaly_bench.errors import SettingError
from anomaly_bench.provenance import now, provenance
from anomaly_bench.report.pictures import Shown, draw_run
from anomaly_bench.rows import Rows
from anomaly_bench.tracking import NOTE, Follower
from anomaly_bench.training import parallel
from anomaly_bench.training.checkpoint import (
    Checkpoint,
    Epoch,
    kept_fact,
    load_tensors,
    previous_of,
    save_tensors,
    save_weights,
)
from anomaly_bench.training.control import untrained
from anomaly_bench.training.determinism import deterministic
from anomaly_bench.training.scoring import explain_rows, map_rows, score_rows, scoring
from anomaly_bench.training.trainer import Learned
from anomaly_bench.twins import keep_last, take_over, twin_of

log = logging.getLogger("anomaly_bench")

TRAINING_SAMPLE = 1024
"""Training rows that are scored for the threshold and for the percentiles of new files."""

LEVELS = np.r_[np.arange(100) / 100, np.arange(991, 1001) / 1000]
"""At which quantiles of training scores are kept: each percent, and the last one finer, where thresholds lie."""

HINDSIGHT = "best F1, has seen the test labels"

CONTROLS = tuple(f"{name}_untrained" for name in ("auroc", "f1", "auroc_pixel", "aupro"))
"""What there may be of the untrained control: its F1 at a known ratio, its areas where pixels are marked."""

KEEP, BEST = "checkpoint.safetensors", "best.safetensors"
UNFINISHED_ONLY = (KEEP, previous_of(Path(KEEP)).name, BEST)


def run(job: Job) -> None:
    """Compute one run, go on with it, or find it finished; another process that has it is waited for.

    Of several processes that torchrun has started, the first does so, and the others learn with it.

    Raises:
        SettingError: for what a user can put right. The run's folder then holds `error.json`, as after any error.
    """
    if parallel.rank():
        learn_along(job)
        return
    if not (job.folder / "metrics.json").exists():
        check_that_it_builds(job)
    open_folder(job.folder)
    with record.alone(job.folder):
        record.sweep_up(job.folder)
        if finished(job) and not job.values["rerun"]:
            log.info("finished already: %s (rerun=true computes it again)", job.folder)
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


def check_that_it_builds(job: Job) -> None:
    """Refuse settings that the method cannot be built with, before there is a folder."""
    try:
        job.build()
    except SettingError:
        raise
    except Exception as error:  # sizes that networks cannot have come to anything
        typed = [text for text in job.overrides if text.lstrip("+").startswith(("model.", "data."))]
        raise SettingError(
            f"{' '.join(typed or ['model=' + job.names['model']])}: it cannot be built so: "
            f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
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
    train = job.rows(job.x[job.split.train])
    with contextlib.suppress(SettingError):  # the first process meets the same, and records it
        job.trainer.learn(job.build(), train, seed=job.seed, keep=job.folder / KEEP)
    parallel.leave()


def finished(job: Job) -> bool:
    """Whether the run's records say so, and can be read."""
    return (
        "auroc" in record.read_json(job.folder / "metrics.json")
        and "finished" in record.read_json(job.folder / "run.json")
        and (job.folder / "model.safetensors").exists()
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
    if "settings_hash" not in record.read_json(job.folder / "run.json"):
        record.write_json(job.folder / "run.json", provenance(job))
    if job.evaluation["epoch"] == "best_test" and best_is_lost(job.folder):
        log.warning("%s: the weights of the best epoch cannot be read; the run starts anew", job.folder)
        remove(job, *UNFINISHED_ONLY)
    join(job)


def best_is_lost(folder: Path) -> bool:
    """Whether the epochs kept speak of a best one whose weights are not there any more, or are damaged."""
    best = -1.0
    if (folder / BEST).exists():
        try:
            best = float(load_tensors(folder / BEST)[1]["auroc"])
        except (SettingError, KeyError, ValueError):
            return True
    kept = Checkpoint.last(folder / KEEP)
    return kept is not None and any(line.auroc is not None and line.auroc > best for line in kept.history)


def remove(job: Job, *names: str) -> None:
    """Remove files of the run's folder, where they are there."""
    for name in names:
        (job.folder / name).unlink(missing_ok=True)


def join(job: Job) -> None:
    """Add the experiment that asks for this run to those it is part of, which `run.json` names."""
    kept, name = record.read_json(job.folder / "run.json"), job.names.get("experiment")
    names = kept.get("experiments") or []
    if name and name not in names:
        record.write_json(job.folder / "run.json", kept | {"experiments": [*names, name]})


def compute(job: Job, follow: Follower) -> None:
    """The run itself; `metrics.json` is written last."""
    x, order = job.x, test_order(job)
    train, test = job.rows(x[job.split.train]), job.rows(x[job.split.test[order]])
    anomalous = job.split.anomalous[order]
    control = control_numbers(job, train, test, anomalous)

    detector = job.build()
    learned = learn(job, detector, train, evaluator(job, detector, test, anomalous), follow)

    started = time.perf_counter()
    scores = scores_of(job, detector, test)
    seconds = time.perf_counter() - started
    training_scores = scores_of(job, detector, job.rows(x[some(job.split.train, TRAINING_SAMPLE, job.seed)]))
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
    draw_run(
        job.folder / "figures",
        job.title,
        (scores, anomalous, thresholds),
        losses_frame(learned.history),
        lambda positions: shown(job, detector, test, positions),
    )
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


def test_order(job: Job) -> np.ndarray:
    """The order in which test rows are put into batches, as positions among the split's test rows."""
    if job.evaluation["test_order"] == "by_class":
        return np.argsort(job.split.anomalous, kind="stable")
    return some(np.arange(len(job.split.test)), len(job.split.test), job.seed)


def some(rows: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Up to `number` of the rows, shuffled; the same on every machine, since RandomState's streams are frozen."""
    return np.random.RandomState(seed).permutation(rows)[:number]


def scores_of(job: Job, detector: Detector, rows: Rows) -> np.ndarray:
    """Scores `[N]` of rows as `evaluation` has them."""
    scores = score_rows(
        detector,
        rows,
        precision=job.trainer.precision,
        batch_size=job.evaluation["batch_size"],
        batch_statistics=job.evaluation["batch_norm"] == "batch",
        fold=job.trainer.fold,
    )
    return scores.numpy()


def validated(job: Job, detector: Detector) -> dict[str, float]:
    """The AUROC on validation rows, where there are some: what a sweeper maximises."""
    if job.validation is None:
        return {}
    scores = scores_of(job, detector, job.rows(job.x[job.validation.rows]))
    return {"auroc_validation": metrics.auroc(scores, job.validation.anomalous)}


def pixel_numbers(job: Job, detector: Detector, test: Rows, anomalous: np.ndarray) -> dict[str, float]:
    """How well the anomaly maps find marked pixels, on normal rows and on those with a mark; nothing without either."""
    if job.dataset.masks is None:
        return {}
    masks = job.dataset.masks[job.split.test[test_order(job)]]
    known = np.flatnonzero(~anomalous | masks.any((1, 2)))
    if not masks[known].any():
        return {}
    rows = job.rows(test.x[torch.from_numpy(known).to(test.device)])
    maps = map_rows(detector, rows, precision=job.trainer.precision, batch_size=job.evaluation["batch_size"])
    return {} if maps is None else metrics.pixel_areas(maps.numpy(), masks[known])


def control_numbers(job: Job, train: Rows, test: Rows, anomalous: np.ndarray) -> dict[str, float]:
    """AUROC of the untrained control, and what else there is of it, computed once and kept in `run.json`."""
    kept = record.read_json(job.folder / "run.json")
    if "auroc_untrained" not in kept:
        detector, kind = untrained(job.build, train, job.seed)
        scores = scores_of(job, detector, test)
        kept |= {"auroc_untrained": metrics.auroc(scores, anomalous), "control": kind}
        areas = pixel_numbers(job, detector, test, anomalous)
        kept |= {f"{name}_untrained": area for name, area in areas.items()}
        if (ratio := job.split.ratio) is not None:
            threshold = metrics.quantile_threshold(scores, 1 - ratio)
            kept["f1_untrained"] = metrics.measure(scores, anomalous, threshold)["f1"]
        record.write_json(job.folder / "run.json", kept)
    return {name: kept[name] for name in CONTROLS if name in kept}


def evaluator(job: Job, detector: Detector, test: Rows, anomalous: np.ndarray) -> Callable[[], float]:
    """What the trainer calls between epochs: the test AUROC. Where the best epoch is wanted, it keeps its weights."""
    best = job.folder / BEST

    def evaluate() -> float:
        auroc = metrics.auroc(scores_of(job, detector, test), anomalous)
        if job.evaluation["epoch"] == "best_test" and auroc > (kept_fact(best, "auroc") or -1):
            save_weights(best, detector, auroc=auroc)
        return auroc

    return evaluate


def thresholds_of(
    job: Job, detector: Detector, scores: np.ndarray, anomalous: np.ndarray, training_scores: np.ndarray
) -> dict[str, float]:
    """Above which a row is called anomalous, by how it was found; the first needs no labels.

    It is what leaves the known ratio of the test rows above it, where the protocol knows one, else the method's
    own, where it has one, else a quantile of training scores. The other, in hindsight, is that of the best F1.
    """
    if job.split.ratio is not None:
        name = f"the known ratio, {100 * job.split.ratio:.3g} % of the test rows"
        first = metrics.quantile_threshold(scores, 1 - job.split.ratio)
    else:
        name, first = threshold_of(detector, training_scores, job.evaluation["quantile"])
    return {name: first, HINDSIGHT: metrics.best_f1_threshold(scores, anomalous)}


def threshold_of(detector: Detector, training_scores: np.ndarray, quantile: float) -> tuple[str, float]:
    """How a threshold is found where nothing is known of the test rows, in words, and the threshold.

    It is the method's own, where it has one, else that quantile of training scores.
    """
    if (own := detector.own_threshold()) is not None:
        return "the method's own", own
    return f"{100 * quantile:g} % of the training scores", metrics.quantile_threshold(
        training_scores, quantile
    )


def rows_seen(learned: Learned, train: Rows) -> int:
    """Training rows seen over all epochs; each of them once where there are no epochs."""
    return sum(line.rows for line in learned.history) or len(train)


def best_epoch(history: list[Epoch]) -> dict[str, float]:
    """The best evaluated epoch, from 1, and its test AUROC, which has seen the labels; nothing where none was."""
    evaluated = [(line.auroc, -number) for number, line in enumerate(history, 1) if line.auroc is not None]
    if not evaluated:
        return {}
    auroc, number = max(evaluated)
    return {"auroc_best_epoch": auroc, "best_epoch": -number}


def in_hindsight(
    job: Job, detector: Detector, train: Rows, test: Rows, anomalous: np.ndarray
) -> dict[str, Any]:
    """The best AUROC of the hyper-parameters that the method lets the test labels choose, and which these are."""
    if not job.evaluation["hindsight"]:
        return {}
    with scoring(detector, test.device, precision=job.trainer.precision, fold=job.trainer.fold):
        tried = [
            (metrics.auroc(scores.cpu().numpy(), anomalous), values)
            for values, scores in detector.in_hindsight(train, test)
        ]
    if not tried:
        return {}
    auroc, values = max(tried, key=lambda one: one[0])
    return {"auroc_hindsight": auroc, "hindsight": values, "hindsight_tried": len(tried)}


def warn_of_flat(scores: np.ndarray) -> None:
    """Say so where the scores hardly tell one row from another."""
    distinct = len(np.unique(scores)) / len(scores)
    if distinct < 0.1:
        log.warning(
            "only %.1f %% of the scores are distinct: the detector may not have learned", 100 * distinct
        )


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


def losses_frame(history: list[Epoch]) -> pd.DataFrame:
    """One line an epoch: its stage, rows, seconds, losses and, where it was evaluated, AUROC."""
    facts = ["stage", "name", "epoch", "rows", "seconds", "auroc"]
    lines = [{name: getattr(line, name) for name in facts} | line.losses for line in history]
    return pd.DataFrame(lines or None, columns=None if lines else facts).dropna(axis="columns", how="all")


def shown(job: Job, detector: Detector, test: Rows, positions: np.ndarray) -> Shown:
    """What the detector shows of some test rows, images on [0, 1]."""
    numbers = torch.from_numpy(positions).to(test.device)
    rows = job.rows(test.x[numbers])
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
    said = str(error) if isinstance(error, SettingError) else f"{type(error).__name__}: {error}"
    failure = {"error": said, "when": now(), "overrides": job.overrides}
    with contextlib.suppress(OSError):  # what went wrong may be the disk
        record.write_json(job.folder / "error.json", failure)
        if (kept := Checkpoint.last(job.folder / KEEP)) is not None:
            record.write_csv(job.folder / "losses.csv", losses_frame(kept.history))
    return said
