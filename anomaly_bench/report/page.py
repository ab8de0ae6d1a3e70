"""A report as one HTML page that needs nothing else: no network, no other file, no framework."""

import os
from base64 import b64encode
from collections.abc import Iterable, Sequence
from hashlib import sha256
from itertools import groupby
from pathlib import Path
from typing import Any
from urllib.parse import quote

from anomaly_bench.errors import printable
from anomaly_bench.record import Record, own_file, write_text
from anomaly_bench.report.formats import Table
from anomaly_bench.report.pictures import Picture
from anomaly_bench.report.results import Line, latest, results, row_name

PICTURE_BYTES = 4_000_000
"""Most that the pictures of a page may take together; the others are links."""

MOST_RUNS = 2000
MOST_LISTED = 40
LONGEST = 400
"""Letters shown of one fact."""

FACTS = ("data", "protocol", "model", "evaluation", "class", "seed", "status", "epochs")
NUMBERS = {
    "AUROC": ("auroc", ".3f"),
    "untrained": ("auroc_untrained", ".3f"),
    "best epoch *": ("auroc_best_epoch", ".3f"),
    "hindsight *": ("auroc_hindsight", ".3f"),
    "pixels": ("auroc_pixel", ".3f"),
    "training, s": ("train_seconds", ".1f"),
    "scoring, ms": ("score_ms_per_image", ".3f"),
}
"""Number columns of the table of runs, in `metrics.json`, and how they are written."""
RARE = ("hindsight *", "pixels")
"""Those among them that have a column only where there are any."""
FILES = ("config.yaml", "run.json", "metrics.json", "error.json", "scores.csv", "losses.csv")


def write_page(
    folder: Path, tables: Sequence[Table], records: Sequence[Record], pictures: Sequence[Picture]
) -> None:
    """Write `index.html` with the tables, the pictures, every record, and what is missing.

    Pictures beyond `PICTURE_BYTES` become links to their files, and runs beyond `MOST_RUNS` are left out; the
    page says so. Names from outside are escaped, and the page's own policy forbids any script but its own.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=PackageLoader("anomaly_bench.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=lambda value: printable(value) if type(value) is str else value,
    )
    style, script = (_source(environment, f"index.{kind}") for kind in ("css", "js"))
    album = _Album(folder)
    names = {table.name for table in tables}
    counts = {
        status: [r for r in records if r.status == status] for status in ("finished", "failed", "unfinished")
    }
    text = environment.get_template("index.html").render(
        policy="; ".join(
            [
                *("default-src 'none'", "img-src data:", "base-uri 'none'", "form-action 'none'"),
                *(f"style-src {_hash(style)}", f"script-src {_hash(script)}"),
            ]
        ),
        style=Markup(style),
        script=Markup(script),
        newline=Markup("\n"),
        most=MOST_LISTED,
        total=len(records),
        counts=", ".join(f"{len(some)} {status}" for status, some in counts.items() if some),
        tables=[_shown(table, album, pictures) for table in tables],
        others=[album.add(p.caption, p.path) for p in pictures if p.table not in names],
        failed=[f"{record.folder.name}: {record.failure.get('error')}" for record in counts["failed"]],
        unfinished=[record.folder.name for record in counts["unfinished"]],
        gaps=list(_gaps(records)),
        runs=_runs(folder, records, album),
    )
    write_text(folder / "index.html", text)


def _source(environment: Any, name: str) -> str:
    return environment.loader.get_source(environment, name)[0]


def _hash(text: str) -> str:
    return f"'sha256-{b64encode(sha256(text.encode()).digest()).decode()}'"


class _Album:
    """Pictures for a page in `folder`, embedded while there is room for them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.left = PICTURE_BYTES

    def add(self, caption: str, path: Path) -> dict[str, Any]:
        """A picture, given without the `.png` and `.svg` of its files: the smaller of them, and links to both."""
        files = {kind: path.with_name(f"{path.name}.{kind}") for kind in ("svg", "png")}
        files = {kind: file for kind, file in files.items() if _is_own(file, path.parent)}
        sizes = {kind: -(-file.stat().st_size // 3) * 4 for kind, file in files.items()}
        kind = min(sizes, key=lambda kind: sizes[kind], default="")
        source = ""
        if kind and sizes[kind] <= self.left:
            self.left -= sizes[kind]
            mime = {"svg": "image/svg+xml", "png": "image/png"}[kind]
            source = f"data:{mime};base64,{b64encode(files[kind].read_bytes()).decode()}"
        links = {kind.upper(): _link(self.folder, file) for kind, file in files.items()}
        return {"caption": caption, "source": source, "links": links}


def _shown(table: Table, album: _Album, pictures: Sequence[Picture]) -> dict[str, Any]:
    """A table for the page: the rows that belong to one method in one group, so that they stay together."""
    groups: list[list[list[str]]] = []
    for row in table.rows:
        if groups and row[0].startswith("·"):
            groups[-1].append(row)
        else:
            groups.append([row])
    return {
        **{"title": table.title, "headers": table.headers, "labels": table.labels, "notes": table.notes},
        "groups": groups,
        "pictures": [album.add(p.caption, p.path) for p in pictures if p.table == table.name],
    }


def _gaps(records: Sequence[Record]) -> Iterable[dict[str, Any]]:
    """For each data set and protocol that lacks runs, how many seeds of each class every method has."""

    def key(line: Line) -> tuple[str, str]:
        return line["data"], line["protocol"]

    swept = [line for line in results(latest(records)) if line["swept"]]
    for (data, protocol), group in groupby(sorted(swept, key=key), key):
        lines = list(group)
        columns = sorted({(line["order"], line["class"]) for line in lines})
        rows = []
        for row in sorted({row_name(line) for line in lines}):
            own = [line for line in lines if row_name(line) == row]
            due = len({line["seed"] for line in own})
            done = [
                {line["seed"] for line in own if line["class"] == name and line["finished"]}
                for _, name in columns
            ]
            if any(len(seeds) < due for seeds in done):
                rows.append([[row, *(f"{len(seeds)} of {due}" for seeds in done)]])
        if rows:
            headers = ["method", *(name for _, name in columns)]
            yield {"title": f"{data}, {protocol}", "headers": headers, "groups": rows}


def _runs(folder: Path, records: Sequence[Record], album: _Album) -> dict[str, Any]:
    """Every run as a row, with what it does not share with all others."""
    ranked = sorted(records, key=lambda record: record.status == "finished")
    listed = sorted(ranked[:MOST_RUNS], key=lambda record: record.folder)
    known = [_facts(record) for record in listed]
    common = set.intersection(*(set(facts.items()) for facts in known)) if len(known) > 1 else set()
    texts = [_texts(record) for record in listed]
    told = [name for name in FACTS if name == "status" or len({text[name] for text in texts}) > 1]
    present = {key for record in listed for key in record.metrics}
    columns = {name: how for name, how in NUMBERS.items() if name not in RARE or how[0] in present}
    rows = []
    for record, facts, text in zip(listed, known, texts, strict=True):
        numbers = [_number(record.metrics.get(name), form) for name, form in columns.values()]
        rows.append(
            {
                "name": record.folder.name,
                "cells": [*(text[name] for name in told), *numbers],
                "facts": [pair for pair in facts.items() if pair not in common],
                **_files(folder, record.folder, album),
            }
        )
    return {
        "headers": ["run", *told, *columns],
        "labels": 1 + len(told),
        "rows": rows,
        "common": sorted(common),
        "left_out": len(records) - len(listed),
    }


def _texts(record: Record) -> dict[str, str]:
    run = record.run | {"status": record.status, "epochs": record.run.get("epochs_done")}
    if isinstance(run.get("evaluation"), dict):
        run["evaluation"] = run["evaluation"].get("name")
    return {name: _cut("" if run.get(name) is None else str(run[name])) for name in FACTS}


def _number(value: Any, form: str) -> str:
    return format(value, form) if isinstance(value, (int, float)) else "–"


def _facts(record: Record) -> dict[str, str]:
    """What `run.json`, `metrics.json` and `error.json` say, each fact as a line of text."""
    run = {name: value for name, value in record.run.items() if name != "training_scores"}
    return dict(_flat(run | {"metrics": record.metrics, "failed": record.failure}))


def _flat(value: Any, name: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, list) and not any(isinstance(item, (dict, list)) for item in value):
        yield name, _cut(", ".join(map(str, value)))
    else:
        yield name, _cut(str(value))


def _cut(text: str) -> str:
    return text if len(text) <= LONGEST else f"{text[:LONGEST]}…"


def _files(folder: Path, run: Path, album: _Album) -> dict[str, Any]:
    """Links to the files of a run, and its pictures; nothing where it does not lie beside the report.

    Only there do links lead to it wherever both are moved to.
    """
    if folder.resolve().parent not in run.resolve().parents:
        return {"links": {}, "pictures": []}
    pictures = (run / "figures").glob("*.[ps][nv]g")
    stems = sorted({path.stem for path in pictures if _is_own(path, run)})
    return {
        "links": {name: _link(folder, run / name) for name in FILES if _is_own(run / name, run)},
        "pictures": [album.add(stem.replace("_", " "), run / "figures" / stem) for stem in stems],
    }


def _is_own(path: Path, run: Path) -> bool:
    """Whether it is a plain file that lies in the run's folder: no link brings another into the page."""
    try:
        return bool(own_file(path, folder=run))
    except OSError:
        return False


def _link(folder: Path, path: Path) -> str:
    return quote(Path(os.path.relpath(path, folder)).as_posix())
