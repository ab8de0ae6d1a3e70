"""What each lever of the trainer does to the AUROC of GANomaly on MNIST.

    python scripts/bench_levers.py runs/levers --output results/benchmarks/levers_NAME.json     NAME.md is written too
    python scripts/bench_levers.py runs/levers data.limit=2000 trainer.max_epochs=2             shorter
    python scripts/bench_levers.py runs/more --only without_fold seed=2,3,4                     one lever, more seeds

The digits 2, 4 and 8 are left out in turn, with two seeds each: once with all levers, then with one of them off at a
time. Steps are recorded throughout, as some levers act on these alone. What follows the folder is passed on to
`anomaly-bench`; runs that are finished in the folder are not computed again, and those of other settings not counted.
"""

import argparse
import math
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pandas as pd
from bench import levers

from anomaly_bench import machine, record, versions
from anomaly_bench.training.device import available_devices

BASE = {
    "model": "ganomaly",
    "data": "mnist",
    "abnormal_class": "2,4,8",
    "seed": "0,1",
    "trainer.compile": "graph",
}
Cells = dict[str, float]  # AUROC by class and seed


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is not finished, print the table, and write what is asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=Path, help="folder of the runs")
    parser.add_argument("--output", type=Path, help="JSON file; without it the table is only printed")
    known = dict(settings())
    parser.add_argument("--only", choices=list(known)[1:], help="one of them beside `all`")
    given, overrides = parser.parse_known_args(arguments)
    if wrong := [override for override in overrides if "=" not in override]:
        parser.error(f"{wrong[0]}: settings are KEY=VALUE")
    base = BASE | dict(override.split("=", 1) for override in overrides)
    names = ("all", given.only) if given.only else known
    aurocs = {name: cells(given.runs / name, base | known[name]) for name in names}
    report = {
        "made": datetime.now(UTC).isoformat(timespec="minutes"),
        "git": versions.git_revision(),
        "machine": machine.described(),
        "versions": versions.of_packages(),
        "settings": base,
        "aurocs": aurocs,
    }
    print(page(report))
    if given.output:
        record.write_json(given.output, report)
        record.write_text(given.output.with_suffix(".md"), page(report))


def settings() -> Iterator[tuple[str, dict[str, str]]]:
    """All levers on, then without each that changes something here, and with the slowest compiler."""
    yield "all", {}
    for keyword, off in levers(available_devices()[0]):
        yield f"without_{keyword}", {f"trainer.{keyword}": str(off).lower()}
    yield "inductor", {"trainer.compile": "inductor"}


def cells(folder: Path, overrides: dict[str, str]) -> Cells:
    """AUROC of every run of a sweep."""
    sweep = overrides | {"runs_dir": str(folder)}
    words = [f"{key}={value}" for key, value in sweep.items()]
    subprocess.run([sys.executable, "-m", "anomaly_bench.cli", "-m", *words], check=True, stdout=sys.stderr)
    return {
        f"{found.run['class']}, seed {found.run['seed']}": found.metrics["auroc"]
        for found in record.read_records(folder)
        if found.status == "finished" and is_of(sweep, found.run["overrides"])
    }


def is_of(sweep: dict[str, str], overrides: Sequence[str]) -> bool:
    """Whether a run with these settings is one of the sweep's; a sweep writes `False` where `false` was typed."""
    own = {key: value.lower() for key, _, value in (override.partition("=") for override in overrides)}
    asked = {key: value.lower().split(",") for key, value in sweep.items() if not key.startswith("hydra.")}
    return own.keys() == asked.keys() and all(own[key] in values for key, values in asked.items())


def page(report: dict[str, Any]) -> str:
    """The differences as Markdown."""
    machine, aurocs = report["machine"], report["aurocs"]
    command = " ".join(f"{key}={value}" for key, value in sorted(report["settings"].items()))
    values = pd.DataFrame(aurocs).T.sort_index().sort_index(axis=1).rename_axis("AUROC")
    return (
        f"{machine['cpu']}, {machine['cores']} cores; torch {report['versions']['torch']}; {report['made']}, revision "
        f"{report['git']}; `{command}`.\n\n"
        f"{pd.DataFrame(differences(aurocs)).to_markdown(index=False, floatfmt='+.4f', disable_numparse=[1])}\n\n"
        f"{values.to_markdown(floatfmt='.4f')}\n\n"
        "AUROC with all levers less that of the line, of the same class and seed; `another seed` is each seed less "
        "each later one\nof the same class, with all levers. A lever that changes the order of sums changes every "
        "run as another seed would.\n"
    )


def differences(aurocs: dict[str, Cells]) -> Iterator[dict[str, str | float]]:
    """A line for each lever, and one for another seed where there are several."""
    every = aurocs["all"]
    for name, found in sorted(aurocs.items()):
        if name != "all":
            yield line(name.replace("_", " ", 1), [every[cell] - found[cell] for cell in every])
    by_class = pd.Series(every).groupby(lambda cell: cell.split(",")[0])
    if apart := [a - b for _, own in by_class for a, b in combinations(own.sort_index(), 2)]:
        yield line("another seed", apart)


def line(name: str, found: Sequence[float]) -> dict[str, str | float]:
    """Mean, spread and extremes of differences."""
    return {
        "": name,
        "n": str(len(found)),
        "mean": fmean(found),
        "standard deviation": stdev(found) if len(found) > 1 else math.nan,
        "lowest": min(found),
        "highest": max(found),
    }


if __name__ == "__main__":
    main()
