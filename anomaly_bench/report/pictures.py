"""All pictures of one run, and all of a report."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby, islice
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import numpy as np
import pandas as pd

from anomaly_bench.record import Record, own_file, safe_name
from anomaly_bench.report import comparisons, figures
from anomaly_bench.report.beside import NAMES
from anomaly_bench.report.comparison import ranking, shared_blocks
from anomaly_bench.report.comparisons import GRID, MOST_LINES, MOST_PANELS, Point
from anomaly_bench.report.formats import Table
from anomaly_bench.report.notes import synthetic
from anomaly_bench.report.results import Line, latest, results, row_name, tidy

EMBEDDED = 400
"""Test rows whose features are shown."""


class Shown(NamedTuple):
    """What a detector shows of some rows, as arrays."""

    x: np.ndarray  # [N, C, H, W] on [0, 1], or rows of numbers
    reconstruction: np.ndarray | None  # like x
    map: np.ndarray | None  # [N, H, W]
    features: np.ndarray | None  # [N, D]


def draw_run(
    folder: Path,
    title: str,
    result: tuple[np.ndarray, np.ndarray, Mapping[str, float]],
    losses: pd.DataFrame,
    show: Callable[[np.ndarray], Shown],
) -> None:
    """Draw what there is to see of a run into `folder`, each picture as PNG and SVG.

    Args:
        folder: for the files.
        title: of each picture.
        result: scores `[N]`, truth (bool `[N]`) and named thresholds.
        losses: as in `losses.csv`.
        show: gives what the detector shows of the rows at some positions (int `[M]`).
    """
    scores, anomalous, thresholds = result
    figures.score_histogram(folder / "scores", scores, anomalous, thresholds, title)
    figures.roc_and_pr(folder / "roc_and_pr", scores, anomalous, title)
    if len(losses) > 1:
        figures.losses(folder / "losses", losses, title)
    telling = telling_rows(scores, anomalous)
    shown = show(telling)
    rebuilt, maps = shown.reconstruction, shown.map
    if maps is None and rebuilt is not None:
        maps = np.abs(shown.x - rebuilt).mean(axis=1)
    if maps is not None and shown.x.ndim == 4:
        path = folder / ("maps" if rebuilt is None else "reconstructions")
        figures.reconstructions(path, shown.x, rebuilt, maps, scores[telling], anomalous[telling], title)
    if shown.features is not None:
        spread = np.linspace(0, len(scores) - 1, min(EMBEDDED, len(scores))).astype(int)
        features = show(spread).features
        assert features is not None
        figures.embedding(folder / "features", features, anomalous[spread], title)


def telling_rows(scores: np.ndarray, anomalous: np.ndarray) -> np.ndarray:
    """Positions of the lowest and the highest scores among the normal and among the anomalous rows."""
    few, picked = figures.SHOWN_OF_EACH, []
    for kind in (False, True):
        rows = np.flatnonzero(anomalous == kind)
        ranked = rows[np.argsort(scores[rows], kind="stable")]
        picked += [ranked[:few], ranked[max(few, len(ranked) - few) :]]
    return np.concatenate(picked)


class Picture(NamedTuple):
    """A picture of a report.

    Attributes:
        table: name of the table that it belongs to.
        caption: what it shows.
        path: without the `.png` and the `.svg` that there are of it.
    """

    table: str
    caption: str
    path: Path


class Run(NamedTuple):
    """A finished run with its place in the figures."""

    record: Record
    line: Line  # its class's, or `overall`
    row: str


def draw_report(folder: Path, records: Sequence[Record]) -> list[Picture]:
    """Draw what there is to see of many runs into `folder`, each picture as PNG and SVG.

    ROC, precision-recall and learning curves need the runs' `scores.csv` and `losses.csv`; where these are
    absent or cannot be read, so are the curves.
    """

    def key(record: Record) -> tuple[str, str]:
        return record.run["data"], record.run["protocol"]

    pictures = []
    for (data, protocol), group in groupby(sorted(latest(records), key=key), key):
        shown = list(group)
        where = f"{data}, {protocol}" + (", SYNTHETIC DATA" if synthetic(shown) else "")
        pictures += _draw_table(folder, f"{data}-{protocol}", where, shown)
    return pictures


def _draw_table(folder: Path, table: str, where: str, records: Sequence[Record]) -> Iterator[Picture]:
    """The pictures of one data set and protocol."""

    def picture(name: str, caption: str) -> Picture:
        return Picture(table, f"{caption} on {where}", folder / f"{safe_name(table)}-{name}")

    cells, runs = tidy(results(records)), _runs(records)
    if len({cell["evaluation"] for cell in cells}) == 1:
        where = f"{where}, {cells[0]['evaluation']}"
        cells = [cell | {"evaluation": ""} for cell in cells]
        runs = [run._replace(row=row_name(run.line | {"evaluation": ""})) for run in runs]
    if len({cell["class"] for cell in cells}) > 1:
        heat = picture("classes", "AUROC of each class")
        comparisons.class_heat_map(heat.path, cells, heat.caption)
        yield heat
    if ranks := ranking(shared_blocks(results(records))):
        diagram = picture("ranks", "Average ranks and critical difference")
        comparisons.critical_difference(diagram.path, ranks, diagram.caption)
        yield diagram
    areas = [cell for cell in cells if np.isfinite(cell["mean"])]
    last = {row_name(cell): cell for cell in areas}  # of a row: the mean over its classes, or `overall`
    if len(last) > 1:
        time = picture("runtime", "AUROC and time of training")
        partial = _partial(cells)
        note = _machines(runs) + (", † not of all classes" if partial else "")
        comparisons.runtime(time.path, _times(last, runs, partial), time.caption, note)
        yield time
    best = sorted(last, key=lambda row: -float(last[row]["mean"]))[:MOST_LINES]
    classes = list(dict.fromkeys(run.line["class"] for run in runs))
    panels = classes[:MOST_PANELS]
    kept = [run for run in runs if run.row in best and run.line["class"] in panels]
    part = f", the {len(best)} best of {len(last)} methods" if len(best) < len(last) else ""
    part += f", {len(panels)} of {len(classes)} classes" if len(panels) < len(classes) else ""
    read = [(run, _scores(run.record.folder)) for run in kept]
    for name, caption, draw, curves in (
        ("roc", "ROC", comparisons.roc_bands, [(run, _roc(*given)) for run, given in read if given]),
        (
            "pr",
            "Precision and recall",
            comparisons.pr_bands,
            [(run, _pr(*given)) for run, given in read if given],
        ),
        ("learning", "Test AUROC while learning", comparisons.learning_curves, _learning(kept)),
    ):
        if curves:
            several = picture(name, f"{caption}, mean ± deviation over seeds{part},")
            draw(several.path, _by_panel(curves, best), several.caption)
            yield several


def draw_paper_curves(folder: Path, tables: Sequence[Table]) -> Iterator[Picture]:
    """Curves over each setting that a paper's table studies, ours beside the paper's, where two of ours are there."""
    for table in tables:
        studied = [cell for cell in table.cells if cell["settings"] and cell["n"]]
        for _, group in groupby(sorted(studied, key=_of_curve), key=_of_curve):
            cells = [(_settings(cell["settings"]), cell) for cell in group]
            usual = {
                key: Counter(own.get(key) for own, _ in cells).most_common(1)[0][0] for key in cells[0][0]
            }
            for key in usual:
                points = {}
                for own, cell in cells:
                    others_usual = all(own.get(other) == usual[other] for other in usual if other != key)
                    named = key.rpartition(".")[2] in cell["method"]  # of several at one value
                    if key in own and others_usual and (named or own[key] not in points):
                        points[own[key]] = Point(own[key], cell["mean"], cell["std"], cell["printed"])
                if len(points) < 2:
                    continue
                one = cells[0][1]
                metric = NAMES.get(str(one["metric"]), str(one["metric"]))
                told = (
                    one["data"],
                    f"class {one['class']}",
                    one["evaluation"],
                    one["variant"],
                    one["source"],
                )
                path = folder / safe_name("-".join([table.name, key, *_of_curve(one)]))
                picture = Picture(table.name, f"{metric} over {key} on {', '.join(filter(None, told))}", path)
                comparisons.paper_curve(picture.path, list(points.values()), key, metric, picture.caption)
                yield picture


def _of_curve(cell: Line) -> list[str]:
    """What all points of a curve have in common."""
    facts = ("metric", "class", "evaluation", "variant", "model", "data", "protocol", "source")
    return [str(cell[fact]) for fact in facts]


def _settings(text: str) -> dict[str, float | str]:
    """Settings such as `model.nz=32 model.w_con=50` by key, numbers as numbers."""
    pairs = (setting.partition("=")[::2] for setting in text.split())
    return {key: float(value) if value.replace(".", "", 1).isdigit() else value for key, value in pairs}


def _runs(records: Sequence[Record]) -> list[Run]:
    """The finished runs, by class and seed."""
    lines = iter(results(records))
    runs = []
    for record in records:
        *_, line = islice(lines, len(results([record])))
        if line["finished"]:
            runs.append(Run(record, line, row_name(line)))
    return sorted(runs, key=lambda run: (run.line["order"], run.line["class"], str(run.line["seed"])))


def _partial(cells: Sequence[Line]) -> set[str]:
    """The rows that lack a class which another has: their means are of something else."""
    classes: dict[str, set[str]] = {}
    for cell in cells:
        if np.isfinite(cell["mean"]) and cell["class"] != "mean":
            classes.setdefault(row_name(cell), set()).add(cell["class"])
    every = set[str]().union(*classes.values())
    return {row for row, own in classes.items() if own != every}


def _times(
    last: Mapping[str, Line], runs: Sequence[Run], partial: set[str]
) -> list[tuple[str, float, float, float]]:
    """Name, seconds, mean and deviation of each row, those of some classes only marked."""
    seconds = {
        row: [run.record.metrics.get("train_seconds") or 0 for run in runs if run.row == row] for row in last
    }
    return [
        ("† " * (row in partial) + row, max(fmean(seconds[row]), 1e-3), cell["mean"], cell["std"])
        for row, cell in last.items()
    ]


def _machines(runs: Sequence[Run]) -> str:
    places = {
        str([run.record.run.get(fact) for fact in ("device", "precision", "threads", "machine")])
        for run in runs
    }
    return ", on different machines" if len(places) > 1 else ""


def _by_panel(curves: Sequence[tuple[Run, np.ndarray]], rows: Sequence[str]) -> comparisons.Curves:
    """Curves `[seeds, points]` by panel and row, the best row first."""
    panels: dict[str, dict[str, list[np.ndarray]]] = {}
    for run, curve in sorted(curves, key=lambda pair: rows.index(pair[0].row)):
        panels.setdefault(run.line["class"], {}).setdefault(run.row, []).append(curve)
    order = list(dict.fromkeys(run.line["class"] for run, _ in curves))
    return {name: {row: np.array(several) for row, several in panels[name].items()} for name in order}


def _scores(folder: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Truth (bool `[N]`) and scores `[N]` of a run; None where they are not there or make no curve."""
    try:
        frame = pd.read_csv(own_file(folder / "scores.csv"), usecols=["label", "score"], dtype=float)
    except (OSError, ValueError):
        return None
    truth, scores = frame["label"].to_numpy() == 1, frame["score"].to_numpy()
    return (truth, scores) if np.isfinite(scores).all() and 0 < truth.sum() < len(truth) else None


def _roc(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    from sklearn.metrics import roc_curve

    false_positive, true_positive, _ = roc_curve(truth, scores)
    return np.interp(GRID, false_positive, true_positive)


def _pr(truth: np.ndarray, scores: np.ndarray) -> np.ndarray:
    from sklearn.metrics import precision_recall_curve

    precision, recall, _ = precision_recall_curve(truth, scores)
    each, first = np.unique(recall[::-1], return_index=True)  # of a recall its highest precision
    return np.interp(GRID, each, precision[::-1][first])


def _learning(runs: Sequence[Run]) -> list[tuple[Run, np.ndarray]]:
    """The test AUROC on `GRID` of the runs that evaluated several epochs; NaN before the first of them."""
    curves = []
    for run in runs:
        try:
            path = own_file(run.record.folder / "losses.csv")
            aurocs = pd.read_csv(path, usecols=["auroc"], dtype=float)["auroc"]
        except (OSError, ValueError):
            continue
        share, given = np.arange(1, len(aurocs) + 1) / len(aurocs), aurocs.notna().to_numpy()
        if given.sum() > 1:
            curves.append((run, np.interp(GRID, share[given], aurocs[given], left=np.nan)))
    return curves
