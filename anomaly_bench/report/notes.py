"""What a reader must know to trust a table, said from the records it was made of."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from anomaly_bench.record import Record
from anomaly_bench.report.results import ROW, Line, of_problem, row_name, span, tidy, told_apart

MOST_LISTED = 10
LOSSY = {".jpg", ".jpeg", ".webp"}


def notes(records: Sequence[Record], lines: Sequence[Line]) -> list[str]:
    """Sentences below one table: `records` are its runs, `lines` their results."""
    runs = [record.run for record in records if record.status == "finished"]
    if not runs:
        return _gaps(records, lines)
    return [*_reading(lines, runs), *_evaluations(runs), *_provenance(runs), *_gaps(records, lines)]


def synthetic(records: Sequence[Record]) -> bool:
    """Were any of these runs on data that a program drew?"""
    return any(record.run.get("data_source") == "synthetic" for record in records)


def _reading(lines: Sequence[Line], runs: Sequence[dict[str, Any]]) -> list[str]:
    seeds = ", ".join(map(str, sorted({run["seed"] for run in runs})))
    sentences = [
        f"AUROC, anomalous positive: mean ± sample standard deviation over n seeds. Seeds: {seeds}. "
        "Epochs: passes over the training rows, all stages together."
    ]
    if any(line.get("auroc_untrained") is not None for line in lines):
        models: dict[str, set[str]] = defaultdict(set)
        for run in runs:
            models[str(run.get("control"))].add(run["model"])
        controls = "; ".join(f"{kind}: {_listed(models[kind])}" for kind in sorted(models))
        sentences.append(f"untrained: the control, the same detector without its training ({controls}).")
    if any(cell["low"] == cell["low"] for cell in tidy(lines)):  # NaN is not itself
        sentences.append(
            "95 % from, to: the bootstrap interval over the test rows, where a cell is a single run. It does not "
            "say how far another seed would move the number."
        )
    if any(line.get("auroc_best_epoch") is not None for line in lines):
        sentences.append(
            "* best epoch: the highest AUROC of all evaluated epochs. It has seen the test labels and is no "
            "honest result."
        )
    if any(line.get("auroc_hindsight") is not None for line in lines):
        sentences.append(
            "* hindsight: the highest AUROC of all hyper-parameters that a paper chose from by the test labels. It has "
            "seen the test labels and is no honest result."
        )
    if any(line.get("auroc_pixel") is not None for line in lines):
        sentences.append(
            "pixels: AUROC of all pixels of the anomaly maps, the marked ones positive, on normal images and on those "
            "with a mark."
        )
    if transductive := {str(run["model"]) for run in runs if run.get("transductive")}:
        sentences.append(f"Learned from the test rows themselves, without labels: {_listed(transductive)}.")
    if pretrained := {str(run["model"]) for run in runs if run.get("pretrained")}:
        sentences.append(
            f"Not comparable with the others: {_listed(pretrained)}. Their features were learned on other images, of "
            "ImageNet, which hold the classes of common data sets, anomalous ones among them."
        )
    n_classes = max(len(run.get("data_classes") or []) for run in runs)
    if len({line["class"] for line in lines if line["swept"]}) > 1:
        sentences.append(f"mean: over the classes; † where these are not all {n_classes} of the data set.")
    return sentences


def _evaluations(runs: Sequence[dict[str, Any]]) -> list[str]:
    """How each evaluation in the table has its switches, and for which methods."""
    models: dict[tuple[str, str], set[str]] = defaultdict(set)
    for run in runs:
        switches = dict(run.get("evaluation") or {})
        name = str(switches.pop("name", ""))
        told = ", ".join(f"{key}={value}" for key, value in sorted(switches.items()))
        if switches.get("epoch") == "best_test":
            told += "; its AUROC is that of the epoch chosen by the test labels"
        models[name, told].add(str(run["model"]))
    return [f"Evaluation {name} ({_listed(of)}): {told}." for (name, told), of in sorted(models.items())]


def _provenance(runs: Sequence[dict[str, Any]]) -> list[str]:
    sources = {source(run) for run in runs}
    prints = {run.get("data_fingerprint") for run in runs}
    devices = {f"{run.get('device')}, {run.get('precision')}" for run in runs}
    machines = {str((run.get("machine") or {}).get("cpu")) for run in runs}
    versions = {", ".join(f"{k} {v}" for k, v in (run.get("versions") or {}).items()) for run in runs}
    lines = [f"Data: {_listed(sources)}; fingerprint {_listed(prints)}.", *_rows(runs)]
    lines += sorted({text for run in runs for text in _rows_of_numbers(run)}) + _repeated(runs)
    if len(prints) > 1:
        lines.append("The runs of this table did not all see the same data: their fingerprints differ.")
    lines.append(f"Device and precision: {'; '.join(sorted(devices))}. Processor: {_listed(machines)}.")
    revisions = {run.get("git") or "unknown" for run in runs}
    lines.append(f"Versions: {'; '.join(sorted(versions))}; revision {_listed(revisions)}.")
    return lines


def _rows(runs: Sequence[dict[str, Any]]) -> list[str]:
    """How many rows the runs had, and what all of them were told of the data."""
    if any(run.get("n_train") is None or run.get("n_test") is None for run in runs):
        return []
    shared = set.intersection(*(of_problem(told_apart(run)) for run in runs))
    told = f" ({', '.join(sorted(shared))})" if shared else ""
    train, test = (span((run[part] for run in runs), ",") for part in ("n_train", "n_test"))
    return [f"Rows: {train} in training, {test} in the test{told}."]


def _rows_of_numbers(run: dict[str, Any]) -> list[str]:
    """What its maker and a count say of a table: scaling, missing numbers, rows that come more than once."""
    if "n_distinct" not in run:
        return []
    lines = [f"{run['data']}: {run['data_note']}"] if run.get("data_note") else []
    if run.get("n_missing"):
        lines.append(
            f"{run['data']}: {run['n_missing']} missing numbers became medians of their columns' training rows."
        )
    evaluation = run.get("evaluation") or {}
    if run.get("known_ratio") is not None and evaluation.get("hindsight") is True:
        lines.append(
            f"{run['data']}, {evaluation.get('name')}, {run['model']}: precision, recall and F1 are by the threshold "
            "of the best F1, which the test labels chose."
        )
    elif run.get("known_ratio") is not None:
        lines.append(
            f"{run['data']}: precision, recall and F1 call the {run['known_ratio']:.4g} of the test rows with "
            "the highest scores anomalous, the known ratio; equal scores at the cut all or none."
        )
    return lines


def _repeated(runs: Sequence[dict[str, Any]]) -> list[str]:
    """Which share of the test rows of a table of numbers is in training too; it varies with the split."""
    percents: dict[tuple[str, int], list[int]] = defaultdict(list)
    for run in runs:
        if run.get("n_test_seen_in_training") and run.get("n_test"):
            percent = round(100 * run["n_test_seen_in_training"] / run["n_test"])
            percents[str(run["data"]), run["n_distinct"]].append(percent)
    return [
        f"{data}: about {span(found)}% of the test rows come in the training rows too, because the data set has "
        f"repeated rows ({distinct} are distinct)."
        for (data, distinct), found in sorted(percents.items())
    ]


def source(run: dict[str, Any]) -> str:
    """Where the data of a run came from, in a few words."""
    name = run.get("data_source")
    if name == "synthetic":
        return "SYNTHETIC, drawn by a program: these numbers say nothing of real images"
    if name != "folder":
        return str(name)
    formats = run.get("data_formats") or []
    caution = " (lossy: their pixels differ from any lossless original)" if lossy(run) else ""
    return f"class folders of {', '.join(formats)} files{caution}" if formats else "class folders"


def lossy(run: dict[str, Any]) -> bool:
    """Were the images of a run stored in a format that changes them?"""
    return bool(set(run.get("data_formats") or []) & LOSSY)


def _gaps(records: Sequence[Record], lines: Sequence[Line]) -> list[str]:
    """What was started or is due and has no number."""
    sentences = _missing(lines)
    if unfinished := [record.folder.name for record in records if record.status == "unfinished"]:
        sentences.append(f"Unfinished: {_some(unfinished)}.")
    return sentences + [failure(record) for record in records if record.status == "failed"]


def failure(record: Record) -> str:
    """One line on a run that failed."""
    return f"FAILED: {record.folder.name}: {record.failure.get('error')}"


def _missing(lines: Sequence[Line]) -> list[str]:
    """The classes and seeds that a row has no number for, of the table's classes and the row's own seeds."""
    swept = [line for line in lines if line["swept"]]
    classes = [name for _, name in sorted({(line["order"], line["class"]) for line in swept})]
    sentences = []
    for row in sorted({tuple(line[key] for key in ROW) for line in swept}):
        own = [line for line in swept if tuple(line[key] for key in ROW) == row]
        done = {(line["class"], line["seed"]) for line in own if line["finished"]}
        due = [(name, seed) for name in classes for seed in sorted({line["seed"] for line in own})]
        absent = [f"{name} (seed {seed})" for name, seed in due if (name, seed) not in done]
        if absent:
            sentences.append(
                f"Missing from {row_name(own[0])}: {len(absent)} of {len(due)} runs: {_some(absent)}."
            )
    return sentences


def _some(names: Sequence[str]) -> str:
    rest = len(names) - MOST_LISTED
    return ", ".join(names[:MOST_LISTED]) + (f" and {rest} more" if rest > 0 else "")


def _listed(values: Iterable[object]) -> str:
    return ", ".join(sorted(str(value) for value in values))
