"""The table of what scripts/bench.py measured, from its JSON alone."""

import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

OURS = "anomaly-bench"
REFERENCES = (OURS, "plain", "anomalib")
Samples = dict[str, dict[str, list[float]]]  # by measure, by contender
NOTES = """\
Medians over the rounds, [smallest-largest]. Ratios are taken within a round; of speeds more is better, of seconds and
memory less. Memory is that of the main process. All contenders have images of noise, 32 x 32, and batches of 64 in
training; in memory they are grey, in files RGB. `plain` has the official code's passes in its order.
"""


def table(report: dict[str, Any]) -> str:
    """A page of Markdown: the machine, every measure, and how far from the hardware's limit it is."""
    machine, versions = report["machine"], report["versions"]
    before, after = (report["load_average"][when][0] for when in ("before", "after"))
    peers = "".join(f", {name} {version}" for name, version in report["peers"].items())
    quick = "**Made with --quick: these figures mean nothing.**\n\n" if report["quick"] else ""
    pages = [
        f"{quick}{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB, {machine['platform']}; "
        f"Python {versions['python']}, torch {versions['torch']}{peers}; {report['made']}, "
        f"revision {report['git']}; {report['rounds']} rounds; load average {before:.1f} before, {after:.1f} after."
    ]
    for device, found in report["devices"].items():
        samples: Samples = defaultdict(dict)
        for sample in found["samples"]:
            samples[sample["what"]][sample["contender"]] = sample["values"]
        limit = limits(samples, found["gflop"]) if found["gflop"] else []
        pages += [f"## {device}: {found['name']}", threads(found["contenders"]), figures(samples), *limit]
    return "\n\n".join([*pages, NOTES])


def threads(contenders: dict[str, dict[str, Any]]) -> str:
    """How each contender computes."""
    parts = [
        f"{name} {facts['threads']}" + (f" ({facts['precision']})" if "precision" in facts else "")
        for name, facts in sorted(contenders.items())
    ]
    return f"Threads: {', '.join(parts)}."


def figures(samples: Samples) -> str:
    """One line for each measure and contender."""
    lines = []
    for what, of_contender in samples.items():
        if what == "GFLOP/s":
            continue
        for name, values in of_contender.items():
            line = {
                "": what if name == next(iter(of_contender)) else "",
                "contender": name,
                "median": spread(values),
            }
            if what.endswith("images/s"):
                line["ms/image"] = short(1000 / statistics.median(values))
            lines.append(line | dict(ratios(values, of_contender)))
    return markdown(lines)


def ratios(values: Sequence[float], of_contender: dict[str, list[float]]) -> Iterator[tuple[str, str]]:
    """To each reference that was measured too."""
    for name in REFERENCES:
        if name in of_contender:
            yield f"to {name}", spread(divided(values, of_contender[name]))


def limits(samples: Samples, gflop: dict[str, dict[str, float]]) -> list[str]:
    """What an image costs, what the hardware multiplies, and the share of that which this project reaches."""
    costs = [
        {"GFLOP an image": what} | {name: f"{cost:.4f}" for name, cost in sorted(gflop[what].items())}
        for what in ("training", "scoring")
    ]
    lines = []
    for kind, rates in samples["GFLOP/s"].items():
        line = {"sustained": kind, "GFLOP/s": spread(rates)}
        for what, measure in (("training", "training"), ("scoring", "scoring, batch 512")):
            floor = [rate / gflop[what][OURS] for rate in rates]
            line[f"{what}, images/s at that rate"] = spread(floor)
            if reached := samples.get(f"{measure}, images/s"):
                line[f"reached in {measure}"] = percent(divided(reached[OURS], floor))
        lines.append(line)
    return [markdown(costs), markdown(lines)]


def divided(values: Sequence[float], by: Sequence[float]) -> list[float]:
    """Round by round."""
    return [value / other for value, other in zip(values, by, strict=True)]


def spread(values: Sequence[float]) -> str:
    """Median and range."""
    return f"{short(statistics.median(values))} [{short(min(values))}-{short(max(values))}]"


def percent(shares: Sequence[float]) -> str:
    """Median and range of shares."""
    return f"{statistics.median(shares):.0%} [{min(shares):.0%}-{max(shares):.0%}]"


def short(value: float) -> str:
    """Three digits, or whole where there are more."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def markdown(lines: list[dict[str, str]]) -> str:
    """Lines as a table; a cell without a value is empty."""
    frame = pd.DataFrame(lines).fillna("")
    return frame.to_markdown(index=False, disable_numparse=True)
