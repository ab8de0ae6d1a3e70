"""Transformations of images that a network learns to tell apart: those of GeoTrans and E3Outlier, on whole batches.

Each is linear in the pixels and the same for every image, so it is a table, made once from the side of the images:
for regular affine operations and rearranged patches, which pixel each pixel comes from; for rotations by other
angles, which 16 spline coefficients it is a weighted sum of.
"""

import itertools
import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from anomaly_bench.errors import SettingError, check_choice
from anomaly_bench.networks.parts import in_parts
from anomaly_bench.networks.shapes import check_images

SETS = ("ra", "ra+ia", "ra+ia+pr")
"""Regular affine, irregular affine, patch re-arranging."""

VIEWS_AT_ONCE = 1024
"""Transformed images that go through a network at once, to be scored."""

VIEWS_ON_A_CPU = 24
"""As many on a CPU, whose caches then hold what a layer makes of them."""


class Transformations(nn.Module):
    """T transformations of square images `[N, C, S, S]`; number 0 leaves them as they are.

    Args:
        shape: `(C, S, S)` of one image.
        operations: `ra` flips, shifts and rotates by quarter turns (72; or 8 without a shift); `ra+ia` rotates by
            other multiples of 30 degrees too (16 more); `ra+ia+pr` also rearranges quarters (23 more).
        shift: pixels that an image is shifted by; null for a quarter of its side; 0 for no shifts.
    """

    source: Tensor  # int64 [M, S * S], the pixel that each pixel is taken from
    taps: Tensor  # int64 [T - M, S * S, 16], the coefficients that each pixel is made of
    weights: Tensor  # float32, theirs
    spline: Tensor  # float32 [S, S], makes the coefficients

    def __init__(self, shape: tuple[int, ...], operations: str = "ra", shift: int | None = None) -> None:
        super().__init__()
        check_choice("operations", operations, SETS)
        check_images(shape)
        side = shape[1]
        if shape[2] != side:
            raise SettingError(
                f"data.image_size: found images of {shape[1]} x {shape[2]}; quarter turns take square ones"
            )
        shift = side // 4 if shift is None else shift
        if not 0 <= shift < side:
            raise SettingError(f"model.shift={shift}: allowed is from 0 and below the side of {side} pixels")
        tables = [regular(side, shift)]
        if "pr" in operations:
            tables.append(rearranged(side))
        self.irregular = "ia" in operations
        taps, weights = (
            turned(side) if self.irregular else (torch.empty(0, dtype=torch.int64), torch.empty(0))
        )
        for name, table in (
            ("source", torch.cat(tables)),
            ("taps", taps),
            ("weights", weights),
            ("spline", spline(side)),
        ):
            self.register_buffer(name, table, persistent=False)

    def __len__(self) -> int:
        return len(self.source) + len(self.taps)

    def views(self, x: Tensor) -> Tensor:
        """All of images `[N, C, S, S]`, `[N * T, C, S, S]`: those of the first image, of the second, ..."""
        pixels = x.flatten(2)[:, :, self.source]  # [N, C, M, S * S]
        if self.irregular:
            parts = self.coefficients(x)[:, :, self.taps]  # [N, C, T - M, S * S, 16]
            pixels = torch.cat([pixels, (parts * self.weights).sum(-1)], 2)
        return pixels.transpose(1, 2).reshape(-1, *x.shape[1:])

    def views_in_parts(self, x: Tensor) -> Iterator[Tensor]:
        """The same views, in their order, in parts `[n, C, S, S]` as large as a network should take at once."""
        for part in in_parts(x, VIEWS_AT_ONCE // len(self)):
            yield from in_parts(self.views(part), VIEWS_AT_ONCE, VIEWS_ON_A_CPU)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Each of images `[N, C, S, S]` by its own transformation, of number `t` int64 `[N]`."""
        flat, kinds = x.flatten(2), len(self.source)
        source = self.source[t.clamp_max(kinds - 1)]
        pixels = flat.gather(2, source[:, None].expand_as(flat))
        if self.irregular:
            which = (t - kinds).clamp_min(0)
            taps = self.taps[which].flatten(1)[:, None].expand(-1, x.shape[1], -1)
            parts = self.coefficients(x).gather(2, taps).unflatten(2, (-1, 16))
            turned = (parts * self.weights[which][:, None]).sum(-1)
            pixels = torch.where((t < kinds)[:, None, None], pixels, turned)
        return pixels.view(x.shape)

    def coefficients(self, x: Tensor) -> Tensor:
        """Cubic spline coefficients of images, `[N, C, S * S]`, float32 whatever autocast says."""
        with torch.autocast(x.device.type, enabled=False):
            return (self.spline @ x.float() @ self.spline.t()).flatten(2)


def regular(side: int, shift: int) -> Tensor:
    """Where the pixels of the regular affine operations come from, `[72, side * side]`, or `[8, ...]` without a shift.

    Every flip (no, left-right), horizontal shift, vertical shift (0, -, +) and number of counter-clockwise quarter
    turns, applied in this order. What a shift lays bare mirrors the image, the pixel at the edge repeated.
    """
    image = torch.arange(side * side).view(side, side)
    shifts = (0, -shift, shift) if shift else (0,)
    views = []
    for flip, across, down, turns in itertools.product((False, True), shifts, shifts, range(4)):
        view = image.flip(1) if flip else image
        view = view[mirrored(torch.arange(side) - down, side)][:, mirrored(torch.arange(side) - across, side)]
        views.append(view.rot90(turns, (0, 1)).flatten())
    return torch.stack(views)


def mirrored(place: Tensor, side: int) -> Tensor:
    """Places on a line of `side` pixels that goes on as its own mirror image, the pixel at the edge repeated."""
    place = place % (2 * side)
    return torch.minimum(place, 2 * side - 1 - place)


def rearranged(side: int) -> Tensor:
    """Where the pixels of quarters in every other order come from, `[23, side * side]`."""
    if side % 2:
        raise SettingError(
            f"data.image_size: found {side} pixels; model.operations=ra+ia+pr parts images into quarters, "
            "which takes even sides"
        )
    half = side // 2
    quarters = torch.arange(side * side).view(2, half, 2, half).transpose(1, 2).flatten(0, 1)
    orders = torch.tensor(list(itertools.permutations(range(4)))[1:])
    return quarters[orders].unflatten(1, (2, 2)).transpose(2, 3).flatten(1)


def turned(side: int) -> tuple[Tensor, Tensor]:
    """The 16 coefficients of each pixel of the irregular affine operations, and their weights, `[16, side * side, 16]`.

    Every flip (no, left-right) and rotation by a multiple of 30 degrees that is none of 90, as scipy.ndimage.rotate
    does it with its defaults: cubic splines on a canvas that holds all of the image, 0 where there is none. Of
    that canvas the middle is kept.
    """
    canvas = int(side * (math.sqrt(3) + 1) / 2 + 0.5)
    out = torch.arange(side, dtype=torch.float64) + (canvas - side) // 2 - (canvas - 1) / 2
    down, across = torch.meshgrid(out, out, indexing="ij")
    all_taps, all_weights = [], []
    for flip, angle in itertools.product((False, True), range(0, 360, 30)):
        if angle % 90 == 0:
            continue
        c, s = math.cos(math.radians(angle)), math.sin(math.radians(angle))
        row, column = (place + (side - 1) / 2 for place in (c * down + s * across, c * across - s * down))
        inside = (torch.minimum(row, column) >= 0) & (torch.maximum(row, column) <= side - 1)
        (rows, of_row), (columns, of_column) = neighbours(row, side), neighbours(column, side)
        columns = side - 1 - columns if flip else columns
        all_taps.append((rows[..., :, None] * side + columns[..., None, :]).view(-1, 16))
        weights = of_row[..., :, None] * of_column[..., None, :] * inside[..., None, None]
        all_weights.append(weights.reshape(-1, 16))
    return torch.stack(all_taps), torch.stack(all_weights).float()


def neighbours(place: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """The four coefficients around places on a line, and the weights of the cubic B-spline, each `[..., 4]`.

    Beyond its ends the line goes on as its own mirror image, the pixel at the edge not repeated.
    """
    whole = place.floor()
    f = place - whole
    weights = torch.stack([(1 - f) ** 3, 4 - 6 * f**2 + 3 * f**3, 1 + 3 * f + 3 * f**2 - 3 * f**3, f**3], -1)
    taps = (whole.long()[..., None] + torch.arange(-1, 3)) % (2 * side - 2)
    return torch.minimum(taps, 2 * side - 2 - taps), weights / 6


def spline(side: int) -> Tensor:
    """What makes a line of pixels the coefficients of the cubic B-spline through them, `[side, side]`."""
    values = torch.eye(side, dtype=torch.float64) * 4 / 6
    for offset in (-1, 1):
        values += torch.diag(torch.full((side - 1,), 1 / 6, dtype=torch.float64), offset)
    values[0, 1] = values[-1, -2] = 2 / 6
    return values.inverse().float()


# ------------------------------------------------------------------------------ who gets which


def random_orders(n: int, kinds: int, device: torch.device) -> Tensor:
    """An order of all transformations for each of `n` training rows, uint8 `[n, kinds]`, drawn on the CPU."""
    return torch.rand(n, kinds).argsort(1).to(device, torch.uint8)


def next_of(order: Tensor, turn: Tensor, index: Tensor) -> Tensor:
    """The transformation that is next for rows `index` `[B]`, int64 `[B]`, so that each gets all, one after another.

    Args:
        order: of `random_orders`, `[n, kinds]`.
        turn: int64 `[n]`, how many each row has had; counted up here.
    """
    had = turn[index]
    turn[index] = had + 1
    return order[index, had % order.shape[1]].long()


def rounds(epochs: int, kinds: int) -> int:
    """Passes over the training rows, rounded up to whole rounds of all transformations."""
    return kinds * -(-epochs // kinds)
