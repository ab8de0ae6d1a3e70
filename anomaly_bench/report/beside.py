"""A paper's table and ours in one: every number that the paper has, and what we reached, from records alone."""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import chain

from anomaly_bench.record import Record
from anomaly_bench.report.formats import Table
from anomaly_bench.report.matching import (
    TIME,
    Row,
    evaluation_of,
    experiments,
    fits,
    reached,
    rows_of,
    variant_of,
)
from anomaly_bench.report.notes import lossy, source, synthetic
from anomaly_bench.report.printed import Printed, printed
from anomaly_bench.report.results import Line, latest, span

CELL = (
    *("table", "paper", "source", "method", "model", "data", "protocol", "settings", "class", "metric"),
    *("printed", "printed_std", "printed_se", "printed_low", "printed_high", "printed_n"),
    *("evaluation", "variant", "n", "epochs", "mean", "std", "untrained_mean", "difference", "reached"),
)
"""The columns of `paper.csv`."""

NAMES = {"auroc": "AUROC", "f1": "F1", "aupr_in": "AUPR-in", "aupr_out": "AUPR-out", "eer": "EER"}
NAMES[TIME] = "milliseconds to score an image"
REACHED = "✓"

RULE = (
    f"{REACHED} reached: ours at three decimals is the paper's or better, or worse by at most 2 sqrt(a² + b²), a and b "
    "the standard errors over seeds of ours and the paper's. "
)


def paper_tables(records: Sequence[Record], experiment: str | None = None) -> list[Table]:
    """A table for each of the papers' tables that an experiment names or that the records fit.

    A table of an experiment (the records', or `experiment`) has all that the paper has. A record without one
    is compared where model, data and protocol are a table's and none of their settings was changed; then only
    the methods that were run are shown, and neither times nor studies of settings. Records that differ in
    other settings make tables of their own.
    """
    kept = latest(records)
    named = {experiment} if experiment else {name for record in kept for name in experiments(record)}
    by_table: dict[str, list[Printed]] = defaultdict(list)
    for row in printed():
        by_table[row.table].append(row)
    tables = []
    for name, rows in by_table.items():
        fitting = [record for record in kept if fits(record, rows, experiment)]
        models = {record.run["model"] for record in fitting}
        shown = rows if name in named else [row for row in rows if row.model in models]
        if name not in named and (rows[0].settings or rows[0].metric == TIME):
            continue
        variants: dict[str, list[Record]] = defaultdict(list)
        for record in fitting:
            variants[variant_of(record.run, rows)].append(record)
        if name in named and not variants:
            variants[""] = []
        made = [_table(shown, variants[variant], variant) for variant in sorted(variants)]
        tables += [table for table in made if name in named or any(cell["n"] for cell in table.cells)]
    return tables


# ------------------------------------------------------------------------------ what is shown


def _table(theirs: Sequence[Printed], records: Sequence[Record], variant: str) -> Table:
    drawn = synthetic(records)
    names = {evaluation_of(record) for record in records}
    evaluations = sorted(names, key=lambda name: (name != "clean", name)) or ["clean"]
    groups: dict[tuple[str, ...], list[Printed]] = defaultdict(list)
    for one in theirs:
        groups[one.where, one.method, one.settings, one.data, one.protocol, one.metric].append(one)
    rows = [row for group in groups.values() for row in rows_of(group, records, evaluations)]
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
    notes = _notes(rows, records, variant, drawn)
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
    text = (
        _digits(ours.mean, metric) + (" †" if row.part else "") + (" *" if evaluation in row.chosen else "")
    )
    if not math.isnan(ours.std):
        text += f" ± {_digits(ours.std, metric)}"
    elif interval is not None:
        text += f" [{interval[0]:.3f}, {interval[1]:.3f}]"
    mark = f" {REACHED}" if _marked(row.theirs, drawn) and reached(ours, row.theirs) else ""
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
        and evaluation_of(record) == evaluation
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
        "reached": reached(ours, theirs) if ours and _marked(theirs, drawn) else None,
    }


# ------------------------------------------------------------------------------ notes


def _notes(rows: Sequence[Row], records: Sequence[Record], variant: str, drawn: bool) -> list[str]:
    notes = [_differs(rows, records, variant)]
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
    if any(row.ours[name] for row in rows for name in row.chosen):
        notes.append(
            "* ours with hyper-parameters or a threshold chosen by the test labels: no honest result."
        )
    if any(found is not None for row in rows for found in row.interval.values()):
        notes.append(
            "[ ] of ours: 95 % bootstrap interval over the test rows of a single run; no seeds are in it."
        )
    return [*notes, *_sources(rows)]


def _differs(rows: Sequence[Row], records: Sequence[Record], variant: str) -> str:
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
        if done != stated and (done, stated) != ("0", "not known"):  # trained without epochs
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
