"""One run, from settings to a finished folder: load, split, build, learn, score, measure, record."""

import logging
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import load_file
from torch import Tensor

from anomaly_bench import metrics, record
from anomaly_bench.data.dataset import Dataset
from anomaly_bench.detector import Detector, Explanation
from anomaly_bench.errors import SettingError
from anomaly_bench.protocols import Split
from anomaly_bench.rows import Rows
from anomaly_bench.training.checkpoint import Checkpoint, Epoch, kept_fact, save_weights
from anomaly_bench.training.scoring import explain_rows, score_rows
from anomaly_bench.training.trainer import Learned, Trainer, leave_untrained

log = logging.getLogger("anomaly_bench")

TRAINING_SAMPLE = 1024
"""Training rows that are scored for the threshold and for the percentiles of new files."""

NOISE_ROWS = 512
"""Rows of noise that a method without gradients is fitted to, as its control."""

UNHASHED = ("runs_dir", "rerun", "abnormal_class", "normal_class", "seed")
"""Settings that cannot change the numbers, or that stand in the run's name beside the hash."""


@dataclass(frozen=True)
class Job:
    """Everything one run is made of."""

    settings: DictConfig
    names: dict[str, str]
    overrides: list[str]
    dataset: Dataset
    split: Split
    trainer: Trainer
    folder: Path
    settings_hash: str

    @property
    def seed(self) -> int:
        """Of the split, the first weights and the batches."""
        return self.settings.seed

    @property
    def evaluation(self) -> Any:
        """The switches of `evaluation`, as plain text and numbers."""
        return plain(self.settings)["evaluation"]

    def rows(self, numbers: np.ndarray) -> Rows:
        """Those rows of the data set on the trainer's device."""
        return self.on_device(self.dataset.x[torch.from_numpy(numbers)])

    def on_device(self, x: Tensor) -> Rows:
        """Rows scaled and laid out as this run has them."""
        return self.trainer.rows(x, self.dataset.mean, self.dataset.std)

    def build(self) -> Detector:
        """The detector with its first weights, which the seed decides."""
        torch.manual_seed(self.seed)
        return self.trainer.place(build(self.settings.model, self.dataset.shape))


def run(settings: DictConfig, names: dict[str, str], overrides: list[str]) -> Path:
    """Compute one run, or find it finished; gives back its folder.

    Args:
        settings: the composed config.
        names: what was chosen of the groups `model`, `data`, `protocol` and `evaluation`.
        overrides: what the user typed.

    Raises:
        SettingError: for everything a user can put right; the folder then holds `failed.json`.
    """
    job = prepare(settings, names, overrides)
    if (job.folder / "metrics.json").exists() and not settings.rerun:
        log.info("finished already: %s (rerun=true computes it again)", job.folder)
        return job.folder
    begin(job)
    try:
        compute(job)
    except SettingError as error:
        give_up(job, error)
        raise
    return job.folder


def prepare(settings: DictConfig, names: dict[str, str], overrides: list[str]) -> Job:
    """Load the data, split them, and name the run."""
    dataset = load_data(OmegaConf.to_yaml(settings.data, resolve=True))
    split = instantiate(settings.protocol).split(dataset, settings.seed)
    wanted = plain(settings)
    trainer = Trainer(**wanted["trainer"] | {"eval_every": evaluations(wanted)})
    digest = record.settings_hash(
        {key: value for key, value in wanted.items() if key not in (*UNHASHED, "data", "trainer")}
        | {"data": dataset.fingerprint(), "mean": dataset.mean, "std": dataset.std}
        | {"trainer": {**wanted["trainer"], "device": None, "precision": trainer.precision}}
    )
    name = record.run_name(
        names["data"], names["protocol"], names["model"], split.case, settings.seed, digest
    )
    return Job(
        settings, names, overrides, dataset, split, trainer, Path(settings.runs_dir) / name, digest
    )


@lru_cache(maxsize=2)
def load_data(yaml: str) -> Dataset:
    """The data set of a `data` config, once for all runs of a sweep."""
    return instantiate(OmegaConf.create(yaml))


def plain(settings: DictConfig) -> dict[str, Any]:
    """The settings as plain values, enumerations by name."""
    whole = OmegaConf.create(OmegaConf.to_yaml(settings, resolve=True))
    values = OmegaConf.to_container(whole)
    assert isinstance(values, dict)
    values["evaluation"].pop("by_method", None)
    return values  # pyright: ignore[reportReturnType]


def evaluations(wanted: dict[str, Any]) -> int:
    """How often the test rows are scored: the best epoch cannot be found without."""
    return wanted["trainer"]["eval_every"] or int(wanted["evaluation"]["epoch"] == "best_test")


def build(model: DictConfig, shape: tuple[int, ...]) -> Detector:
    """The detector of a `model` config; a class that is none is a SettingError."""
    check_targets(model)
    return instantiate(model)(shape=shape)


def check_targets(model: Any) -> None:
    """Refuse any `_target_` that is not a detector, so that a foreign config cannot call what it likes."""
    if not isinstance(model, DictConfig):
        return
    target = model.get("_target_")
    if target is not None:
        module, _, name = str(target).rpartition(".")
        try:
            found = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise SettingError(f"model._target_={target}: cannot be imported ({error})") from error
        if not (isinstance(found, type) and issubclass(found, Detector)):
            raise SettingError(f"model._target_={target}: not a Detector")
    for key in model:
        check_targets(model[key])


def begin(job: Job) -> None:
    """Open the run's folder; what was finished or failed there before makes way."""
    stale = ["metrics.json", "failed.json"]
    if job.settings.rerun:
        stale += ["checkpoint.safetensors", "best.safetensors", "run.json"]
    for name in stale:
        (job.folder / name).unlink(missing_ok=True)
    record.write_text(job.folder / "config.yaml", OmegaConf.to_yaml(job.settings, resolve=True))
    if not (job.folder / "run.json").exists():
        record.write_json(job.folder / "run.json", facts(job))


def facts(job: Job) -> dict[str, Any]:
    """What is known of a run before it starts."""
    swept = {"leave_one_class_out": "abnormal_class", "one_vs_rest": "normal_class"}.get(job.names["protocol"])
    index = job.split.class_index
    return {
        "model": job.names["model"],
        "data": job.names["data"],
        "protocol": job.names["protocol"],
        "case": job.split.case,
        "swept": swept,
        "class": None if index is None else job.dataset.class_names[index],
        "class_index": index,
        "seed": job.seed,
        "evaluation": {"name": job.names["evaluation"], **job.evaluation},
        "settings_hash": job.settings_hash,
        "overrides": job.overrides,
        "shape": list(job.dataset.shape),
        "data_source": job.dataset.source,
        "data_fingerprint": job.dataset.fingerprint(),
        "data_classes": list(job.dataset.class_names),
        "n_train": len(job.split.train),
        "n_test": len(job.split.test),
        "n_anomalous": int(job.split.anomalous.sum()),
        "device": str(job.trainer.device),
        "precision": job.trainer.precision,
        "versions": record.versions(),
        "machine": record.machine(),
        "git": record.git_revision(),
        "started": now(),
    }


def compute(job: Job) -> None:
    """Learn, score, measure and write everything, `metrics.json` last."""
    train, order = job.rows(job.split.train), test_order(job)
    test, anomalous = job.rows(job.split.test[order]), job.split.anomalous[order]
    control = control_of(job, train, test, anomalous)

    detector = job.build()
    keep = job.folder / "checkpoint.safetensors"
    learned = job.trainer.learn(
        detector, train, seed=job.seed, keep=keep, evaluate=evaluator(job, detector, test, anomalous)
    )
    if job.evaluation["epoch"] == "best_test" and (job.folder / "best.safetensors").exists():
        detector.load_state_dict(load_file(job.folder / "best.safetensors"))

    started = time.perf_counter()
    scores = test_scores(job, detector, test)
    seconds = time.perf_counter() - started
    training_scores = sample_scores(job, detector, train)
    threshold = (
        metrics.best_f1_threshold(scores, anomalous)
        if job.evaluation["hindsight"]
        else metrics.quantile_threshold(training_scores, job.evaluation["quantile"])
    )
    classes = job.dataset.classes[job.split.test[order]]
    numbers = metrics.measure(scores, anomalous, threshold) | {
        "auroc_untrained": control,
        "per_class": metrics.per_class(scores, anomalous, classes, job.dataset.class_names),
        "train_seconds": learned.seconds,
        "train_images_per_s": rows_seen(learned, train) / max(learned.seconds, 1e-9),
        "score_ms_per_image": 1000 * seconds / len(test),
        "n_train": len(train),
        "n_test": len(test),
        "n_anomalous": int(anomalous.sum()),
        **best_epoch(learned.history),
    }
    warn_of_flat(scores)
    write_tables(job, scores, anomalous, order, learned.history)
    save_weights(job.folder / "model.safetensors", detector)
    draw(job, detector, test, scores, anomalous, threshold, learned.history)
    finish(job, learned, training_scores, numbers)


def test_order(job: Job) -> np.ndarray:
    """The order in which test rows are put into batches: positions in the split's test rows."""
    if job.evaluation["test_order"] == "by_class":
        return np.argsort(job.split.anomalous, kind="stable")
    # RandomState's streams are frozen by NumPy, so that the order is the same everywhere.
    return np.random.RandomState(job.seed).permutation(len(job.split.test))  # noqa: NPY002


def test_scores(job: Job, detector: Detector, rows: Rows) -> np.ndarray:
    """Scores `[N]` of rows as `evaluation` has them."""
    scores = score_rows(
        detector,
        rows,
        precision=job.trainer.precision,
        batch_size=job.evaluation["batch_size"],
        batch_statistics=job.evaluation["batch_norm"] == "batch",
    )
    return scores.numpy()


def sample_scores(job: Job, detector: Detector, train: Rows) -> np.ndarray:
    """Scores of up to TRAINING_SAMPLE training rows."""
    picked = np.random.RandomState(job.seed).permutation(len(train))[:TRAINING_SAMPLE]  # noqa: NPY002
    return test_scores(job, detector, job.rows(job.split.train[picked]))


def control_of(job: Job, train: Rows, test: Rows, anomalous: np.ndarray) -> float:
    """AUROC of the untrained control.

    It is the same detector without an epoch of gradients: what it fits in closed form is fitted to the
    training rows. A method without gradients is fitted to noise instead, for it would be the method itself.
    """
    kept = record.read_json(job.folder / "run.json")
    if "auroc_untrained" in kept:
        return kept["auroc_untrained"]
    noise = torch.randint(
        0, 256, (NOISE_ROWS, *job.dataset.shape), generator=torch.Generator().manual_seed(job.seed)
    )
    rows = noise.byte() if job.dataset.x.dtype == torch.uint8 else noise.float() / 127.5 - 1
    control = job.build()
    learns = leave_untrained(control, job.on_device(rows)) > 0
    if learns:
        control = job.build()
        leave_untrained(control, train)
    auroc = metrics.auroc(test_scores(job, control, test), anomalous)
    kind = "no gradient epochs" if learns else "fitted to noise"
    record.write_json(job.folder / "run.json", kept | {"auroc_untrained": auroc, "control": kind})
    return auroc


def evaluator(job: Job, detector: Detector, test: Rows, anomalous: np.ndarray) -> Callable[[], float]:
    """What the trainer calls between epochs: the test AUROC. Where the best epoch is wanted, it keeps its weights."""
    best = job.folder / "best.safetensors"

    def evaluate() -> float:
        auroc = metrics.auroc(test_scores(job, detector, test), anomalous)
        if job.evaluation["epoch"] == "best_test" and auroc > (kept_fact(best, "auroc") or 0):
            save_weights(best, detector, auroc=auroc)
        return auroc

    return evaluate


def rows_seen(learned: Learned, train: Rows) -> int:
    """Training rows seen over all epochs; all of them once where there are no epochs."""
    return sum(line.rows for line in learned.history) or len(train)


def best_epoch(history: list[Epoch]) -> dict[str, float]:
    """The best evaluated epoch and its test AUROC, which has seen the labels; nothing where none was."""
    evaluated = [(line.auroc, number) for number, line in enumerate(history, 1) if line.auroc is not None]
    if not evaluated:
        return {}
    auroc, number = max(evaluated, key=lambda pair: pair[0])
    return {"auroc_best_epoch": auroc, "best_epoch": number}


def warn_of_flat(scores: np.ndarray) -> None:
    """Say so where the scores hardly tell one row from another."""
    distinct = len(np.unique(scores)) / len(scores)
    if distinct < 0.1:
        log.warning("only %.1f%% of the scores are distinct: the detector may not have learned", 100 * distinct)


def write_tables(
    job: Job, scores: np.ndarray, anomalous: np.ndarray, order: np.ndarray, history: list[Epoch]
) -> None:
    """`scores.csv`, in the order of the data set, and `losses.csv`."""
    numbers = job.split.test[order]
    files = job.dataset.files
    frame = pd.DataFrame(
        {
            "row": numbers,
            "file": [files[number] for number in numbers] if files else None,
            "class": [job.dataset.class_names[number] for number in job.dataset.classes[numbers]],
            "label": anomalous.astype(int),
            "score": scores,
        }
    )
    frame = frame.drop(columns="row" if files else "file").iloc[np.argsort(numbers)]
    record.write_csv(job.folder / "scores.csv", frame)
    record.write_csv(job.folder / "losses.csv", losses_frame(history))


def losses_frame(history: list[Epoch]) -> pd.DataFrame:
    """One line an epoch: its stage, losses, rows, seconds and, where it was evaluated, AUROC."""
    lines = [{**asdict(line), **line.losses} for line in history]
    frame = pd.DataFrame(lines, columns=None if lines else ["stage", "name", "epoch"])
    return frame.drop(columns="losses", errors="ignore").dropna(axis="columns", how="all")


def draw(
    job: Job,
    detector: Detector,
    test: Rows,
    scores: np.ndarray,
    anomalous: np.ndarray,
    threshold: float,
    history: list[Epoch],
) -> None:
    """The pictures in `figures/`, as far as the detector can show."""
    from anomaly_bench.report import figures

    folder = job.folder / "figures"
    synthetic = " (synthetic data)" if job.dataset.source == "synthetic" else ""
    title = f"{job.names['model']} on {job.names['data']}{synthetic}, {job.split.case}, seed {job.seed}"
    figures.score_histogram(folder / "scores.png", scores, anomalous, threshold, title)
    figures.roc_and_pr(folder / "roc_and_pr.png", scores, anomalous, title)
    if history:
        figures.losses(folder / "losses.png", losses_frame(history), title)
    telling = telling_rows(scores, anomalous)
    shown = explained(job, detector, test, telling)
    if shown.reconstruction is not None and len(job.dataset.shape) == 3:
        figures.reconstructions(
            folder / "reconstructions.png",
            pixels(job, test.take(torch.from_numpy(telling).to(test.device)).cpu()),
            pixels(job, shown.reconstruction),
            scores[telling],
            anomalous[telling],
            maps=None if shown.map is None else shown.map.numpy(),
            title=title,
        )
    if shown.features is not None:
        some = np.random.RandomState(job.seed).permutation(len(scores))[:600]  # noqa: NPY002
        features = explained(job, detector, test, some).features
        assert features is not None
        figures.embedding(folder / "features.png", features.numpy(), anomalous[some], title)


def telling_rows(scores: np.ndarray, anomalous: np.ndarray, each: int = 4) -> np.ndarray:
    """Positions of the lowest and the highest scores among the normal and among the anomalous rows."""
    picked = []
    for kind in (False, True):
        ranked = np.flatnonzero(anomalous == kind)[np.argsort(scores[anomalous == kind], kind="stable")]
        picked += [ranked[:each], ranked[max(each, len(ranked) - each) :]]
    return np.concatenate(picked)


def explained(job: Job, detector: Detector, test: Rows, positions: np.ndarray) -> Explanation:
    """What the detector shows of some test rows."""
    rows = job.on_device(test.x[torch.from_numpy(positions).to(test.device)])
    return explain_rows(
        detector, rows, precision=job.trainer.precision, batch_size=job.evaluation["batch_size"]
    )


def pixels(job: Job, x: Tensor) -> np.ndarray:
    """Images as a detector sees them, back on [0, 1]."""
    return (x.float() * job.dataset.std + job.dataset.mean).clamp(0, 1).numpy()


def finish(job: Job, learned: Learned, training_scores: np.ndarray, numbers: dict[str, Any]) -> None:
    """Complete `run.json`, write `metrics.json`, and drop what only an unfinished run needs."""
    stages: dict[int, dict[str, Any]] = {}
    for line in learned.history:
        stages[line.stage] = {"name": line.name, "epochs_done": line.epoch}
    kept = record.read_json(job.folder / "run.json")
    kept |= {
        "stages": list(stages.values()),
        "epochs_done": len(learned.history),
        "training_scores": {"quantiles": np.quantile(training_scores, np.linspace(0, 1, 101))},
        "finished": now(),
    }
    record.write_json(job.folder / "run.json", kept)
    record.write_json(job.folder / "metrics.json", numbers)
    for name in ("checkpoint.safetensors", "best.safetensors"):
        (job.folder / name).unlink(missing_ok=True)


def give_up(job: Job, error: SettingError) -> None:
    """Record a failed run, with the epochs it had."""
    keep = job.folder / "checkpoint.safetensors"
    if keep.exists():
        record.write_csv(job.folder / "losses.csv", losses_frame(Checkpoint.load(keep).history))
    failure = {"error": str(error), "when": now(), "overrides": job.overrides}
    record.write_json(job.folder / "failed.json", failure)


def now() -> str:
    """The time, in UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")


@dataclass(frozen=True)
class Trained:
    """A finished run, ready to score: its detector in place, its trainer, and what its folder says."""

    detector: Detector
    trainer: Trainer
    settings: dict[str, Any]
    run: dict[str, Any]
    metrics: dict[str, Any]


def load_run(folder: Path, device: str = "auto") -> Trained:
    """Load a finished run onto a device; a folder that is none is a SettingError. Executes nothing in it."""
    figures = record.read_json(folder / "metrics.json")
    if not figures:
        raise SettingError(f"{folder}: not the folder of a finished run (no metrics.json in it)")
    kept = record.read_json(folder / "run.json")
    settings = OmegaConf.load(folder / "config.yaml")
    assert isinstance(settings, DictConfig)
    values = plain(settings)
    trainer = Trainer(**values["trainer"] | {"device": device, "precision": kept["precision"]})
    detector = build(settings.model, tuple(kept["shape"]))
    detector.load_state_dict(load_file(folder / "model.safetensors"))
    return Trained(trainer.place(detector).eval(), trainer, values, kept, figures)
