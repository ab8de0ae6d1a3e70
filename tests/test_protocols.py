import dataclasses
import hashlib
import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch

from anomaly_bench.data import digits, public
from anomaly_bench.data.dataset import Dataset
from anomaly_bench.errors import SettingError
from anomaly_bench.protocols import (
    Contaminated,
    Folder,
    LeaveOneClassOut,
    OneVsRest,
    TabularHalf,
    class_index,
)


@pytest.fixture(scope="module")
def digits_set():
    return digits.load(image_size=None)


@pytest.fixture(scope="module")
def mnist():
    root = os.environ.get("ANOMALY_BENCH_DATA")
    if not root or not (Path(root) / "mnist/MNIST/raw").is_dir():
        pytest.skip("needs MNIST under ANOMALY_BENCH_DATA")
    return public.load("mnist", root, image_size=None)


def made_up(class_names, classes, official_train):
    classes = np.array(classes)
    return Dataset(
        name="made_up",
        x=torch.zeros(len(classes), 1, 1, 1, dtype=torch.uint8),
        classes=classes,
        class_names=tuple(class_names),
        official_train=np.array(official_train, dtype=bool),
        source="folder",
    )


def check_apart(split, dataset, anomalous_classes):
    """No anomalous row and no test row is trained on; the truth is the truth; no row comes twice."""
    assert not np.isin(dataset.classes[split.train], anomalous_classes).any()
    assert not set(split.train) & set(split.test)
    assert not split.transductive
    assert np.array_equal(split.anomalous, np.isin(dataset.classes[split.test], anomalous_classes))
    for rows in (split.train, split.test):
        assert rows.dtype == np.int64
        assert (np.diff(rows) > 0).all()


def check_transductive(split, dataset, normal, rho):
    """Training rows are the test rows, a share `rho` of them anomalous; the truth is the truth; no row comes twice."""
    assert split.transductive
    assert np.array_equal(split.train, split.test)
    assert np.array_equal(split.anomalous, dataset.classes[split.test] != normal)
    assert (np.diff(split.test) > 0).all()
    assert abs(split.anomalous.mean() - rho) < 1 / len(split.test)


@pytest.mark.parametrize("abnormal", range(10))
def test_leave_one_class_out_of_digits(digits_set, abnormal):
    split = LeaveOneClassOut(abnormal).split(digits_set, seed=0)
    check_apart(split, digits_set, [abnormal])
    n_abnormal = int((digits_set.classes == abnormal).sum())
    assert len(split.train) + len(split.test) == 1797  # every row is used
    assert len(split.train) == (1797 - n_abnormal) * 4 // 5
    assert split.anomalous.sum() == n_abnormal
    assert split.case == f"abnormal-{abnormal}"


def test_leave_one_class_out_of_mnist_has_the_papers_sizes(mnist):
    split = LeaveOneClassOut(2).split(mnist, seed=0)
    check_apart(split, mnist, [2])
    assert (len(split.train), (~split.anomalous).sum(), split.anomalous.sum()) == (50408, 12602, 6990)
    share = mnist.official_train[split.train].mean()
    assert abs(share - 6 / 7) < 0.01  # both official parts are pooled


def test_one_vs_rest_of_mnist(mnist):
    split = OneVsRest("3").split(mnist, seed=0)
    check_apart(split, mnist, [0, 1, 2, 4, 5, 6, 7, 8, 9])
    assert (len(split.train), len(split.test), (~split.anomalous).sum()) == (6131, 10000, 1010)
    assert mnist.official_train[split.train].all()
    assert split.case == "normal-3"


def digest(split):
    return hashlib.sha256(
        split.train.astype("<i8").tobytes() + split.test.astype("<i8").tobytes()
    ).hexdigest()[:16]


def test_the_seed_decides(digits_set):
    protocol = LeaveOneClassOut(2)
    assert digest(protocol.split(digits_set, 0)) == digest(protocol.split(digits_set, 0))
    assert digest(protocol.split(digits_set, 0)) != digest(protocol.split(digits_set, 1))


def test_splits_are_the_same_everywhere(digits_set):
    assert digest(LeaveOneClassOut(2).split(digits_set, 0)) == "6db39cb3c6ddf94c"
    assert digest(LeaveOneClassOut(7).split(digits_set, 2)) == "2c7b5878c2325c44"
    assert digest(Contaminated(3, 0.2).split(digits_set, 0)) == "390bdb20833003ba"
    assert digest(Contaminated(3, 0.2, max_rows=100).split(digits_set, 0)) == "6accc14c39cf8d50"


def test_train_share(digits_set):
    assert len(LeaveOneClassOut(0, 0.5).split(digits_set, 0).train) == (1797 - 178) // 2
    for share in (0, 1, -0.1, 80):
        with pytest.raises(SettingError, match=r"protocol\.train_share="):
            LeaveOneClassOut(0, share).split(digits_set, 0)


@pytest.mark.parametrize("seed", [-1, 2**32])
def test_seeds_that_cannot_be(digits_set, seed):
    with pytest.raises(SettingError, match=f"seed={seed}: "):
        LeaveOneClassOut(0).split(digits_set, seed)
    assert LeaveOneClassOut(0).split(digits_set, 2**32 - 1)


def test_classes_by_index_name_and_digits():
    data = made_up(["b", "1", "a"], [0, 0, 1, 1, 2, 2] * 2, [True] * 6 + [False] * 6)
    for wanted, expected in ((0, "b"), ("b", "b"), (1, "1"), ("1", "1"), ("2", "a"), ("a", "a")):
        assert OneVsRest(wanted).split(data, 0).case == f"normal-{expected}"


@pytest.mark.parametrize("wanted", [10, -1, "dog", "10", "-1", None, 1.5])
def test_classes_that_are_not_there(digits_set, wanted):
    with pytest.raises(SettingError, match=r"abnormal_class=.*allowed are 0 to 9, or 0, 1, 2"):
        LeaveOneClassOut(wanted).split(digits_set, 0)


@pytest.mark.parametrize("wanted", ["2", 2])  # `normal_class=2` on the command line is a number
def test_names_come_before_indices(wanted):
    data = made_up(["1", "10", "11", "2"], [0, 0, 1, 1, 2, 2, 3, 3], [True, False] * 4)
    assert OneVsRest(wanted).split(data, 0).case == "normal-2"
    assert OneVsRest(3).split(data, 0).case == "normal-2"  # where no class is called so, an index


@pytest.mark.parametrize(
    "protocol", [LeaveOneClassOut("cat"), OneVsRest("cat"), Contaminated("cat", 0.4), TabularHalf("cat")]
)
def test_a_class_stands_for_its_sub_classes(protocol):
    names = ["cat", "cat/black", "cats", "dog"]
    data = made_up(names, np.arange(80) % 4, [True] * 40 + [False] * 40)
    split = protocol.split(data, 0)
    cats = data.classes < 2
    as_anomalies = isinstance(protocol, LeaveOneClassOut)
    assert np.array_equal(split.anomalous, cats[split.test] == as_anomalies)
    assert set(data.classes[split.test]) == {0, 1, 2, 3}
    if not split.transductive:
        assert set(data.classes[split.train]) == ({2, 3} if as_anomalies else {0, 1})
    part = dataclasses.replace(
        protocol, **{"abnormal_class" if as_anomalies else "normal_class": "cat/black"}
    )
    assert np.array_equal(
        part.split(data, 0).anomalous, (data.classes == 1)[part.split(data, 0).test] == as_anomalies
    )


def test_one_vs_rest_needs_official_parts(digits_set):
    with pytest.raises(SettingError, match="one_vs_rest: data=digits has no official test part"):
        OneVsRest(0).split(digits_set, 0)


@pytest.mark.parametrize("rho", [0.05, 0.1, 0.25, 0.6])
def test_contaminated_digits(digits_set, rho):
    split = Contaminated(3, rho).split(digits_set, seed=0)
    check_transductive(split, digits_set, 3, rho)
    n_normal = int((digits_set.classes == 3).sum())
    assert (~split.anomalous).sum() == n_normal  # every row of the class
    assert split.anomalous.sum() == int(n_normal * rho / (1 - rho))
    assert split.case == "normal-3"


def test_contaminated_mnist_has_the_papers_sizes(mnist):
    split = Contaminated(0, 0.1).split(mnist, seed=0)
    check_transductive(split, mnist, 0, 0.1)
    assert ((~split.anomalous).sum(), split.anomalous.sum()) == (6903, 767)
    outside = mnist.classes[split.test[split.anomalous]]
    assert np.bincount(outside, minlength=10)[1:].min() > 50  # drawn from all other classes
    assert 0.1 < (~mnist.official_train[split.test]).mean() < 0.2  # both official parts are pooled


def test_the_seed_draws_the_anomalous_rows(digits_set):
    splits = [Contaminated(3, 0.2).split(digits_set, seed) for seed in (0, 0, 1)]
    assert digest(splits[0]) == digest(splits[1]) != digest(splits[2])
    drawn = [set(split.test[split.anomalous]) for split in splits]
    assert len(drawn[0] & drawn[2]) < len(drawn[0]) / 2
    assert np.array_equal(splits[0].test[~splits[0].anomalous], splits[2].test[~splits[2].anomalous])


def test_of_more_rows_than_max_rows_a_random_choice_is_left(digits_set):
    split = Contaminated(3, 0.5, max_rows=100).split(digits_set, 0)
    assert len(split.test) == 100
    assert 30 < split.anomalous.sum() < 70
    assert digits_set.classes[split.test].max() == 9


def test_a_contamination_may_take_every_row_of_the_other_classes():
    data = made_up(["a", "b", "c"], [0, 1, 0, 2, 0, 1], [True] * 6)
    assert Contaminated("a", 0.5).split(data, 0).test.tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rho": 0.0}, r"protocol\.rho=0\.0: must be above 0"),
        ({"rho": 1.0}, r"protocol\.rho=1\.0"),
        ({"rho": 0.95}, r"protocol\.rho=0\.95: .* has 1614 rows of other classes.* allowed is up to 0\.898"),
        ({"rho": 0.8987}, r"allowed is up to 0\.898$"),  # of .8982
        ({"rho": 1e-4}, r"at least one of each is needed: see normal_class, protocol\.rho,"),
        ({"max_rows": 1}, r"protocol\.max_rows=1"),
    ],
)
def test_contaminations_that_cannot_be(digits_set, settings, message):
    with pytest.raises(SettingError, match=message):
        Contaminated(3, **settings).split(digits_set, 0)


def test_folder():
    names = ["0.normal", "1.abnormal/0.gun", "1.abnormal/good"]  # whose own names decide nothing
    data = made_up(names, [0, 0, 0, 0, 1, 2], [1, 1, 1, 0, 0, 0])
    split = Folder().split(data, 0)
    check_apart(split, data, [1, 2])
    assert split.train.tolist() == [0, 1, 2]
    assert split.test.tolist() == [3, 4, 5]
    assert split.case == "folder"


@pytest.mark.parametrize(
    "normal", ["good", "Normal", "0.normal", "0.benign/scanner 2", "bottle/good", "bottle/0.normal"]
)
def test_folder_names_of_normal_images(normal):
    data = made_up(["crack", normal, "goodish"], [1, 1, 0, 2], [1, 0, 0, 0])
    split = Folder().split(data, 0)
    check_apart(split, data, [0, 2])
    assert split.train.tolist() == [0]


@pytest.mark.parametrize("size", ["0.5mm", "1.5mm"])
def test_a_size_is_no_number_of_a_class(size):
    data = made_up(["0.normal", size, f"{size}/good"], [0, 0, 1, 2], [1, 0, 0, 0])
    assert Folder().split(data, 0).anomalous.tolist() == [False, True, False]


def test_which_folders_are_normal_is_said(caplog):
    names = ["good", "scratch/normal", *(f"bad {number:02}" for number in range(12))]
    data = made_up(names, [0, *range(14)], [True] + [False] * 14)
    with caplog.at_level(logging.INFO, "anomaly_bench"):
        Folder().split(data, 0)
    assert "protocol: normal: 'good', 'scratch/normal'; anomalous: 'bad 00', " in caplog.text
    assert "'bad 09', ...\n" in caplog.text


def test_an_index_is_written_as_numbers_are():
    data = made_up(["1", "2", "3", "4"], [0, 1, 2, 3], [1, 1, 0, 0])
    assert [class_index(data, wanted, "abnormal_class") for wanted in ("3", 3, "0")] == [2, 2, 0]
    with pytest.raises(SettingError, match="abnormal_class=03: data=made_up has no such class"):
        class_index(data, "03", "abnormal_class")


def test_folder_leaves_anomalies_out_of_training(caplog):
    data = made_up(["0.normal", "1.abnormal"], [0, 1, 0, 1], [1, 1, 0, 0])
    with caplog.at_level(logging.WARNING, "anomaly_bench"):
        split = Folder().split(data, 0)
    assert split.train.tolist() == [0]
    assert split.test.tolist() == [2, 3]
    assert "left out: {'1.abnormal': 1}" in caplog.text


@pytest.mark.parametrize("names", [["cat", "dog"], ["good", "normal"]])
def test_folder_names_that_say_nothing(names):
    with pytest.raises(
        SettingError, match=rf"protocol=folder: data=made_up has the classes {names[0]}, {names[1]}"
    ):
        Folder().split(made_up(names, [0, 1, 0, 1], [1, 1, 0, 0]), 0)


def test_one_class_alone_is_not_sent_to_a_protocol_that_needs_others():
    with pytest.raises(SettingError, match=r"has the classes good; .* and others$"):
        Folder().split(made_up(["good"], [0, 0], [1, 0]), 0)


@pytest.mark.parametrize(
    ("protocol", "classes", "official_train"),
    [
        (Folder(), [0, 0, 0], [1, 1, 0]),  # no anomalous test row
        (Folder(), [0, 0, 1], [1, 1, 0]),  # no normal test row
        (Folder(), [1, 0, 1], [1, 0, 0]),  # nothing to train on
        (OneVsRest(0), [1, 0, 1], [1, 0, 0]),
        (LeaveOneClassOut(0), [1, 1, 1, 1, 1], [1, 1, 1, 0, 0]),
        (LeaveOneClassOut(0), [0, 1], [1, 1]),
    ],
)
def test_splits_that_give_no_auroc(protocol, classes, official_train):
    with pytest.raises(SettingError, match="at least one of each is needed"):
        protocol.split(made_up(["0.a", "b"], classes, official_train), 0)


def made_up_table(n=1000, share=0.1, name="made_up"):
    data = made_up(["normal", "rare", "odd"], [0] * n, [True] * n)
    data.classes[: int(share * n)] = np.arange(int(share * n)) % 2 + 1
    return dataclasses.replace(data, name=name)


def test_tabular_half():
    data = made_up_table()
    split = TabularHalf("normal").split(data, seed=0)
    check_apart(split, data, [1, 2])
    assert len(split.test) == 500  # of all rows, so at the natural share
    assert len(split.train) + len(split.test) + (100 - split.anomalous.sum()) == 1000
    assert 30 < split.anomalous.sum() < 70
    assert (split.ratio, split.case, split.class_index) == (0.1, "normal-normal", None)
    assert digest(split) == digest(TabularHalf(0).split(data, 0)) != digest(TabularHalf(0).split(data, 1))
    assert digest(split) == "425b2c247398e3ea"


@pytest.mark.parametrize("contamination", [0.01, 0.05])
def test_tabular_half_contaminated(contamination):
    data = made_up_table()
    clean, mixed = (TabularHalf(0, share).split(data, 0) for share in (0, contamination))
    others = data.classes[mixed.train] > 0
    assert others.mean() == pytest.approx(contamination, abs=0.001)
    assert np.array_equal(mixed.train[~others], clean.train)
    assert np.array_equal(mixed.test, clean.test)
    assert not set(mixed.train) & set(mixed.test)


def test_a_training_half_may_keep_all_its_anomalous_rows():
    data = made_up_table()
    test = TabularHalf(0).split(data, 0).test
    half = np.setdiff1d(np.arange(1000), test)
    whole = TabularHalf(0, contamination=float((data.classes[half] > 0).mean())).split(data, 0)
    assert np.array_equal(whole.train, half)


def test_tabular_half_knows_the_papers_ratios():
    assert TabularHalf(0).split(made_up_table(name="thyroid"), 0).ratio == 0.025
    assert TabularHalf(0, ratio=0.3).split(made_up_table(name="thyroid"), 0).ratio == 0.3


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"contamination": 1}, r"protocol\.contamination=1: must be at least 0 and below 1"),
        (
            {"contamination": 0.5},
            r"protocol\.contamination=0\.5: .* has \d+ anomalous rows; allowed is up to",
        ),
        ({"ratio": -0.1}, r"protocol\.ratio=-0\.1: allowed"),
        ({"ratio": 0.0}, r"protocol\.ratio=0\.0: allowed"),
    ],
)
def test_tabular_half_refuses(settings, message):
    with pytest.raises(SettingError, match=message):
        TabularHalf(0, **settings).split(made_up_table(), 0)


@pytest.mark.parametrize("n", range(200_000, 200_020, 4))
def test_the_contamination_that_is_said_to_be_allowed_is(n):
    data = made_up_table(n)
    with pytest.raises(SettingError, match="allowed is up to") as refused:
        TabularHalf(0, contamination=0.9).split(data, 0)
    most = float(str(refused.value).rpartition(" ")[2])
    assert TabularHalf(0, contamination=most).split(data, 0)


def test_a_slash_in_a_label_of_a_table_makes_no_subclass(caplog):
    data = made_up(["N", "N/A", "broken"], [0] * 60 + [1] * 20 + [2] * 10, [True] * 90)
    rows = dataclasses.replace(data, x=torch.zeros(90, 2))
    for one, n_anomalous in ((data, 10), (rows, 30)):
        split = TabularHalf("N").split(one, 0)
        assert (rows.classes[split.train] == 0).all() == (one is rows)
        drawn_for_training = n_anomalous - split.anomalous.sum()
        assert len(split.train) == 45 - drawn_for_training
    assert "is that the normal class?" not in caplog.text


def test_a_normal_class_of_few_rows_is_told_of(caplog):
    data = made_up(["-1", "1"], [0] * 10 + [1] * 90, [True] * 100)
    TabularHalf(0).split(data, 0)
    assert "normal_class=0: only 10 of 100 rows of data=made_up are '-1', and those train" in caplog.text
