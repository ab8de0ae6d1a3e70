"""The numbers of papers that ship with the package."""

import math
import re
from collections import Counter

import pytest

from anomaly_bench import metrics
from anomaly_bench.data.public import CLASS_NAMES
from anomaly_bench.report.printed import FOLDER, NUMBERS, printed

ROWS = printed()
NOT_CLASSES = {"mean", "overall", "any"}
OURS = {*metrics.measure([0, 1, 2, 3], [0, 0, 1, 1], 1), "score_ms_per_image"} - {"threshold"}
NOT_OURS = {"pro", "pixel_auroc"}
"""Metrics of masks, which are not measured here."""


def test_every_file_has_the_same_columns_and_numbers():
    headers = {path.read_text(encoding="utf-8").splitlines()[0] for path in FOLDER.glob("*.csv")}
    assert headers == {
        "table,where,method,model,settings,data,protocol,class,metric,value,std,se,low,high,n,epochs,source,read,note"
    }
    assert len(ROWS) > 1000
    assert len({row.paper for row in ROWS}) == len(list(FOLDER.glob("*.csv")))


def test_no_number_is_there_twice():
    keys = Counter(
        (r.table, r.where, r.method, r.settings, r.data, r.protocol, r.cls, r.metric) for r in ROWS
    )
    assert [key for key, times in keys.items() if times > 1] == []


def test_every_number_says_where_it_stands_and_that_it_was_read():
    for row in ROWS:
        assert row.source, row
        assert row.where, row
        assert row.read in ("paper", "plot", "quoted"), row
        assert row.read != "quoted" or "quoted" in row.note, row
    assert not [row for row in ROWS if "memory" in row.note or "recall" in row.note]


def test_shares_are_of_one_and_times_are_not_negative():
    for row in ROWS:
        assert row.value > 0, row
        assert row.metric == "score_ms_per_image" or row.value <= 1, row
        assert all(math.isnan(error) or 0 <= error < 0.2 for error in (row.std, row.se)), row
        assert math.isnan(row.low) == math.isnan(row.high), row
        assert math.isnan(row.low) or row.low <= row.value <= row.high, row
        assert sum(not math.isnan(number) for number in (row.std, row.se, row.low)) <= 1, row


def test_metrics_and_classes_are_ours():
    assert {row.metric for row in ROWS} <= OURS | NOT_OURS
    for row in ROWS:
        if row.data in CLASS_NAMES:
            assert row.cls in {*CLASS_NAMES[row.data], *NOT_CLASSES}, row


def test_a_table_is_of_one_paper():
    for name in {row.table for row in ROWS}:
        assert len({row.paper for row in ROWS if row.table == name}) == 1


@pytest.mark.parametrize(
    ("table", "method", "cls", "value"),
    [
        ("ganomaly_mnist", "GANomaly", "1", 0.653),
        ("ganomaly_cifar10", "GANomaly", "ship", 0.625),
        ("ganomaly_xray", "GANomaly", "gun-part", 0.662),
        ("geotrans_cifar10", "GeoTrans", "airplane", 0.747),
        ("deep_svdd_mnist", "one-class Deep SVDD", "1", 0.997),
    ],
)
def test_some_numbers_by_hand(table, method, cls, value):
    (row,) = [row for row in ROWS if (row.table, row.method, row.cls) == (table, method, cls)]
    assert row.value == value


def test_standard_errors():
    by_key = {(row.table, row.method, row.cls): row for row in ROWS if not row.settings}
    assert by_key["geotrans_cifar10", "GeoTrans", "airplane"].standard_error == 0.004
    assert math.isnan(by_key["ganomaly_mnist", "GANomaly", "1"].standard_error)
    (apascal,) = [row for row in ROWS if row.table == "rdp" and row.data == "bank" and row.metric == "auroc"]
    assert apascal.standard_error == pytest.approx(0.007 / math.sqrt(10))
    assert set(NUMBERS) == {"value", "std", "se", "low", "high", "n", "epochs"}


@pytest.mark.parametrize(
    ("table", "method", "said"),
    [
        ("dagmm", "OC-SVM", "not by the known ratio"),
        ("dagmm", "DSEBM-r", "on KDD Cup 1999 the submitted version has"),
        ("e3outlier", "RDAE", "a minimum where the proximal operator has a maximum"),
        ("geotrans_cifar10", "OC-SVM RAW", "on all pixels, its parameters chosen by the test labels"),
    ],
)
def test_what_makes_a_number_another_methods_is_told_by_its_name(table, method, said):
    """The notes of a table stand together below it."""
    rows = [row for row in ROWS if row.table == table and row.method.split(" rho=")[0] == method]
    notes = {row.note for row in rows if method != "DSEBM-r" or row.data == "kddcup99"}
    assert notes
    assert all(re.search(said, note) and note.startswith(method) for note in notes)
