import numpy as np
import pytest
from PIL import Image

from anomaly_bench.overlays import Overlays, overlaid


def test_heat_lies_where_the_map_is_high_and_nowhere_else():
    image = np.full((3, 8, 8), 100, np.uint8)
    heat = np.zeros((8, 8))
    heat[2, 5] = 1
    pixels = overlaid(image, heat).astype(int)
    cold = np.delete(pixels.reshape(-1, 3), 2 * 8 + 5, axis=0)
    assert (cold == 100).all()
    assert np.abs(pixels[2, 5] - 100).max() > 50


def test_one_scale_for_all_calls(tmp_path):
    overlays = Overlays(tmp_path)
    images = np.full((2, 1, 300, 2), 50, np.uint8)
    maps = np.stack([np.zeros((300, 2)), np.ones((300, 2))])
    first = overlays.draw(["x/a.png", "b"], images, maps)
    second = overlays.draw(["../../c d.tif", "d"], images, 5 * maps)
    pictures = [np.asarray(Image.open(tmp_path / name)) for name in first + second]
    assert pictures[0].shape == (300, 2, 3)
    assert (pictures[0] == 50).all()
    np.testing.assert_array_equal(pictures[1], pictures[3])  # five times as high is beyond the scale
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(first + second)


def test_flat_maps_are_drawn(tmp_path):
    (name,) = Overlays(tmp_path).draw(["a.png"], np.full((1, 1, 4, 4), 50, np.uint8), np.full((1, 4, 4), 3.0))
    assert (np.asarray(Image.open(tmp_path / name)) == 50).all()


def test_the_scale_goes_from_the_lowest_value_to_nearly_the_highest(tmp_path):
    maps = np.linspace(5, 6, 100 * 100).reshape(1, 100, 100)
    maps[0, 50, 50] = 1000
    overlays = Overlays(tmp_path)
    overlays.draw(["a.png"], np.full((1, 1, 100, 100), 50, np.uint8), maps)
    assert overlays.scale == (5, pytest.approx(6, abs=2e-3))


def test_pictures_are_numbered_through_and_named_without_their_folders(tmp_path):
    overlays, image, heat = Overlays(tmp_path), np.zeros((1, 1, 4, 4), np.uint8), np.zeros((1, 4, 4))
    names = [overlays.draw([file], image, heat) for file in ("x/a.png", "y/a.tif", "b")]
    assert names == [["000000-a.png"], ["000001-a.png"], ["000002-b.png"]]


def test_a_picture_is_enlarged_by_whole_pixels_and_grey(tmp_path):
    image = np.arange(6, dtype=np.uint8).reshape(2, 3) + np.array([30, 60, 91], np.uint8)[:, None, None]
    (name,) = Overlays(tmp_path).draw(["a.png"], image[None], np.zeros((1, 2, 3)))
    grey = 60 + np.arange(6).reshape(2, 3)  # of 60.33
    expected = np.kron(grey, np.ones((86, 86), int))  # the longer side has 256 at least
    picture = np.asarray(Image.open(tmp_path / name))
    assert picture.shape == (172, 258, 3)
    assert (picture == expected[..., None]).all()
