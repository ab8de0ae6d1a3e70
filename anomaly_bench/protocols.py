"""Protocols: who is normal, what trains, what is tested."""

import logging
import math
import re
from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from anomaly_bench.data.dataset import Dataset
from anomaly_bench.errors import SettingError, check_range

log = logging.getLogger("anomaly_bench")


@dataclass(frozen=True)
class Split:
    """Which rows of a data set train and which are tested.

    Attributes:
        train: int64 row numbers, ascending; anomalous rows are among them only where a protocol says so.
        test: int64 row numbers `[n_test]`, ascending; none is in `train`, unless train is test.
        anomalous: bool `[n_test]`, the truth about the test rows.
        case: what is swept, for the run's name: `abnormal-2`, `normal-cat`, `folder`.
        class_index: of the class that is swept; None where none is.
        ratio: the known share of anomalous rows; where it is given, so many of the test rows are called
            anomalous, those with the highest scores.
        contamination: int64 row numbers, the anomalous ones in `train` where other rows are tested.
    """

    train: np.ndarray
    test: np.ndarray
    anomalous: np.ndarray
    case: str
    class_index: int | None = None
    ratio: float | None = None
    contamination: np.ndarray = field(default_factory=lambda: np.empty(0, np.int64))

    @property
    def transductive(self) -> bool:
        """Whether the rows that train are those that are tested: all of them, anomalous ones too, unlabelled."""
        return np.array_equal(self.train, self.test)


@dataclass(frozen=True)
class LeaveOneClassOut:
    """One class is anomalous, all others are normal, official parts are pooled (GANomaly, section 4; EGBAD).

    Normal rows are shuffled by `seed`; the first `train_share` of them train, the others are tested together
    with every row of the abnormal class.

    Args:
        abnormal_class: index or name.
        train_share: of the normal rows, rounded down; above 0 and below 1.
    """

    abnormal_class: int | str
    train_share: float = 0.8

    def split(self, dataset: Dataset, seed: int) -> Split:
        """The rows for this seed; the same on every machine."""
        abnormal = class_index(dataset, self.abnormal_class, "abnormal_class")
        check_range("train_share", self.train_share, above=0, below=1, room="protocol")
        anomalous = of_class(dataset, abnormal)
        normal = shuffled(np.flatnonzero(~anomalous), seed)
        n_train = int(self.train_share * len(normal))
        test = np.sort(np.concatenate([normal[n_train:], np.flatnonzero(anomalous)]))
        case = f"abnormal-{dataset.class_names[abnormal]}"
        return checked(
            Split(np.sort(normal[:n_train]), test, anomalous[test], case, abnormal),
            dataset,
            "abnormal_class, protocol.train_share",
        )


@dataclass(frozen=True)
class OneVsRest:
    """One class is normal: its official training rows train, the whole official test part is tested.

    Deep SVDD's, section 4, and that of most one-class methods since.

    Args:
        normal_class: index or name.
    """

    normal_class: int | str

    def split(self, dataset: Dataset, seed: int) -> Split:
        """The rows; the official parts leave nothing to `seed`."""
        normal = class_index(dataset, self.normal_class, "normal_class")
        if dataset.official_train.all():
            raise SettingError(
                f"protocol=one_vs_rest: data={dataset.name} has no official test part; "
                "use protocol=leave_one_class_out or another data set"
            )
        inside = of_class(dataset, normal)
        test = np.flatnonzero(~dataset.official_train)
        train = np.flatnonzero(dataset.official_train & inside)
        case = f"normal-{dataset.class_names[normal]}"
        return checked(Split(train, test, ~inside[test], case, normal), dataset, "normal_class")


@dataclass(frozen=True)
class Folder:
    """Folder names say who is normal: `0.*`, `normal` or `good`. `train/` trains and `test/` is tested."""

    def split(self, dataset: Dataset, seed: int) -> Split:
        """The rows; the folders leave nothing to `seed`. Anomalous rows under `train/` are left out."""
        normal_class = np.array([is_normal(name) for name in dataset.class_names])
        if not normal_class.any() or normal_class.all():
            several = len(dataset.class_names) > 1
            raise SettingError(
                f"protocol=folder: data={dataset.name} has the classes {listed(dataset)}; needed are normal ones, "
                "named 0.*, normal or good, and others"
                + ("; or protocol=one_vs_rest normal_class=..." if several else "")
            )
        log.info(
            "protocol: normal: %s; anomalous: %s",
            *(some(dataset, kind) for kind in (normal_class, ~normal_class)),
        )
        normal = normal_class[dataset.classes]
        unused = Counter(dataset.class_names[c] for c in dataset.classes[dataset.official_train & ~normal])
        if unused:
            log.warning("protocol: anomalous images under train/ are left out: %s", dict(unused))
        test = np.flatnonzero(~dataset.official_train)
        train = np.flatnonzero(dataset.official_train & normal)
        return checked(Split(train, test, ~normal[test], "folder"), dataset, "the folders in data.root")


@dataclass(frozen=True)
class Contaminated:
    """One class is normal, and a share `rho` of the rows is of others: these train, unlabelled, and are tested.

    E3Outlier's, section 4.1 (code: demonzyj56/E3Outlier), RDA's, DRAE's. The official parts are pooled. To the
    n rows of the class come `int(n rho / (1 - rho))` of all others, drawn by `seed`; where that makes more than
    `max_rows`, a random choice of so many is left.

    Args:
        normal_class: index or name.
        rho: share of anomalous rows among all, above 0 and below 1.
        max_rows: how many rows there are at most.
    """

    normal_class: int | str
    rho: float = 0.1
    max_rows: int = 12_000

    def split(self, dataset: Dataset, seed: int) -> Split:
        """The rows for this seed; training and test rows are the same."""
        normal = class_index(dataset, self.normal_class, "normal_class")
        check_range("rho", self.rho, above=0, below=1, room="protocol")
        check_range("max_rows", self.max_rows, at_least=2, room="protocol")
        anomalous = ~of_class(dataset, normal)
        inside = np.flatnonzero(~anomalous)
        outside = shuffled(np.flatnonzero(anomalous), seed)
        wanted = int(len(inside) * self.rho / (1 - self.rho))
        if wanted > len(outside):
            most = len(outside) / max(len(dataset.classes), 1)
            raise SettingError(
                f"protocol.rho={self.rho}: data={dataset.name} has {len(outside)} rows of other classes, needed "
                f"are {wanted}; allowed is up to {math.floor(1000 * most) / 1000:g}"
            )
        rows = shuffled(np.concatenate([inside, outside[:wanted]]), seed)[: self.max_rows]
        rows = np.sort(rows)
        case = f"normal-{dataset.class_names[normal]}"
        return checked(
            Split(rows, rows, anomalous[rows], case, normal),
            dataset,
            "normal_class, protocol.rho, protocol.max_rows",
        )


KNOWN_RATIO = {"kddcup99": 0.2, "kddcup99_rev": 0.2, "thyroid": 0.025, "arrhythmia": 0.15}
"""Shares of anomalous rows as the DAGMM paper rounds them (its Table 1), by data set."""


@dataclass(frozen=True)
class TabularHalf:
    """A random half of all rows, less its anomalous ones, trains; the other half is tested (DAGMM, section 4.3).

    The known ratio of anomalous rows sets the threshold: that share of the test rows, those with the highest
    scores, is called anomalous. The paper does not say of which rows; recall / precision in its Table 2
    equals ratio / (true share), as it does for test rows at their natural share.

    Args:
        normal_class: index or name; all other classes are anomalous.
        contamination: share of anomalous rows among the training rows, from 0 and below 1 (the paper's
            Table 3): drawn from those of the training half. The paper's "mixed with c % of samples from the
            anomaly class" can also be read as a share of the anomalous rows.
        ratio: the known ratio; None is the paper's for its own data sets, else the data set's own share.
    """

    normal_class: int | str
    contamination: float = 0.0
    ratio: float | None = None

    def split(self, dataset: Dataset, seed: int) -> Split:
        """The rows for this seed; the same on every machine."""
        normal = class_index(dataset, self.normal_class, "normal_class")
        anomalous = ~of_class(dataset, normal)
        check_range("contamination", self.contamination, at_least=0, below=1, room="protocol")
        if self.ratio is not None and not 0 < self.ratio < 1:
            raise SettingError(f"protocol.ratio={self.ratio}: allowed is above 0 and below 1, or null")
        if anomalous.mean() > 0.5:
            log.warning(
                "normal_class=%s: only %d of %d rows of data=%s are %r, and those train; is that the normal class?",
                *(self.normal_class, (~anomalous).sum(), len(anomalous), dataset.name),
                dataset.class_names[normal],
            )
        order = shuffled(np.arange(len(anomalous)), seed)
        half, test = order[: len(order) // 2], np.sort(order[len(order) // 2 :])
        clean, others = half[~anomalous[half]], half[anomalous[half]]
        wanted = round(len(clean) * self.contamination / (1 - self.contamination))
        if wanted > len(others):
            most = len(others) / max(1, len(half))
            raise SettingError(
                f"protocol.contamination={self.contamination}: the training half of data={dataset.name} has "
                f"{len(others)} anomalous rows; allowed is up to {math.floor(10_000 * most) / 10_000:g}"
            )
        contamination = np.sort(others[:wanted])
        train = np.sort(np.concatenate([clean, contamination]))
        ratio = self.ratio or KNOWN_RATIO.get(dataset.name) or float(anomalous.mean())
        case = f"normal-{dataset.class_names[normal]}"
        split = Split(train, test, anomalous[test], case, ratio=ratio, contamination=contamination)
        return checked(split, dataset, "normal_class")


def is_normal(class_name: str) -> bool:
    """Whether a class name says normal: by a first folder `0.*`, or else a first or last one `normal` or `good`."""
    first, last = class_name.lower().split("/")[0], class_name.lower().split("/")[-1]
    if re.match(r"\d+\.(?!\d)", first):  # `0.5mm` is a size, not a number and a name
        return first.startswith("0.")
    return bool({first, last} & {"normal", "good", "0.normal"})


def class_index(dataset: Dataset, wanted: int | str, setting: str) -> int:
    """The class that `setting=wanted` means: a name, or an index where no class is called so."""
    names = dataset.class_names
    if str(wanted) in names:
        return names.index(str(wanted))
    if isinstance(wanted, str) and wanted.isdecimal() and str(int(wanted)) == wanted:
        wanted = int(wanted)
    if isinstance(wanted, int) and 0 <= wanted < len(names):
        return int(wanted)
    raise SettingError(
        f"{setting}={wanted}: data={dataset.name} has no such class; allowed are 0 to {len(names) - 1}, "
        f"or {listed(dataset)}"
    )


def of_class(dataset: Dataset, index: int) -> np.ndarray:
    """Bool `[N]`: the rows of a class and, of images, of its sub-classes, `class/subclass`."""
    name = dataset.class_names[index]
    if dataset.x.dim() == 2:  # a label of a table may hold any sign
        return dataset.classes == index
    return np.array([one == name or one.startswith(f"{name}/") for one in dataset.class_names])[
        dataset.classes
    ]


def listed(dataset: Dataset) -> str:
    """The class names, for a message; at most 30 of them."""
    more = ", ..." if len(dataset.class_names) > 30 else ""
    return ", ".join(dataset.class_names[:30]) + more


def some(dataset: Dataset, chosen: np.ndarray) -> str:
    """The chosen class names, for a notice; at most ten of them."""
    names = [repr(name) for name, is_one in zip(dataset.class_names, chosen, strict=True) if is_one]
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def check_seed(seed: int) -> None:
    """Refuse what numpy's generators refuse, and what is no whole number."""
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or not 0 <= seed < 2**32:
        raise SettingError(f"seed={seed}: allowed is 0 to 2**32 - 1")


def shuffled(rows: np.ndarray, seed: int) -> np.ndarray:
    """`rows` in an order that depends on `seed` only."""
    check_seed(seed)
    # numpy promises that this generator's stream never changes; that of `default_rng` may.
    return np.random.RandomState(seed).permutation(rows)


def checked(split: Split, dataset: Dataset, settings: str) -> Split:
    """The split, if it has rows to learn from and both kinds to test; else no AUROC could come of it.

    Args:
        split: what the protocol came to.
        dataset: of the rows.
        settings: those of the protocol that decide how many rows of a kind there are, for the message.
    """
    counts = {
        "training": len(split.train),
        "normal test": int((~split.anomalous).sum()),
        "anomalous test": int(split.anomalous.sum()),
    }
    if min(counts.values()) == 0:
        found = ", ".join(f"{number} {kind}" for kind, number in counts.items())
        raise SettingError(
            f"data={dataset.name}, {split.case}: {found} rows; at least one of each is needed: "
            f"see {settings} and data.limit"
        )
    return split
