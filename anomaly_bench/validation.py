"""Validation rows: what hyper-parameters may be chosen by, since test rows may not.

Without anomalies there is no AUROC, and what stands in for it chooses badly. A training loss says nothing across
settings that change the loss. Internal measures of the scores alone (their spread, their stability, excess mass) were
found hardly better than a random choice (Ma, Zhao, Zhang, Akoglu, SIGKDD Explorations 25(1), 2023, arXiv 2104.01422).
Anomalies that are made up reward what finds the made-up ones. So this takes real anomalies that are not tested, or
refuses: a share of the normal training rows, which then do not train, against rows outside the test rows that

- the protocol uses for nothing, since they are anomalous: those under `train/` of folders, the official training rows
  of the other classes under `one_vs_rest`, the anomalous rows of the training half of a table;
- or are of one class that is named, which then does not train either: under `leave_one_class_out`, a normal class
  stands in for the anomaly.

The first kind has labels of the kinds of anomalies that are tested, if not of their rows, which is more than one-class
papers grant themselves; a run's record says so. The test rows are those of the protocol, unchanged. Anomalous rows
that a protocol puts among the training rows all train on, so that their share of those that are left is larger.
"""

from dataclasses import dataclass, replace

import numpy as np

from anomaly_bench.data.dataset import Dataset
from anomaly_bench.errors import SettingError
from anomaly_bench.protocols import Split, class_index, of_class, shuffled


@dataclass(frozen=True)
class Validation:
    """Rows that neither train nor are tested.

    Attributes:
        rows: int64 row numbers of the data set, in random order.
        anomalous: bool, the truth about them.
    """

    rows: np.ndarray
    anomalous: np.ndarray


def hold_out(
    split: Split, dataset: Dataset, seed: int, share: float | None, anomalous_class: int | str | None
) -> tuple[Split, Validation | None]:
    """The split without what is held out of its training rows, and the validation rows; None without a share.

    Args:
        share: of the normal training rows that is held out, rounded down to a number from 1.
        anomalous_class: index or name of the validation anomalies' class; None for what the protocol leaves over.
    """
    if share is None:
        if anomalous_class is not None:
            raise SettingError(
                f"evaluation.validation_class={anomalous_class}: it says of which class validation anomalies are; "
                "evaluation.validation=SHARE, which holds rows out, is not set"
            )
        return split, None
    if not 0 < share < 1:
        raise SettingError(f"evaluation.validation={share}: allowed is null, or above 0 and below 1")
    if split.transductive:
        raise SettingError(
            "evaluation.validation: a run that trains on its test rows has no other rows to choose by"
        )
    clean = np.setdiff1d(split.train, split.contamination)
    taken = np.concatenate([split.test, split.contamination])
    outside = np.setdiff1d(np.arange(len(dataset.classes)), taken)
    if anomalous_class is None:
        anomalies = outside[~np.isin(dataset.classes[outside], dataset.classes[clean])]
    else:
        wanted = class_index(dataset, anomalous_class, "evaluation.validation_class")
        anomalies = outside[of_class(dataset, wanted)[outside]]
    order = shuffled(np.setdiff1d(clean, anomalies), seed)
    normal, rest = np.split(order, [max(1, int(share * len(order)))])
    if not len(anomalies) or not len(rest):
        raise SettingError(
            f"evaluation.validation_class={anomalous_class}: outside the test rows it leaves {len(anomalies)} "
            f"anomalous rows to choose by, and {len(rest)} to train on; name a class that is not tested as anomalous"
        )
    rows = shuffled(np.concatenate([normal, anomalies]), seed)
    train = np.sort(np.concatenate([rest, split.contamination]))
    return replace(split, train=train), Validation(rows, np.isin(rows, anomalies))


def check_blind(evaluation: dict[str, object]) -> None:
    """Refuse switches by which test rows would have a say in what the validation rows are asked about."""
    for name, clean in (("epoch", "last"), ("scaling", "train")):
        if evaluation[name] != clean:
            raise SettingError(
                f"evaluation.{name}={evaluation[name]}: with evaluation.validation, allowed is {clean}; "
                "the other looks at test rows"
            )
