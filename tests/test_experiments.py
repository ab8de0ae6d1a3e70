"""Each experiment composes, sweeps what its paper's table has, and has numbers to stand beside."""

import shlex

import pytest
import yaml
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from anomaly_bench.cli import answer
from anomaly_bench.data.public import CHANNELS
from anomaly_bench.places import CONFIGS
from anomaly_bench.report.printed import printed
from anomaly_bench.schema import Settings
from anomaly_bench.targets import build

OWN_TABLES = {"autoencoders_mnist", "fence_gan", "gans_mnist", "skip_ganomaly_cifar10"}
"""Experiments with methods that no printed number is known of."""

EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))


def composed(*overrides):
    ConfigStore.instance().store("schema", Settings)
    with initialize_config_dir(str(CONFIGS), version_base="1.3"):
        return compose("config", list(overrides), return_hydra_config=True)


def swept(settings) -> dict[str, list[str]]:
    """The values of each key of its sweep, as single overrides."""
    texts = [f"{key}={value}" for key, value in settings.hydra.sweeper.params.items()]
    choices = OverridesParser.create().parse_overrides(texts)
    return {
        str(one.key_or_group): list(one.sweep_string_iterator()) if one.is_sweep_override() else [one.value()]
        for one in choices
    }


def holds(made, settings: str) -> bool:
    """Whether a job has the settings by which a run is a number's."""
    pairs = [text.split("=", 1) for text in settings.split()]
    return all(OmegaConf.select(made, key) == yaml.safe_load(value) for key, value in pairs)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_every_job_composes_and_is_a_row_of_the_papers(name):
    settings = composed(f"experiment={name}")
    assert str(settings.hydra.mode).endswith("MULTIRUN")
    theirs = [row for row in printed() if row.table == name]
    keys = swept(settings)
    classes = keys.pop("abnormal_class", [])
    seeds = keys.pop("seed", [0])
    assert len(seeds) in (1, 3, 5, 10, 20)
    jobs = [[f"{key}={value}" for value in values] for key, values in keys.items()] or [[""]]
    for job in (text for texts in jobs for text in (texts if len(texts) < 9 else texts[::9])):
        made = composed(f"experiment={name}", *filter(None, [job]))  # the others differ in a number only
        values = OmegaConf.to_container(made, resolve=False)
        assert isinstance(values, dict)
        data, choices = values["data"]["name"], made.hydra.runtime.choices
        fitting = [
            r for r in theirs if (r.model, r.data, r.protocol) == (choices.model, data, choices.protocol)
        ]
        assert name in OWN_TABLES or any(holds(made, row.settings) for row in fitting), job
    if name in ("ganomaly_mnist", "ganomaly_cifar10"):
        assert [int(number) for number in classes] == list(range(10))


def test_the_study_of_settings_has_every_point_of_the_figure():
    points = swept(composed("experiment=ganomaly_hyperparameters"))["point"]
    theirs = {row.method for row in printed() if row.table == "ganomaly_hyperparameters" and row.cls == "2"}
    assert {f"GANomaly {point.strip('{}').replace(':', '=').replace('.0', '')}" for point in points} == theirs
    for point in points:  # as the config of the method writes it, so that a run is not made twice
        assert ("." in point) != ("nz" in point)


def test_they_are_listed(capsys):
    assert answer(["list", "experiments"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == EXPERIMENTS
    assert all("@package" not in line and len(line.split()) > 4 for line in lines)


@pytest.mark.parametrize("name", ["deep_svdd_mnist", "deep_svdd_cifar10"])
def test_deep_svdd_has_a_number_for_each_normal_class(name):
    settings = composed(f"experiment={name}")
    assert swept(settings)["normal_class"] == [str(number) for number in range(10)]
    theirs = [row for row in printed() if row.table == name and row.model == "deep_svdd"]
    assert len({row.cls for row in theirs}) == len(theirs) == 10
    if name == "deep_svdd_cifar10":
        sizes = composed("model=deep_svdd_cifar10").model
        assert OmegaConf.to_container(settings.model) == OmegaConf.to_container(sizes)


def test_the_baselines_beside_dagmm_are_as_its_experiment_says():
    for data in ("kddcup99", "kddcup99_rev", "arrhythmia", "thyroid"):
        for name in ("dsebm", "dsebm_r"):
            model = composed("experiment=dagmm", f"data={data}", f"model={name}").model
            assert (model.hidden, model.sigma, model.lr, model.batch_size) == ([128, 512], 0.5, 1e-3, 128)
        model = composed("experiment=dagmm", f"data={data}", "model=ocsvm").model
        found = (model.nu, model.gamma, model.gamma_factor, model.pca, model.max_rows)
        assert found == (0.1, "scale", 1, 0.95, 10_000)


def test_dagmm_learns_as_long_as_its_paper_says():
    theirs = {row.data: row.epochs for row in printed() if (row.table, row.method) == ("dagmm", "DAGMM")}
    for data in ("kddcup99", "thyroid", "arrhythmia"):
        assert composed("experiment=dagmm", f"data={data}").model.epochs == theirs[data]


@pytest.mark.parametrize(("name", "classes"), [("geotrans_cifar10", 10), ("geotrans_cifar100", 20)])
def test_geotrans_and_those_beside_it_have_a_number_for_each_normal_class(name, classes):
    keys = swept(composed(f"experiment={name}"))
    assert keys["normal_class"] == [str(number) for number in range(classes)]
    theirs = [row for row in printed() if row.table == name]
    for model in keys["model"]:
        assert len({row.cls for row in theirs if row.model == model}) == classes + 1  # and their mean
    assert {row.model for row in theirs} == set(keys["model"])


def test_e3outlier_has_three_numbers_for_each_method_data_set_and_share():
    keys = swept(composed("experiment=e3outlier"))
    theirs = [row for row in printed() if row.table == "e3outlier"]
    assert {row.model for row in theirs} == set(keys["model"])
    assert {row.data for row in theirs} - set(keys["data"]) == {
        "cifar100"
    }  # has more classes than the others
    for point in keys["point"]:
        rho = composed("experiment=e3outlier", f"point={point}").protocol.rho
        for model in keys["model"]:
            for data in [*keys["data"], "cifar100"]:
                wanted = model, data, "contaminated", f"protocol.rho={rho}"
                rows = [r for r in theirs if (r.model, r.data, r.protocol, r.settings) == wanted]
                assert {r.metric for r in rows} == {"auroc", "aupr_in", "aupr_out"}
                assert {r.cls for r in rows} == {"mean"}
    for model in keys["model"]:
        made = composed("experiment=e3outlier", f"model={model}").model
        if model == "dagmm_cae":  # with an Adam of its own
            assert (made.epochs, made.batch_size, made.lr, made.w_energy) == (200, 1024, 1e-4, 0.1)
            continue
        learned = made.features if model in ("cae_if", "ssd_if") else made
        assert (learned.eps, learned.weight_decay) == (1e-7, 5e-4)
        assert model == "rdae" or learned.epochs == 250
    optimizers = {
        data: composed("experiment=e3outlier", f"data={data}").model.optimizer for data in keys["data"]
    }
    assert optimizers == {"mnist": "sgd", "fashion_mnist": "sgd", "cifar10": "adam", "svhn": "adam"}


@pytest.mark.parametrize(("overrides", "size"), [([], 28), (["model=fence_gan_cifar10", "data=cifar10"], 32)])
def test_fence_gan_has_images_of_the_papers_sizes(overrides, size):
    assert composed("experiment=fence_gan", *overrides).data.image_size == size


def examples(name: str) -> list[list[str]]:
    """The overrides of each command in the head of an experiment's file; what stands two blanks behind is prose."""
    lines = (CONFIGS / "experiment" / f"{name}.yaml").read_text().splitlines()
    told = [
        line.removeprefix("# anomaly-bench ").split("  ")[0] for line in lines if "# anomaly-bench" in line
    ]
    return [shlex.split(command) for command in told]


SIZED = [
    name for name in EXPERIMENTS if "image_size" in (CONFIGS / "experiment" / f"{name}.yaml").read_text()
]


@pytest.mark.parametrize("name", SIZED)
def test_every_method_of_its_examples_takes_images_of_their_size(name):
    sweep = swept(composed(f"experiment={name}"))
    for overrides in examples(name):
        given = dict(text.split("=", 1) for text in overrides)
        data = given.get("data") or next(iter(sweep.get("data", [""])))
        fixed = [text for text in overrides if text.startswith(("experiment=", "data."))]
        for model in (given.get("model") or ",".join(map(str, sweep.get("model", [""])))).split(","):
            more = [f"{key}={value}" for key, value in (("data", data), ("model", model)) if value]
            made = composed(*fixed, *more)
            if made.data.name not in CHANNELS:
                continue
            size = made.data.image_size or 32
            build(made.model, (CHANNELS[made.data.name], size, size))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_what_an_experiment_sets_stands(name):
    said = OmegaConf.load(CONFIGS / "experiment" / f"{name}.yaml")
    made = composed(f"experiment={name}")
    for key, value in said.items():
        if key in ("defaults", "hydra"):
            continue
        of_key = OmegaConf.merge(made[key], value) if OmegaConf.is_config(value) else value
        assert of_key == made[key], key


def test_the_gans_side_by_side_mirror_no_digit_and_have_a_bottleneck():
    assert composed("experiment=gans_mnist", "model=f_anogan").model.flip is False
    repair = composed("experiment=gans_mnist", "model=positive_sample").model
    assert (repair.augment, repair.nz) == (False, 100)
    textures = composed("model=positive_sample", "data=folder").model
    assert (textures.augment, textures.nz) == (True, 4000)
    assert composed("model=f_anogan", "data=folder").model.flip is True
