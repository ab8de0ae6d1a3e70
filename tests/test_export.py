import io
import json
import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from conformance import FULL, Case
from finished import digit_files, finished, people
from PIL import Image
from test_conformance import MODELS, ON_ROWS, built
from torch import Tensor

from anomaly_bench import export, score
from anomaly_bench.cli import answer
from anomaly_bench.data.dataset import Column
from anomaly_bench.data.scaling import fit_scaler
from anomaly_bench.data.table import read_rows
from anomaly_bench.errors import SettingError
from anomaly_bench.export import FACTS, SUFFIXES, written
from anomaly_bench.score import score_files
from anomaly_bench.trained import Trained
from anomaly_bench.training.trainer import leave_untrained

DESCEND = {"adgan", "anogan", "wgan_anogan"}
REFUSED = DESCEND | {"dsebm", "dsebm_r"}  # the slope of the energy
"""Models of which no file can be written; all others must export."""

FORMATS = list(SUFFIXES)

KINDS = [("ae", "onnx"), ("ae", "torch"), ("ganomaly", "torch"), ("ocsvm", "onnx"), ("dagmm", "onnx")]

Run = Callable[[Tensor], list[np.ndarray]]


def opened(path: Path) -> tuple[Run, dict[str, str]]:
    """A file as its user opens it, without this package, and the facts in it."""
    if path.suffix == ".onnx":
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        facts = {fact.key: fact.value for fact in onnx.load(path).metadata_props}
        return lambda x: session.run(None, {"x": x.numpy()}), facts
    extra = {FACTS: ""}
    module = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra).module()
    return lambda x: [y.detach().numpy() for y in module(x)], json.loads(extra[FACTS])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("export")


@pytest.fixture(scope="module")
def bags(place: Path) -> Path:
    return digit_files(place / "bags")


@pytest.fixture(scope="module")
def runs(place: Path, bags: Path) -> dict[str, Path]:
    """Runs on images of another mean than usual, and on a table with gaps and a category."""
    images = {"data": "folder", "protocol": "folder", "data__root": str(bags)}
    images["trainer__precision"] = "fp32"  # as the file computes
    scaled = images | {"data__mean": "0.3", "data__std": "0.7"}
    table = {"data": "table", "protocol": "tabular_half", "data__label": "kind"}
    table["data__root"] = str(people(place / "people.csv"))
    small = {"model__ngf": "4", "model__ndf": "4", "model__nz": "8", "trainer__max_epochs": "1"}
    brief = {"model__width": "4", "model__epochs": "2", "data__image_size": "16"}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("anomaly_bench.run.draw_run", lambda *_: None)  # takes longer than all else
        return {
            "ae": finished(place, model="ae", **scaled, **brief),
            "ganomaly": finished(place, model="ganomaly", **images, data__image_size="32", **small),
            "ocsvm": finished(place, model="ocsvm", **table),
            "dagmm": finished(place, model="dagmm", **table, model__epochs="3"),
        }


@pytest.fixture(scope="module")
def files(runs: dict[str, Path]) -> dict[tuple[str, str], Path]:
    """What `export` wrote, by model and format."""
    written_files = {}
    for model, form in KINDS:
        written_files[model, form], difference = export.export(runs[model], form)
        assert written_files[model, form] == runs[model] / f"model{SUFFIXES[form]}"
        assert 0 <= difference < 1e-4
    return written_files


def as_a_user_has_them(run: Path, root: Path) -> Tensor:
    """The test rows of a run in the order of its `scores.csv`: pixels on [0, 1], or numbers as in the table."""
    kept, facts = pd.read_csv(run / "scores.csv"), json.loads((run / "run.json").read_text())
    if "file" not in kept:
        columns = [Column(c) if isinstance(c, str) else Column(c[0], tuple(c[1:])) for c in facts["columns"]]
        return read_rows(root / "people.csv", columns)[kept["row"].tolist()]
    size = facts["shape"][1:]
    pictures = [
        Image.open(root / "bags" / file).resize(size, Image.Resampling.BILINEAR) for file in kept["file"]
    ]
    return torch.from_numpy(np.stack(pictures)[:, None].astype(np.float32) / 255)


# ------------------------------------------------------------------------------ the run's numbers


@pytest.mark.parametrize(("model", "form"), KINDS, ids=["-".join(kind) for kind in KINDS])
def test_the_file_scores_as_the_run_did(runs, files, place, model, form):
    run, x = runs[model], as_a_user_has_them(runs[model], place)
    score_it, facts = opened(files[model, form])
    found, kept = score_it(x), pd.read_csv(run / "scores.csv")["score"].to_numpy()
    np.testing.assert_allclose(found[0], kept, rtol=1e-4, atol=1e-4 * np.abs(kept).max())
    assert found[0].dtype == np.float32
    for rows in (slice(0, 1), slice(5, 8)):
        np.testing.assert_allclose(score_it(x[rows])[0], kept[rows], atol=1e-4 * np.abs(kept).max())
    assert len(found) == (2 if model in ("ae", "ganomaly") else 1)

    said, metrics = (json.loads((run / f"{name}.json").read_text()) for name in ("run", "metrics"))
    assert float(facts["threshold"]) == metrics["threshold"]
    assert facts["threshold_precision"] == said["precision"]
    assert facts["version"] == said["versions"]["anomaly-bench"]
    assert {name: facts[name] for name in ("model", "data", "settings_hash")} == {
        name: said[name] for name in ("model", "data", "settings_hash")
    }
    assert facts["git"] == (said["git"] or "null")
    assert json.loads(facts["columns"]) == said.get("columns")


@pytest.mark.parametrize("form", FORMATS)
def test_maps_are_the_runs(runs, files, bags, place, form, monkeypatch):
    drawn = []
    monkeypatch.setattr(score.Overlays, "draw", lambda _, files, x, maps: drawn.append(maps) or list(files))
    images = [bags / file for file in pd.read_csv(runs["ae"] / "scores.csv")["file"]]
    score_files(runs["ae"], images, "cpu", maps=place / "unused")
    maps, wanted = (
        opened(files["ae", form])[0](as_a_user_has_them(runs["ae"], place))[1],
        np.concatenate(drawn),
    )
    assert maps.shape == wanted.shape == (40, 16, 16)
    np.testing.assert_allclose(maps, wanted, atol=1e-4 * wanted.max())


def test_pixels_between_two_steps_count(files):
    """Only whole pixel values are checked; nothing may be rounded to them."""
    score_it, _ = opened(files["ae", "torch"])
    x = torch.full((2, 1, 16, 16), 0.5)
    x[1] += 0.001
    low, high = score_it(x)[0]
    assert low != high


# ------------------------------------------------------------------------------ refusals


def refused(run: Path, form: str, capsys, *more: str) -> str:
    """What `export` says; it must end with 2 and one line, and leave nothing behind."""
    (run / f"model{SUFFIXES[form]}").unlink(missing_ok=True)
    before = sorted(run.iterdir())
    assert answer(["export", str(run), "--format", form, *more]) == 2
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert not shown.out
    assert sorted(run.iterdir()) == before
    return shown.err


@pytest.mark.parametrize("wrong", [2e-4, float("nan")])
def test_a_file_that_scores_otherwise_is_not_kept(runs, wrong, capsys, monkeypatch):
    honest = export.outputs_of_run

    def otherwise(*given):
        (scores,) = honest(*given)
        return [scores + wrong * scores.abs().max()]

    monkeypatch.setattr(export, "outputs_of_run", otherwise)
    assert "model=ocsvm is not exported: what --format" in refused(runs["ocsvm"], "torch", capsys)


def test_a_file_of_before_stays_where_the_new_one_fails(runs, place, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", -1.0)
    (place / "before.pt2").write_bytes(b"before")
    with pytest.raises(SettingError, match="is not exported"):
        export.export(runs["ocsvm"], "torch", place / "before.pt2")
    assert (place / "before.pt2").read_bytes() == b"before"


def test_what_torch_cannot_trace_is_refused_with_its_reason(runs, capsys, monkeypatch):
    def score(self, x):
        return x.flatten(1).sum(1) if x.sum() > 0 else x.flatten(1).mean(1)

    monkeypatch.setattr("anomaly_bench.detectors.ocsvm.OCSVM.score", score)
    said = refused(runs["ocsvm"], "torch", capsys)
    assert "model=ocsvm cannot be exported by --format torch: " in said
    assert "data-dependent" in said


def test_searches_are_refused(runs, capsys, monkeypatch):
    monkeypatch.setattr("anomaly_bench.detectors.ganomaly.GANomaly.foldable", False)
    assert "it scores by descending on each row" in refused(runs["ganomaly"], "onnx", capsys)


def test_what_is_missing_or_misspelt_is_refused_before_any_work(runs, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(export, "load_run", pytest.fail)
    assert "names that end in .onnx" in refused(runs["ae"], "onnx", capsys, "--output", "model.pt2")
    (tmp_path / "folder.pt2").mkdir()
    place = str(tmp_path / "folder.pt2")
    assert "names that end in .pt2" in refused(runs["ae"], "torch", capsys, "--output", place)
    monkeypatch.setattr(export, "find_spec", lambda name: None if name == "onnxscript" else name)
    assert "--format onnx: onnxscript missing; install anomaly-bench[export]" in refused(
        runs["ae"], "onnx", capsys
    )


def test_another_folder_is_refused(place, capsys):
    assert "not the folder of a finished run" in refused(place, "torch", capsys)


def test_the_command_names_the_file(runs, place, capsys):
    output = place / "deep/er/ocsvm.pt2"
    assert answer(["export", str(runs["ocsvm"]), "--format", "torch", "--output", str(output)]) == 0
    assert capsys.readouterr().out.startswith(f"{output}: scores as the run does in float32, to ")
    assert [path.name for path in output.parent.iterdir()] == ["ocsvm.pt2"]


# ------------------------------------------------------------------------------ every method


def test_bits_and_places_are_exact_without_the_operators():
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(5000, generator=draw) * 10.0 ** torch.randint(-37, 38, (5000,), generator=draw)
    x = torch.cat(
        [x[x.isfinite() & (x.abs() > 2e-38)], torch.tensor([0.0, -0.0, 1.0, -2.0, 1.9999999, 1 / 3])]
    )
    assert torch.equal(export.bits_of(x, torch.int32), x.view(torch.int32))
    known = torch.randint(0, 50, (3, 40), generator=draw).sort(1).values
    wanted = torch.randint(-5, 55, (3, 30), generator=draw)
    for right in (False, True):
        assert torch.equal(
            export.places(known, wanted, right=right), torch.searchsorted(known, wanted, right=right)
        )
        assert torch.equal(
            export.places(known[0], wanted[0], right=right),
            torch.searchsorted(known[0], wanted[0], right=right),
        )


def test_other_operators_that_onnx_lacks_are_those_of_torch():
    draw = torch.Generator().manual_seed(0)
    a, b = 1000 + torch.randn(20, 5, generator=draw), torch.randn(7, 5, generator=draw)
    for mode in (None, 2):
        np.testing.assert_allclose(export.distances(a, b, 2.0, mode), torch.cdist(a, b), rtol=1e-4)
        assert export.distances(a, a, 2.0, mode).isfinite().all()
    assert not export.distances(a, a, 2.0, 2).diagonal().any()
    assert export.distances(a, b, 1.0) is NotImplemented
    lower = torch.randn(3, 4, 4, generator=draw).tril() + 4 * torch.eye(4)
    right = torch.randn(3, 4, 2, generator=draw)
    solved = torch.linalg.solve_triangular(lower, right, upper=False)
    np.testing.assert_allclose(export.substituted(lower, right, upper=False), solved, atol=1e-6)
    for other in ({"upper": True}, {"upper": False, "left": False}, {"upper": False, "unitriangular": True}):
        assert export.substituted(lower, right, **other) is NotImplemented
    large = torch.randint(-(2**62), 2**62, (4, 9), generator=draw)
    assert torch.equal(export.wrapping_sum(large, [1]), large.sum(1))
    for x, dim, keepdim in (
        (a, [1], False),
        (large, None, False),
        (large, [0, 1], False),
        (large, [1], True),
    ):
        assert export.wrapping_sum(x, dim, keepdim) is NotImplemented


def test_the_difference_is_in_parts_of_the_largest_value():
    scores, maps = torch.tensor([1.0, -4.0]), torch.zeros(2, 3, 3)
    assert export.largest_difference([scores, maps], [scores, maps]) == 0
    assert export.largest_difference([scores, maps], [scores + 0.5, maps]) == 0.125
    assert export.largest_difference([scores, 1 + maps], [scores, 1.25 + maps]) == 0.25
    assert np.isnan(export.largest_difference([scores], [scores * torch.nan]))


def test_a_file_of_a_table_is_checked_with_gaps_on_both_sides_of_the_range():
    rows = torch.rand(50, 5, generator=torch.Generator().manual_seed(0))
    x = export.probes(SimpleNamespace(run={"shape": [5]}, scaler=fit_scaler(rows, "minmax")))
    assert x.shape == (24, 5)
    assert 0 < x.isnan().sum() < 24
    assert x.nan_to_num(0).min() < rows.min()
    assert x.nan_to_num(0).max() > rows.max()


def test_exporters_are_silenced_and_nobody_else_for_longer():
    before = logging.root.manager.disable
    logging.disable(logging.DEBUG)
    try:
        with export.quiet():
            assert not logging.getLogger("torch").isEnabledFor(logging.ERROR)
        with pytest.raises(KeyError), export.quiet():
            raise KeyError
        assert logging.root.manager.disable == logging.DEBUG
    finally:
        logging.disable(before)


def test_the_reason_is_that_of_the_first_error():
    def failing():
        try:
            raise ValueError("too " + "long " * 90)
        except ValueError:
            raise RuntimeError("while tracing")  # noqa: B904

    with pytest.raises(RuntimeError) as caught:
        failing()
    said = export.reason_in(caught.value)
    assert said.startswith("too long long")
    assert said.endswith(" ...")
    assert len(said) <= 240
    assert export.reason_in(NotImplementedError()) == "NotImplementedError"


def test_rows_that_were_learned_are_known_in_a_file_too(tmp_path):
    trained = toy_run("knn")
    learned = torch.rand(6, *trained.run["shape"], generator=torch.Generator().manual_seed(5))
    learned = (255 * learned).round().to(torch.uint8)
    leave_untrained(trained.detector, FULL.rows(learned, 0.5, 0.5))
    path = tmp_path / "model.onnx"
    written(trained, "onnx", path)
    score, _ = opened(path)
    expected = trained.detector.score(FULL.rows(learned, 0.5, 0.5).take(torch.arange(6)))
    assert expected.min() > 0  # a row is not its own neighbour
    np.testing.assert_allclose(score(learned / 255)[0], expected, rtol=1e-4)


def toy_run(name: str) -> Trained:
    """A model of toy size on toys, with what is fitted in closed form, and no epoch."""
    case = Case(lambda shape: built(name, shape), on_rows=name in ON_ROWS)
    detector, train = case.fresh(), case.toy.train
    scaler = None if train.dtype == torch.uint8 else fit_scaler(train, "minmax")
    leave_untrained(detector, FULL.rows(scaler(train) if scaler else train, 0.5, 0.5))
    facts = {"versions": {"anomaly-bench": "0"}, "precision": "fp32"}
    run = {"model": name, "shape": list(train.shape[1:])} | facts
    values = {"data": {}, "evaluation": {"batch_norm": "eval"}}
    return Trained(detector.eval(), FULL, scaler, values, run, {"threshold": 0.0})


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMATS)
@pytest.mark.parametrize("name", MODELS)
def test_every_method_exports_or_is_known_to_refuse(name, form, tmp_path):
    path = tmp_path / f"model{SUFFIXES[form]}"
    if name in REFUSED:
        with pytest.raises(SettingError, match=f"model={name} cannot be exported"):
            written(toy_run(name), form, path)
        assert not list(tmp_path.iterdir())
        return
    assert written(toy_run(name), form, path) < 1e-4
    assert path.exists()


def test_the_packages_of_ones_own_methods_are_passed_on(runs, capsys, monkeypatch):
    def load(folder, device, packages):
        raise SettingError(f"{device} {packages}")

    monkeypatch.setattr("anomaly_bench.export.load_run", load)
    assert "cpu ['mine', 'yours']" in refused(
        runs["ae"], "onnx", capsys, "--allow", "mine", "--allow", "yours"
    )
