import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import hydra
import numpy as np
import pandas as pd
import pytest
import torch
from omegaconf import OmegaConf
from PIL import Image
from safetensors.torch import load_file

from anomaly_bench import compose, record, versions, worker
from anomaly_bench.cli import answer
from anomaly_bench.training.checkpoint import save_weights
from anomaly_bench.training.trainer import Trainer
from anomaly_bench.twins import twin_of

DATA = ["data=digits", "data.limit=100", "data.image_size=16", "trainer.device=cpu"]
TINY = [
    *DATA,
    *("model.ngf=4", "model.ndf=4", "model.nz=8", "model.epochs=2", "model.batch_size=16"),
]


@pytest.fixture
def trainings(tmp_path, monkeypatch, undrawn):
    """The seeds of all trainings that were done, in an empty folder of a clean checkout."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("ANOMALY_BENCH_SWEEP", raising=False)
    monkeypatch.setattr(sys, "argv", ["anomaly-bench"])
    monkeypatch.setattr(versions, "git_revision", lambda: "a" * 40)
    done, learn = [], Trainer.learn

    def counted(self, detector, train, *, seed, **others):
        done.append(seed)
        return learn(self, detector, train, seed=seed, **others)

    monkeypatch.setattr(Trainer, "learn", counted)
    return done


def computed(*others: str, runs: str = "runs", settings: Sequence[str] = TINY) -> Path:
    before = set(Path(runs).glob("*"))
    settings = (*settings, *others, f"runs_dir={runs}")
    sys.argv[1:] = settings
    assert answer(list(settings)) == 0
    (new,) = set(Path(runs).glob("*")) - before
    return new


def figures(folder: Path) -> dict:
    """What the run came to, without the times."""
    numbers = json.loads((folder / "metrics.json").read_text())
    return {name: number for name, number in numbers.items() if "second" not in name and "_per_" not in name}


def test_clean_takes_over_what_as_published_has_trained(trainings):
    published = computed("evaluation=as_published")
    clean = computed("evaluation=clean")
    alone = computed("evaluation=clean", runs="others")
    assert trainings == [0, 0]  # the second run had none of its own
    assert figures(clean) == figures(alone)
    pd.testing.assert_frame_equal(pd.read_csv(clean / "scores.csv"), pd.read_csv(alone / "scores.csv"))
    weights, expected = load_file(clean / "model.safetensors"), load_file(alone / "model.safetensors")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    told = json.loads((clean / "run.json").read_text())
    assert told["trained_in"] == published.name
    assert told["stages"] == json.loads((alone / "run.json").read_text())["stages"]
    losses, others = (pd.read_csv(folder / "losses.csv").drop(columns="seconds") for folder in (clean, alone))
    pd.testing.assert_frame_equal(losses, others)


def test_a_method_without_epochs_has_an_evaluation_beside_its_own(trainings):
    settings = [*DATA, "model=ocsvm"]
    clean = computed("evaluation=clean", settings=settings)
    assert (clean / "losses.csv").read_text() == "stage,name,epoch,rows,seconds,auroc\n"
    published = computed("evaluation=as_published", settings=settings)
    assert json.loads((published / "run.json").read_text())["trained_in"] == clean.name
    shutil.rmtree(published)
    (clean / "losses.csv").write_text("\n")  # as older versions have it
    quantile = computed("evaluation=clean", "evaluation.quantile=0.9", settings=settings)
    assert json.loads((quantile / "run.json").read_text())["trained_in"] == clean.name


def test_a_run_that_went_on_elsewhere_is_no_twin(trainings):
    published = computed("evaluation=as_published")
    told = json.loads((published / "run.json").read_text())
    (published / "run.json").write_text(json.dumps(told | {"resumed_from": [{"threads": 9}]}))
    computed("evaluation=clean")
    assert trainings == [0, 0]


def test_another_score_and_another_name_of_one_method_need_no_training_of_their_own(trainings):
    small = "model.width=4", "model.code=8", "model.epochs=2"
    energy = computed(*small, "model=dsebm", settings=DATA)
    residual = computed(*small, "model=dsebm_r", settings=DATA)
    alone = computed(*small, "model=dsebm_r", settings=DATA, runs="others")
    assert trainings == [0, 0]
    assert json.loads((residual / "run.json").read_text())["trained_in"] == energy.name
    assert figures(residual) == figures(alone) != figures(energy)


@pytest.mark.parametrize(
    "settings",
    [
        ("evaluation=as_published",),  # has to look at every epoch
        ("evaluation.quantile=0.9", "trainer.eval_every=1"),
        ("evaluation.quantile=0.9", "rerun=true"),
        ("evaluation.quantile=0.9", "model.w_con=10"),
        ("evaluation.quantile=0.9", "seed=1"),
    ],
)
def test_trains_what_no_finished_run_has(trainings, settings):
    computed()
    computed(*settings)
    assert len(trainings) == 2


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ((), ("evaluation.quantile=0.9", "evaluation.batch_norm=batch"), True),
        (("model=dsebm",), ("model=dsebm", "model.score_by=reconstruction"), True),
        ((), ("seed=1",), False),
        ((), ("abnormal_class=1",), False),
        ((), ("data.image_size=32",), False),
        ((), ("model.w_con=10",), False),
    ],
)
def test_jobs_of_a_sweep_that_one_training_serves(trainings, one, other, alike):
    (first, waits), (second, also) = (worker.training(config_of(*overrides)) for overrides in (one, other))
    assert first
    assert second
    assert waits
    assert also
    assert (first == second) is alike


@pytest.mark.parametrize("settings", [("evaluation=as_published",), ("trainer.eval_every=1",)])
def test_who_looks_at_every_epoch_serves_others_and_takes_nothing(trainings, settings):
    served, waits = worker.training(config_of())
    assert waits
    assert worker.training(config_of(*settings)) == (served, False)


def test_jobs_of_a_sweep_that_serve_and_take_nothing(trainings, monkeypatch):
    assert worker.training(config_of("rerun=true")) == (None, False)
    assert worker.training(config_of("model.nz=${nowhere}")) == (None, False)
    monkeypatch.setattr(versions, "git_revision", lambda: "b" * 40 + "-dirty")
    assert worker.training(config_of()) == (None, False)


def config_of(*overrides: str) -> dict:
    """What a worker is told of a job."""
    with hydra.initialize_config_dir(str(compose.CONFIGS), version_base="1.3"):
        config = hydra.compose("config", [*DATA, *overrides], return_hydra_config=True)
    return OmegaConf.to_container(config, resolve=False, enum_to_str=True)  # type: ignore


def test_another_revision_or_an_edited_one_is_not_trusted(trainings, monkeypatch, capfd):
    computed()
    monkeypatch.setattr(versions, "git_revision", lambda: "b" * 40)
    computed("evaluation.quantile=0.9")
    monkeypatch.setattr(versions, "git_revision", lambda: "b" * 40 + "-dirty")
    computed("evaluation.quantile=0.8")
    assert len(trainings) == 3
    assert "learned anew" not in capfd.readouterr().err  # the others are of a revision without changes
    computed("evaluation.quantile=0.7")
    assert len(trainings) == 4
    assert "the checkout has changes not committed" in capfd.readouterr().err


def test_a_class_whose_name_ends_alike_is_another(trainings, tmp_path):
    noise = np.random.default_rng(0)
    for folder in ("train/a", "train/x-normal-a", "test/a", "test/x-normal-a"):
        (tmp_path / "set" / folder).mkdir(parents=True)
        for number in range(3):
            pixels = noise.integers(0, 256, (16, 16), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "set" / folder / f"{number}.png")
    data = ["model=ae", "data=folder", "data.root=set", "data.image_size=16", "protocol=one_vs_rest"]
    tiny = [*data, "model.width=4", "model.epochs=1", "trainer.device=cpu"]
    computed("normal_class=x-normal-a", "evaluation.quantile=0.9", settings=tiny)
    computed("normal_class=a", settings=tiny)
    assert len(trainings) == 2


def test_a_half_finished_run_is_no_twin(trainings):
    first = computed()
    (first / "metrics.json").unlink()
    computed("evaluation.quantile=0.9")
    assert len(trainings) == 2


def test_the_last_weights_are_kept_beside_the_best(trainings):
    published = computed("evaluation=as_published")
    assert (published / "last.safetensors").exists()
    assert not (published / "best.safetensors").exists()


FACTS = {
    **{"training_hash": "5e6f7a8b", "data_fingerprint": "9c", "device": "cpu", "precision": "fp32"},
    **{"threads": 1, "versions": {"torch": "2.8"}, "machine": {"cpu": "one"}, "git": "a" * 40},
    **{"case": "case", "class": "a", "seed": 0},
}


def folder_of(runs: Path, settings_hash: str, **others: object) -> Path:
    """A finished run that says so much of itself."""
    folder = runs / record.run_name("digits", "folder", "ae", "case", 0, settings_hash)
    record.write_json(folder / "run.json", FACTS | others)
    record.write_json(folder / "metrics.json", {"auroc": 0.5})
    save_weights(folder / "model.safetensors", torch.nn.Linear(1, 1))
    return folder


def job_in(folder: Path) -> SimpleNamespace:
    """As much of a job as is asked for here."""
    return SimpleNamespace(
        folder=folder,
        names={"data": "digits", "protocol": "folder"},
        split=SimpleNamespace(case="case"),
        seed=0,
        trainer=SimpleNamespace(eval_every=0),
        values={"rerun": False},
    )


@pytest.mark.parametrize("fact", FACTS)
def test_a_twin_is_alike_in_every_fact_that_can_move_a_weight(tmp_path, fact):
    job = job_in(folder_of(tmp_path, "11111111"))
    twin = folder_of(tmp_path, "22222222")
    assert twin_of(job) == twin
    folder_of(tmp_path, "22222222", **{fact: "another"})
    assert twin_of(job) is None


def test_a_run_is_no_twin_of_itself_nor_one_whose_weights_are_damaged(tmp_path):
    job = job_in(folder_of(tmp_path, "11111111"))
    assert twin_of(job) is None
    weights = folder_of(tmp_path, "22222222") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert twin_of(job) is None
    save_weights(weights.with_name("last.safetensors"), torch.nn.Linear(1, 1))
    assert twin_of(job) == weights.parent
