"""The untrained control: what a detector scores before it has learned anything."""

from collections.abc import Callable

import torch

from anomaly_bench.detector import Detector, Rows
from anomaly_bench.training.trainer import Walk, leave_untrained

NOISE_ROWS = 512


def untrained(build: Callable[[], Detector], train: Rows, seed: int) -> tuple[Detector, str]:
    """A detector of the same kind that has learned nothing, and in words how that was done.

    It has not one epoch of gradients; what it fits in closed form (a centre, a mixture) is fitted to the
    training rows all the same, so that it shows what training by gradients adds. A method without gradients
    would then be the method itself, and is fitted to noise instead. Weights that were learned on other data make
    way for random ones, and what is fitted to their features is fitted to the training rows.
    """
    detector = build()
    if pretrained := [part for part in detector.modules() if isinstance(part, Detector) and part.pretrained]:
        for part in pretrained:
            part.forget()
        leave_untrained(detector, train)
        return detector, "random weights in place of pretrained ones"
    if Walk(detector, noise_like(train, seed)).next() is None:
        return detector, "fitted to noise"
    detector = build()
    leave_untrained(detector, train)
    return detector, "no gradient epochs"


def noise_like(rows: Rows, seed: int) -> Rows:
    """Rows of the same kind that hold no more than noise: uniform pixels, or normal numbers."""
    generator = torch.Generator().manual_seed(seed)
    shape = (NOISE_ROWS, *rows.shape)
    if rows.x.dtype == torch.uint8:
        x = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    else:
        x = torch.randn(shape, generator=generator)
    channels_last = rows.memory_format == torch.channels_last
    return Rows(x.to(rows.device), rows.mean, rows.std, channels_last)
