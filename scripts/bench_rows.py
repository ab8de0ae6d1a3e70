"""How much memory and time REPEN and RDP need on many rows and on many columns.

    python scripts/bench_rows.py --output results/benchmarks/rows_NAME.json     measure; NAME.md is written too

Each measurement is a process of its own: random rows, one epoch of each stage of the method as it comes (but RDP with
two levels of its eight), and the scores of all rows. The memory above that of the rows must not grow with their
square: from 250,000 to 1,000,000 rows it may grow four times, where pairs of rows would grow sixteen times.
"""

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pandas as pd
import torch

from anomaly_bench import machine, record, versions
from anomaly_bench.detectors.rdp import RDP
from anomaly_bench.detectors.repen import REPEN
from anomaly_bench.training.scoring import score_rows
from anomaly_bench.training.trainer import Trainer

METHODS = {"repen": REPEN, "rdp": partial(RDP, levels=2)}
COLUMNS = (
    *("method", "rows", "columns", "memory of the rows, MiB", "peak above that, MiB"),
    *("stages", "learning, s", "scoring, s", "scores that are finite"),
)
SIZES = ((250_000, 10), (500_000, 10), (1_000_000, 10), (5_000, 10_000), (5_000, 100_000))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every method on every size, and write JSON and a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file; without it the table is only printed")
    parser.add_argument("--one", nargs=3, metavar=("METHOD", "ROWS", "COLUMNS"), help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.one:
        print(json.dumps(measured(given.one[0], int(given.one[1]), int(given.one[2]))))
        return
    lines = [in_a_process(method, *size) for method in METHODS for size in SIZES]
    facts = {
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "git": versions.git_revision(),
        "machine": machine.described(),
        "versions": versions.of_packages(),
    }
    text = page(lines, facts)
    print(text)
    if given.output:
        record.write_json(given.output, facts | {"lines": lines})
        record.write_text(given.output.with_suffix(".md"), text)


def in_a_process(method: str, rows: int, columns: int) -> dict[str, str | int | float]:
    """What another process measures, whose peak of memory is its own."""
    words = [sys.executable, __file__, "--one", method, str(rows), str(columns)]
    print(f"{method} on {rows:,} x {columns:,}", file=sys.stderr)
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)


def measured(method: str, n: int, d: int) -> dict[str, str | int | float]:
    """Peak of memory in MiB, and seconds of learning and scoring, of `n` rows of `d` columns."""
    torch.manual_seed(0)
    trainer = Trainer(device="cpu", max_epochs=1)
    rows = trainer.rows(torch.rand(n, d), 0.5, 0.5)
    before = peak()
    detector = trainer.place(METHODS[method](shape=(d,)))
    started = time.perf_counter()
    learned = trainer.learn(detector, rows, seed=0)
    learning = time.perf_counter() - started
    scores = score_rows(detector, rows, precision=trainer.precision, batch_size=256)
    return {
        "method": method,
        "rows": n,
        "columns": d,
        "memory of the rows, MiB": round(rows.x.nbytes / 2**20),
        "peak above that, MiB": round(peak() - before),
        "stages": len({line.stage for line in learned.history}),
        "learning, s": round(learning, 1),
        "scoring, s": round(time.perf_counter() - started - learning, 1),
        "scores that are finite": int(scores.isfinite().sum()),
    }


def peak() -> float:
    """Highest resident memory of this process so far, MiB."""
    highest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return highest / (2**20 if sys.platform == "darwin" else 2**10)


def page(lines: Sequence[dict[str, str | int | float]], facts: dict[str, object]) -> str:
    """The measurements as Markdown."""
    machine = facts["machine"]
    assert isinstance(machine, dict)
    table = pd.DataFrame(lines, columns=list(COLUMNS)).to_markdown(index=False, intfmt=",")
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {facts['made']}, revision "
        f"{facts['git']}.\n\n{table}\n\nOne epoch of each stage; RDP has two levels of its eight. Memory of the "
        "process at its highest, less what it had with the rows in place.\n"
    )


if __name__ == "__main__":
    main()
