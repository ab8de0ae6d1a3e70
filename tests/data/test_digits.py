import numpy as np
import torch
from sklearn.datasets import load_digits

from anomaly_bench.data import digits


def test_digits_are_scikit_learns():
    data = digits.load(image_size=None)
    expected = load_digits()
    assert data.shape == (1, 8, 8)
    assert np.array_equal(data.x[:, 0].numpy(), (expected.images * 255 / 16).round())
    assert np.array_equal(data.classes, expected.target)
    assert data.official_train.all()
    assert data.source == "scikit-learn"
    assert (data.x.min(), data.x.max()) == (0, 255)


def test_digits_are_resized():
    data = digits.load()
    assert data.x.shape == (1797, 1, 32, 32)
    assert data.x.dtype == torch.uint8


def test_limit():
    data = digits.load(limit=25)
    assert np.bincount(data.classes).tolist() == [3] * 5 + [2] * 5
    assert torch.equal(data.x[0], digits.load().x[0])
