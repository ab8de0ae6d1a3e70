"""A trained run as one file that scores without this package: an ONNX model, or a program of PyTorch."""

import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, redirect_stderr
from importlib.util import find_spec
from pathlib import Path
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from anomaly_bench import record
from anomaly_bench.data.scaling import Scaler
from anomaly_bench.errors import SettingError
from anomaly_bench.score import warn_of_batch_statistics
from anomaly_bench.trained import Trained, load_run
from anomaly_bench.training.scoring import evaluation, folded

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
NEEDED = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "torch": ()}
FACTS = "anomaly_bench.json"
"""The name of the facts in a file of `torch`; one of ONNX has them as metadata."""

TOLERANCE = 1e-4
"""By how much of the largest score, or of the largest value of a map, the file may differ from the run."""

PARTS = (1, 16, 7)
"""Rows in each batch that the file is checked with: an exporter may have fixed the size of a batch."""


class Scoring(nn.Module):
    """What the file computes: rows as a user has them, scaled as the detector wants them, and their score."""

    def __init__(self, trained: Trained, with_map: bool) -> None:
        super().__init__()
        data = trained.values["data"]
        self.detector = trained.detector
        self.mean, self.std = data.get("mean", 0.5), data.get("std", 0.5)
        self.with_map, self.of_images = with_map, trained.scaler is None
        for name, part in (trained.scaler._asdict() if trained.scaler else {}).items():
            self.register_buffer(name, part)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Score `[N]` and, `with_map`, the map `[N, H, W]` of images on [0, 1] or of unscaled rows."""
        if self.of_images:
            x = x * 255 * (1 / (255 * self.std)) - self.mean / self.std  # to the bit what a run computes
        else:
            x = Scaler(self.fill, self.shift, self.factor)(x)  # pyright: ignore[reportArgumentType]
        if not self.with_map:
            return (self.detector.score(x).float(),)
        said = self.detector.explain(x)
        assert said.map is not None
        return said.score.float(), said.map.float()


def export(
    folder: Path, form: str, output: Path | None = None, packages: Sequence[str] = ()
) -> tuple[Path, float]:
    """Write the detector of a finished run, and check what was written against the run.

    The input is `x`, float32: images `[N, C, H, W]` on [0, 1], or rows `[N, D]` as they are in the table. The outputs
    are `score` `[N]` and, where the method has one, `map` `[N, H, W]`. Both are as `score` has them on a CPU in
    float32; the facts of the run are in the file, among them in which precision it measured its threshold.

    Args:
        folder: of the run.
        form: `onnx` or `torch`.
        output: the file; None is `model.onnx` or `model.pt2` in the run's folder.
        packages: that the run's method may come from, beside this one; see `load_run`.

    Returns:
        the file, and by how much of the largest value its scores or maps differ at most from the run's.

    Raises:
        SettingError: no finished run, a method that no graph can hold, a package that is missing, or a file that
            does not score as the run does in float32, which is not kept.
    """
    path = output or folder / f"model{SUFFIXES[form]}"
    if path.suffix != SUFFIXES[form] or path.is_dir():
        raise SettingError(
            f"--output {path}: allowed for --format {form} are names that end in {SUFFIXES[form]}"
        )
    if missing := [name for name in NEEDED[form] if find_spec(name) is None]:
        raise SettingError(f"--format {form}: {', '.join(missing)} missing; install anomaly-bench[export]")
    return path, written(load_run(folder, "cpu", packages), form, path)


def written(trained: Trained, form: str, path: Path) -> float:
    """Write a run that is loaded on the CPU; gives the difference, as `export` does."""
    name = f"model={trained.run['model']}"
    if not trained.detector.foldable:
        raise SettingError(f"{name} cannot be exported: it scores by descending on each row, as no graph can")
    warn_of_batch_statistics(trained)
    x = probes(trained)
    fold = folded(trained.detector) if trained.trainer.fold else nullcontext()
    with evaluation(trained.detector, torch.device("cpu")), fold:  # not packed: that is of this machine
        expected = outputs_of_run(trained, x)
        given = x / 255 if trained.scaler is None else x
        module = Scoring(trained, with_map=len(expected) > 1)
        with record.replacing(path) as temporary:
            try:
                with quiet():
                    write(form, program_of(module, given), temporary, facts_of(trained))
                    found = outputs_of_file(form, temporary, given)
            except OSError:
                raise
            except Exception as error:
                raise SettingError(
                    f"{name} cannot be exported by --format {form}: {reason_in(error)}"
                ) from error
            difference = largest_difference(expected, found)
            if not difference <= TOLERANCE:
                raise SettingError(
                    f"{name} is not exported: what --format {form} wrote differs from the run by {difference:.1g} of "
                    f"the largest value; at most {TOLERANCE:g} is allowed"
                )
    return difference


def probes(trained: Trained) -> Tensor:
    """Rows as a data set has them: uint8 images `[N, C, H, W]`, noise of four grains; rows `[N, D]` with gaps."""
    draw = torch.Generator().manual_seed(0)
    shape = trained.run["shape"]
    if trained.scaler is not None:
        scaler = trained.scaler
        x = scaler.shift + (2 * torch.rand(sum(PARTS), *shape, generator=draw) - 0.5) / scaler.factor
        return x.masked_fill(torch.rand(x.shape, generator=draw) < 0.05, torch.nan)
    grains = [
        torch.rand(sum(PARTS) // 4, shape[0], side, side, generator=draw)
        for side in (2, 5, 12, max(shape[1:]))
    ]
    noise = torch.cat([nn.functional.interpolate(x, shape[1:], mode="bilinear") for x in grains])
    return (255 * noise).round().to(torch.uint8)


def outputs_of_run(trained: Trained, x: Tensor) -> list[Tensor]:
    """Scores `[N]` of rows as a data set has them and, where images have one, the map, as `score` computes them."""
    data, scaler = trained.values["data"], trained.scaler
    rows = trained.trainer.rows(scaler(x) if scaler else x, data.get("mean", 0.5), data.get("std", 0.5))
    x = rows.take(torch.arange(len(x)))
    score, shown = trained.detector.score(x).float(), trained.detector.explain(x).map
    return [score] if shown is None or scaler else [score, shown.float()]


def facts_of(trained: Trained) -> dict[str, str]:
    """What a reader of the file has to know, each fact as JSON, but for texts."""
    run = trained.run
    kept = ("model", "data", "protocol", "case", "seed", "settings_hash", "git", "shape", "columns")
    facts = {name: run.get(name) for name in kept} | {
        "version": run["versions"]["anomaly-bench"],
        "threshold": trained.metrics["threshold"],
        "threshold_precision": run["precision"],
        "input": "rows as in the table, NaN for a gap" if trained.scaler else "images on [0, 1]",
    }
    return {name: fact if isinstance(fact, str) else json.dumps(fact) for name, fact in facts.items()}


def program_of(module: Scoring, x: Tensor) -> ExportedProgram:
    """The graph of a module, for batches of any size."""
    return torch.export.export(module, (x,), dynamic_shapes=({0: Dim("batch")},), strict=False)


def substituted(
    a: Tensor, b: Tensor, *, upper: bool, left: bool = True, unitriangular: bool = False
) -> Tensor:
    """X of A X = B for lower triangular A `[..., D, D]`, row by row: ONNX has no such operator."""
    if upper or not left or unitriangular:
        return NotImplemented
    rows: list[Tensor] = []
    for i in range(a.shape[-1]):
        known = sum((a[..., i, j, None] * row for j, row in enumerate(rows)), torch.zeros_like(b[..., i, :]))
        rows.append((b[..., i, :] - known) / a[..., i, i, None])
    return torch.stack(rows, -2)


def distances(a: Tensor, b: Tensor, p: float = 2.0, compute_mode: int | None = None) -> Tensor:
    """Euclidean distances `[N, M]` of `[N, D]` and `[M, D]`: ONNX has no such operator either."""
    if p != 2:
        return NotImplemented
    if compute_mode == 2:  # donot_use_mm_for_euclid_dist
        return (a[:, None] - b).square().sum(-1).sqrt()
    squares = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.T
    return squares.clamp_min(0).sqrt()


def bits_of(x: Tensor, dtype: torch.dtype) -> Tensor:
    """The bits of finite float32, none of them denormal, as int32, by arithmetic without rounding."""
    if dtype != torch.int32 or x.dtype != torch.float32:
        return NotImplemented
    negative = (x < 0) | (1 / x < 0)  # the latter of -0
    size, exponent = x.abs(), torch.zeros_like(x)
    for step in (64, 32, 16, 8, 4, 2, 1):
        large, small = size >= 2.0**step, size < 2.0 ** (1 - step)
        size = torch.where(large, size * 2.0**-step, torch.where(small, size * 2.0**step, size))
        exponent = exponent + step * (large.float() - small.float())
    magnitude = (exponent + 127).long() * 2**23 + ((size - 1) * 2.0**23).long()
    magnitude = torch.where(x == 0, 0, magnitude)
    return torch.where(negative, magnitude - 2**31, magnitude).int()


def places(known: Tensor, wanted: Tensor, *, right: bool = False, **_: Any) -> Tensor:
    """Where in ascending numbers `[..., K]` others `[..., N]` belong."""
    known, wanted = known.unsqueeze(-2), wanted.unsqueeze(-1)
    return (known <= wanted if right else known < wanted).sum(-1)


def wrapping_sum(
    x: Tensor, dim: list[int] | None, keepdim: bool = False, *, dtype: torch.dtype | None = None
) -> Tensor:
    """A sum of int64 modulo 2**64: onnxruntime's own goes by floats, its cumulative one does not."""
    if x.dtype != torch.int64 or dtype not in (None, torch.int64) or dim is None or len(dim) != 1 or keepdim:
        return NotImplemented
    return x.cumsum(dim[0]).select(dim[0], -1)


ONNX_LACKS: dict[Any, Callable[..., Any]] = {
    torch.ops.aten.linalg_solve_triangular.default: substituted,
    torch.ops.aten.cdist.default: distances,
    torch.ops.aten.view.dtype: bits_of,
    torch.ops.aten.searchsorted.Tensor: places,
    torch.ops.aten.sum.dim_IntList: wrapping_sum,
}


def write(form: str, program: ExportedProgram, path: Path, facts: dict[str, str]) -> None:
    """Write a program with the facts of its run."""
    if form == "torch":
        buffer = io.BytesIO()
        torch.export.save(program, buffer, extra_files={FACTS: json.dumps(facts)})
        path.write_bytes(buffer.getbuffer())
        return
    program = program.run_decompositions(ONNX_LACKS)
    names = ["score", "map"][: len(program.graph_signature.user_outputs)]
    model = torch.onnx.export(program, dynamo=True, input_names=["x"], output_names=names, verbose=False)
    assert model is not None
    model.model.metadata_props.update(facts)
    model.save(path, external_data=False)


def outputs_of_file(form: str, path: Path, x: Tensor) -> list[Tensor]:
    """Scores and, if it has them, maps that a written file gives for rows."""
    if form == "torch":
        program = torch.export.load(io.BytesIO(path.read_bytes())).module()
        given = [program(part) for part in x.split(PARTS)]
    else:
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        given = [map(torch.from_numpy, session.run(None, {"x": part.numpy()})) for part in x.split(PARTS)]
    return [torch.cat(parts) for parts in zip(*given, strict=True)]


def largest_difference(expected: list[Tensor], found: list[Tensor]) -> float:
    """Of scores or maps, in parts of their largest value; NaN where any of them is not finite."""
    differences = [
        (there - here).abs().amax() / here.abs().amax().clamp_min(1e-12)
        for here, there in zip(expected, found, strict=True)
    ]
    return torch.stack(differences).amax().item()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep to itself what the exporters say to those who develop them."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        # A trace that fails prints its graph.
        with warnings.catch_warnings(action="ignore"), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)


def reason_in(error: BaseException) -> str:
    """What an error was made from, in a line."""
    while (inner := error.__cause__ or error.__context__) is not None:
        error = inner
    return shorten(str(error), 240, placeholder=" ...") or type(error).__name__
