"""The epochs of a run go into `losses.csv` and come back."""

from pathlib import Path

import pytest

from anomaly_bench.history import losses_frame, read_losses
from anomaly_bench.record import write_csv
from anomaly_bench.training.checkpoint import Epoch

HISTORY = [
    Epoch(0, "first", 1, {"error": 1 / 3}, 16, 0.5),
    Epoch(0, "first", 2, {"error": 0.1}, 16, 0.25, auroc=2 / 3),
    Epoch(1, "second", 1, {"distance": 2.0, "share": 1e-7}, 8, 0.125),
]


def test_epochs_of_stages_with_losses_of_their_own_come_back_as_they_were(tmp_path: Path) -> None:
    write_csv(tmp_path / "losses.csv", losses_frame(HISTORY))
    assert read_losses(tmp_path / "losses.csv") == HISTORY


@pytest.mark.parametrize("name", ["1", "null", "1e3", "True", "-pre", "'=a", "'b"])
def test_the_name_of_a_stage_stays_a_text(tmp_path: Path, name: str) -> None:
    history = [Epoch(0, name, 1, {"error": 0.5, "@loss": 0.25}, 16, 0.5)]
    write_csv(tmp_path / "losses.csv", losses_frame(history))
    assert read_losses(tmp_path / "losses.csv") == history


def test_a_link_out_of_the_folder_is_not_read(tmp_path: Path) -> None:
    write_csv(tmp_path / "secret.csv", losses_frame(HISTORY))
    (tmp_path / "run").mkdir()
    (tmp_path / "run/losses.csv").symlink_to(tmp_path / "secret.csv")
    with pytest.raises(OSError, match="leads out of its folder"):
        read_losses(tmp_path / "run/losses.csv")
