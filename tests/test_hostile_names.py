"""Names that are formulas, markup, paths or no text: through a whole run, its report and its scores."""

import csv
import io
import os
import re
import sys
from pathlib import Path

import pandas as pd
import pytest
from finished import digit_files, finished
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from anomaly_bench.cli import answer
from anomaly_bench.data.settings import as_text
from anomaly_bench.record import csv_text, read_records, write_csv, write_json, write_text
from anomaly_bench.report.tables import write_report

SIGNS = "=+-@\t\r＝＋－＠"
KINDS = (
    "=cmd|' C'!A0",
    "@SUM(1)",
    "<script>x<b>",
    "a\nb",
    "\udcff",
    "$x_1$ \\input{a} `b`",
    "{{ 7 * 7 }}",
)
FILES = (
    "=HYPERLINK(1).png",
    "-1.png",
    "+1.png",
    "<img src=x onerror=alert(1)>.png",
    "a\nb.png",
    "\udcfe.png",
    "x" * 240 + ".png",
)


def is_inert(cell: str) -> bool:
    """As a spreadsheet would see it: neither the cell nor what is left of it without white space is a formula."""
    return not cell.lstrip(" \t\r\n").startswith(tuple(SIGNS)) and not cell.startswith(tuple(SIGNS))


def as_written(cell: str) -> str:
    """The inverse of `csv_text`, by the rule in its docstring."""
    return cell[1:] if cell[:1] == "'" and re.match(f"['\\s]*[{re.escape(SIGNS)}]", cell) else cell


@given(st.lists(st.text(alphabet=[*SIGNS, "'", '"', " ", "\n", ",", ";", "a", "1"], max_size=6), min_size=1))
@hypothesis_settings(max_examples=300, deadline=None, derandomize=True, database=None)
def test_every_text_of_a_csv_is_inert_and_reads_back(texts):
    name = texts[0] or "x"
    frame = pd.DataFrame({name: texts, "number": [-0.5] * len(texts)}, columns=None)
    if name == "number":
        return
    lines = list(csv.reader(io.StringIO(csv_text(frame), newline="")))
    assert all(is_inert(cell) for line in lines for cell in line if cell != "-0.5")
    assert [as_written(line[0]) for line in lines] == [name, *texts]
    assert {line[1] for line in lines[1:]} == {"-0.5"}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on folders and files of such names."""
    place = tmp_path_factory.mktemp("names")
    digits = digit_files(place / "bags")
    try:
        for kind, file in zip(KINDS, FILES, strict=True):
            (digits / "test" / kind).mkdir()
            (digits / "test/1.abnormal/00.png").rename(digits / "test" / kind / file)
            (digits / "test/1.abnormal/01.png").rename(digits / "test" / kind / "plain.png")
            for left, new in zip(
                sorted((digits / "test/1.abnormal").iterdir()), ("00.png", "01.png"), strict=False
            ):
                left.rename(left.with_name(new))
    except (OSError, UnicodeEncodeError):
        pytest.skip("this file system has only plain names")
    return finished(
        place / "runs",
        model="ocsvm",
        data="folder",
        protocol="folder",
        data__image_size="16",
        data__root=str(digits),
    )


def test_a_run_writes_them_as_data(run):
    text = (run / "scores.csv").read_text(encoding="utf-8")
    lines = list(csv.reader(io.StringIO(text, newline="")))
    numbers = [re.fullmatch(r"-?[\d.e-]+", cell) for line in lines for cell in line[2:]]
    assert all(numbers[3:])
    assert all(is_inert(cell) for line in lines for cell in line[:2])
    assert {"'=cmd|' C'!A0", "'@SUM(1)", "<script>x<b>", "a\nb", "\\udcff"} <= {line[1] for line in lines}


def test_a_report_shows_them_as_text(run, tmp_path):
    shown = write_report(run.parent, tmp_path / "report")
    shown.encode()
    page = (tmp_path / "report/index.html").read_text(encoding="utf-8")
    assert page.count("<script") == 1
    assert "&lt;script&gt;" in page
    assert "<img src=x" not in page
    assert "49" not in re.findall(r"<th[^>]*>([^<]*)</th>", page)
    tex = (tmp_path / "report/table.tex").read_text(encoding="utf-8")
    assert "\\input" not in tex
    assert r"\textbackslash{}input\{a\}" in tex
    markdown = (tmp_path / "report/table.md").read_text(encoding="utf-8")
    assert "<script>" not in markdown.replace("\\<", "")
    assert r"\`b\`" in markdown
    table = (tmp_path / "report/table.csv").read_text(encoding="utf-8")
    for line in csv.reader(io.StringIO(table, newline="")):
        assert all(is_inert(cell) or re.fullmatch(r"-?[\d.e-]+", cell) for cell in line)


def test_scores_of_new_files_are_inert_too(run, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("=1+1").mkdir()
    for name in FILES:
        os.link(run.parents[1] / "bags/test/0.normal/00.png", Path("=1+1") / name)
    monkeypatch.setattr(sys, "argv", ["anomaly-bench"])
    assert answer(["score", str(run), "=1+1", "--device", "cpu", "--output", "new.csv"]) == 0
    assert answer(["score", str(run), "=1+1", "--device", "cpu"]) == 0
    assert capsys.readouterr().out.endswith(Path("new.csv").read_text())
    lines = list(csv.reader(io.StringIO(Path("new.csv").read_text(encoding="utf-8"), newline="")))
    assert len(lines) == 1 + len(FILES)
    assert all(is_inert(line[0]) for line in lines)
    assert all(line[0].startswith("'=1+1/") for line in lines[1:])


def test_names_that_are_no_text_can_be_written(tmp_path):
    write_json(tmp_path / "a.json", {"a\udcff": "b\udcfe"})
    write_csv(tmp_path / "a.csv", pd.DataFrame({"a": [as_text("b\udcfe")]}))
    write_text(tmp_path / "a.txt", "b\udcfe")
    assert (tmp_path / "a.csv").read_text().split() == ["a", "b\\udcfe"]
    write_json(tmp_path / "run.json", {"model": "b\udcfe"})
    assert read_records(tmp_path)[0].run == {"model": "b?"}
