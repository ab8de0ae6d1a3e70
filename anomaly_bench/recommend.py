"""A short race of a few methods on the user's own data, bounded in time, and what can honestly be said of its end.

Each entry is an ordinary run. After one epoch each, methods climb a ladder of epochs as far as the time left will do. A
worker process computes, so that the bound holds in the middle of a step too; a run that it stops goes on from its
last epoch when the same race is asked for again.

Where the test rows hold anomalies, they are split in two halves: the ranking is by one, and the figure that is
reported is the AUROC of the other, which had no part in the choice. Where there are none, no accuracy can be known:
methods are ranked by their margin over the untrained control on made-up anomalies, and by how alike two seeds rank
the held-out normal rows.
"""

import contextlib
import logging
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata
from tabulate import tabulate

from anomaly_bench import metrics
from anomaly_bench.errors import SettingError
from anomaly_bench.record import read_json
from anomaly_bench.refusals import check_name
from anomaly_bench.sweep import Worker, WorkerDiedError, shares

log = logging.getLogger("anomaly_bench")

IMAGES = ("isolation_forest", "ocsvm", "ae", "deep_svdd", "ganomaly")
ROWS = ("isolation_forest", "ocsvm", "ae_dense", "deep_svdd", "dagmm")

MOST_MINUTES = 525_600

LADDER = (1, 4, 16, 64, 256)
"""Epochs of a stage on each rung, at most."""

FITS = 0.7
"""Part of its time that a run is expected to take at most, since what is expected is no more than that."""

STOPPED, NOT_BEGUN = "stopped after", "not begun"
"""What is said of a run that has met the bound of its time, and of one that had none."""

OURS = ("evaluation", "experiment", "trainer.max_epochs", "trainer.epoch_scale")
"""Settings that the race decides itself: nothing may be learned from the test rows."""


@dataclass
class Entry:
    """What a method has come to.

    Attributes:
        folders: of its finished runs of the last rung, one a seed.
        epochs: that rung.
        overhead: seconds of its runs beside training.
        error: why it is out of the race.
    """

    method: str
    folders: list[Path] = field(default_factory=list)
    epochs: int = 0
    overhead: float = 0.0
    error: str | None = None

    @property
    def over(self) -> bool:
        """Whether it is out, or more epochs would change nothing."""
        if self.error or not self.folders:
            return bool(self.error)
        stages = read_json(self.folders[0] / "run.json")["stages"]
        return all(stage["epochs_done"] < self.epochs for stage in stages)

    def figure(self, name: str) -> float:
        """A figure of `metrics.json`, the mean of its runs."""
        return float(np.mean([read_json(folder / "metrics.json")[name] for folder in self.folders]))

    def expected(self, epochs: int) -> float:
        """Seconds that a rung will take; 0 before anything is known."""
        if not self.folders:
            return 0
        trained = self.figure("train_seconds") * len(self.folders)
        return self.overhead + trained * epochs / self.epochs


class Clock:
    """The time of the race."""

    def __init__(self, seconds: float) -> None:
        self.started, self.seconds = time.monotonic(), seconds

    @property
    def left(self) -> float:
        """Seconds."""
        return self.seconds - (time.monotonic() - self.started)

    def __str__(self) -> str:
        return f"{self.seconds - self.left:.0f} of {self.seconds:.0f} s"


class Judge:
    """Asks a worker for runs, each within a bound, and starts another worker where one was stopped."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.worker: Worker | None = None

    def ask(self, what: str, of: Any, seconds: float) -> dict[str, Any]:
        """The worker's answer; an `error` says why there is none."""
        worker = self.worker = self.worker or Worker(shares(1)[1], self.folder)
        gone = threading.Event()

        def stop() -> None:
            gone.set()
            worker.stop()

        timer = threading.Timer(max(0, seconds), stop)
        timer.start()
        try:
            return worker.ask(what, of)
        except WorkerDiedError as death:
            said = f"{STOPPED} {seconds:.0f} s" if gone.is_set() else str(death)
            gone.set()
            return {"error": said}
        finally:
            timer.cancel()
            if gone.is_set():
                worker.end()
                self.worker = None

    def end(self) -> None:
        """Stop the worker."""
        if self.worker is not None:
            self.worker.stop()
            self.worker.end()


def recommend(overrides: Sequence[str], minutes: float) -> str:
    """Race methods for so many minutes; gives the ranked table and what it is worth, as text.

    Args:
        overrides: settings as for a run; `model=a,b` names the methods.
        minutes: bound of the whole race.

    Raises:
        SettingError: settings that cannot work, or no method that finished.
    """
    if not 0 < minutes <= MOST_MINUTES:
        raise SettingError(f"--minutes {minutes:g}: must be above 0, and {MOST_MINUTES}, a year, at most")
    wanted, seed = asked_for(overrides)
    common = [text for text in overrides if not text.startswith("model=")]
    clock = Clock(60 * minutes)
    with judge() as asked:
        log.info("reading the data")
        facts = asked.ask("look", common, clock.left)
        if "error" in facts and facts["error"].startswith(STOPPED):
            raise unfinished(minutes, f"reading the data: {facts['error']}")
        if "error" in facts:
            raise SettingError(facts["error"])
        methods = wanted or (ROWS if facts["rows"] else IMAGES)
        seeds = [seed] if facts["anomalies"] else [seed, seed + 1]
        entries = [Entry(method) for method in methods]
        race(asked, entries, common, seeds, made_up=not facts["anomalies"], clock=clock)
    finished = [entry for entry in entries if entry.folders]
    if not finished:
        why = "; ".join(f"{entry.method}: {entry.error or NOT_BEGUN}" for entry in entries)
        raise unfinished(minutes, why)
    ranked = by_halves(finished, seed) if facts["anomalies"] else by_margin(finished)
    lines = [
        f"left out: {entry.method}: {entry.error or 'no time left'}" for entry in entries if not entry.folders
    ]
    stopped = [f"{e.method}: with more epochs: {e.error}" for e in entries if e.folders and e.error]
    return "\n".join([*ranked, *lines, *stopped, f"{clock}"])


def asked_for(overrides: Sequence[str]) -> tuple[list[str], int]:
    """The methods that the settings name, and the seed; what the race decides itself is refused."""
    given = {key: value for key, _, value in (text.lstrip("+~").partition("=") for text in overrides)}
    if refused := [key for key in given if key in OURS or key.startswith("evaluation.")]:
        raise SettingError(f"{refused[0]}: recommend decides that itself; leave it out")
    if not (digits := given.get("seed", "0")).isdecimal():
        raise SettingError(f"seed={digits}: allowed is one whole number from 0")
    wanted = given["model"].split(",") if "model" in given else []
    if "hydra.searchpath" not in given:
        for name in wanted:
            check_name("model", name, "model")
    return wanted, int(digits)


def unfinished(minutes: float, why: str) -> SettingError:
    """The error of a race that no method has finished."""
    late = STOPPED in why or NOT_BEGUN in why
    more = "; more minutes are needed" if late else ""
    return SettingError(f"--minutes {minutes:g}: no method has finished ({why}){more}")


@contextlib.contextmanager
def judge() -> Iterator[Judge]:
    """A judge whose worker is stopped at the end, whatever the reason."""
    with tempfile.TemporaryDirectory(prefix="anomaly-bench-", ignore_cleanup_errors=True) as folder:
        asked = Judge(folder)
        try:
            yield asked
        finally:
            asked.end()


def race(
    asked: Judge, entries: list[Entry], common: list[str], seeds: list[int], *, made_up: bool, clock: Clock
) -> None:
    """First each method on the lowest rung, then each on the highest that fits into its share of the time left."""
    going = True
    while going:
        going = False
        climbing = [entry for entry in entries if not entry.over]
        for place, entry in enumerate(climbing):
            share = clock.left / (len(climbing) - place)
            fitting = [
                rung for rung in LADDER if rung > entry.epochs and entry.expected(rung) <= FITS * share
            ]
            rung = max(fitting, default=None) if entry.folders else LADDER[0]
            if rung is None or share <= 0:
                continue
            log.info("%s: %s, up to %d epochs", clock, entry.method, rung)
            climb(asked, entry, rung, common, seeds, made_up, share)
            going = True


def climb(
    asked: Judge, entry: Entry, rung: int, common: list[str], seeds: list[int], made_up: bool, bound: float
) -> None:
    """One rung of one method: a run for each seed, all within a bound of seconds."""
    started, folders = time.monotonic(), []
    for seed in seeds:
        own = [f"model={entry.method}", f"trainer.max_epochs={rung}", f"seed={seed}"]
        kept = [text for text in common if not text.startswith("seed=")]
        answer = asked.ask("race", [[*kept, *own], made_up], bound - (time.monotonic() - started))
        if "error" in answer:
            entry.error = answer["error"]
            return
        folders.append(Path(answer["folder"]))
    entry.folders, entry.epochs = folders, rung
    entry.overhead = max(0.0, time.monotonic() - started - entry.figure("train_seconds") * len(seeds))


# ------------------------------------------------------------------------------ in the worker


def look(overrides: list[str]) -> dict[str, Any]:
    """Of the data: are they rows of numbers, and is any row anomalous? Settings that cannot work are refused."""
    from anomaly_bench.compose import compose, data_yaml, load_data, settings_of
    from anomaly_bench.protocols import is_normal

    settings, names = settings_of(overrides)
    dataset = load_data(data_yaml(settings))
    anomalies = len(dataset.class_names) > 1 and not all(map(is_normal, dataset.class_names))
    if anomalies:
        job = compose(settings, names, overrides)
        halves(job.split.anomalous, job.seed)
    return {"rows": dataset.x.dim() == 2, "anomalies": anomalies}


def run_one(overrides: list[str], made_up: bool) -> Path:
    """Compute one run, or find it finished; gives its folder. `made_up`: on anomalies made of normal rows."""
    from anomaly_bench.compose import compose, settings_of
    from anomaly_bench.run import run

    settings, names = settings_of(overrides)
    if made_up:
        kept = {
            key: settings.data[key] for key in ("image_size", "fit", "mean", "std") if key in settings.data
        }
        names |= {"data": f"{names['data']}_made_up", "protocol": "one_vs_rest"}
        target = "anomaly_bench.data.made_up.load"
        settings.data = {"_target_": target, "of": settings.data, "name": settings.data.name, **kept}
        settings.protocol = {"_target_": "anomaly_bench.protocols.OneVsRest", "normal_class": "normal"}
    job = compose(settings, names, overrides)
    run(job)
    return job.folder


# ------------------------------------------------------------------------------ the ranking


def by_halves(entries: list[Entry], seed: int) -> list[str]:
    """Lines of the ranking by one half of the test rows, with the AUROC of the other."""
    table = []
    for entry in entries:
        scores = pd.read_csv(entry.folders[0] / "scores.csv")
        values, anomalous = scores["score"].to_numpy(), scores["label"].to_numpy(bool)
        ranking, reported = halves(anomalous, seed)
        low, high = metrics.auroc_interval(values[reported], anomalous[reported])
        table.append(
            {
                "method": entry.method,
                "ranked by": metrics.auroc(values[ranking], anomalous[ranking]),
                "AUROC": metrics.auroc(values[reported], anomalous[reported]),
                "95 %": f"{low:.3f} to {high:.3f}",
                "untrained": entry.figure("auroc_untrained"),
            }
            | cost(entry)
        )
    table.sort(key=lambda line: -line["ranked by"])
    return [
        text_of(table),
        "`ranked by` is the AUROC on one half of the labelled test rows, drawn by the seed; `AUROC` and its interval",
        "are of the other half, which had no part in the ranking. Where intervals overlap, the order may be chance.",
        f"`untrained` is the control. Without a bound of time: anomaly-bench model={table[0]['method']} ...",
    ]


def halves(anomalous: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Rows of two halves, each with half of the normal and half of the anomalous rows."""
    draw, parts = np.random.RandomState(seed), ([], [])
    for rows in (np.flatnonzero(~anomalous), np.flatnonzero(anomalous)):
        if len(rows) < 2:
            raise SettingError(f"data: {len(rows)} test rows of a kind; two halves need at least 2 of each")
        rows = draw.permutation(rows)
        parts[0].append(rows[: len(rows) // 2])
        parts[1].append(rows[len(rows) // 2 :])
    return np.sort(np.concatenate(parts[0])), np.sort(np.concatenate(parts[1]))


def by_margin(entries: list[Entry]) -> list[str]:
    """Lines of the ranking where no anomaly is known."""
    table = []
    for entry in entries:
        one, other = (normal_scores(folder) for folder in entry.folders)
        alike = float(np.nan_to_num(one.corr(other, method="spearman")))
        margin = entry.figure("auroc") - entry.figure("auroc_untrained")
        table.append({"method": entry.method, "margin": margin, "stability": alike} | cost(entry))
    ranks = np.sum([rankdata([-line[name] for line in table]) for name in ("margin", "stability")], axis=0)
    table = [table[place] for place in np.argsort(ranks, kind="stable")]
    return [
        text_of(table),
        "No accuracy is known: there are no anomalous rows to measure it on. `margin` is how far the AUROC on",
        "anomalies made of held-out normal rows lies above that of the untrained control; real ones may be of another",
        "kind. `stability` is the rank correlation of the scores of held-out normal rows between two seeds. The",
        "ranking is by the mean of both ranks.",
    ]


def normal_scores(folder: Path) -> pd.Series:
    """Scores of the held-out normal rows of a run."""
    scores = pd.read_csv(folder / "scores.csv")
    return scores.loc[scores["label"] == 0, "score"]


def cost(entry: Entry) -> dict[str, Any]:
    """What a method costs, and where its run is."""
    return {
        "epochs": read_json(entry.folders[0] / "run.json")["epochs_done"],
        "train s": round(entry.figure("train_seconds"), 1),
        "ms a row": round(entry.figure("score_ms_per_image"), 3),
        "run": str(entry.folders[0]),
    }


def text_of(table: list[dict[str, Any]]) -> str:
    """The ranked table."""
    lines = [{"rank": rank} | line for rank, line in enumerate(table, 1)]
    formats = ["" if name in ("rank", "train s", "ms a row") else ".3f" for name in lines[0]]
    return tabulate(lines, headers="keys", tablefmt="github", floatfmt=tuple(formats))
