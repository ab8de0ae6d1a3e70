"""Who may import whom, read from the sources, and what importing costs, seen from a new process."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import anomaly_bench

PACKAGE = Path(anomaly_bench.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

MAY_IMPORT = {
    "errors": set(),
    "schema": set(),
    "places": set(),
    "machine": set(),
    "versions": set(),
    "refusals": {"errors", "places"},
    "usage": {"errors", "places"},
    "jobs": {"record", "refusals", "report"},
    "record": set(),
    "losses": set(),
    "lars": set(),
    "arguments": {"errors"},
    "sweep": {"machine"},
    "targets": {"arguments", "detector", "errors", "schema"},
    "overlays": {"record"},
    "rows": {"errors"},
    "metrics": {"errors"},
    "data": {"arguments", "data", "errors", "machine"},
    "protocols": {"data", "errors"},
    "validation": {"data", "protocols", "errors"},
    "networks": {"networks", "errors"},
    "detector": {"rows", "errors"},
    "features": {"detector", "errors"},
    "wgan": {"detector", "losses"},
    "detectors": {"rows", "detector", "features", "lars", "losses", "networks", "wgan", "errors"},
    "training": {"training", "detector", "rows", "record", "arguments", "errors"},
    "history": {"record", "training"},
    "tracking": {"errors", "history", "record", "training"},
    "report": {"report", "record", "metrics", "errors"},
}
"""What each room may import of the others."""

AT_THE_END = {
    "__init__",
    "cli",
    "commands",
    "compose",
    "estimator",
    "export",
    "measuring",
    "provenance",
    "recommend",
    "run",
    "score",
    "trained",
    "twins",
    "worker",
}
"""These put the rooms together, and no room imports them."""


def room_of(path: Path) -> str:
    """The room that a file is in or is."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(source: str) -> Iterator[str]:
    """Dotted names of all that a source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import"
            yield from (f"{node.module}.{name.name}" for name in node.names)


def imports(path: Path) -> list[str]:
    return list(imports_of(path.read_text(encoding="utf-8")))


def packages(path: Path) -> set[str]:
    return {name.partition(".")[0] for name in imports(path)}


def rooms_imported(path: Path) -> set[str]:
    names = [name.split(".") for name in imports(path)]
    return {parts[1] for parts in names if parts[0] == "anomaly_bench" and len(parts) > 1}


def modules_after(statement: str) -> set[str]:
    """Top-level modules that a new process has imported after `statement`."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_imports_are_found_wherever_they_stand() -> None:
    source = "import a.b\nfrom c import d\ndef f():\n    from e.g import h\n    import i as j\n"
    assert sorted(imports_of(source)) == ["a.b", "c.d", "e.g.h", "i"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_rooms_import_in_one_direction(path: Path) -> None:
    room = room_of(path)
    if room in AT_THE_END:
        return
    assert room in MAY_IMPORT, f"{room} is a new room: say in MAY_IMPORT whom it may import"
    assert rooms_imported(path) <= MAY_IMPORT[room]


def test_detectors_never_import_each_other() -> None:
    for path in (PACKAGE / "detectors").glob("*.py"):
        assert "detectors" not in rooms_imported(path), path.name


def test_the_first_steps_need_no_compiler_and_no_tables() -> None:
    code = (
        "import sys, torch\n"
        "from anomaly_bench.detectors.ganomaly import GANomaly\n"
        "from anomaly_bench.training.trainer import Trainer\n"
        "trainer = Trainer(device='cpu')\n"
        "detector = trainer.place(GANomaly((1, 16, 16), nz=2, ngf=4, ndf=4, batch_size=4, epochs=1))\n"
        "rows = trainer.rows(torch.zeros(8, 1, 16, 16, dtype=torch.uint8), 0.5, 0.5)\n"
        "print(len(trainer.learn(detector, rows, seed=0).history))\n"
        "from anomaly_bench.detector import SGD, Adadelta, descend\n"
        "net = torch.nn.Linear(2, 1)\n"
        "for kind in (SGD, Adadelta):\n"
        "    descend(kind(net.parameters(), lr=1), net(torch.ones(1, 2)).sum())\n"
        "print(*{'torch._dynamo', 'torch._inductor', 'triton', 'sympy', 'pandas'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1"]


def test_no_method_has_an_optimiser_that_imports_the_compiler() -> None:
    """torch's own do, in their first step; `anomaly_bench.detector` has some that do not."""
    for path in (PACKAGE / "detectors").glob("*.py"):
        tree = ast.walk(ast.parse(path.read_text()))
        used = {ast.unparse(node) for node in tree if isinstance(node, ast.Attribute)}
        named = {name for name in {*used, *imports(path)} if name.startswith("torch.optim.")}
        assert named <= {"torch.optim.Optimizer"}, path.name


def test_hydra_stays_with_the_settings() -> None:
    users = {str(path.relative_to(PACKAGE)) for path in FILES if packages(path) & {"hydra", "omegaconf"}}
    assert users == {
        "cli.py",
        "compose.py",
        "estimator.py",
        "refusals.py",
        "run.py",
        "schema.py",
        "targets.py",
        "trained.py",
        "worker.py",
    }


STATE_DICTS = ("networks/backbone.py", "read_state")
"""The one function that may read files of torch, tensors only: weights that others made come as such."""


def loads_of_torch(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Calls of `torch.load` in a source, each with the function at its top level that it stands in."""
    for part in ast.parse(path.read_text(encoding="utf-8")).body:
        for node in ast.walk(part):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                yield getattr(part, "name", ""), node


def test_torch_loads_tensors_only_and_in_one_place() -> None:
    calls = [(path.relative_to(PACKAGE).as_posix(), *call) for path in FILES for call in loads_of_torch(path)]
    ((file, function, call),) = calls
    assert (file, function) == STATE_DICTS
    assert "weights_only=True" in [ast.unparse(keyword) for keyword in call.keywords]


def test_nothing_is_unpickled() -> None:
    for path in FILES:
        unpicklers = packages(path) & {
            "pickle",
            "cPickle",
            "dill",
            "cloudpickle",
            "joblib",
            "shelve",
            "marshal",
        }
        assert not unpicklers, f"{path.name} imports {unpicklers}"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call):
                assert all(keyword.arg != "allow_pickle" for keyword in node.keywords), path.name


@pytest.mark.parametrize("room", ["report", "metrics", "record"])
def test_reports_are_made_without_torch(room: str) -> None:
    files = [path for path in FILES if room_of(path) == room]
    assert files
    for path in files:
        assert "torch" not in packages(path), path.name


@pytest.mark.parametrize(
    ("statement", "without"),
    [
        (
            "import anomaly_bench.report.tables, anomaly_bench.report.pictures, anomaly_bench.metrics",
            {"torch", "torchvision", "hydra", "matplotlib"},
        ),
        ("import anomaly_bench.cli", {"torch", "sklearn", "pandas", "numpy", "matplotlib", "hydra"}),
        (
            "from contextlib import redirect_stdout as to; import sys; from anomaly_bench.cli import answer\n"
            "with to(sys.stderr): answer(['--help']), answer(['list'])",
            {"torch", "sklearn", "pandas", "numpy", "matplotlib", "hydra", "omegaconf"},
        ),
        (
            "import hydra_plugins.anomaly_bench_launcher",
            {"torch", "sklearn", "pandas", "numpy", "matplotlib"},
        ),
        ("import anomaly_bench.data.decode", {"torch", "torchvision", "sklearn", "pandas"}),
        ("import anomaly_bench.score", {"torchvision", "sklearn", "scipy", "matplotlib"}),
        ("import anomaly_bench.run", {"mlflow", "wandb", "tensorboard"}),
    ],
)
def test_light_imports_stay_light(statement: str, without: set[str]) -> None:
    modules = modules_after(statement)
    assert "anomaly_bench" in modules
    assert not modules & without
