"""What there is to choose from, read off folders of configs."""

import pytest

from anomaly_bench.errors import SettingError
from anomaly_bench.places import CONFIGS
from anomaly_bench.usage import choices, headline, lines_of_choices, usage


def test_usage_names_every_group_and_choice_but_hydras():
    text = usage()
    groups = [path.name for path in CONFIGS.iterdir() if path.is_dir() and path.name != "hydra"]
    assert len(groups) > 5
    for group in groups:
        assert f"\n{group}: " in text
        for path in (CONFIGS / group).glob("*.yaml"):
            assert path.stem in text
    assert "launcher:" not in text
    assert max(len(line) for line in text.splitlines()) <= 120


@pytest.fixture
def own(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine.yaml").write_text("# @package _global_\n# Of my own\n# kind. And more\nx: 1\n")
    (tmp_path / "model/ae.yaml").write_text("# Never found.\n")
    (tmp_path / "sensor").mkdir()
    (tmp_path / "sensor/left.yaml").write_text("x: 1\n")
    return tmp_path


def test_a_users_own_folder_adds_choices_and_groups(own):
    assert "sensor: left" in usage(own)
    assert " mine," in usage(own).replace("\n   ", "")
    assert "mine" not in usage()
    assert choices("model", own)["ae"] == CONFIGS / "model/ae.yaml"


def test_lines_of_choices_stand_under_their_group(own):
    lines = list(lines_of_choices(None, own))
    assert lines[0] == "models"
    assert f"  {'mine':<26}Of my own kind." in lines
    assert all(line.startswith("  ") for line in lines_of_choices("models"))


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(SettingError, match="there is no such folder"):
        usage(tmp_path / "none")


def test_headline_ends_with_its_sentence(own):
    assert headline(own / "model/mine.yaml") == "Of my own kind."
    assert headline(own / "sensor/left.yaml") == ""
