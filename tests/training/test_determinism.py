"""The same seed gives the same bits; another number of threads moves rounding only."""

import json
import os
import random

import numpy as np
import pytest
import torch
from finished import finished, job_of

from anomaly_bench.compose import load_data
from anomaly_bench.errors import SettingError
from anomaly_bench.training.determinism import FIXED, WORKSPACE, deterministic

DIGITS = {"data": "digits", "data__image_size": "16", "data__limit": "200", "trainer__device": "cpu"}
KINDS = {
    "ganomaly": {"model__ngf": "4", "model__ndf": "4", "model__nz": "8", "model__epochs": "2"},
    "vae": {"model__epochs": "2"},
    "deep_svdd": {"model__epochs": "1", "model__pretrain_epochs": "1"},
    "isolation_forest": {},
}


pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture
def threads():
    """A test may change how many there are."""
    number = torch.get_num_threads()
    yield
    torch.set_num_threads(number)


def state() -> tuple:
    """What of torch and of the process says how it computes."""
    cudnn = torch.backends.cudnn
    asked = (
        torch.are_deterministic_algorithms_enabled(),
        torch.is_deterministic_algorithms_warn_only_enabled(),
    )
    told = os.environ.get(WORKSPACE)
    return *asked, cudnn.deterministic, cudnn.benchmark, told, torch.get_num_threads()


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_gives_the_same_bits_whatever_ran_before(kind, tmp_path):
    kept = []
    for number in range(2):
        load_data.cache_clear()
        random.seed(number)
        np.random.seed(number)  # noqa: NPY002 - the global state, which nothing may draw from
        torch.manual_seed(number)
        torch.rand(number + 1)
        folder = finished(tmp_path / str(number), model=kind, **DIGITS, **KINDS[kind])
        kept.append([(folder / name).read_bytes() for name in ("scores.csv", "model.safetensors")])
    assert kept[0] == kept[1]
    other = finished(tmp_path / "other", model=kind, seed="1", **DIGITS, **KINDS[kind])
    assert (other / "scores.csv").read_bytes() != kept[0][0]


def test_threads_move_the_area_of_a_short_run_by_little(tmp_path, threads):
    areas = []
    for number in (1, 2):
        torch.set_num_threads(number)
        folder = finished(tmp_path / str(number), model="ganomaly", **DIGITS, **KINDS["ganomaly"])
        areas.append(json.loads((folder / "metrics.json").read_text())["auroc"])
        assert json.loads((folder / "run.json").read_text())["threads"] == number
    assert areas[0] == pytest.approx(areas[1], abs=0.002)


@pytest.mark.parametrize("kind", ["ganomaly", "deep_svdd", "isolation_forest"])
def test_a_deterministic_run_has_the_same_bits_with_any_number_of_threads(kind, tmp_path, threads):
    kept = []
    for number in (1, 3):
        torch.set_num_threads(number)
        folder = finished(tmp_path / str(number), model=kind, deterministic="true", **DIGITS, **KINDS[kind])
        kept.append([(folder / name).read_bytes() for name in ("scores.csv", "model.safetensors")])
        assert json.loads((folder / "run.json").read_text())["threads"] == 1
        assert torch.get_num_threads() == number
    assert kept[0] == kept[1]


@pytest.mark.parametrize("kind", ["ganomaly", "deep_svdd"])
def test_a_deterministic_run_has_the_numbers_of_one_thread_on_a_cpu(kind, tmp_path, threads):
    torch.set_num_threads(1)
    before = state()
    plain, strict = (
        finished(tmp_path / wanted, model=kind, deterministic=wanted, **DIGITS, **KINDS[kind])
        for wanted in ("false", "true")
    )
    assert (plain / "scores.csv").read_bytes() == (strict / "scores.csv").read_bytes()
    assert json.loads((strict / "run.json").read_text())["deterministic"] is True
    assert state() == before


def test_the_setting_is_hashed_and_its_default_is_not(tmp_path):
    plain, strict = (
        job_of(tmp_path, model="ganomaly", deterministic=wanted, **DIGITS) for wanted in ("false", "true")
    )
    assert plain.settings_hash != strict.settings_hash
    assert plain.training_hash != strict.training_hash


def test_inside_it_holds_and_after_it_all_is_as_before():
    before = state()
    with deterministic():
        assert state() == (True, False, True, False, FIXED[0], 1)
    assert state() == before
    with pytest.raises(ZeroDivisionError), deterministic():
        raise ZeroDivisionError
    assert state() == before
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with deterministic():
            pass
        assert state()[:2] == (True, True)
    finally:
        torch.use_deterministic_algorithms(False)
    with deterministic(False):
        assert state() == before


def test_an_operation_without_such_a_form_is_refused_in_a_line():
    before = state()
    with (
        pytest.raises(SettingError, match=r"deterministic=true: put_ .*has no deterministic form") as error,
        deterministic(),
    ):
        torch.zeros(3).put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]))
    assert "\n" not in str(error.value)
    assert state() == before
    with pytest.raises(RuntimeError, match="size"), deterministic():
        torch.zeros(3) @ torch.zeros(4)


def test_what_the_user_says_of_the_workspace_stays(monkeypatch):
    monkeypatch.setenv(WORKSPACE, FIXED[1])
    with deterministic():
        assert os.environ[WORKSPACE] == FIXED[1]
    assert os.environ[WORKSPACE] == FIXED[1]
    monkeypatch.setenv(WORKSPACE, ":0:0")
    with pytest.raises(SettingError, match=f"{WORKSPACE}=:0:0 forbids it"), deterministic():
        pass
