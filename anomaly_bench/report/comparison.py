"""Methods compared over the classes and seeds that all of them have: ranks, and pairs by Wilcoxon's test.

J. Demšar, Statistical Comparisons of Classifiers over Multiple Data Sets, JMLR 7, 2006. A method is a row of a
table: model, evaluation and settings. A block is one class (where runs have none, all anomalies of one case) with
one seed.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations
from typing import Any, NamedTuple

import numpy as np

from anomaly_bench.report.formats import Table
from anomaly_bench.report.results import Line, row_name

FEWEST = 5
"""Blocks without which nothing is compared."""

LEVEL = 0.05


class Ranking(NamedTuple):
    """What a critical-difference diagram shows.

    Attributes:
        methods: by average rank, the best first.
        ranks: the average rank of each over all blocks, 1 for the highest AUROC; ties share theirs.
        blocks: how many.
        p: of Friedman's test that all are alike; NaN for two methods, which it does not serve.
        critical_difference: two average ranks that are further apart differ at 5 % (Nemenyi's test).
        groups: methods that it does not tell apart, as ranges of places in `methods`; none lies in another.
    """

    methods: list[str]
    ranks: list[float]
    blocks: int
    p: float
    critical_difference: float
    groups: list[range]


class Shared(NamedTuple):
    """The AUROCs `[blocks, methods]` of the blocks that all methods have."""

    methods: list[str]
    areas: np.ndarray


def shared_blocks(lines: Sequence[Line]) -> Shared:
    """What can be compared in `lines`, as `results` gives them."""
    found: dict[str, dict[tuple[str, str, int], float]] = defaultdict(dict)
    for line in lines:
        whole = line["swept"] or line["class"] == "overall"
        if line["finished"] and line["auroc"] is not None and whole and not line["again"]:
            method = row_name(line | {"settings": line["overrides"]})
            found[method][line["case"], line["class"], line["seed"]] = line["auroc"]
    methods = sorted(found)
    blocks = sorted(set.intersection(*(set(own) for own in found.values()))) if found else []
    areas = [[found[name][block] for name in methods] for block in blocks]
    return Shared(methods, np.reshape(np.array(areas, float), (len(blocks), len(methods))))


def ranking(shared: Shared) -> Ranking | None:
    """Rank the methods; None where there is one only, and for fewer than five blocks."""
    from scipy.stats import friedmanchisquare, rankdata, studentized_range

    blocks, k = shared.areas.shape
    if k < 2 or blocks < FEWEST:
        return None
    ranks = rankdata(-shared.areas, axis=1).mean(0)
    order = np.argsort(ranks, kind="stable")
    q = studentized_range.ppf(1 - LEVEL, k, math.inf) / math.sqrt(2)
    difference = float(q * math.sqrt(k * (k + 1) / (6 * blocks)))
    alike = bool((shared.areas == shared.areas[:, :1]).all())
    p = math.nan if k < 3 else 1.0 if alike else float(friedmanchisquare(*shared.areas.T)[1])
    names, values = [shared.methods[place] for place in order], ranks[order].tolist()
    return Ranking(names, values, blocks, p, difference, _groups(values, difference))


def _groups(ranks: Sequence[float], difference: float) -> list[range]:
    """The longest runs of places, of two or more, whose ranks lie within `difference`."""
    ends = [
        max(b for b in range(a, len(ranks)) if ranks[b] - ranks[a] <= difference) for a in range(len(ranks))
    ]
    return [range(a, end + 1) for a, end in enumerate(ends) if end > a and (a == 0 or ends[a - 1] < end)]


def pairs(shared: Shared, order: Sequence[str]) -> list[Line]:
    """Each two methods, in this order, by Wilcoxon's signed rank test, with Holm's correction for all of them.

    A line has `method`, `against`, in how many of the `blocks` it is `better`, the `median` of the differences,
    and `p` and `holm`, two-sided.
    """
    from scipy.stats import wilcoxon
    from statsmodels.stats.multitest import multipletests

    lines: list[Line] = []
    for method, against in combinations(order, 2):
        one, other = (shared.areas[:, shared.methods.index(name)] for name in (method, against))
        difference = one - other
        test: Any = wilcoxon(difference) if difference.any() else None
        p = 1.0 if test is None else float(test.pvalue)
        better = int((difference > 0).sum())
        facts = {"better": better, "blocks": len(difference), "median": float(np.median(difference)), "p": p}
        lines.append({"method": method, "against": against} | facts)
    corrected: Any = multipletests([line["p"] for line in lines], method="holm")[1]
    return [line | {"holm": float(p)} for line, p in zip(lines, corrected, strict=True)]


def comparison_table(name: str, lines: Sequence[Line]) -> Table | None:
    """The pairs, with the ranks below them; None where there is nothing to compare."""
    shared = shared_blocks(lines)
    ranks = ranking(shared)
    if ranks is None:
        return None
    rows = []
    for line in pairs(shared, ranks.methods):
        better = f"{line['better']} of {line['blocks']}"
        numbers = [better, f"{line['median']:+.3f}", _p(line["p"]), _p(line["holm"])]
        rows.append([line["method"], line["against"], *numbers])
    headers = ["method", "against", "better in", "median difference", "p", "p, Holm"]
    return Table(f"{name}-compared", f"Methods compared, {name}", headers, 2, rows, _notes(ranks), [])


def _p(number: float) -> str:
    return f"{number:.3f}" if number >= 0.001 else f"{number:.0e}"


def _notes(ranks: Ranking) -> list[str]:
    told = "; ".join(f"{name} {rank:.2f}" for name, rank in zip(ranks.methods, ranks.ranks, strict=True))
    alike = "; ".join(" = ".join(ranks.methods[place] for place in group) for group in ranks.groups)
    friedman = "" if math.isnan(ranks.p) else f" Friedman's test that all are alike: p {_p(ranks.p)}."
    return [
        f"Average rank over the {ranks.blocks} cells (class and seed) that all have: {told}.{friedman}",
        f"Nemenyi's critical difference at 5 %: {ranks.critical_difference:.2f}; not told apart: {alike or 'none'}.",
        "p: Wilcoxon's signed rank test, two-sided; Holm: corrected for all pairs. Seeds of one class are taken as "
        "independent, which makes p too small where there are many seeds of few classes.",
    ]
