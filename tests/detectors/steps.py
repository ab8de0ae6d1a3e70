"""What tests of several detectors do: take a stage, compare weights after an update, learn a pair of digits."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from anomaly_bench.data.dataset import resized
from anomaly_bench.detector import Batch, Detector, Rows, Stage
from anomaly_bench.training.scoring import score_rows
from anomaly_bench.training.trainer import Trainer


def noise(number: int = 8, shape: tuple[int, ...] = (1, 16, 16), seed: int = 1) -> Tensor:
    """Rows `[number, *shape]`, uniform on [-1, 1], the same every time."""
    return torch.rand(number, *shape, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def batch_of(x: Tensor) -> Batch:
    """The rows as the first of the training set."""
    return Batch(x, torch.arange(len(x)))


def stage_of(detector: Detector, number: int, shape: tuple[int, ...], n: int = 24) -> Stage:
    """One of the stages over `n` black images, the detector in training mode."""
    stage = list(detector.stages(Rows(torch.zeros(n, *shape, dtype=torch.uint8))))[number]
    detector.train()
    return stage


def moved(detector: Detector, step, batch: Batch) -> set[str]:
    """Names of the parameters that a step changes."""
    before = {name: p.detach().clone() for name, p in detector.named_parameters()}
    step(batch)
    return {name for name, p in detector.named_parameters() if not torch.equal(p, before[name])}


def networks(names: set[str]) -> set[str]:
    """The networks that parameters belong to."""
    return {name.partition(".")[0] for name in names}


def assert_same_weights(ours: nn.Module, theirs: nn.Module) -> None:
    """Equal to 1e-5 where the last gradient is more than rounding, which adaptive steps blow up to full ones."""
    pairs = list(zip(ours.named_parameters(), theirs.parameters(), strict=True))
    largest = max(float(their.grad.abs().max()) for _, their in pairs if their.grad is not None)
    compared = 0
    for (name, our), their in pairs:
        assert their.grad is not None, name
        rounding = max(1e-7, 3e-6 * largest, 1e-4 * float(their.grad.abs().max()))
        clear = their.grad.abs() > rounding
        torch.testing.assert_close(
            our[clear], their[clear], rtol=0, atol=1e-5, msg=lambda said, n=name: f"{n}: {said}"
        )
        compared += int(clear.sum())
    assert compared > 0.5 * sum(int(their.grad.count_nonzero()) for _, their in pairs)


def descend_plainly(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def ones_and_zeros(size: int) -> tuple[Rows, Rows, np.ndarray]:
    """Ones to learn; other ones and zeros to score, and which are zeros."""
    data = load_digits()
    x = resized((data.images * 15.9).astype(np.uint8)[..., None], size)
    ones, zeros = x[data.target == 1], x[data.target == 0]
    test = torch.cat([ones[120:], zeros[:60]])
    return Rows(ones[:120]), Rows(test), np.arange(len(test)) >= len(ones) - 120


def auroc_before_and_after(detector: Detector, size: int) -> tuple[float, float]:
    """How well it tells zeros from ones, untrained and trained on ones."""
    train, test, anomalous = ones_and_zeros(size)

    def auroc() -> float:
        scores = score_rows(detector, test, precision="fp32", batch_size=50)
        return float(roc_auc_score(anomalous, scores))

    before = auroc()
    Trainer(device="cpu", precision="fp32").learn(detector, train, seed=0)
    return before, auroc()
