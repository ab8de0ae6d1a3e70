"""What is published of runs, and what is not."""

import json
from pathlib import Path

import pytest
import yaml
from omegaconf import OmegaConf

SCRIPTS = Path(__file__).parents[2] / "scripts"
PLACE = f"/home/me/{'long folder/' * 12}images"
DATA = {"name": "bags", "root": PLACE, "limit": None, "of": {"name": "inner", "root": PLACE}}


@pytest.fixture(autouse=True)
def scripts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)


def run_in(runs: Path, *overrides: str) -> Path:
    """The folder of a finished run that says everywhere where its data lay."""
    folder = runs / "run"
    folder.mkdir(parents=True)
    settings = {"data": DATA, "model": {"lr": 1e-5, "score": "1e-5"}, "runs_dir": PLACE}
    settings["tracker"] = {"folder": f"{PLACE}/.wandb"}
    (folder / "config.yaml").write_text(OmegaConf.to_yaml(OmegaConf.create(settings)))
    (folder / "run.json").write_text(json.dumps({"model": "ae", "overrides": overrides}))
    (folder / "metrics.json").write_text(json.dumps({"auroc": 0.5}))
    (folder / "losses.csv").write_text("stage\n0\n")
    return folder


def test_the_places_of_data_and_runs_are_not_published(tmp_path: Path) -> None:
    from publish import copy_records

    keys = ["data.root", "+data.root", "++data.root", "data.of.root", "runs_dir", "tracker.folder"]
    within = f"++data.of={{name:inner,root:{PLACE}}}"
    run_in(tmp_path / "runs", "data=bags", *(f"{key}={PLACE}" for key in keys), within, "~point")
    copy_records(tmp_path / "runs", tmp_path / "results", {})
    (place,) = (tmp_path / "results" / "records").iterdir()
    assert not any("/home" in path.read_text() or "folder/" in path.read_text() for path in place.iterdir())
    told = json.loads((place / "run.json").read_text())["overrides"]
    assert told == ["data=bags", *(f"{key}=FOLDER" for key in keys), "++data.of=FOLDER", "~point"]
    settings = yaml.safe_load((place / "config.yaml").read_text())
    assert settings["data"] == DATA | {"root": None, "of": {"name": "inner", "root": None}}
    assert settings["model"] == {"lr": 1e-5, "score": "1e-5"}
    assert (settings["runs_dir"], settings["tracker"]) == (None, {})


@pytest.mark.parametrize(
    ("lines", "kept"),
    [
        (0, []),
        (3, [0, 1, 2]),
        (200, range(200)),
        (201, [*range(1, 201, 2), 200]),
        (400, range(1, 400, 2)),
    ],
)
def test_of_many_epochs_some_are_kept_and_always_the_last(lines: int, kept: list[int]) -> None:
    from publish import thinned

    text = "".join(f"{number}\n" for number in range(lines))
    assert thinned(f"epoch\n{text}") == "".join(["epoch\n", *(f"{number}\n" for number in kept)])


def test_only_finished_runs_that_are_as_the_conditions_say_are_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import publish

    from anomaly_bench.errors import SettingError
    from anomaly_bench.record import write_json

    for name, facts in (
        ("one", {"experiments": ["dagmm", "memae"], "seed": 0}),
        ("other", {"experiments": ["memae"], "seed": 0}),
        ("none", {"experiments": None, "seed": 1}),
    ):
        folder = run_in(tmp_path / "runs" / name).rename(tmp_path / "runs" / name / name)
        write_json(folder / "run.json", json.loads((folder / "run.json").read_text()) | facts)
    (tmp_path / "runs/one/one/metrics.json").rename(tmp_path / "kept.json")
    results = tmp_path / "results"
    for after in ("publish", "write_index"):
        monkeypatch.setattr(publish, after, lambda _: None)

    def published(*conditions: str) -> list[str]:
        publish.main([str(tmp_path / "runs"), str(results), *conditions])
        return sorted(path.name for path in (results / "records").iterdir())

    with pytest.raises(SettingError, match=r"no finished run with \{'experiments': 'dagmm'\}"):
        published("experiments=dagmm")
    assert not results.exists()
    (tmp_path / "kept.json").rename(tmp_path / "runs/one/one/metrics.json")
    assert published("experiments=dagmm", "seed=0") == ["one"]
    assert published("experiments=memae") == ["one", "other"]


def test_a_record_of_the_same_command_under_another_hash_is_replaced(tmp_path: Path) -> None:
    from publish import copy_records

    def published(name: str, *overrides: str) -> list[str]:
        runs = tmp_path / name
        run_in(runs, *overrides).rename(runs / name)
        copy_records(runs, tmp_path / "results", {})
        return sorted(path.name for path in (tmp_path / "results/records").iterdir())

    assert published("old-1", "model=ae", "seed=1") == ["old-1"]
    assert published("old-2", "model=ae", "seed=2") == ["old-1", "old-2"]
    assert published("new-2", "runs_dir=here", "seed=2", "model=ae") == ["new-2", "old-1"]


def test_settings_that_are_published_stay_as_they_are() -> None:
    from publish import without_places

    configs = [
        next(folder.glob("records/*/config.yaml")).read_text()
        for folder in (SCRIPTS.parent / "results").iterdir()
        if (folder / "records").exists()
    ]
    assert configs
    assert all(without_places(config) == config for config in configs)


def test_a_command_has_what_was_taken_out_too(tmp_path: Path) -> None:
    from publish import sweeps

    from anomaly_bench.record import read_records

    for seed in (0, 1):
        run_in(tmp_path / f"{seed}", "model=ae", f"seed={seed}", "~point", "data.label=")
    assert sweeps(read_records(tmp_path)) == ["anomaly-bench -m model=ae seed=0,1 '~point' data.label="]


def test_commands_make_the_runs_and_no_others(tmp_path: Path) -> None:
    from publish import sweeps

    from anomaly_bench.record import read_records

    runs = [("ae", 0), ("ae", 2), ("ae", 10), ("knn", 0), ("knn", 2), ("knn", 10), ("pca", 0)]
    for model, seed in runs:
        run_in(tmp_path / f"{model}{seed}", f"seed={seed}", f"model={model}")
    assert sweeps(read_records(tmp_path)) == [
        "anomaly-bench -m seed=0,2,10 model=ae,knn",
        "anomaly-bench -m seed=0 model=pca",
    ]


def test_of_many_epochs_those_that_were_evaluated_are_kept() -> None:
    from publish import thinned

    areas = ["0.5" if number in (7, 300) else "" for number in range(1, 401)]
    text = "epoch,auroc,loss\n" + "".join(f"{number},{area},1\n" for number, area in enumerate(areas, 1))
    kept = [int(line.split(",")[0]) for line in thinned(text).splitlines()[1:]]
    assert kept == sorted({7, *range(2, 401, 2)})
