"""Which rows a run learns from: those of the protocol, or for a transductive detector the ones it is tested on."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from finished import people
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf
from torch import Tensor

from anomaly_bench.arguments import MOST
from anomaly_bench.compose import Job, check_class_keys, check_evaluation, compose, settings_of, share_data
from anomaly_bench.data.scaling import fit_scaler
from anomaly_bench.detector import Detector, Rows, Stage
from anomaly_bench.errors import SettingError
from anomaly_bench.schema import Settings
from anomaly_bench.sweep import SHARED

CONFIGS = Path(__file__).parents[1] / "configs"


class Inductive(Detector):
    """Scores any row."""

    def __init__(self, shape: tuple[int, ...], features: object = None) -> None:
        super().__init__()

    def stages(self, train: Rows) -> Iterator[Stage]:
        return iter(())

    def score(self, x: Tensor) -> Tensor:
        return x.flatten(1).sum(1)


class Transductive(Inductive):
    """Says that it scores only what it was fitted to."""

    transductive = True


def job(
    model: dict, tmp_path: Path, protocol: str = "leave_one_class_out", settings: Sequence[str] = ()
) -> Job:
    ConfigStore.instance().store("schema", Settings)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        given = ["data.limit=150", f"protocol={protocol}", f"runs_dir={tmp_path}", *settings]
        composed = hydra_compose("config", given)
    OmegaConf.set_struct(composed, False)
    composed.model = OmegaConf.create(model)
    names = {"model": "toy", "data": "digits", "protocol": protocol, "evaluation": "clean"}
    return compose(composed, names, [])


def named(kind: type, **settings: object) -> dict:
    return {"_target_": f"test_compose.{kind.__name__}", "_partial_": True} | settings


def test_one_training_row_is_too_few(tmp_path):
    with pytest.raises(
        SettingError, match="data=digits, abnormal-0: 1 training row; at least two are needed"
    ):
        job(named(Inductive), tmp_path, settings=["protocol.train_share=0.01"])


def test_an_inductive_detector_learns_from_the_training_rows(tmp_path):
    split = job(named(Inductive), tmp_path).split
    assert not split.transductive
    assert not set(split.train) & set(split.test)


@pytest.mark.parametrize("model", [named(Transductive), named(Inductive, features=named(Transductive))])
def test_a_transductive_detector_learns_from_the_test_rows(model, tmp_path):
    split = job(model, tmp_path).split
    assert split.transductive
    assert np.array_equal(split.train, split.test)
    assert split.anomalous.any()
    assert np.array_equal(split.test, job(named(Inductive), tmp_path).split.test)


def test_under_contamination_there_is_no_difference(tmp_path):
    splits = [job(named(kind), tmp_path, "contaminated").split for kind in (Inductive, Transductive)]
    assert all(split.transductive for split in splits)
    assert np.array_equal(splits[0].test, splits[1].test)


@pytest.mark.parametrize(
    ("data", "hidden"), [("thyroid", [12, 4]), ("arrhythmia", [10]), ("digits", [60, 30, 10])]
)
def test_a_method_has_the_sizes_of_its_paper_on_the_sets_of_its_paper(data, hidden):
    ConfigStore.instance().store("schema", Settings)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        settings = hydra_compose("config", ["model=dagmm", f"data={data}"])
        assert settings.model.hidden == hidden
        assert hydra_compose("config", ["model=dagmm", f"data={data}", "model.hidden=[3]"]).model.hidden == [
            3
        ]


@pytest.mark.parametrize(
    ("model", "data", "epochs"),
    [
        *(("ganomaly", data, epochs) for data, epochs in (("mnist", 15), ("uba", 25), ("ffob", 25))),
        *(("skip_ganomaly", data, epochs) for data, epochs in (("mnist", 15), ("cifar10", 25))),
    ],
)
def test_a_method_learns_as_long_as_its_paper_on_the_sets_of_its_paper(model, data, epochs):
    ConfigStore.instance().store("schema", Settings)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        assert hydra_compose("config", [f"model={model}", f"data={data}"]).model.epochs == epochs


class ScoredByFeatures(Inductive):
    """Learns the same whatever its features are."""

    scored_by = ("features",)


@pytest.mark.parametrize(
    ("setting", "moves_results", "moves_training"),
    [
        ("rerun=true", False, False),
        ("seed=1", False, False),
        ("trainer.device=cpu", False, False),
        ("data.name=renamed", False, False),
        *((f"evaluation.{text}", True, False) for text in ("epoch=best_test", "batch_norm=batch")),
        *((f"evaluation.{text}", True, False) for text in ("test_order=by_class", "hindsight=true")),
        *((f"evaluation.{text}", True, False) for text in ("batch_size=7", "quantile=0.9")),
        *((f"trainer.{text}", True, False) for text in ("eval_every=1", "fold=false")),
        ("evaluation.scaling=all", True, True),
        *((f"trainer.{text}", True, True) for text in ("max_epochs=3", "precision=bf16")),
        *((f"data.{text}", True, True) for text in ("limit=140", "mean=0.1", "std=0.3")),
        ("deterministic=true", True, True),
    ],
)
def test_what_a_setting_makes_another_run_of(setting, moves_results, moves_training, tmp_path):
    given = ["trainer.precision=fp32"]
    before, after = (job(named(Inductive), tmp_path, settings=more) for more in (given, [*given, setting]))
    assert (before.settings_hash != after.settings_hash) == moves_results
    assert (before.training_hash != after.training_hash) == moves_training


def test_the_precision_that_auto_comes_to_is_the_same_run(tmp_path):
    auto = job(named(Inductive), tmp_path)
    typed = job(named(Inductive), tmp_path, settings=[f"trainer.precision={auto.trainer.precision}"])
    assert (typed.settings_hash, typed.training_hash) == (auto.settings_hash, auto.training_hash)


def test_what_a_method_only_scores_by_makes_no_other_training(tmp_path):
    one, other = (job(named(ScoredByFeatures, features=number), tmp_path) for number in (1, 2))
    assert one.settings_hash != other.settings_hash
    assert one.training_hash == other.training_hash


def test_another_scale_of_a_table_makes_another_run(tmp_path):
    people(tmp_path / "people.csv")
    of_table = ["data=table", f"data.root={tmp_path}/people.csv", "data.label=kind"]
    found = [
        job(named(Inductive), tmp_path, "tabular_half", [*of_table, f"data.scale={scale}"])
        for scale in ("minmax", "standard")
    ]
    assert len({one.settings_hash for one in found}) == len({one.training_hash for one in found}) == 2


def test_the_scaler_knows_the_training_rows_alone_unless_told_otherwise(tmp_path):
    people(tmp_path / "people.csv")
    of_table = ["data=table", f"data.root={tmp_path}/people.csv", "data.label=kind"]
    for scaling in ("train", "all"):
        found = job(named(Inductive), tmp_path, "tabular_half", [*of_table, f"evaluation.scaling={scaling}"])
        rows = found.split.train if scaling == "train" else np.arange(len(found.dataset.x))
        assert found.scaler is not None
        expected = fit_scaler(found.dataset.x[torch.from_numpy(rows)], "minmax")
        assert all(map(torch.equal, found.scaler, expected))


@pytest.mark.parametrize(
    ("typed", "refused"),
    [
        (["normal_class=3"], True),
        (["+normal_class=3"], True),
        (["normal_class=3", "abnormal_class=2"], False),
        (["abnormal_class=2"], False),
    ],
)
def test_a_class_that_no_protocol_asks_for_is_refused_where_it_stands_alone(typed, refused):
    with pytest.raises(SettingError) if refused else nullcontext():
        check_class_keys(OmegaConf.create({"abnormal_class": 2}), "leave_one_class_out", typed)


def test_the_ends_of_what_an_evaluation_may_have():
    for size, quantile in ((1, 0), (MOST, 1)):
        check_evaluation({"batch_norm": "eval", "batch_size": size, "quantile": quantile})
    for size, quantile in ((0, 0.5), (MOST + 1, 0.5), (1, -1e-9), (1, 1 + 1e-9)):
        with pytest.raises(SettingError):
            check_evaluation({"batch_norm": "eval", "batch_size": size, "quantile": quantile})


def test_settings_are_composed_within_a_program_of_hydra_too():
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        program = GlobalHydra.instance().hydra
        settings, names = settings_of(["data=digits", "model=ae"])
        assert GlobalHydra.instance().hydra is program
    assert "hydra" not in settings
    assert names["model"] == "ae"


def test_data_that_a_worker_has_shared_before_it_died_are_shared_once(tmp_path, monkeypatch):
    monkeypatch.setenv(SHARED, str(tmp_path))
    settings = settings_of(["data=digits", "data.limit=20"])[0]
    share_data(settings)
    (place,) = tmp_path.iterdir()
    written = (place / "values.json").stat().st_mtime_ns
    share_data(settings)
    assert [path.name for path in tmp_path.iterdir()] == [place.name]
    assert (place / "values.json").stat().st_mtime_ns == written


def test_one_row_a_batch_has_no_statistics_to_score_by(tmp_path):
    told = ["model=ganomaly", "data=digits", "evaluation.batch_size=1", f"runs_dir={tmp_path}"]
    batch = [*told, "evaluation.batch_norm=batch"]
    with pytest.raises(SettingError) as refused:
        compose(*settings_of(batch), batch)
    assert str(refused.value) == (
        "evaluation.batch_norm=batch evaluation.batch_size=1: one row has no statistics; allowed is a batch_size "
        "from 2, or batch_norm=eval"
    )
    assert compose(*settings_of(told), told).evaluation["batch_size"] == 1
