"""Every figure in results/ follows from the records beside it."""

from pathlib import Path

import pytest

from anomaly_bench.record import read_records
from anomaly_bench.report.tables import write_report

RESULTS = Path(__file__).parent.parent / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/records"))


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_the_tables_are_what_the_records_give(folder, tmp_path):
    write_report(folder / "records", tmp_path)
    for name in ("table.csv", "table.md", "table.tex"):
        assert (tmp_path / name).read_text() == (folder / name).read_text()


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_every_record_says_how_it_was_made(folder):
    records = read_records(folder / "records")
    assert records
    for record in records:
        assert record.status == "finished"
        for name in (
            "overrides",
            "versions",
            "device",
            "data_fingerprint",
            "data_source",
            "seed",
            "epochs_done",
        ):
            assert record.run[name] is not None


def test_the_readme_shows_a_table_that_the_records_give():
    table = (RESULTS / "ganomaly_mnist" / "table.md").read_text().splitlines()
    readme = (RESULTS.parent / "README.md").read_text().splitlines()
    rows = [line for line in table if line.startswith("|")]
    assert len(rows) == 4
    assert [line for line in rows if line not in readme] == []
