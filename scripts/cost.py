"""What a large table costs, from what runs have measured: results/cost.md.

    python scripts/cost.py                         from the records in results/ and the samples in its benchmarks/
    python scripts/cost.py runs --output cost.md   from the records of these runs too, such as those made on a GPU

The table is 30 methods by 10 classes by 5 seeds by 6 data sets. A run costs the rows that it trains on times its
epochs, and the rows that it scores; how fast rows go is measured, and the page says of which methods.
"""

import argparse
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any, NamedTuple

import pandas as pd
import yaml

from anomaly_bench.record import read_records, write_text

CHECKOUT = Path(__file__).resolve().parents[1]
METHODS, CLASSES, SEEDS = 30, 10, 5
ROWS = {
    "mnist": 70_000,
    "fashion_mnist": 70_000,
    "cifar10": 60_000,
    "cifar100": 60_000,
    "svhn": 99_289,
    "digits": 1_797,
}
"""All rows of each data set. With one of ten classes left out, 72 % of them train and the others are tested."""

TRAINED, TESTED = 0.8 * 0.9, 1 - 0.8 * 0.9
SAMPLED = 1024
"""Training rows that each run scores for its threshold."""

NO_GPU = """
**No speed on a GPU was measured**: there is no record of a run on one, so there is no figure for 1 or for 100 GPUs.
What follows is for the processors that were measured. `python scripts/cost.py RUNS_DIR` adds the records of runs on a
GPU.
"""

PAGE = """# What a large table costs

{methods} methods, {classes} classes, {seeds} seeds, {sets} data sets ({names}): {runs:,} runs, each as long as in its
paper. Written by `python scripts/cost.py`, from records alone.
{no_gpu}
{answer}

## Measured

{speeds}

Images a second of a whole machine: a job on one thread counts as many times as there are cores, as in a sweep side by
side. From and to are the slowest and the fastest run; other work on the machine is in them.

## Extrapolated

- **Methods.** Speeds are measured for {measured}. A method that was not measured on a machine is taken to be as fast as
  on the others, and one that was measured on none as fast for each row and epoch as those that were measured here; one
  without epochs costs its scoring only. This is the weakest part: a larger network, or many turned copies of each
  image (geotrans), takes many times as long, and rows of numbers much less.
- **Epochs** are those that the config of each method calls so, times its rounds; further stages that it counts in
  steps, or names otherwise, are not in them.
- Of {known} methods, {counted} are averaged and counted {methods} times. Left out, since they search while they score,
  which is slow and was not measured: {left_out}.
- **Data sets.** Rows of each go as fast as rows of those that were run, all at 32 pixels. With one of ten classes left
  out, 72 % train; the others are scored twice, by the detector and by its untrained control.
- **100 machines** finish in a hundredth of the time, and never sooner than the longest run. A GPU computes one run at
  a time.
- Not counted: start-up, loading and downloading of data, figures, checkpoints, fits in closed form, and runs that take
  over another's training.

## Epochs that were counted

{epochs}
"""


class Speed(NamedTuple):
    """What one run or one sample of a benchmark measured, of one method on one machine as a whole."""

    kind: str  # cpu, cuda, mps
    method: str
    machine: str
    training: float | None  # rows a second
    scoring: float | None  # rows a second


class Method(NamedTuple):
    """A method as its config has it."""

    name: str
    epochs: int
    searches: bool  # descends while it scores, which takes many times as long as a pass


def main(arguments: Sequence[str] | None = None) -> None:
    """Read what was measured, and write the page."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", nargs="*", type=Path, help="folders of further records")
    parser.add_argument("--output", type=Path, default=CHECKOUT / "results/cost.md", help="(%(default)s)")
    given = parser.parse_args(arguments)
    folders = [CHECKOUT / "results", *given.runs]
    speeds = [speed for folder in folders for speed in (*of_records(folder), *of_benchmarks(folder))]
    write_text(given.output, page(speeds, methods(CHECKOUT / "configs/model")))


def of_records(folder: Path) -> Iterable[Speed]:
    """The speeds of finished runs. Jobs on single threads stand for as many as the machine has cores."""
    for record in read_records(folder):
        if (
            record.status != "finished" or len(record.run.get("shape") or ()) != 3
        ):  # rows of numbers are no images
            continue
        run, cores = record.run, record.run["machine"]["cores"]
        kind = str(run["device"]).partition(":")[0]
        times = cores / run.get("threads", cores) if kind == "cpu" else 1
        yield Speed(
            kind,
            str(run["model"]),
            f"{run['machine']['cpu']}, {cores} cores" if kind == "cpu" else str(run["device"]),
            None if "trained_in" in run else times * record.metrics["train_images_per_s"],
            times * 1000 / record.metrics["score_ms_per_image"],
        )


def of_benchmarks(folder: Path) -> Iterable[Speed]:
    """The speeds of GANomaly in the samples of `scripts/bench.py`, which use all cores."""
    for path in sorted((folder / "benchmarks").glob("*.json")):
        told = json.loads(path.read_text(encoding="utf-8"))
        for kind, device in told.get("devices", {}).items():
            machine = (
                f"{device['name']}, {told['machine']['cores']} cores" if kind == "cpu" else device["name"]
            )
            for sample in device["samples"]:
                if sample["contender"] == "anomaly-bench":
                    for value in sample["values"]:
                        if sample["what"] == "training, images/s":
                            yield Speed(kind.partition(":")[0], "ganomaly", machine, value, None)
                        if sample["what"] == "scoring, batch 512, images/s":
                            yield Speed(kind.partition(":")[0], "ganomaly", machine, None, value)


def methods(configs: Path) -> list[Method]:
    """Each method once, by the first of its configs."""
    found: dict[str, Method] = {}
    for path in sorted(configs.glob("*.yaml")):
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
        if (target := values.get("_target_")) is None:
            continue  # a variant of another config
        source = (configs.parents[1] / target.rpartition(".")[0].replace(".", "/")).with_suffix(".py")
        text = source.read_text(encoding="utf-8")  # importing all takes many seconds
        searches = re.search(r"^    foldable\b.* = False$", text, re.MULTILINE) is not None
        found.setdefault(target, Method(path.stem, epochs_of(values), searches))
    return list(found.values())


def epochs_of(values: Any) -> int:
    """Passes over the training rows: `epochs` of a config, of each of its `rounds`, and those of what is inside it.

    Where they differ by data set, the number for all others, which stands last, counts.
    """
    if not isinstance(values, dict):
        return 0
    told = re.findall(r"\d+", str(values.get("epochs", 0)))
    own = int(told[-1]) * int(values.get("rounds", 1))
    return own + sum(epochs_of(value) for value in values.values())


def page(speeds: Sequence[Speed], known: Sequence[Method]) -> str:
    """The whole page."""
    machines = sorted(
        {(speed.kind == "cpu", speed.kind, speed.machine) for speed in speeds if speed.training}
    )
    measured = sorted({speed.method for speed in speeds})
    counted = [method for method in known if not method.searches or method.name in measured]
    left_out = sorted({method.name for method in known} - {method.name for method in counted})
    return PAGE.format(
        methods=METHODS,
        classes=CLASSES,
        seeds=SEEDS,
        sets=len(ROWS),
        names=", ".join(ROWS),
        runs=METHODS * CLASSES * SEEDS * len(ROWS),
        no_gpu="" if any(kind == "cuda" for _, kind, _ in machines) else NO_GPU,
        answer=table([cost(speeds, counted, machine) for *_, machine in machines]),
        speeds=table(measured_lines(speeds)),
        measured=", ".join(measured),
        known=len(known),
        counted=len(counted),
        left_out=", ".join(left_out) or "none",
        epochs=", ".join(f"{method.name} {method.epochs}" for method in counted),
    )


def cost(speeds: Sequence[Speed], counted: Sequence[Method], machine: str) -> dict[str, str]:
    """One line of the answer: what the table costs on a machine, or on a GPU."""
    kind = next(speed.kind for speed in speeds if speed.machine == machine)
    line = {"on": f"{machine}, no GPU" if kind == "cpu" else machine}
    speeds = [speed for speed in speeds if speed.kind == kind]
    measured = {speed.method for speed in speeds}
    counted = [method for method in counted if not method.searches or method.name in measured]
    for label, pick in (("", median), (", if all ran as the fastest", max), (", as the slowest", min)):
        hours = [
            seconds(speeds, machine, method, rows, pick) / 3600
            for method in counted
            for rows in ROWS.values()
        ]
        total = fmean(hours) * METHODS * CLASSES * SEEDS * len(ROWS)
        line[f"days on 1{label}"] = f"{total / 24:,.0f}"
        if not label:
            line["hours of a run, mean"], line["the longest"] = f"{fmean(hours):,.1f}", f"{max(hours):,.1f}"
            line["days on 100"] = f"{max(total / 100, max(hours)) / 24:,.1f}"
    return line


def seconds(speeds: Sequence[Speed], machine: str, method: Method, rows: int, pick: Any) -> float:
    """What a run of a method on so many rows takes.

    A method that was not measured on the machine goes as fast as on others, and one that was measured on none as fast
    as those that were, on this machine.
    """
    here = [speed for speed in speeds if speed.machine == machine]
    own = [speed for speed in speeds if speed.method == method.name]
    own_here = [speed for speed in own if speed.machine == machine]

    def rate(what: str) -> float:
        known = [
            [v for speed in group if (v := getattr(speed, what)) is not None]
            for group in (own_here, own, here, speeds)
        ]
        return float(pick(next(filter(None, known))))

    training, scoring = rate("training"), rate("scoring")
    learned = TRAINED * rows
    return learned * method.epochs / training + (2 * TESTED * rows + min(SAMPLED, learned)) / scoring


def measured_lines(speeds: Sequence[Speed]) -> list[dict[str, str]]:
    """What was measured: a line for each machine and method."""
    groups: dict[tuple[str, str, str], list[Speed]] = defaultdict(list)
    for speed in speeds:
        groups[speed.kind, speed.machine, speed.method].append(speed)
    lines = []
    for (kind, machine, method), own in sorted(groups.items()):
        line = {"device": kind, "machine": machine, "method": method}
        for what in ("training", "scoring"):
            values = [value for speed in own if (value := getattr(speed, what)) is not None]
            line |= {f"{what}, images/s": f"{median(values):,.0f}" if values else ""}
            line |= {f"from–to, {what}": f"{min(values):,.0f}–{max(values):,.0f}" if values else ""}
            line |= {f"n, {what}": str(len(values))}
        lines.append(line)
    return lines


def table(lines: Sequence[dict[str, str]]) -> str:
    """Lines as Markdown."""
    return pd.DataFrame(lines).to_markdown(index=False, disable_numparse=True)


if __name__ == "__main__":
    main()
