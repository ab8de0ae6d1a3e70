"""What every detector must hold, as checks that take any of them and raise an AssertionError saying what does not."""

import copy
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, cached_property
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from anomaly_bench.data.dataset import resized
from anomaly_bench.detector import Detector, Explanation, Rows, Stage
from anomaly_bench.errors import SettingError
from anomaly_bench.training.checkpoint import Checkpoint, save_weights
from anomaly_bench.training.control import untrained
from anomaly_bench.training.scoring import evaluation, explain_rows, score_rows, scoring
from anomaly_bench.training.trainer import Trainer

Build = Callable[[tuple[int, ...]], Detector]

FULL = Trainer(device="cpu", precision="fp32")
SHORT = Trainer(device="cpu", precision="fp32", max_epochs=2)
RECORDED = Trainer(device="cpu", precision="fp32", max_epochs=2, compile="graph", gemm=False)
SHORT_AND_SCORED = Trainer(device="cpu", precision="fp32", max_epochs=2, eval_every=1)

TOLERANCE = 1e-5
"""By how much of the largest score two computations of one score may differ."""

FOLDED = 5e-5
"""By how much where one of them has batch norm folded into convolutions: up to 2e-5 was seen."""

IMAGES = [(channels, side, side) for channels in (1, 3) for side in (16, 28, 32, 33, 64)] + [(1, 32, 64)]
ROWS = [(2,), (7,)]


class Toy(NamedTuple):
    """Rows that are easy to tell apart, but not by their brightness or length: each has its double's values."""

    train: Tensor  # uint8 images or float32 rows
    test: Tensor
    anomalous: np.ndarray  # bool [N]


def toy_images(size: int) -> Toy:
    """Handwritten ones: upright ones are normal, those that lie on their side are anomalous."""
    pixels, digits = load_digits(return_X_y=True)
    ones = (pixels[digits == 1] * (255 / 16)).round().astype(np.uint8).reshape(-1, 8, 8, 1)
    x = resized(ones, size)
    return doubled(x[:120], x[120:], x[120:].rot90(1, (2, 3)))


def toy_rows(length: int) -> Toy:
    """Two Gaussian blobs: the anomalous rows are normal ones with their columns in reversed order."""
    noise = torch.randn(182, length, generator=torch.Generator().manual_seed(0))
    x = torch.linspace(-1, 1, length) + 0.3 * noise
    return doubled(x[:120], x[120:], x[120:].flip(1))


def doubled(train: Tensor, normal: Tensor, anomalous: Tensor) -> Toy:
    """The test rows are as many normal as anomalous ones."""
    return Toy(train, torch.cat([normal, anomalous]), np.arange(2 * len(normal)) >= len(normal))


@dataclass
class Case:
    """A kind of detector under test.

    Attributes:
        build: gives a fresh one for a shape; picklable, so that a new process can build one too.
        unmoved: parameters that training need not move, as a pattern of their names, each with the reason.
        good_control: it is excused from being better than the untrained control.
        on_rows: its settings are meant for rows, though it takes images as well.
    """

    build: Build
    unmoved: dict[str, str] = field(default_factory=dict)
    good_control: bool = False
    on_rows: bool = False

    @cached_property
    def toy(self) -> Toy:
        """Images of the smallest size that it takes, else rows."""
        sides = () if self.on_rows else (16, 28, 32, 64)
        size = next((side for side in sides if self.takes((1, side, side))), None)
        return toy_images(size) if size else toy_rows(8)

    def takes(self, shape: tuple[int, ...]) -> bool:
        """Whether it can be built for rows of `shape`."""
        try:
            self.build(shape)
        except SettingError:
            return False
        return True

    @property
    def train(self) -> Rows:
        """The training rows."""
        return FULL.rows(self.toy.train, 0.5, 0.5)

    @property
    def test(self) -> Rows:
        """The test rows."""
        return FULL.rows(self.toy.test, 0.5, 0.5)

    def fresh(self, seed: int = 0) -> Detector:
        """One with the first weights of `seed`."""
        torch.manual_seed(seed)
        return FULL.place(self.build(self.train.shape))

    @cached_property
    def trained(self) -> Detector:
        """One that has learned all it can; for looking at, not for changing."""
        detector = self.fresh()
        FULL.learn(detector, self.train, seed=0)
        return detector

    def auroc(self, detector: Detector) -> float:
        """How well the anomalous test rows are told."""
        return float(roc_auc_score(self.toy.anomalous, scores_of(detector, self.test)))


def scores_of(detector: Detector, rows: Rows, batch_size: int = 256) -> Tensor:
    """Scores `[N]` as a run computes them."""
    return score_rows(detector, rows, precision="fp32", batch_size=batch_size)


def kept_state(detector: Detector) -> dict[str, Tensor]:
    """A copy of all that the detector would keep."""
    return {name: x.clone() for name, x in detector.state_dict().items()}


def assert_same_bits(state: dict[str, Tensor], expected: dict[str, Tensor], when: str) -> None:
    assert state.keys() == expected.keys(), (
        f"{when}: it keeps other things: {sorted(state.keys() ^ expected.keys())}"
    )
    other = [name for name, x in state.items() if not torch.equal(x, expected[name])]
    assert not other, f"{when}: it differs in {', '.join(other)}"


# ------------------------------------------------------------------------------ scores


def scores_each_row_alone(case: Case) -> None:
    """Scores do not depend on what else is in the batch, nor on the order."""
    together = scores_of(case.trained, case.test)
    backwards = FULL.rows(case.toy.test.flip(0), 0.5, 0.5)
    bound = TOLERANCE * together.abs().max().item()
    for how, scores in {
        "in one batch, scored again": scores_of(case.trained, case.test),
        "in batches of 7": scores_of(case.trained, case.test, batch_size=7),
        "in reversed order": scores_of(case.trained, backwards, batch_size=50).flip(0),
    }.items():
        moved = (scores - together).abs().max().item()
        assert moved <= bound, f"{how}, a score moves by {moved:.2g}, more than {bound:.2g}"


def tells_rows_apart(case: Case) -> None:
    """Scores are one a row, finite, and distinct."""
    scores = scores_of(case.trained, case.test)
    assert scores.shape == (len(case.test),), (
        f"{len(case.test)} rows have scores of shape {tuple(scores.shape)}"
    )
    assert scores.isfinite().all(), f"{int((~scores.isfinite()).sum())} scores are not finite"
    distinct = len(scores.unique()) / len(scores)
    assert distinct > 0.9, f"only {distinct:.0%} of the scores are distinct"


def folds_to_the_same_scores(case: Case) -> None:
    """Batch norm and activations that become part of the convolutions before them change nothing that is shown."""
    plain = score_rows(case.trained, case.test, precision="fp32", batch_size=256, fold=False)
    moved = (scores_of(case.trained, case.test) - plain).abs().max().item()
    bound = FOLDED * plain.abs().max().item()
    assert moved <= bound, f"with batch norm folded, a score moves by {moved:.2g}, more than {bound:.2g}"
    x, shown = case.test.take(torch.arange(20)), []
    for fold in (True, False):
        with scoring(case.trained, x.device, precision="fp32", fold=fold):
            shown.append(case.trained.explain(x))
    for what, folded, plain in zip(Explanation._fields, *shown, strict=True):
        moved = 0 if plain is None else (folded - plain).abs().max().item()
        bound = 0 if plain is None else FOLDED * plain.abs().max().item()
        assert moved <= bound, (
            f"with batch norm folded, its {what} moves by {moved:.2g}, more than {bound:.2g}"
        )


def explains_what_it_scores(case: Case) -> None:
    """`explain` gives the scores of `score`, and whatever else it shows has the shape that is promised."""
    rows = case.test
    said = explain_rows(case.trained, rows, precision="fp32", batch_size=256)
    moved = (said.score - scores_of(case.trained, rows)).abs().max().item()
    bound = FOLDED * said.score.abs().max().item()
    assert moved <= bound, f"explain and score differ by {moved:.2g}, more than {bound:.2g}"
    n, shape = len(rows), rows.shape
    if said.map is not None:
        assert said.map.shape == (n, *shape[1:]), f"maps of shape {tuple(said.map.shape)}"
    if said.reconstruction is not None:
        assert said.reconstruction.shape == (n, *shape), (
            f"reconstructions of {tuple(said.reconstruction.shape)}"
        )
    if said.features is not None:
        assert said.features.dim() == 2, f"features of shape {tuple(said.features.shape)}"
        assert len(said.features) == n, f"{len(said.features)} features of {n} rows"


def scoring_leaves_no_trace(case: Case) -> None:
    """Scoring changes neither weights, fitted state, gradients, modes nor the rows themselves."""
    detector = copy.deepcopy(case.trained).train()
    for parameter in detector.parameters():
        parameter.grad = None
    before, x = kept_state(detector), case.test.take(torch.arange(20))
    given = x.clone()
    with evaluation(detector, x.device):
        detector.score(x)
        detector.explain(x)
    assert_same_bits(detector.state_dict(), before, "after scoring")
    assert torch.equal(x, given), "scoring overwrites the rows it is given"
    graded = [name for name, parameter in detector.named_parameters() if parameter.grad is not None]
    assert not graded, f"scoring leaves gradients on {', '.join(graded)}"
    still = [name for name, module in detector.named_modules() if not module.training]
    assert not still, f"scoring leaves the training mode off in {', '.join(still)}"


def says_where_it_needs_float64(case: Case) -> None:
    """What it keeps and what it scores by is float64 only where it says so, since not every device has that."""
    found = {name for name, x in case.trained.state_dict().items() if x.dtype == torch.float64}
    x = case.test.take(torch.arange(20))
    with evaluation(case.trained, x.device), Float64Watch() as watch:
        case.trained.explain(x)
    said = any(part.needs_float64 for part in case.trained.modules() if isinstance(part, Detector))
    assert said or not found | watch.found, f"{', '.join(sorted(found | watch.found))}: in float64"
    assert found | watch.found or not said, "it says that it needs float64, and has none"


class Float64Watch(TorchDispatchMode):
    """Takes down the operators that give float64."""

    def __init__(self) -> None:
        super().__init__()
        self.found: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = func(*args, **(kwargs or {}))
        if any(isinstance(x, Tensor) and x.dtype == torch.float64 for x in tree_leaves(given)):
            self.found.add(str(func))
        return given


# ------------------------------------------------------------------------------ learning


def moves_every_parameter(case: Case) -> None:
    """Training changes every parameter, but for exceptions with a reason."""
    first = kept_state(case.fresh())
    still = [name for name, x in case.trained.named_parameters() if torch.equal(x, first[name])]
    unexcused = [name for name in still if not any(re.fullmatch(name_of, name) for name_of in case.unmoved)]
    assert not unexcused, f"training does not move {', '.join(unexcused)}"


def beats_its_untrained_self(case: Case) -> None:
    """It finds the anomalous rows, and at least halves what the untrained control lacks of an AUROC of 1."""
    control, how = untrained(case.fresh, case.train, seed=0)
    before, after = case.auroc(control), case.auroc(case.trained)
    assert after > 0.8, f"an AUROC of {after:.3f} on an easy pair ({how}: {before:.3f})"
    better = case.good_control or 1 - after < (1 - before) / 2
    assert better, f"an AUROC of {after:.3f} after training, and of {before:.3f} before ({how})"


def scoring_leaves_training_alone(case: Case) -> None:
    """Scoring between epochs changes not a bit of what is learned."""
    quiet, watched = case.fresh(), case.fresh()
    SHORT.learn(quiet, case.train, seed=0)
    SHORT_AND_SCORED.learn(
        watched, case.train, seed=0, evaluate=lambda: float(scores_of(watched, case.test).mean())
    )
    assert_same_bits(watched.state_dict(), quiet.state_dict(), "scored after every epoch")


def resumes_to_the_same_bits(case: Case) -> None:
    """Stopped after any epoch, and gone on with by a fresh detector of other first weights, it ends the same."""
    with TemporaryDirectory() as folder:
        whole, kept = case.fresh(), Path(folder) / "checkpoint.safetensors"
        snapshots: dict[int, Path] = {}
        before_each_step(whole, lambda: take_snapshot(kept, snapshots))
        SHORT.learn(whole, case.train, seed=0, keep=kept)
        take_snapshot(kept, snapshots)
        state, scores = kept_state(whole), scores_of(whole, case.test)
        for epochs, snapshot in snapshots.items():
            resumed, when = (
                case.fresh(seed=1),
                f"stopped after epoch {epochs} of {len(snapshots)} and resumed",
            )
            SHORT.learn(resumed, case.train, seed=0, keep=snapshot)
            assert_same_bits(resumed.state_dict(), state, when)
            assert torch.equal(scores_of(resumed, case.test), scores), f"{when}: it scores otherwise"


def replays_to_the_same_bits(case: Case) -> None:
    """A step that is recorded once and replayed does what the step as it is written does."""
    written, replayed = case.fresh(), case.fresh()
    SHORT.learn(written, case.train, seed=0)
    RECORDED.learn(replayed, case.train, seed=0)
    assert_same_bits(replayed.state_dict(), kept_state(written), "recorded and replayed")


def before_each_step(detector: Detector, call: Callable[[], None]) -> None:
    """Have `call` called before every step of every stage of this one detector."""
    stages = detector.stages

    def called(stage: Stage) -> Stage:
        return replace(stage, step=lambda batch: (call(), stage.step(batch))[1])

    def watched(train: Rows) -> Iterator[Stage]:
        return (called(stage) for stage in stages(train))

    detector.stages = watched


def take_snapshot(kept: Path, snapshots: dict[int, Path]) -> None:
    """Copy a checkpoint, once for each number of epochs that it has seen."""
    if not kept.exists():
        return
    epochs = len(Checkpoint.load(kept).history)
    if epochs not in snapshots:
        snapshots[epochs] = Path(shutil.copy(kept, kept.with_name(f"after_{epochs}.safetensors")))


# ------------------------------------------------------------------------------ a new process


def loads_in_a_new_process(case: Case) -> None:
    """Saved, and loaded by a process that knows nothing else of it, it scores the same."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        save_weights(path, case.trained)
        try:
            scores = new_process().submit(scores_of_saved, case.build, path, case.toy.test.numpy()).result()
        except Exception as error:
            raise AssertionError(f"it cannot be loaded: {type(error).__name__}: {error}") from error
    expected = scores_of(case.trained, case.test)
    moved = (torch.from_numpy(scores) - expected).abs().max().item()
    assert moved <= TOLERANCE * expected.abs().max().item(), (
        f"loaded in a new process, a score moves by {moved:.2g}"
    )


@cache
def new_process() -> ProcessPoolExecutor:
    """One process for all detectors, since importing torch takes seconds."""
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def scores_of_saved(build: Build, path: Path, test: np.ndarray) -> np.ndarray:
    """Runs in the new process. Its first weights are others, so that nothing can be right by chance."""
    torch.manual_seed(2)
    rows = FULL.rows(torch.from_numpy(test), 0.5, 0.5)
    detector = FULL.place(build(rows.shape))
    detector.load_state_dict(load_file(path))
    return scores_of(detector, rows).numpy()


# ------------------------------------------------------------------------------ shapes


def runs_or_refuses(case: Case, seconds: int = 60) -> None:
    """Images of any size and rows of any length are learned and scored, or refused in a sentence; nothing hangs."""
    for shape in ROWS if case.on_rows else IMAGES + ROWS:
        with at_most(seconds, shape):
            try:
                scores = scores_of_two(case, shape)
            except SettingError as refusal:
                named = "data.image_size" in str(refusal) or len(shape) != len(case.train.shape)
                if not named:
                    raise AssertionError(
                        f"rows of shape {shape} are refused without naming data.image_size: {refusal}"
                    ) from refusal
                continue
            except (ArithmeticError, LookupError, RuntimeError, TypeError, ValueError) as error:
                raise AssertionError(f"rows of shape {shape}: {type(error).__name__}: {error}") from error
        assert scores.shape == (2,), f"two rows of shape {shape} have scores of shape {tuple(scores.shape)}"
        assert scores.isfinite().all(), f"rows of shape {shape} have scores {scores.tolist()}"


def scores_of_two(case: Case, shape: tuple[int, ...]) -> Tensor:
    """One short epoch on noise, then the scores of two of its rows."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.randint(0, 256, (12, *shape), generator=generator, dtype=torch.uint8)
    rows = FULL.rows(noise if len(shape) == 3 else noise / 255, 0.5, 0.5)
    detector = FULL.place(case.build(shape))
    Trainer(device="cpu", precision="fp32", max_epochs=1).learn(detector, rows, seed=0)
    return scores_of(detector, Rows(rows.x[:2]))


@contextmanager
def at_most(seconds: int, shape: tuple[int, ...]) -> Iterator[None]:
    """End what hangs, where the system has alarms."""

    def hangs(*_: object) -> None:
        raise AssertionError(f"rows of shape {shape}: no end after {seconds} s")

    if not hasattr(signal, "SIGALRM"):
        yield
        return
    before = signal.signal(signal.SIGALRM, hangs)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


CHECKS = (
    scores_each_row_alone,
    tells_rows_apart,
    folds_to_the_same_scores,
    explains_what_it_scores,
    scoring_leaves_no_trace,
    says_where_it_needs_float64,
    moves_every_parameter,
    beats_its_untrained_self,
    scoring_leaves_training_alone,
    resumes_to_the_same_bits,
    replays_to_the_same_bits,
    loads_in_a_new_process,
    runs_or_refuses,
)
