"""What the tests of several GANs share: batches, handwritten digits, and looking at what a step moved."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from steps import batch_of, noise
from torch import Tensor, nn

from anomaly_bench.data.dataset import resized
from anomaly_bench.detector import Detector, Stage
from anomaly_bench.rows import Rows
from anomaly_bench.training.scoring import score_rows
from anomaly_bench.training.trainer import Trainer


def stage_of(detector: Detector, shape: tuple[int, ...], number: int = 0) -> Stage:
    """A stage of its training, in training mode."""
    stage = list(detector.stages(Rows(torch.zeros(16, *shape))))[number]
    detector.train()
    return stage


def weights_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: x.detach().clone() for name, x in module.named_parameters()}


def moved(module: nn.Module, before: dict[str, Tensor]) -> bool:
    """Whether any of its weights is another than before."""
    return any(not torch.equal(x, before[name]) for name, x in module.named_parameters())


def what_moves(detector: Detector, shape: tuple[int, ...], still: int, number: int = 0) -> set[str]:
    """Names of the networks that one step moves when the optimiser `still` has a learning rate of 0."""
    stage = stage_of(detector, shape, number)
    for group in stage.optimizers[still].param_groups:
        group["lr"] = 0.0
    before = {name: weights_of(module) for name, module in detector.named_children()}
    stage.step(batch_of(noise(16, shape)))
    return {name for name, module in detector.named_children() if moved(module, before[name])}


def auroc_on_digits(detector: Detector, size: int | None) -> tuple[float, float]:
    """AUROC before and after learning upright ones, of telling those that lie on their side.

    As images of `size` pixels, or without one as rows of their 64 pixels.
    """
    pixels, digits = load_digits(return_X_y=True)
    ones = pixels[digits == 1].reshape(-1, 8, 8, 1)
    x = resized((ones * (255 / 16)).round().astype(np.uint8), size or 8)
    x = x if size else x / 127.5 - 1
    train, test = x[:120], torch.cat([x[120:], x[120:].rot90(1, (2, 3))])
    train, test = (Rows(rows if size else rows.flatten(1)) for rows in (train, test))
    anomalous = np.arange(len(test)) >= len(test) // 2

    def auroc() -> float:
        return float(roc_auc_score(anomalous, score_rows(detector, test, precision="fp32", batch_size=64)))

    before = auroc()
    Trainer(device="cpu", precision="fp32").learn(detector, train, seed=0)
    return before, auroc()
