"""The training loop: walks a detector's stages, epoch by epoch, and can be stopped and resumed after any of them."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor
from tqdm import tqdm

from anomaly_bench.arguments import MOST
from anomaly_bench.detector import Batch, Detector, Rows, Stage, agreed
from anomaly_bench.errors import SettingError, check_range, one_line
from anomaly_bench.training import parallel
from anomaly_bench.training.capture import MODES, Prepared, prepared
from anomaly_bench.training.checkpoint import (
    Checkpoint,
    Epoch,
    optimizer_tensors,
    random_state,
    restore_random_state,
)
from anomaly_bench.training.device import pick_device, pick_precision
from anomaly_bench.training.scoring import autocast

log = logging.getLogger("anomaly_bench")

LOOK_EVERY = 50
"""Steps between two looks at the losses; in between nothing waits for the device."""

KEPT = 100
"""Epochs of a stage after which its state is kept, evenly spaced, if it has many."""

NO_SPREAD = "Expected more than 1 value per channel"
"""How torch's batch norm refuses a channel with a single value."""


class DivergedError(SettingError):
    """A loss that is not a finite number."""


class Trainer:
    """How to train, whatever the method.

    Args:
        device: `auto`, `cpu`, `cuda`, `cuda:i` or `mps`.
        precision: `auto`, `fp32` or `bf16` (weights, their updates and batch-norm statistics stay float32).
        batch_size: in place of the method's own; null keeps that.
        epoch_scale: the epochs of each stage times this, at least one.
        max_epochs: no stage has more; null for no bound.
        eval_every: score the test rows after every so many epochs; 0 for never. Costs a scoring pass each.
        channels_last: keep images and convolutions in that memory format.
        compile: `off` runs each step as it is written; `graph` records it once and replays that; `inductor`
            compiles the record as one; `auto` chooses by how much there is to compute.
        gemm: in recorded steps on a CPU, compute convolutions as `training/gemm.py` does.
        fold: score with batch norm, and on a CPU activations, folded into the convolution before them, whose weights
            are laid out once.
    """

    def __init__(
        self,
        *,
        device: str = "auto",
        precision: str = "auto",
        batch_size: int | None = None,
        epoch_scale: float = 1.0,
        max_epochs: int | None = None,
        eval_every: int = 0,
        channels_last: bool = True,
        compile: str = "auto",
        gemm: bool = True,
        fold: bool = True,
    ) -> None:
        for name, value, least in (
            ("batch_size", batch_size, 1),
            ("max_epochs", max_epochs, 0),
            ("eval_every", eval_every, 0),
        ):
            if value is not None:
                check_range(name, value, at_least=least, at_most=MOST, room="trainer")
        if compile not in MODES:
            raise SettingError(f"trainer.compile={compile}: allowed are {', '.join(MODES)}")
        check_range("epoch_scale", epoch_scale, above=0, at_most=MOST, room="trainer")
        self.device = parallel.own_device(pick_device(device))
        self.precision = pick_precision(precision, self.device)
        self.batch_size = batch_size
        self.epoch_scale = epoch_scale
        self.max_epochs = max_epochs
        self.eval_every = eval_every
        self.channels_last = channels_last
        self.compile = compile
        self.gemm = gemm
        self.fold = fold

    def place(self, detector: Detector) -> Detector:
        """The detector on the device, in the memory format.

        Raises:
            SettingError: it, or a detector within it, computes in float64, and the device cannot.
        """
        for part in detector.modules() if self.device.type == "mps" else ():
            if isinstance(part, Detector) and part.needs_float64:
                raise SettingError(
                    f"trainer.device=mps: {type(part).__name__} computes in float64, which mps lacks; allowed is cpu"
                )
        if not self.channels_last:
            return detector.to(self.device)
        return detector.to(self.device, memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def rows(self, x: Tensor, mean: float, std: float, chosen: Tensor | None = None) -> Rows:
        """Rows on the device, in the memory format, or the `chosen` ones of them; only an accelerator has a copy."""
        if chosen is not None and self.device.type != "cpu":
            x, chosen = x[chosen], None
        return Rows(x.to(self.device), mean, std, self.channels_last, chosen)

    def epochs(self, stage: Stage) -> int:
        """How many epochs a stage gets here."""
        if self.max_epochs == 0 or stage.epochs == 0:
            return 0
        scaled = max(1, round(stage.epochs * self.epoch_scale))
        return scaled if self.max_epochs is None else min(scaled, self.max_epochs)

    def size(self, stage: Stage, train: Rows) -> int:
        """Rows of a batch of a stage here."""
        return train.batch_size(self.batch_size or stage.batch_size)

    @contextmanager
    def told_of_single_rows(self, stage: Stage, train: Rows) -> Iterator[None]:
        """Refuse batches of one row where batch norm is left with one value of a channel."""
        try:
            yield
        except ValueError as error:
            if self.size(stage, train) > 1 or NO_SPREAD not in str(error):
                raise
            setting = "trainer.batch_size" if self.batch_size else "model.batch_size"
            raise SettingError(
                f"{setting}=1: batch norm cannot learn from one row a batch here; allowed is from 2"
            ) from error

    def is_over(self, stage: Stage, line: Epoch) -> bool:
        """Whether an epoch is the last one of its stage."""
        return line.epoch == self.epochs(stage) or (stage.until is not None and stage.until(line.losses))

    def is_evaluated(self, stage: Stage, line: Epoch, over: bool) -> bool:
        """Whether the test rows are scored after an epoch."""
        due = self.eval_every and (over or line.epoch % self.eval_every == 0)
        return bool(due and stage.scorable)

    def is_kept(self, stage: Stage, line: Epoch, over: bool) -> bool:
        """Whether the state after an epoch is kept."""
        return over or line.epoch % max(1, self.epochs(stage) // KEPT) == 0

    def learn(
        self,
        detector: Detector,
        train: Rows,
        *,
        seed: int,
        keep: Path | None = None,
        evaluate: Callable[[], float] | None = None,
        tell: Callable[[list[Epoch]], None] | None = None,
    ) -> "Learned":
        """Train a placed detector on rows of the same device.

        Args:
            seed: of the order of the batches and of all that steps draw.
            keep: file to keep the state in after every epoch, or every hundredth of a stage's epochs; if it
                is there, the run goes on from it.
            evaluate: called every `eval_every` epochs, gives a figure for the history (the test AUROC).
            tell: called with all epochs so far whenever the state was kept.

        Raises:
            DivergedError: a loss became NaN or infinite.
        """
        if len(train) == 0:
            raise SettingError("protocol: it leaves no rows to train on")
        torch.manual_seed(seed)
        order = torch.Generator().manual_seed(seed)
        first = parallel.rank() == 0
        kept = Checkpoint.last(keep) if keep is not None else None
        if kept:
            with fitting(keep):
                detector.load_state_dict(kept.model)
        history = list(kept.history) if kept else []
        if keep is not None and history:
            log.info("%s goes on after epoch %d of %s", keep.parent, history[-1].epoch, history[-1].name)
        walk = Walk(detector, train)
        for number, stage in enumerate(walk):
            with fitting(keep):
                done = resumed(kept, number, detector, stage, train.device, order)
            detector.train()
            if done >= self.epochs(stage):
                continue
            parallel.begin(detector, stage, self.size(stage, train))
            run = self.prepare(detector, stage, train)
            for epoch in range(done, self.epochs(stage)):
                with parallel.epoch(detector, train.device), self.told_of_single_rows(stage, train):
                    line = self.one_epoch(number, epoch + 1, stage, run, train, order)
                over = self.is_over(stage, line)
                if evaluate is not None and self.is_evaluated(stage, line, over):
                    line = replace(line, auroc=evaluate())
                history.append(line)
                if keep is not None and first and self.is_kept(stage, line, over):
                    state_after(line, over, history, detector, stage, train.device, order).save(keep)
                    if tell is not None:
                        tell(history)
                if over:
                    break
        return Learned(history, walk.seconds + sum(line.seconds for line in history))

    def prepare(self, detector: Detector, stage: Stage, train: Rows) -> Prepared:
        """The step of a stage as `compile` has it."""
        size = self.size(stage, train)
        index = torch.arange(size, device=train.device)
        alone = parallel.processes() == 1  # a record would hold no message to other processes
        return prepared(
            self.compile if alone else "off",
            detector,
            stage,
            Batch(train.take(index), index),
            train.steps(size) * self.epochs(stage),
            lambda: autocast(train.device, self.precision),
            self.gemm,
        )

    def one_epoch(
        self, number: int, epoch: int, stage: Stage, run: Prepared, train: Rows, order: torch.Generator
    ) -> Epoch:
        """Training rows once each, in random order; those that fill no batch are left out."""
        size = self.size(stage, train)
        steps = train.steps(size)
        title = f"{stage.name} {epoch}/{self.epochs(stage)}"
        started = time.perf_counter()
        totals: Tensor | None = None
        names: list[str] = []
        unseen: list[Tensor] = []
        quiet = True if parallel.rank() else None
        with tqdm(total=steps * size, desc=title, unit=" rows", disable=quiet, leave=False) as bar:
            for step, batch in enumerate(train.shuffled(size, order), 1):
                losses = run.step(parallel.part_of(batch))
                bar.update(size)
                names = list(losses)
                unseen.append(torch.stack([loss.float() for loss in losses.values()]))
                if step % LOOK_EVERY == 0 or step == steps:
                    block = agreed(torch.stack(unseen)).cpu()
                    check_finite(block, names, stage.name, epoch, step - len(unseen))
                    totals = block.sum(0) if totals is None else totals + block.sum(0)
                    bar.set_postfix(dict(zip(names, block.mean(0).tolist(), strict=True)))
                    unseen.clear()
        means = [] if totals is None else (totals / steps).tolist()
        losses = dict(zip(names, means, strict=True))
        seconds = time.perf_counter() - started
        return Epoch(number, stage.name, epoch, losses, steps * size, seconds, step=run.how)


@contextmanager
def fitting(keep: Path | None) -> Iterator[None]:
    """Tell of a state that was kept by another method, another version, or a stranger, in a line."""
    try:
        yield
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError) as error:
        raise SettingError(
            f"{keep}: what it keeps is not of this run ({one_line(error)[:300]}); rerun=true starts anew"
        ) from error


@dataclass(frozen=True)
class Learned:
    """What training a detector came to: every epoch, and seconds of learning in epochs and between them."""

    history: list[Epoch]
    seconds: float


class Walk:
    """A detector's stages in turn; its code in between runs in evaluation mode, without gradients, and timed."""

    def __init__(self, detector: Detector, train: Rows) -> None:
        self.detector = detector
        self.train = train
        self.walk: Iterator[Stage] | None = None
        self.seconds = 0.0

    def __iter__(self) -> Iterator[Stage]:
        while (stage := self.next()) is not None:
            yield stage

    def next(self) -> Stage | None:
        """The next stage, or None after the last; the detector is then in evaluation mode."""
        started = time.perf_counter()
        self.detector.eval()
        with torch.no_grad():
            self.walk = self.walk or iter(self.detector.stages(self.train))
            stage = next(self.walk, None)
        self.seconds += time.perf_counter() - started
        return stage


def leave_untrained(detector: Detector, rows: Rows) -> None:
    """Walk the stages without one epoch of any, so that only closed forms are fitted."""
    for _ in Walk(detector, rows):
        pass


def check_finite(block: Tensor, names: list[str], stage: str, epoch: int, steps_before: int) -> None:
    """Refuse losses `[steps, names]` that are not finite, naming the first."""
    bad = (~torch.isfinite(block)).nonzero()
    if len(bad) == 0:
        return
    row, column = bad[0].tolist()
    raise DivergedError(
        f"stage {stage}, epoch {epoch}, step {steps_before + row + 1}: loss '{names[column]}' is "
        f"{block[row, column].item()}; try a smaller model.lr, trainer.precision=fp32, or another seed"
    )


def resumed(
    kept: Checkpoint | None,
    number: int,
    detector: Detector,
    stage: Stage,
    device: torch.device,
    order: torch.Generator,
) -> int:
    """How many epochs of stage `number` are done; in the stage where the run stood, its state is put back."""
    if kept is None or number > kept.stage:
        return 0
    if number < kept.stage:
        return sys.maxsize
    detector.load_state_dict(kept.model)
    kept.restore_optimizers(stage.optimizers)
    restore_random_state(kept.part("random."), device, order)
    return sys.maxsize if kept.over else kept.epoch


def state_after(
    line: Epoch,
    over: bool,
    history: list[Epoch],
    detector: Detector,
    stage: Stage,
    device: torch.device,
    order: torch.Generator,
) -> Checkpoint:
    """All that the next epoch depends on."""
    model = {f"model.{name}": x for name, x in detector.state_dict().items()}
    optimizers, groups = optimizer_tensors(stage.optimizers)
    return Checkpoint(
        line.stage, line.epoch, over, history, model | optimizers | random_state(device, order), groups
    )
