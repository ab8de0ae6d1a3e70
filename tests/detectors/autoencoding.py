"""What the tests of autoencoders share: digits to learn, one step of a stage, and how well a detector tells."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor

from anomaly_bench.data.dataset import resized
from anomaly_bench.detector import Detector, Rows, Stage
from anomaly_bench.training.scoring import score_rows
from anomaly_bench.training.trainer import Trainer


def first_stage(detector: Detector, x: Tensor) -> Stage:
    """The first stage of learning rows `x`, with the detector in training mode as the trainer has it."""
    with torch.no_grad():
        stage = next(iter(detector.eval().stages(Rows(x))))
    detector.train()
    return stage


def digits(normal: int = 2, size: int = 16) -> tuple[Rows, Rows, np.ndarray]:
    """120 images of one digit to learn; others of it and as many other digits to score, and which those are."""
    pixels, labels = load_digits(return_X_y=True)
    images = resized((pixels * (255 / 16)).round().astype(np.uint8).reshape(-1, 8, 8, 1), size)
    inside, outside = images[labels == normal], images[labels != normal]
    test = torch.cat([inside[120:], outside[:: len(outside) // 60][:60]])
    return Rows(inside[:120]), Rows(test), np.arange(len(test)) >= len(inside) - 120


def learn(detector: Detector, train: Rows, **settings: object) -> Detector:
    """The detector after all its stages, or fewer epochs of each."""
    Trainer(device="cpu", precision="fp32", **settings).learn(detector, train, seed=0)  # pyright: ignore
    return detector


def auroc(detector: Detector, test: Rows, anomalous: np.ndarray) -> float:
    return float(roc_auc_score(anomalous, score_rows(detector, test, precision="fp32", batch_size=256)))


def before_and_after(build: Callable[[tuple[int, ...]], Detector], **digit: int) -> tuple[float, float]:
    """AUROC on digits with first weights, and when it has learned."""
    train, test, anomalous = digits(**digit)
    torch.manual_seed(0)
    detector = build(train.shape)
    before = auroc(detector, test, anomalous)
    return before, auroc(learn(detector, train), test, anomalous)


def assert_close(a: Tensor, b: Tensor, atol: float = 1e-6) -> None:
    torch.testing.assert_close(a, b, atol=atol, rtol=1e-5)


def mnist_root() -> str:
    """Where MNIST lies; the test is skipped without it."""
    root = os.environ.get("ANOMALY_BENCH_DATA")
    if not root or not (Path(root) / "mnist/MNIST/raw").is_dir():
        pytest.skip("needs MNIST under ANOMALY_BENCH_DATA")
    return root
