"""A paper's table and ours in one: every number that the paper has, and what we reached, from records alone."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import cache
from itertools import chain
from statistics import fmean, stdev
from typing import Any, NamedTuple

import yaml

from anomaly_bench.record import Record
from anomaly_bench.report.formats import Table
from anomaly_bench.report.notes import lossy, source, synthetic
from anomaly_bench.report.printed import Printed, printed
from anomaly_bench.report.results import SHOWN_ELSEWHERE, Line, latest, span

CELL = (
    *("table", "paper", "source", "method", "model", "data", "protocol", "settings", "class", "metric"),
    *("printed", "printed_std", "printed_se", "printed_low", "printed_high", "printed_n"),
    *("evaluation", "variant", "n", "epochs", "mean", "std", "untrained_mean", "difference", "reached"),
)
"""The columns of `paper.csv`."""

SAME_ANYWHERE = ("data.root", "data.download", "trainer.device", "trainer.eval_every")
"""Settings that say where and how, not what is computed."""

NAMES = {"auroc": "AUROC", "f1": "F1", "aupr_in": "AUPR-in", "aupr_out": "AUPR-out", "eer": "EER"}
TIME = "score_ms_per_image"
NAMES[TIME] = "milliseconds to score an image"
NO_CLASSES = ("mean", "overall", "any")
REACHED = "✓"

RULE = (
    f"{REACHED} reached: ours at three decimals is the paper's or better, or worse by at most 2 sqrt(a² + b²), a and b "
    "the standard errors over seeds of ours and the paper's. "
)

Found = dict[str, dict[int, Any]]
"""Numbers by class and seed."""


class Number(NamedTuple):
    """A mean over seeds (and classes), its deviation over seeds, NaN where that is unknown, and the seeds."""

    mean: float
    std: float
    n: int


class Row(NamedTuple):
    """One line of the table: a printed number, the classes it is of, and ours by evaluation."""

    theirs: Printed
    classes: list[str]
    ours: dict[str, Number | None]
    control: dict[str, Number | None]
    interval: dict[str, Sequence[float] | None]
    part: bool


def paper_tables(records: Sequence[Record], experiment: str | None = None) -> list[Table]:
    """A table for each of the papers' tables that an experiment names or that the records fit.

    A table of an experiment (the records', or `experiment`) has all that the paper has. A record without one
    is compared where model, data and protocol are a table's and none of their settings was changed; then only
    the methods that were run are shown, and neither times nor studies of settings. Records that differ in
    other settings make tables of their own.
    """
    kept = latest(records)
    named = {experiment} if experiment else {name for record in kept for name in _experiments(record)}
    by_table: dict[str, list[Printed]] = defaultdict(list)
    for row in printed():
        by_table[row.table].append(row)
    tables = []
    for name, rows in by_table.items():
        fitting = [record for record in kept if _fits(record, rows, experiment)]
        models = {record.run["model"] for record in fitting}
        shown = rows if name in named else [row for row in rows if row.model in models]
        if name not in named and (rows[0].settings or rows[0].metric == TIME):
            continue
        variants: dict[str, list[Record]] = defaultdict(list)
        for record in fitting:
            variants[_variant(record.run)].append(record)
        if name in named and not variants:
            variants[""] = []
        made = [_table(shown, variants[variant], variant) for variant in sorted(variants)]
        tables += [table for table in made if name in named or any(cell["n"] for cell in table.cells)]
    return tables


def _fits(record: Record, rows: Sequence[Printed], experiment: str | None) -> bool:
    """Whether a run is one of a paper's table: by the experiments that it is part of, or else by its settings."""
    run = record.run
    names = [experiment] if experiment else _experiments(record)
    if names and rows[0].table not in names:
        return False
    if not names and any(_key(text).startswith(("model.", "data.", "protocol.")) for text in _changed(run)):
        return False
    own = run["model"], run["data"], run["protocol"]
    return record.status == "finished" and any(own == (row.model, row.data, row.protocol) for row in rows)


def _experiments(record: Record) -> list[str]:
    return record.run.get("experiments") or []


def _changed(run: dict[str, Any]) -> list[str]:
    """The overrides that change what is computed, but for those that any table shows."""
    hidden = {*SHOWN_ELSEWHERE, *SAME_ANYWHERE, "point"}
    texts = [str(text).lstrip("+~") for text in run.get("overrides") or []]
    return sorted(text for text in texts if _key(text) not in hidden and not text.startswith("hydra"))


def _key(override: str) -> str:
    return override.partition("=")[0]


def _evaluation(record: Record) -> str:
    return str((record.run.get("evaluation") or {}).get("name", ""))


def _variant(run: dict[str, Any]) -> str:
    return ", ".join(_changed(run))


def _holds(record: Record, settings: str) -> bool:
    """Whether a run has these settings, such as `model.nz=32 model.w_con=50`."""
    values = _values(record.config) if settings else {}
    for text in settings.split():
        path, _, wanted = text.partition("=")
        found: Any = values
        for key in path.split("."):
            found = found.get(key) if isinstance(found, dict) else None
        if found != yaml.safe_load(wanted):
            return False
    return True


@cache
def _values(config: str) -> Any:
    return yaml.safe_load(config)


# ------------------------------------------------------------------------------ numbers


def _rows(theirs: Sequence[Printed], records: Sequence[Record], evaluations: Sequence[str]) -> list[Row]:
    """The lines of one method on one data set, and where it has several classes their mean."""
    first = theirs[0]
    own = [
        record
        for record in records
        if (record.run["model"], record.run["data"], record.run["protocol"])
        == (first.model, first.data, first.protocol)
        and _holds(record, first.settings)
    ]
    by_evaluation = {name: [record for record in own if _evaluation(record) == name] for name in evaluations}
    found = {name: _found(group, first.metric) for name, group in by_evaluation.items()}
    everything = {str(name) for record in own for name in record.run.get("data_classes") or []}

    areas = first.metric == "auroc"
    controls = {name: _found(group, "auroc_untrained") for name, group in by_evaluation.items() if areas}

    def row(printed: Printed, classes: Sequence[str], part: bool = False) -> Row:
        return Row(
            printed,
            list(classes),
            {name: _number(found[name], classes) for name in evaluations},
            {name: _number(controls[name], classes) if areas else None for name in evaluations},
            {name: _interval(by_evaluation[name], classes) if areas else None for name in evaluations},
            part,
        )

    single = [one for one in theirs if one.cls not in NO_CLASSES]
    rows = [row(one, [one.cls]) for one in single]
    rows += [row(one, ["overall"]) for one in theirs if one.cls == "overall"]
    rows += [row(one, sorted({c for f in found.values() for c in f})) for one in theirs if one.cls == "any"]
    mean = next((one for one in theirs if one.cls == "mean"), None)
    if len(single) > 1 and first.protocol != "folder":
        given = [set(numbers) for numbers in found.values() if numbers]
        shared = [one for one in single if all(one.cls in classes for classes in given)]
        if len(shared) > 1:
            whole = len(shared) == len(single)
            rows.append(
                row(mean if mean and whole else _mean(shared), [one.cls for one in shared], not whole)
            )
    elif mean:
        rows.append(row(mean, sorted(everything)))
    return rows


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


def _reached(ours: Number, theirs: Printed) -> bool:
    """Whether ours is as good as the paper's within the noise that is known of both; see RULE.

    Where the paper draws a bar, its lower end counts and no further noise of the paper's.
    """
    bar = not math.isnan(theirs.low)
    line = theirs.low if bar else theirs.value
    errors = ours.std / math.sqrt(ours.n), math.nan if bar else theirs.standard_error
    noise = 2 * math.sqrt(sum(error**2 for error in errors if not math.isnan(error)))
    better = round(ours.mean, 3) - line
    return (-better if theirs.metric == "eer" else better) >= -noise - 1e-9


# ------------------------------------------------------------------------------ what is shown


def _table(theirs: Sequence[Printed], records: Sequence[Record], variant: str) -> Table:
    drawn = synthetic(records)
    names = {_evaluation(record) for record in records}
    evaluations = sorted(names, key=lambda name: (name != "clean", name)) or ["clean"]
    groups: dict[tuple[str, ...], list[Printed]] = defaultdict(list)
    for one in theirs:
        groups[one.where, one.method, one.settings, one.data, one.protocol, one.metric].append(one)
    rows = [row for group in groups.values() for row in _rows(group, records, evaluations)]
    labels = {
        "method": lambda one: one.method,
        "data": lambda one: one.data,
        "class": lambda one: one.cls,
        "metric": lambda one: NAMES.get(one.metric, one.metric),
    }
    kept = {
        name: text
        for name, text in labels.items()
        if name == "method" or len({text(row.theirs) for row in rows}) > 1
    }
    controlled = any(control for row in rows for control in row.control.values())
    texts, before = [], [""] * len(kept)
    for row in rows:
        told = [text(row.theirs) for text in kept.values()]
        shown = [*_without_repeats(told, before), _theirs(row.theirs)]
        ours = [_ours(row, name, drawn)[: 4 if controlled else 3] for name in evaluations]
        texts.append([*shown, *chain.from_iterable(ours)])
        before = told
    headers = [*kept, "paper"]
    for name in evaluations:
        headers += [name, "n", "difference", "untrained"][: 4 if controlled else 3]
    metrics = {NAMES.get(one.metric, one.metric) for one in theirs}
    title = f"{theirs[0].table}: {metrics.pop() if len(metrics) == 1 else 'ours'} beside the paper's"
    title += f", {variant if len(variant) < 40 else 'other settings'}" if variant else ""
    title += ", SYNTHETIC DATA" if drawn else ""
    cells = [_cell(row, name, records, variant, drawn) for row in rows for name in evaluations]
    notes = _notes(rows, records, evaluations, variant, drawn)
    return Table(theirs[0].table, title, headers, len(kept), texts, notes, cells)


def _without_repeats(told: Sequence[str], before: Sequence[str]) -> list[str]:
    """The labels of a line, empty from the left as long as they are those of the line above."""
    same = next((i for i, (new, old) in enumerate(zip(told, before, strict=True)) if new != old), len(told))
    return ["" if place < same else text for place, text in enumerate(told)]


def _theirs(row: Printed) -> str:
    spread = row.std if not math.isnan(row.std) else row.se
    if not math.isnan(row.low):
        return f"{row.value:.3f} [{row.low:.3f}, {row.high:.3f}]"
    return _digits(row.value, row.metric) + ("" if math.isnan(spread) else f" ± {spread:.3f}")


def _ours(row: Row, evaluation: str, drawn: bool) -> list[str]:
    """Ours, its seeds, its difference from the paper's, and the control."""
    ours, control, interval = row.ours[evaluation], row.control[evaluation], row.interval[evaluation]
    if ours is None:
        return ["not run", "", "", ""]
    metric = row.theirs.metric
    text = _digits(ours.mean, metric) + (" †" if row.part else "")
    if not math.isnan(ours.std):
        text += f" ± {_digits(ours.std, metric)}"
    elif interval is not None:
        text += f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    mark = f" {REACHED}" if _marked(row.theirs, drawn) and _reached(ours, row.theirs) else ""
    difference = ("+" if ours.mean >= row.theirs.value else "") + _digits(
        ours.mean - row.theirs.value, metric
    )
    return [text, str(ours.n), difference + mark, f"{control.mean:.3f}" if control else ""]


def _digits(number: float, metric: str) -> str:
    return f"{number:.{2 if metric == TIME else 3}f}"


def _marked(theirs: Printed, drawn: bool) -> bool:
    """Whether reaching a number would mean anything: on other data or another machine it would not."""
    return not drawn and theirs.metric != TIME


def _cell(row: Row, evaluation: str, records: Sequence[Record], variant: str, drawn: bool) -> Line:
    theirs, ours, control = row.theirs, row.ours[evaluation], row.control[evaluation]
    own = [
        record.run.get("epochs_done")
        for record in records
        if record.run["model"] == theirs.model
        and record.run["data"] == theirs.data
        and _evaluation(record) == evaluation
    ]
    facts = ("table", "paper", "source", "method", "model", "data", "protocol", "settings", "metric")
    return {
        **{name: getattr(theirs, name) for name in facts},
        "class": theirs.cls,
        "printed": theirs.value,
        **{f"printed_{name}": getattr(theirs, name) for name in ("std", "se", "low", "high", "n")},
        "evaluation": evaluation,
        "variant": variant,
        "n": ours.n if ours else 0,
        "epochs": span(own) if ours else "",
        "mean": ours.mean if ours else math.nan,
        "std": ours.std if ours else math.nan,
        "untrained_mean": control.mean if control else math.nan,
        "difference": ours.mean - theirs.value if ours else math.nan,
        "reached": _reached(ours, theirs) if ours and _marked(theirs, drawn) else None,
    }


# ------------------------------------------------------------------------------ notes


def _notes(
    rows: Sequence[Row], records: Sequence[Record], evaluations: Sequence[str], variant: str, drawn: bool
) -> list[str]:
    notes = [_differs(rows, records, evaluations, variant)]
    if drawn:
        notes.append(
            "SYNTHETIC data, drawn by a program: nothing here can reach or miss the paper's numbers."
        )
    elif all(row.theirs.metric == TIME for row in rows):
        notes.append("Times are of different machines; nothing is marked as reached.")
    elif records:
        notes.append(RULE + _unknown(rows))
    if any(row.part for row in rows):
        notes.append("†: the mean, the paper's too, is over the classes that were run.")
    if any(found is not None for row in rows for found in row.interval.values()):
        notes.append(
            "[ ] of ours: 95 % bootstrap interval over the test rows of a single run; no seeds are in it."
        )
    return [*notes, *_sources(rows)]


def _differs(rows: Sequence[Row], records: Sequence[Record], evaluations: Sequence[str], variant: str) -> str:
    """One line with all that is known to differ from the paper."""
    runs = [record.run for record in records]
    seeds = span(number.n for row in rows for number in row.ours.values() if number)
    theirs = span(_known(row.theirs.n for row in rows if any(row.ours.values())))
    parts = []
    if seeds and seeds != theirs:
        parts.append(f"seeds: ours {seeds}, the paper's {theirs or 'not known'}")
    ran = {(row.theirs.model, row.theirs.data): row.theirs.epochs for row in rows if any(row.ours.values())}
    for (model, data), epochs in ran.items():
        done = span(run.get("epochs_done") for run in runs if (run["model"], run["data"]) == (model, data))
        stated = span(_known([epochs])) or "not known"
        if done != stated:
            parts.append(f"epochs of {model} on {data}: ours {done}, the paper's {stated}")
    parts += sorted({source(run) for run in runs if lossy(run)})
    if variant:
        parts.append(f"settings {variant}")
    numbers = [number for row in rows if not _is_mean(row) for number in row.ours.values()]
    if missing := numbers.count(None):
        parts.append(f"{missing} of {len(numbers)} numbers not run")
    return f"Differs from the paper: {'; '.join(parts) or 'nothing that is known'}."


def _is_mean(row: Row) -> bool:
    return row.theirs.cls == "mean" and len(row.classes) > 1


def _known(numbers: Iterable[float]) -> list[int]:
    return [int(number) for number in numbers if not math.isnan(number)]


def _unknown(rows: Sequence[Row]) -> str:
    """Which of the noise is not known."""
    compared = [(row.theirs, ours) for row in rows for ours in row.ours.values() if ours]
    lacking = {
        "ours (one seed)": any(math.isnan(ours.std) for _, ours in compared),
        "the paper's": any(math.isnan(one.standard_error) and math.isnan(one.low) for one, _ in compared),
    }
    sides = [side for side, absent in lacking.items() if absent]
    told = f"Where it is not known, {' and '.join(sides)}, it counts as none. " if sides else ""
    if any(not math.isnan(row.theirs.low) for row in rows):
        told += (
            "Where the paper draws a bar [low, high], its lower end counts in place of its number and noise."
        )
    return told.strip()


def _sources(rows: Sequence[Row]) -> list[str]:
    """Where the paper's numbers stand, how they were read, and what their spread is."""
    read = {"paper": "as printed", "plot": "read off the drawing", "quoted": "as quoted"}
    groups: dict[str, dict[str, None]] = defaultdict(dict)
    for row in rows:
        one = row.theirs
        spread = "standard error" if not math.isnan(one.se) and one.cls != "mean" else ""
        spread = "standard deviation" if not math.isnan(one.std) else spread
        facts = [read[one.read], f"± is its {spread}" if spread else "", one.note]
        groups[one.source] |= dict.fromkeys(filter(None, facts))
    return [f"Paper: {name}: {'; '.join(told)}." for name, told in groups.items()]
