import numpy as np
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
