"""The wheel, installed by itself, works from any folder."""

import json
import os
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import venv
import zipfile
from pathlib import Path

import pytest
from packaging.metadata import Metadata
from packaging.requirements import Requirement

CHECKOUT = Path(__file__).parents[1]
TINY = ["data.limit=60", "data.image_size=16", "model.ngf=4", "model.ndf=4", "trainer.max_epochs=1"]


def answer(*command, **settings):
    """What a command printed; it must have ended well."""
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, **settings)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built from this checkout."""
    folder = tmp_path_factory.mktemp("dist")
    answer(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=CHECKOUT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """Runs a program of an environment that has the wheel, from an empty folder: `installed("python", ...)`.

    Its dependencies are those of the running environment: a .pth file adds that folder to the path, behind
    what is installed. The .pth files in that folder are not followed, so the checkout is not among it.
    """
    environment, empty = tmp_path_factory.mktemp("environment"), tmp_path_factory.mktemp("empty")
    venv.create(environment, with_pip=True)
    paths = sysconfig.get_paths(vars={"base": str(environment), "platbase": str(environment)})
    scripts, packages = Path(paths["scripts"]), Path(paths["purelib"])
    answer(scripts / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", wheel)
    running = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (packages / "dependencies.pth").write_text("\n".join(running))
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def run(program, *arguments):
        return answer(scripts / program, *arguments, cwd=empty, env=variables)

    run.environment, run.empty = environment, empty
    return run


def test_the_wheel_holds_every_config_and_the_papers_numbers(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    there = {f"anomaly_bench/{path.relative_to(CHECKOUT)}" for path in CHECKOUT.glob("configs/**/*.yaml")}
    assert len(there) > 20
    assert there <= set(names)
    papers = {str(path.relative_to(CHECKOUT)) for path in CHECKOUT.glob("anomaly_bench/report/papers/*.csv")}
    assert len(papers) > 20
    assert papers <= set(names)
    assert {f"anomaly_bench/report/templates/index.{kind}" for kind in ("html", "css", "js")} <= set(names)
    assert "hydra_plugins/anomaly_bench_launcher.py" in names
    assert "hydra_plugins/__init__.py" not in names  # other packages put their launchers there too
    assert not [name for name in names if name.split("/")[0] in ("tests", "data", "scripts")]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution, built from this checkout and unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    answer(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=CHECKOUT)
    (built,) = folder.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        archive.extractall(folder, filter="data")
    return folder / built.name.removesuffix(".tar.gz")


def test_a_wheel_of_the_source_distribution_is_the_same(wheel, sdist, tmp_path):
    answer(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", tmp_path, cwd=sdist)
    (again,) = tmp_path.glob("*.whl")
    first, second = (zipfile.ZipFile(path) for path in (wheel, again))
    assert sorted(first.namelist()) == sorted(second.namelist())
    assert [name for name in first.namelist() if first.read(name) != second.read(name)] == []
    assert {path.name for path in sdist.iterdir()} <= {
        *("anomaly_bench", "hydra_plugins", "configs", "pyproject.toml", "PKG-INFO", ".gitignore"),
        *("README.md", "LICENSE", "CHANGELOG.md"),
    }


def test_the_metadata_are_what_an_index_accepts(wheel, sdist):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        texts = archive.read(name), (sdist / "PKG-INFO").read_bytes()
    for text in texts:
        told = Metadata.from_email(text, validate=True)
        assert (told.name, str(told.requires_python)) == ("anomaly-bench", ">=3.11")
        assert told.license_expression == "Apache-2.0"
        assert told.license_files == ["LICENSE"]
        assert told.description_content_type == "text/markdown"
        assert told.description == (CHECKOUT / "README.md").read_text(encoding="utf-8")
        assert not [need for need in told.requires_dist or () if need.url]


def test_every_dependency_has_a_tested_version():
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [Requirement(text) for text in project["dependencies"]]
    wanted += [Requirement(text) for extra in project["optional-dependencies"].values() for text in extra]
    lines = (CHECKOUT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    tested = {one.name: one.specifier for line in lines if line[0] != "#" for one in [Requirement(line)]}
    for one in wanted:
        if one.name != "anomaly-bench":
            (pinned,) = tested[one.name]
            assert one.specifier.contains(pinned.version), one
    assert tested.keys() == {one.name for one in wanted} - {"anomaly-bench"}


def test_the_installed_package_is_the_one_imported(installed):
    program = "from anomaly_bench import __file__, places; print(__file__, places.CONFIGS, sep='\\n')"
    for path in installed("python", "-c", program).splitlines():
        assert Path(path).is_relative_to(installed.environment)


def test_it_lists_and_composes(installed):
    assert "ganomaly" in installed("anomaly-bench", "list", "models")
    assert "_target_: anomaly_bench.detectors.ganomaly.GANomaly" in installed("anomaly-bench", "--cfg", "job")


def test_it_runs(installed):
    assert installed("anomaly-bench", "data=digits", *TINY).startswith("AUROC ")
    (run,) = installed.empty.glob("runs/*")
    assert 0 <= json.loads((run / "metrics.json").read_text())["auroc"] <= 1
    assert json.loads((run / "run.json").read_text())["git"] is None
    installed("anomaly-bench", "report")
    assert (run.parent / "report" / "index.html").exists()


def test_it_sweeps_on_workers(installed):
    table = installed("anomaly-bench", "-m", "data=digits", *TINY, "seed=1,2", "hydra.launcher.n_jobs=2")
    assert "AUROC on digits" in table
    assert len(list(installed.empty.glob("runs/*seed[12]*/metrics.json"))) == 2
