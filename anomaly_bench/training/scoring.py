"""Scores and explanations of many rows, batch by batch, leaving the detector and its random state as they were."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.nn.utils.parametrize import is_parametrized
from tqdm import tqdm

from anomaly_bench.detector import Detector, Explanation
from anomaly_bench.rows import Rows
from anomaly_bench.training.packing import packed


@contextmanager
def evaluation(detector: Detector, device: torch.device, batch_statistics: bool = False) -> Iterator[None]:
    """Evaluation mode and no gradients inside; modes, random state and running statistics unchanged after.

    `batch_statistics` normalises by each batch's own mean and variance, as a network in training mode does.
    """
    modes = [(module, module.training) for module in detector.modules()]
    norms = [(m, m.track_running_stats) for m in detector.modules() if isinstance(m, _BatchNorm)]
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.no_grad():
        detector.eval()
        if batch_statistics:
            for norm, _ in norms:
                norm.train()
                norm.track_running_stats = False
        try:
            yield
        finally:
            for module, mode in modes:
                module.training = mode
            for norm, tracked in norms:
                norm.track_running_stats = tracked


@contextmanager
def folded(detector: Detector) -> Iterator[None]:
    """Inside, each convolution of a sequence does the work of the batch norm after it, for evaluation mode only."""
    pairs = list(pairs_to_fold(detector))
    for sequence, number, layer, norm in pairs:
        sequence[number] = fuse_conv_bn_eval(layer, norm, isinstance(layer, nn.ConvTranspose2d))
        sequence[number + 1] = nn.Identity()
    try:
        yield
    finally:
        for sequence, number, layer, norm in pairs:
            sequence[number], sequence[number + 1] = layer, norm


def pairs_to_fold(
    detector: Detector,
) -> Iterator[tuple[nn.Sequential, int, nn.Conv2d | nn.ConvTranspose2d, nn.BatchNorm2d]]:
    """Each sequence and place in it where batch norm with running statistics follows a plain convolution."""
    for sequence in detector.modules():
        if not isinstance(sequence, nn.Sequential):
            continue
        for number, (layer, norm) in enumerate(pairwise(sequence)):
            # Networks of timm have kinds of batch norm that activate too.
            if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or type(norm) is not nn.BatchNorm2d:
                continue
            grouped = isinstance(layer, nn.ConvTranspose2d) and layer.groups > 1
            if not grouped and norm.running_mean is not None and not is_parametrized(layer):
                yield sequence, number, layer, norm


def autocast(device: torch.device, precision: str, *, fixed: bool = False) -> torch.autocast:
    """The context in which a detector computes: bfloat16 where it is safe, or nothing.

    Weights that are `fixed` inside are cast once; a step that uses a network again after its update must see the
    new ones.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bf16", cache_enabled=fixed)


@contextmanager
def scoring(
    detector: Detector,
    device: torch.device,
    *,
    precision: str,
    batch_statistics: bool = False,
    fold: bool = True,
) -> Iterator[None]:
    """Inside, the detector scores as runs have it.

    `fold` lets convolutions do the work of the batch norm after them, where running statistics are used, and on a CPU
    of activations too, with weights that are laid out once.
    """
    fold = fold and detector.foldable
    with (
        evaluation(detector, device, batch_statistics),
        folded(detector) if fold and not batch_statistics else nullcontext(),
        packed(detector) if fold and device.type == "cpu" else nullcontext(),
        autocast(device, precision, fixed=detector.foldable),
    ):
        yield


def score_rows(
    detector: Detector,
    rows: Rows,
    *,
    precision: str,
    batch_size: int,
    batch_statistics: bool = False,
    fold: bool = True,
) -> Tensor:
    """Anomaly score of every row in order, float32 `[N]` on the CPU, with a progress bar on a terminal.

    `batch_statistics` and `fold` as in `scoring`.
    """
    if batch_statistics:
        batch_size = without_lone_row(len(rows), batch_size)
    scores = []
    with (
        scoring(detector, rows.device, precision=precision, batch_statistics=batch_statistics, fold=fold),
        tqdm(total=len(rows), desc="scoring", unit=" rows", disable=None, leave=False) as bar,
    ):
        for batch in rows.in_order(batch_size):
            scores.append(detector.score(batch.x).float())
            bar.update(len(batch.x))
    return torch.cat(scores).cpu()


def without_lone_row(n: int, batch_size: int) -> int:
    """The least batch size from this one by which `n` rows leave none alone, since that one has no statistics."""
    while n % batch_size == 1 < n:
        batch_size += 1
    return batch_size


def explain_rows(detector: Detector, rows: Rows, *, precision: str, batch_size: int) -> Explanation:
    """Everything the detector can show of the rows, in order, float32 on the CPU."""
    with evaluation(detector, rows.device), autocast(rows.device, precision):
        parts = [detector.explain(batch.x) for batch in rows.in_order(batch_size)]
    score, *others = zip(*parts, strict=True)
    return Explanation(joined(score), *(None if field[0] is None else joined(field) for field in others))


def map_rows(
    detector: Detector, rows: Rows, *, precision: str, batch_size: int, batch_statistics: bool = False
) -> Tensor | None:
    """Anomaly maps `[N, H, W]` of the rows, in order, float32 on the CPU; None where the detector has none.

    `batch_statistics` as in `scoring`: maps go with the scores.
    """
    if batch_statistics:
        batch_size = without_lone_row(len(rows), batch_size)
    maps = []
    with evaluation(detector, rows.device, batch_statistics), autocast(rows.device, precision):
        for batch in rows.in_order(batch_size):
            if (found := detector.explain(batch.x).map) is None:
                return None
            maps.append(found)
    return joined(tuple(maps))


def joined(parts: tuple[Tensor, ...]) -> Tensor:
    """Batches as one float32 tensor on the CPU."""
    return torch.cat(parts).float().cpu()
