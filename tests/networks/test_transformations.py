"""Transformations of batches, held against plain ones of single images by numpy and scipy."""

import itertools

import numpy as np
import pytest
import torch
from scipy import ndimage

from anomaly_bench.errors import SettingError
from anomaly_bench.networks.transformations import (
    VIEWS_ON_A_CPU,
    Transformations,
    next_of,
    random_orders,
    rounds,
)


def images(n: int, shape: tuple[int, ...]) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(0)) * 2 - 1


def regular(image: np.ndarray, shift: int) -> list[np.ndarray]:
    """The views of one image `[H, W, C]`, in the order of GeoTrans."""
    shifts = (0, -shift, shift) if shift else (0,)
    views = []
    for flip, across, down, turns in itertools.product((False, True), shifts, shifts, range(4)):
        view = np.fliplr(image) if flip else image
        view = ndimage.shift(view, (down, across, 0), order=0, mode="reflect")
        views.append(np.rot90(view, turns))
    return views


def irregular(image: np.ndarray) -> list[np.ndarray]:
    views = []
    for flip, angle in itertools.product((False, True), range(0, 360, 30)):
        if angle % 90:
            view = ndimage.rotate(np.fliplr(image) if flip else image, angle)
            start = int((len(view) - 1) / 2 - (len(image) - 1) / 2)
            views.append(view[start : start + len(image), start : start + len(image)])
    return views


def rearranged(image: np.ndarray) -> list[np.ndarray]:
    half = len(image) // 2
    quarters = [image[i : i + half, j : j + half] for i in (0, half) for j in (0, half)]
    views = []
    for a, b, c, d in list(itertools.permutations(range(4)))[1:]:
        rows = [np.hstack([quarters[a], quarters[b]]), np.hstack([quarters[c], quarters[d]])]
        views.append(np.vstack(rows))
    return views


@pytest.mark.parametrize(
    ("operations", "shape", "shift", "kinds"),
    [
        ("ra", (3, 12, 12), 3, 72),
        ("ra", (1, 7, 7), 6, 72),
        ("ra", (1, 9, 9), 0, 8),
        ("ra+ia", (2, 9, 9), 2, 88),
        ("ra+ia+pr", (3, 12, 12), None, 111),
        ("ra+ia+pr", (1, 22, 22), 0, 47),  # the middle of its canvas is half a pixel off
    ],
)
def test_views_are_those_of_single_images(operations, shape, shift, kinds):
    transform, x = Transformations(shape, operations, shift), images(3, shape)
    views = transform.views(x)
    assert len(transform) == kinds
    assert views.shape == (3 * kinds, *shape)
    for image, ours in zip(x, views.unflatten(0, (3, kinds)), strict=True):
        single = image.permute(1, 2, 0).double().numpy()
        theirs = regular(single, shape[1] // 4 if shift is None else shift)
        theirs += rearranged(single) if "pr" in operations else []
        theirs += irregular(single) if "ia" in operations else []
        expected = torch.from_numpy(np.stack(theirs).copy()).permute(0, 3, 1, 2).float()
        torch.testing.assert_close(ours, expected, atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("operations", ["ra", "ra+ia+pr"])
def test_each_image_by_its_own_transformation(operations):
    transform, x = Transformations((2, 8, 8), operations), images(5, (2, 8, 8))
    views = transform.views(x).unflatten(0, (5, len(transform)))
    for t in range(0, len(transform) - 4, 5):
        mixed = torch.arange(t, t + 5)
        torch.testing.assert_close(transform(x, mixed), views[torch.arange(5), mixed])
    last = torch.full((5,), len(transform) - 1)
    torch.testing.assert_close(transform(x, last), views[:, -1])


def test_the_first_is_the_image_and_no_two_are_alike():
    x = images(1, (1, 16, 16))
    views = Transformations((1, 16, 16), "ra+ia+pr").views(x)
    assert torch.equal(views[0], x[0])
    distances = torch.cdist(views.flatten(1), views.flatten(1)) + torch.eye(111)
    assert distances.min() > 0.5


def test_the_memory_format_changes_nothing():
    transform, x = Transformations((3, 8, 8), "ra+ia+pr"), images(4, (3, 8, 8))
    last = x.contiguous(memory_format=torch.channels_last)
    assert torch.equal(transform.views(x), transform.views(last))
    t = torch.tensor([0, 40, 90, 110])
    assert torch.equal(transform(x, t), transform(last, t))


def test_nothing_of_it_is_kept():
    assert not Transformations((1, 8, 8), "ra+ia+pr").state_dict()


@pytest.mark.parametrize(
    ("shape", "settings", "said"),
    [
        ((7,), {}, "images"),
        ((1, 8, 16), {}, r"data\.image_size: found images of 8 x 16"),
        ((1, 9, 9), {"operations": "ra+ia+pr"}, r"data\.image_size: found 9 pixels"),
        ((1, 8, 8), {"operations": "pr"}, r"model\.operations=pr: allowed are ra, ra\+ia, ra\+ia\+pr"),
        ((1, 8, 8), {"shift": 8}, r"model\.shift=8: allowed is"),
        ((1, 8, 8), {"shift": -1}, r"model\.shift=-1: allowed is"),
    ],
)
def test_what_cannot_be_transformed_is_refused(shape, settings, said):
    with pytest.raises(SettingError, match=said):
        Transformations(shape, **settings)


def test_each_row_gets_all_in_an_order_of_its_own():
    torch.manual_seed(0)
    order, turn = random_orders(6, 5, torch.device("cpu")), torch.zeros(6, dtype=torch.int64)
    had = torch.stack([next_of(order, turn, torch.arange(6).flip(0)).flip(0) for _ in range(10)], 1)
    assert torch.equal(had[:, :5].sort(1).values, torch.arange(5).expand(6, 5))
    assert torch.equal(had[:, :5], had[:, 5:])
    assert len({tuple(row) for row in had.tolist()}) > 3
    assert turn.tolist() == [10] * 6


def test_only_those_in_the_batch_have_had_a_turn():
    order, turn = random_orders(4, 3, torch.device("cpu")), torch.zeros(4, dtype=torch.int64)
    next_of(order, turn, torch.tensor([3, 1]))
    assert turn.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("epochs", "kinds", "passes"), [(200, 72, 216), (250, 111, 333), (250, 88, 264), (8, 8, 8)]
)
def test_whole_rounds(epochs, kinds, passes):
    assert rounds(epochs, kinds) == passes
    assert rounds(epochs, kinds) == kinds * int(np.ceil(epochs / kinds))


def test_views_in_parts_are_the_views() -> None:
    transform = Transformations((1, 8, 8))
    x = images(16, (1, 8, 8))
    parts = list(transform.views_in_parts(x))
    assert max(len(part) for part in parts) == VIEWS_ON_A_CPU
    assert torch.cat(parts).equal(transform.views(x))
