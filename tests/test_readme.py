"""What the README tells a reader to type works as it stands there."""

import logging
import re
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from sklearn.datasets import load_digits

from anomaly_bench.cli import answer
from anomaly_bench.jobs import SWEEP

CHECKOUT = Path(__file__).parents[1]
README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
LINES = "".join(re.findall(r"^```sh\n(.*?)^```", README, re.MULTILINE | re.DOTALL)).splitlines()
COMMANDS = [
    shlex.split(found[1], comments=True)
    for line in LINES
    if (found := re.search(r'anomaly-bench\b(.*?)(?: \| |\)"|$)', line))
]
FILES = dict(re.findall(r"`(mine/[\w./]+)`:\n\n```\w+\n(.*?)^```", README, re.MULTILINE | re.DOTALL))


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder to work in, with the files that the README shows and the arrays it speaks of."""
    for path, text in FILES.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text, encoding="utf-8")
    digits = load_digits()
    images = (digits.images[:100, ..., None] * 15).astype(np.uint8)
    np.savez(tmp_path / "arrays.npz", x=images, y=digits.target[:100])
    monkeypatch.chdir(tmp_path)
    for name in (SWEEP, "HYDRA_FULL_ERROR"):  # the command sets them; this takes them back afterwards
        monkeypatch.setenv(name, "1")
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level  # these too
    yield tmp_path
    root.handlers[:], root.level = handlers, level


@pytest.fixture
def typed(monkeypatch, capsys):
    """What the command line prints for some arguments; it must end well."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["anomaly-bench", *arguments])
        try:
            code = answer(list(arguments))
        except SystemExit as end:  # of --help
            code = end.code
        printed = capsys.readouterr()
        assert code == 0, printed.err
        return printed.out

    return run


def jobs(arguments):
    """Single runs in which every value of a sweep comes at least once."""
    if "-m" not in arguments:
        return [arguments]
    choices = [
        [f"{one.get_key_element()}={value}" for value in one.sweep_string_iterator()]
        if one.is_sweep_override()
        else [one.input_line]
        for one in OverridesParser.create().parse_overrides([word for word in arguments if word != "-m"])
    ]
    longest = max(map(len, choices))
    return [[values[number % len(values)] for values in choices] for number in range(longest)]


def test_the_readme_is_read():
    assert len(COMMANDS) > 15
    assert len(FILES) == 4


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands_are_accepted(place, typed, arguments):
    if arguments[:1] in (["report"], ["score"], ["export"], ["recommend"], ["list"]):
        answer(arguments)  # argparse raises SystemExit where it does not understand
        return
    for job in jobs(arguments):
        typed(*job, *([] if {"--help", "--cfg", "-sc"} & set(job) else ["--cfg", "job"]))


@pytest.mark.parametrize("part", ["model=shallow", "data=arrays"])
def test_examples_run(place, typed, monkeypatch, part):
    (line,) = [line for line in LINES if part in line]
    setting, _, arguments = line.partition(" anomaly-bench ")
    assert setting == "PYTHONPATH=."
    monkeypatch.syspath_prepend(place)
    limits = ["data.limit=100", "trainer.max_epochs=1"] if part == "model=shallow" else []
    assert re.match(r"AUROC [01]\.\d{3}, ", typed(*shlex.split(arguments), "data.image_size=16", *limits))
    assert len(list(place.glob("runs/*/metrics.json"))) == 1


@pytest.mark.parametrize("example", ["shallow", "arrays"])
def test_examples_are_short(example):
    lines = [line for path, text in FILES.items() if example in path for line in text.splitlines()]
    assert len(list(filter(None, lines))) < 30


def test_ci_runs_the_test_command_of_the_readme():
    (command,) = [line for line in LINES if "pytest" in line]
    assert command in (CHECKOUT / ".ci/run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("group", ["model", "data"])
def test_tables_name_what_there_is(group):
    table = README.partition(f"| `{group}=` |")[2].partition("\n\n")[0]
    cells = "".join(row.split("|")[1] for row in table.splitlines() if row.startswith("|"))
    assert set(re.findall(r"`(\w+)`", cells)) == {
        path.stem for path in CHECKOUT.glob(f"configs/{group}/*.yaml")
    }


def test_the_findings_link_to_what_is_there():
    docs = CHECKOUT / "docs"
    links = re.findall(r"\]\(([^)]+)\)", (docs / "findings.md").read_text(encoding="utf-8"))
    assert len(links) > 20
    assert [link for link in links if not (docs / link).exists()] == []


def test_files_named_are_there():
    links = [link for link in re.findall(r"\]\(([^)]+)\)", README) if not link.startswith("http")]
    scripts = re.findall(r"scripts/\w+\.py", README)
    assert links
    assert scripts
    assert [path for path in links + scripts if not (CHECKOUT / path).exists()] == []
