"""scikit-learn's handwritten digits: in the package itself, so there is nothing to download."""

import numpy as np
from sklearn.datasets import load_digits

from anomaly_bench.data.dataset import Dataset, resized
from anomaly_bench.data.settings import check_image_size, kept_rows


def load(
    name: str = "digits",
    image_size: int | None = 32,
    limit: int | None = None,
    mean: float = 0.5,
    std: float = 0.5,
) -> Dataset:
    """1797 grey 8 x 8 digits, values 0..16 there and 0..255 here, resized to `image_size`.

    The set has no official parts: every row is `official_train`. `limit` keeps at most that many rows,
    spread evenly over the classes. Source: UCI ML repository, optical recognition of handwritten digits.
    """
    check_image_size(image_size)
    pixels, labels = load_digits(return_X_y=True)
    classes = np.asarray(labels, dtype=np.int64)
    rows = kept_rows(classes, np.ones(len(classes), dtype=bool), limit)
    images = (np.asarray(pixels)[rows] * (255 / 16)).round().astype(np.uint8).reshape(-1, 8, 8, 1)
    return Dataset(
        name=name,
        x=resized(images, image_size),
        classes=classes[rows],
        class_names=tuple(str(digit) for digit in range(10)),
        official_train=np.ones(len(rows), dtype=bool),
        source="scikit-learn",
        mean=mean,
        std=std,
    )
