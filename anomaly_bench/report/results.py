"""The numbers of many runs, side by side and then averaged over seeds."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

from anomaly_bench.record import SWEPT, Record, without_later

ROW = ("model", "evaluation", "settings")
"""What tells the rows of one table apart."""

KINDS = {
    "": "auroc",
    "untrained_": "auroc_untrained",
    "best_epoch_": "auroc_best_epoch",
    "hindsight_": "auroc_hindsight",
    "pixel_": "auroc_pixel",
    "pixel_untrained_": "auroc_pixel_untrained",
}
"""The numbers of a cell: how its mean and deviation begin, and what they are of."""

NUMBERS = [*(f"{kind}{number}" for kind in KINDS for number in ("mean", "std")), "low", "high"]
CELL = ("data", "protocol", *ROW, "class", "n", "epochs", *NUMBERS)
"""The columns of `table.csv`."""

RARE = ("hindsight_", "pixel_", "pixel_untrained_")
"""Kinds of numbers that have columns only where there are any."""

SHOWN_ELSEWHERE = SWEPT | {
    "model",
    "data",
    "protocol",
    "evaluation",
    "experiment",
    "runs_dir",
    "rerun",
    "tracker",
    "trainer.device",
    "data.download",
}
"""Settings that other columns or notes show, or that change no number."""

NOT_COUNTED = SWEPT | {"runs_dir", "rerun", "tracker", "point", "data", "protocol", "trainer"}
"""What a run's `config.yaml` has beside the settings that can change its numbers, or is counted apart."""

NAMED = ("data", "protocol", "model", "seed")
"""What a record has to say to stand in a table."""

Line = dict[str, Any]


def latest(records: Sequence[Record]) -> list[Record]:
    """The records that say what they are; of several with one model, settings, class and seed the newest.

    A finished one is taken before one that is not.
    """

    def age(record: Record) -> tuple[bool, str]:
        return record.status == "finished", str(record.run.get("finished") or record.run.get("started"))

    named = [
        one
        for record in records
        if all(record.run.get(key) is not None for key in NAMED)
        for one in by_evaluation(record)
    ]
    names = names_of_settings(named)
    return list({_identity(record, names): record for record in sorted(named, key=age)}.values())


def by_evaluation(record: Record) -> Iterator[Record]:
    """The record, and again under each other evaluation that asked for the same numbers."""
    yield record
    for name in record.run.get("evaluations") or []:
        evaluation = (record.run.get("evaluation") or {}) | {"name": name}
        yield replace(record, run=record.run | {"evaluation": evaluation, "again": True})


def names_of_settings(records: Sequence[Record]) -> dict[tuple[Any, ...], Any]:
    """One hash for all that a (data, protocol, model, evaluation) has of the same settings, by that and the hash.

    Hashes of the same settings differ where a key of them came later, and by the precision that `auto` came to.
    """
    groups: dict[tuple[Any, ...], dict[Any, Record]] = defaultdict(dict)
    for record in records:
        groups[_kind(record), frozenset(told_apart(record.run))].setdefault(_hash(record), record)
    names: dict[tuple[Any, ...], Any] = {}
    for (kind, _), group in groups.items():
        alike: dict[Any, Any] = {}
        for digest in sorted(group, key=str):
            form = _form(group[digest]) if len(group) > 1 else digest
            names[(*kind, digest)] = alike.setdefault(form, digest)
    return names


def _hash(record: Record) -> Any:
    return record.run.get("settings_hash")


def _form(record: Record) -> str:
    """The settings of a run that can change its numbers, as a text; where they cannot be read, its hash."""
    values = record.values
    if not values:
        return str(_hash(record))
    counted = without_later({key: value for key, value in values.items() if key not in NOT_COUNTED})
    told = counted | {"data": record.run.get("data_fingerprint")}
    for group, left_out in (("protocol", SWEPT), ("trainer", {"device"})):
        own = values.get(group) or {}
        told[group] = {k: v for k, v in own.items() if k not in left_out} if isinstance(own, dict) else own
    return json.dumps(told, sort_keys=True, default=str)


def _identity(record: Record, names: dict[tuple[Any, ...], Any]) -> tuple[Any, ...]:
    run, kind = record.run, _kind(record)
    return (*kind, names[(*kind, _hash(record))], run.get("case"), run.get("class"), run.get("seed"))


def _kind(record: Record) -> tuple[str, ...]:
    run = record.run
    return run["data"], run["protocol"], run["model"], str((run.get("evaluation") or {}).get("name", ""))


def results(records: Sequence[Record]) -> list[Line]:
    """One line for each run and each column of its table that it has a number for.

    A run of one swept class fills that class's column. A run without one fills a column for each anomalous
    class and one named `overall`. A run that is not finished has its line too, without numbers. `swept` says
    whether the run has a class of its own, `again` whether its numbers stand under another evaluation too, `order`
    is the place of the table's column. Where runs without one are of several cases, which are different problems,
    `settings` is `case` and `overrides` in one.
    """
    settings, cases = _settings(records), _cases(records)
    lines = [line for record in records for line in _lines(record, settings, cases)]
    first: dict[tuple[str, ...], float] = {}  # a class has one column, wherever it stands in each run's data
    for line in filter(_is_of_class, lines):
        first[_column(line)] = min(line["order"], first.get(_column(line), math.inf))
    return [line | {"order": first[_column(line)]} if _is_of_class(line) else line for line in lines]


def _is_of_class(line: Line) -> bool:
    return line["order"] < math.inf


def _column(line: Line) -> tuple[str, ...]:
    return line["data"], line["protocol"], line["class"]


def _lines(
    record: Record, settings: dict[tuple[Any, ...], str], cases: dict[tuple[str, ...], set[str]]
) -> list[Line]:
    run, kind = record.run, _kind(record)
    case = _case(run) if len(cases[kind[:2]]) > 1 else ""
    overrides = settings[(*kind, _hash(record))]
    facts = dict(zip(("data", "protocol", "model", "evaluation"), kind, strict=True)) | {
        "case": case,
        "overrides": overrides,
        "settings": ", ".join(filter(None, (case, overrides))),
        "finished": record.status == "finished",
        "swept": run.get("class") is not None,
        "again": "again" in run,
        "seed": run.get("seed"),
        "epochs": run.get("epochs_done"),
    }
    whole = facts | {number: record.metrics.get(number) for number in (*KINDS.values(), "auroc_interval")}
    if facts["swept"]:
        return [whole | {"class": str(run["class"]), "order": float(run.get("class_index") or 0)}]
    order = {name: number for number, name in enumerate(run.get("data_classes") or [])}
    parts = [
        facts | {"class": name, "order": float(order.get(name, len(order))), "auroc": area}
        for name, area in (record.metrics.get("per_class") or {}).items()
    ]
    return [*parts, whole | {"class": "overall", "order": math.inf}]


def _settings(records: Sequence[Record]) -> dict[tuple[Any, ...], str]:
    """What to call the settings behind each hash of a (data, protocol, model, evaluation).

    It is the overrides that differ within these, and those of the data and the protocol that differ within a table,
    whose numbers are else of several problems; nothing where there are none.
    """
    same = names_of_settings(records)
    overrides: dict[tuple[str, ...], dict[Any, set[str]]] = defaultdict(dict)
    for record in records:
        kind = _kind(record)
        overrides[kind][same[(*kind, _hash(record))]] = told_apart(record.run)
    problems: dict[tuple[str, ...], list[set[str]]] = defaultdict(list)
    for kind, variants in overrides.items():
        problems[kind[:2]] += map(of_problem, variants.values())
    names = {}
    for kind, variants in overrides.items():
        common = set.intersection(*variants.values()) - of_problem(set.union(*problems[kind[:2]]))
        common |= set.intersection(*problems[kind[:2]])
        common = {
            text for text in common if not text.startswith("evaluation.")
        }  # the name alone would not be true
        several = "default" if len(variants) > 1 else ""
        labels = {key: ", ".join(sorted(own - common)) or several for key, own in variants.items()}
        for key, label in labels.items():
            alike = list(labels.values()).count(label) > 1
            names[(*kind, key)] = f"{label} ({key})" if alike else label
    return {key: names[(*key[:-1], name)] for key, name in same.items()}


def of_problem(overrides: set[str]) -> set[str]:
    """Those that choose or cut the data: runs that differ in them solve different problems."""
    return {text for text in overrides if text.startswith(("data.", "protocol."))}


def _cases(records: Sequence[Record]) -> dict[tuple[str, ...], set[str]]:
    """The cases of each (data, protocol), where runs have no class of their own."""
    cases: dict[tuple[str, ...], set[str]] = defaultdict(set)
    for record in records:
        cases[_kind(record)[:2]] |= {_case(record.run)} - {""}
    return cases


def _case(run: dict[str, Any]) -> str:
    """What a run without a class of its own is of, such as `normal-cat`."""
    return str(run.get("case") or "") if run.get("class") is None else ""


def told_apart(run: dict[str, Any]) -> set[str]:
    """The overrides that no other column of the table shows."""
    overrides = [str(override).lstrip("+~") for override in run.get("overrides") or []]
    return {text for text in overrides if text.split("=")[0] not in SHOWN_ELSEWHERE and text[:5] != "hydra"}


def tidy(lines: Sequence[Line]) -> list[Line]:
    """Mean and sample standard deviation over seeds: one line for each cell of the tables, in their order.

    Where a row has several swept classes, its last line, of class `mean`, holds the mean over them of their
    means; its deviation is that of the per-seed means, and NaN unless every seed has every class. `mean` and
    `std` are of the AUROC, `untrained_mean` and `untrained_std` of the control's, `best_epoch_mean` and
    `best_epoch_std` of the best epoch's, `hindsight_mean` and `hindsight_std` with what the test labels chose, `low`
    and `high` the interval of a single run's AUROC; NaN where there is none. `epochs` is a text, for it may be a span.
    """
    cells = []
    done = [line for line in lines if line["finished"]]
    for row in _grouped(done, "data", "protocol", *ROW):
        columns = _grouped(row, "order", "class")
        cells += [_cell(column, len(column), _over_seeds(column)) for column in columns]
        if len(columns) > 1 and all(line["swept"] for line in row):
            n = len({line["seed"] for line in row})
            cells.append(_cell(row, n, _over_classes(columns)) | {"class": "mean", "order": math.inf})
    return cells


def row_name(line: Line) -> str:
    """The method of a line or cell, with its evaluation and settings."""
    return ", ".join(filter(None, (line[key] for key in ROW)))


def _grouped(lines: Iterable[Line], *keys: str) -> list[list[Line]]:
    """The lines that are alike in `keys`, sorted by them."""
    groups = defaultdict(list)
    for line in lines:
        groups[tuple(line[key] for key in keys)].append(line)
    return [groups[key] for key in sorted(groups)]


def _cell(lines: list[Line], n: int, numbers: Line) -> Line:
    same = {key: lines[0][key] for key in ("data", "protocol", *ROW, "class", "order")}
    return same | {"n": n, "epochs": span(line["epochs"] for line in lines)} | numbers


def _over_seeds(lines: list[Line]) -> Line:
    numbers = {}
    for kind, name in KINDS.items():
        numbers |= _statistics(kind, [line[name] for line in lines if line.get(name) is not None])
    low, high = (lines[0].get("auroc_interval") if len(lines) == 1 else None) or (math.nan, math.nan)
    return numbers | {"low": low, "high": high}


def _over_classes(columns: list[list[Line]]) -> Line:
    numbers = {"low": math.nan, "high": math.nan}
    for kind, name in KINDS.items():
        by_seed: dict[Any, list[float]] = defaultdict(list)
        for line in (line for column in columns for line in column if line.get(name) is not None):
            by_seed[line["seed"]].append(line[name])
        means = [_over_seeds(column)[f"{kind}mean"] for column in columns]
        numbers |= _statistics(kind, [fmean(areas) for areas in by_seed.values()])
        numbers[f"{kind}mean"] = fmean(means)
        if any(len(areas) < len(columns) for areas in by_seed.values()):
            numbers[f"{kind}std"] = math.nan
    return numbers


def _statistics(kind: str, areas: list[float]) -> Line:
    mean = fmean(areas) if areas else math.nan
    return {f"{kind}mean": mean, f"{kind}std": stdev(areas) if len(areas) > 1 else math.nan}


def span(numbers: Iterable[int | None], form: str = "") -> str:
    """The whole numbers as a text: `3`, or `1–3` where they differ; empty where there are none."""
    known = [number for number in numbers if number is not None]
    if not known:
        return ""
    low, high = format(min(known), form), format(max(known), form)
    return low if low == high else f"{low}–{high}"
