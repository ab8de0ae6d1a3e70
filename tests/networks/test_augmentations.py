import colorsys

import pytest
import torch
from torch import Tensor
from torch.nn.functional import interpolate

from anomaly_bench.networks.augmentations import DRAWS, HUE, augment, cropped, grey, hsv, jittered, rgb


def images(n: int = 6, channels: int = 3, height: int = 12, width: int = 12) -> Tensor:
    return torch.rand(n, channels, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


def draws(n: int = 6, **fixed: float) -> Tensor:
    """Numbers that leave an image as it is, but for those that are told."""
    names = ("jitter", "order", "contrast", "value", "saturation", "hue", "grey", "mirror", "across", "down")
    u = torch.full((n, DRAWS), 0.5)
    u[:, names.index("jitter")] = 0.9
    u[:, names.index("grey")] = 0.9
    for name, value in fixed.items():
        u[:, names.index(name)] = value
    return u


WHOLE = {"area": (1.0, 1.0)}


def close(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=0, atol=2e-5)


def test_the_middle_of_all_draws_leaves_an_image_as_it_is():
    for x in (images(), images(channels=1), images(channels=2, width=7)):
        close(augment(x, draws(), flip=True, **WHOLE), x)
        close(augment(x, draws(jitter=0.1), flip=True, **WHOLE), x)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_views_differ_and_keep_shape_and_range(channels):
    x = images(1, channels, 14, 9).expand(60, -1, -1, -1)
    views = augment(x, torch.rand(60, DRAWS, generator=torch.Generator().manual_seed(0)), flip=True)
    assert views.shape == x.shape
    assert views.min() >= -1 - 1e-5
    assert views.max() <= 1 + 1e-5
    gaps = torch.cdist(views.flatten(1), views.flatten(1)) + torch.eye(60)
    assert gaps.min() > 1e-3


def test_each_image_has_its_own_draws():
    x = images(40)
    u = torch.rand(40, DRAWS, generator=torch.Generator().manual_seed(0))
    together = augment(x, u, flip=True)
    alone = torch.cat([augment(x[i : i + 1], u[i : i + 1], flip=True) for i in range(40)])
    close(together, alone)


def test_mirrors():
    x = images()
    close(augment(x, draws(mirror=0.1), flip=True, **WHOLE), x.flip(3))
    close(augment(x, draws(mirror=0.1), flip=False, **WHOLE), x)


def test_grey():
    x = images()
    shades = augment(x, draws(grey=0.1), flip=True, **WHOLE)
    expected = 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2]
    for channel in range(3):
        close(shades[:, channel], expected)
    close(augment(images(channels=1), draws(grey=0.1), flip=True, **WHOLE), images(channels=1))
    assert grey(torch.ones(1, 3, 2, 2)).unique().tolist() == pytest.approx([1.0])


def test_how_often():
    x, u = (
        images(1).expand(2000, -1, -1, -1),
        torch.rand(2000, DRAWS, generator=torch.Generator().manual_seed(0)),
    )
    u[:, 7] = 0.9
    coloured = (augment(x, torch.cat([u[:, :8], draws(2000)[:, 8:]], 1), flip=True, **WHOLE) - x).abs() > 1e-3
    shades = augment(x, u, flip=True).std(1).amax((1, 2)) < 1e-5
    assert coloured.flatten(1).any(1).float().mean().item() == pytest.approx(0.8 + 0.2 * 0.2, abs=0.03)
    assert shades.float().mean().item() == pytest.approx(0.2, abs=0.03)


# ------------------------------------------------------------------------------ colours


def test_hue_saturation_and_value_are_the_standard_librarys():
    colours = torch.rand(300, 3, generator=torch.Generator().manual_seed(0))
    colours[:4] = torch.tensor([[0.0, 0, 0], [1, 1, 1], [0.3, 0.3, 0.3], [1, 0, 0]])
    expected = torch.tensor([colorsys.rgb_to_hsv(*colour) for colour in colours.tolist()])
    close(hsv(colours[:, :, None, None])[:, :, 0, 0], expected)
    close(rgb(expected[:, :, None, None])[:, :, 0, 0], colours)


@pytest.mark.parametrize("first", [True, False])
def test_jitter_is_contrast_and_colours_in_either_order(first):
    x = (images(1, width=3, height=2) + 1) / 2
    drawn = {"contrast": 0.9, "value": 0.2, "saturation": 0.7, "hue": 0.8}
    arguments = [torch.full((1, 1, 1, 1), value) for value in (0.4 if first else 0.6, *drawn.values())]

    def contrasted(x):
        mean = x.mean((2, 3), keepdim=True)
        return ((x - mean) * (0.6 + 0.8 * 0.9) + mean).clamp(0, 1)

    def coloured(x):
        out = x.clone()
        for i in range(2):
            for j in range(3):
                h, s, v = colorsys.rgb_to_hsv(*x[0, :, i, j].tolist())
                s, v = min(1, s * (0.6 + 0.8 * 0.7)), min(1, v * (0.6 + 0.8 * 0.2))
                out[0, :, i, j] = torch.tensor(colorsys.hsv_to_rgb((h + HUE * 0.6) % 1, s, v))
        return out

    expected = coloured(contrasted(x)) if first else contrasted(coloured(x))
    close(jittered(x, *arguments), expected)


def test_one_channel_changes_in_light_only():
    x = (images(1, 1) + 1) / 2
    arguments = [torch.full((1, 1, 1, 1), value) for value in (0.9, 0.5, 0.25, 0.9, 0.9)]
    close(jittered(x, *arguments), x * 0.8)


# ------------------------------------------------------------------------------ parts


def part(x: Tensor, across: float, down: float, share: float, ratio: float, mirrored: bool = False) -> Tensor:
    n = len(x)
    sizes = [torch.full((n, 10), 0.5), torch.full((n, 10), ratio)]
    places = torch.full((n,), across), torch.full((n,), down)
    return cropped(x, torch.full((n,), mirrored), *places, sizes, (share, share))


def test_parts_are_cut_out_and_stretched():
    x = images(2)
    quarter = interpolate(x[:, :, :6, 6:], size=12, mode="bilinear", align_corners=False)
    found = part(x, 0.999, 0.0, 0.25, 0.5)  # the upper right 6 x 6 pixels
    close(found[:, :, 1:-1, 1:-1], quarter[:, :, 1:-1, 1:-1])  # at its edge it may see beyond
    close(part(x, 0.999, 0.0, 0.25, 0.5, mirrored=True), found.flip(3))


def test_sides_are_in_the_ratio():
    ramp = torch.arange(24.0).expand(1, 1, 24, 24)
    for ratio, wide in ((0.0, 10), (0.5, 12), (1.0, 14)):  # of 144 pixels, 3:4, 1:1, 4:3
        across = part(ramp, 0.0, 0.0, 0.25, ratio)[0, 0, 5]
        assert (across[-2] - across[1]).item() == pytest.approx(wide * 21 / 24, abs=1e-3)


def test_what_fits_nowhere_is_the_whole():
    x = images(2, height=4, width=20)
    close(part(x, 0.0, 0.0, 1.0, 1.0), x)


def test_the_first_that_fits_is_taken():
    x = images(1)
    sizes = [torch.full((1, 10), 0.5), torch.tensor([[1.0, 0.0, 1.0, 0.5] + [0.0] * 6])]
    one = torch.zeros(1), torch.zeros(1)
    close(cropped(x, torch.tensor([False]), *one, sizes, (1.0, 1.0)), x)  # 14 x 10 does not fit, 12 x 12 does


def test_parts_have_the_papers_areas_and_lie_inside():
    place = torch.stack(torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij"))
    x = place.expand(400, -1, -1, -1)
    u = torch.rand(400, DRAWS, generator=torch.Generator().manual_seed(0))
    seen = cropped(
        x, torch.zeros(400, dtype=torch.bool), u[:, 8], u[:, 9], list(u[:, 10:].chunk(2, 1)), (0.08, 1.0)
    )
    high = (seen[:, 0, -2, 5] - seen[:, 0, 1, 5]) * 32 / 29
    wide = (seen[:, 1, 5, -2] - seen[:, 1, 5, 1]) * 32 / 29
    area = high * wide / 1024
    assert area.min().item() < 0.12
    assert 0.9 < area.max().item() <= 1.001
    assert (wide / high).min().item() == pytest.approx(0.75, abs=0.1)
    assert (wide / high).max().item() == pytest.approx(4 / 3, abs=0.15)
    assert (seen >= 0).all()
    assert (seen <= 31).all()
