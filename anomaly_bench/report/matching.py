"""Which runs a paper's number is to be read beside, and what they reached."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from statistics import fmean, stdev
from typing import Any, NamedTuple

import yaml

from anomaly_bench.record import Record
from anomaly_bench.report.printed import Printed
from anomaly_bench.report.results import SHOWN_ELSEWHERE

SAME_ANYWHERE = ("data.root", "trainer.eval_every")
"""Settings that say where and how, not what is computed."""

NO_CLASSES = ("mean", "overall", "any")
TIME = "score_ms_per_image"
HINDSIGHT = "auroc_hindsight"
BY_THRESHOLD = ("f1", "precision", "recall")

Found = dict[str, dict[int, Any]]
"""Numbers by class and seed."""


class Number(NamedTuple):
    """A mean over seeds (and classes), its deviation over seeds, NaN where that is unknown, and the seeds."""

    mean: float
    std: float
    n: int


class Row(NamedTuple):
    """One line of the table: a printed number, the classes it is of, and ours by evaluation.

    Of the evaluations in `chosen`, ours has hyper-parameters that the test labels chose.
    """

    theirs: Printed
    classes: list[str]
    ours: dict[str, Number | None]
    control: dict[str, Number | None]
    interval: dict[str, Sequence[float] | None]
    chosen: set[str]
    part: bool


def fits(record: Record, rows: Sequence[Printed], experiment: str | None) -> bool:
    """Whether a run is one of a paper's table: by the experiments that it is part of, or else by its settings."""
    run = record.run
    names = [experiment] if experiment else experiments(record)
    if names and rows[0].table not in names:
        return False
    problem = ("model.", "data.", "protocol.", "normal_class")
    if not names and any(_key(text).startswith(problem) for text in changed(run)):
        return False
    own = run["model"], run["data"], run["protocol"]
    return record.status == "finished" and any(own == (row.model, row.data, row.protocol) for row in rows)


def experiments(record: Record) -> list[str]:
    """The experiments that a run is part of."""
    return record.run.get("experiments") or []


def changed(run: dict[str, Any], studied: Iterable[str] = ()) -> list[str]:
    """The overrides that change what is computed, but for those that any table shows, and of `studied` settings.

    No table has a column for the normal class of a run without a class of its own.
    """
    hidden = {*SHOWN_ELSEWHERE, *SAME_ANYWHERE, *studied, "point"}
    if run.get("class") is None:
        hidden -= {"normal_class"}
    texts = [str(text).lstrip("+~") for text in run.get("overrides") or []]
    return sorted(text for text in texts if _key(text) not in hidden and not text.startswith("hydra"))


def studied_in(rows: Sequence[Printed]) -> set[str]:
    """The settings whose values tell rows of a table apart, such as `model.nz`."""
    return {_key(text) for row in rows for text in row.settings.split()}


def _key(override: str) -> str:
    return override.partition("=")[0]


def evaluation_of(record: Record) -> str:
    """The name of a run's evaluation."""
    return str((record.run.get("evaluation") or {}).get("name", ""))


def in_hindsight(record: Record) -> bool:
    """Whether the test labels chose a run's threshold, and hyper-parameters where it has some to choose."""
    return (record.run.get("evaluation") or {}).get("hindsight") is True


def variant_of(run: dict[str, Any], rows: Sequence[Printed]) -> str:
    """What else of a run's settings is not that of the rows of a paper's table, in one line."""
    return ", ".join(changed(run, studied_in(rows)))


def _holds(record: Record, settings: str) -> bool:
    """Whether a run has these settings, such as `model.nz=32 model.w_con=50`."""
    values = record.values if settings else {}
    for text in settings.split():
        path, _, wanted = text.partition("=")
        found: Any = values
        for key in path.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if found != _value(wanted):
            return False
    return True


@cache
def _value(text: str) -> Any:
    return yaml.safe_load(text)


class Reached(NamedTuple):
    """What the runs of a method under one evaluation reached; the test labels have a part in it where `chosen`."""

    records: list[Record]
    found: Found
    control: Found
    chosen: bool


def rows_of(theirs: Sequence[Printed], records: Sequence[Record], evaluations: Sequence[str]) -> list[Row]:
    """The lines of one method on one data set, and where it has several classes their mean."""
    first = theirs[0]
    own = [record for record in records if _is_of(record, first)]
    groups = ([record for record in own if evaluation_of(record) == name] for name in evaluations)
    ours = {name: _reached(group, first.metric) for name, group in zip(evaluations, groups, strict=True)}

    single = [one for one in theirs if one.cls not in NO_CLASSES]
    rows = [_row(one, [one.cls], ours) for one in single]
    rows += [_row(one, ["overall"], ours) for one in theirs if one.cls == "overall"]
    ran = sorted({cls for one in ours.values() for cls in one.found})
    rows += [_row(one, ran, ours) for one in theirs if one.cls == "any"]
    mean = next((one for one in theirs if one.cls == "mean"), None)
    if len(single) > 1 and first.protocol != "folder":
        given = [one.found.keys() for one in ours.values() if one.found]
        shared = [one for one in single if all(one.cls in classes for classes in given)]
        if len(shared) > 1:
            whole = len(shared) == len(single)
            printed = mean if mean and whole else _mean(shared)
            rows.append(_row(printed, [one.cls for one in shared], ours, part=not whole))
    elif mean:
        everything = {str(name) for record in own for name in record.run.get("data_classes") or []}
        rows.append(_row(mean, sorted(everything), ours))
    return rows


def _is_of(record: Record, printed: Printed) -> bool:
    """Whether a run is of the method, the data and the settings of a printed number."""
    own = record.run["model"], record.run["data"], record.run["protocol"]
    return own == (printed.model, printed.data, printed.protocol) and _holds(record, printed.settings)


def _reached(records: list[Record], metric: str) -> Reached:
    """What runs of one evaluation reached; the best of their hyper-parameters where the labels chose among these."""
    best = _found(records, HINDSIGHT) if metric == "auroc" else {}
    by_labels = metric in BY_THRESHOLD and any(map(in_hindsight, records))
    control = _found(records, f"{metric}_untrained")
    return Reached(records, best or _found(records, metric), control, bool(best) or by_labels)


def _row(printed: Printed, classes: Sequence[str], ours: dict[str, Reached], part: bool = False) -> Row:
    """A printed number and, by evaluation, what runs reached on the classes that it is of."""
    plain = {name for name, one in ours.items() if printed.metric == "auroc" and not one.chosen}
    return Row(
        printed,
        list(classes),
        {name: _number(one.found, classes) for name, one in ours.items()},
        {name: _number(one.control, classes) for name, one in ours.items()},
        {name: _interval(one.records, classes) if name in plain else None for name, one in ours.items()},
        {name for name, one in ours.items() if one.chosen},
        part,
    )


def _mean(rows: Sequence[Printed]) -> Printed:
    """The mean over a paper's classes, with the standard error that independent classes give it."""
    error = math.sqrt(sum(row.standard_error**2 for row in rows)) / len(rows)
    value, nan = fmean(row.value for row in rows), math.nan
    return replace(rows[0], cls="mean", value=value, std=nan, se=error, low=nan, high=nan)


def _found(records: Iterable[Record], metric: str) -> Found:
    """What the runs reached; a run without a class of its own has its kinds of anomalies and `overall`."""
    found: Found = defaultdict(dict)
    for record in records:
        run, metrics = record.run, record.metrics
        if run.get("class") is not None:
            numbers = {str(run["class"]): metrics.get(metric)}
        else:
            kinds = (metrics.get("per_class") or {}) if metric == "auroc" else {}
            numbers = {name.rpartition("/")[2]: area for name, area in kinds.items()}
            numbers["overall"] = metrics.get(metric)
        for cls, number in numbers.items():
            if number is not None:
                found[cls][run["seed"]] = number
    return found


def _number(found: Found, classes: Sequence[str]) -> Number | None:
    """The mean over classes of the means over seeds; None where a class is missing."""
    if not classes or any(cls not in found for cls in classes):
        return None
    seeds = set.intersection(*(set(found[cls]) for cls in classes))
    whole = [fmean(found[cls][seed] for cls in classes) for seed in sorted(seeds)]
    complete = all(set(found[cls]) == seeds for cls in classes)
    return Number(
        fmean(fmean(found[cls].values()) for cls in classes),
        stdev(whole) if complete and len(whole) > 1 else math.nan,
        min(len(found[cls]) for cls in classes),
    )


def _interval(records: Iterable[Record], classes: Sequence[str]) -> Sequence[float] | None:
    """The interval of one class that was run with one seed."""
    found = _found(records, "auroc_interval")
    if len(classes) != 1 or len(found.get(classes[0], {})) != 1:
        return None
    return next(iter(found[classes[0]].values()))


def reached(ours: Number, theirs: Printed) -> bool:
    """Whether ours is as good as the paper's within the noise that is known of both; see RULE.

    Where the paper draws a bar, its lower end counts and no further noise of the paper's.
    """
    bar = not math.isnan(theirs.low)
    line = theirs.low if bar else theirs.value
    errors = ours.std / math.sqrt(ours.n), math.nan if bar else theirs.standard_error
    noise = 2 * math.sqrt(sum(error**2 for error in errors if not math.isnan(error)))
    better = round(ours.mean, 3) - line
    return (-better if theirs.metric == "eer" else better) >= -noise - 1e-9
