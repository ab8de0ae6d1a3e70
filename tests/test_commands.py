import json
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from anomaly_bench.cli import answer
from anomaly_bench.commands import FOUND, check_spared
from anomaly_bench.errors import SettingError


@pytest.fixture
def answered(tmp_path, monkeypatch, capsys):
    """Calls the command line in an empty folder; gives exit code and standard output."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: str) -> tuple[int, str]:
        code = answer(list(arguments))
        return code, capsys.readouterr().out

    return call


def test_what_is_typed_for_a_race_comes_to_it_in_any_order(answered, monkeypatch):
    monkeypatch.setattr("anomaly_bench.recommend.recommend", lambda *given: given)
    assert (
        answered("recommend", "data=digits", "--minutes", "2", "model=ae")[1]
        == "(['data=digits', 'model=ae'], 2.0)\n"
    )
    assert answered("recommend")[1] == "([], 5.0)\n"


@pytest.mark.parametrize("output", ["new.CSV", "new.JSON"])
def test_what_is_typed_for_scoring_comes_to_it(answered, monkeypatch, output):
    asked = []

    def scored(*given):
        asked.append(given)
        return SimpleNamespace(
            table=pd.DataFrame({"row": [0, 1], "score": [0.25, 0.75]}),
            n_anomalous=1,
            threshold=0.5,
            rule="a rule",
            left_out="",
        )

    monkeypatch.setattr("anomaly_bench.score.score_files", scored)
    given = ["score", "run", "a.csv", "--output", output, "--threshold", "max_train", "--maps", "maps"]
    more = ["--device", "cpu", "--allow", "mine", "--allow", "yours", "--fail-on-anomaly"]
    code, out = answered(*given, *more)
    assert asked == [(Path("run"), [Path("a.csv")], "cpu", "max_train", Path("maps"), ["mine", "yours"])]
    assert (code, out) == (FOUND, f"{output}: 2 rows, 1 of them anomalous, above 0.5 (a rule)\n")
    text = Path(output).read_text()
    assert text.startswith("row,score\n") if output == "new.CSV" else json.loads(text)["threshold"] == 0.5
    assert answered("score", "run", "a.csv") == (0, "row,score\n0,0.25\n1,0.75\n")
    assert asked[1][2:] == ("auto", None, None, [])


def test_what_is_spared_may_be_named_in_any_way(tmp_path, monkeypatch):
    (tmp_path / "run").mkdir()
    (tmp_path / "link").symlink_to("run")
    monkeypatch.chdir(tmp_path)
    for place in ("run/x.csv", "other/../run/x.csv", "link/x.csv"):
        with pytest.raises(SettingError, match="it would change"):
            check_spared("--output", Path(place), [tmp_path / "run"])
    check_spared("--output", Path("run.csv"), [tmp_path / "run"])
    check_spared("--output", None, [tmp_path / "run"])
