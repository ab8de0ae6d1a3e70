"""Anomaly maps as heat over the images they are of, a PNG for each."""

from collections.abc import Iterable
from pathlib import Path, PurePath

import numpy as np
from PIL import Image

from anomaly_bench.record import replacing, safe_name

SIDE = 256
"""Pixels that the longer side of a picture has at least."""

OPACITY = 0.7
"""Of the heat where it is greatest; where there is none, the image shows as it is."""


class Overlays:
    """Heat maps in a folder, all on one scale, so that they can be compared.

    The scale goes from the lowest value to the 99.9 % quantile of the maps of the first call of `draw`.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.scale: tuple[float, float] | None = None
        self.drawn = 0

    def draw(self, files: Iterable[str], images: np.ndarray, maps: np.ndarray) -> list[str]:
        """Draw some images.

        Args:
            files: where they came from, `[N]`. A picture is named for its number and for the file, without
                folders, so it lies in this folder and no two share a name.
            images: uint8 `[N, C, H, W]`, C is 1 or 3.
            maps: `[N, H, W]`, higher is more anomalous.

        Returns:
            The names of the pictures.
        """
        if self.scale is None:
            self.scale = float(maps.min()), float(np.quantile(maps, 0.999))
        low, high = self.scale
        heats = np.clip((maps - low) / max(high - low, np.finfo(np.float32).tiny), 0, 1)
        names = []
        for file, image, heat in zip(files, images, heats, strict=True):
            name = f"{self.drawn:06}-{safe_name(PurePath(file).stem)}.png"
            with replacing(self.folder / name) as temporary:
                enlarged(overlaid(image, heat)).save(temporary, format="PNG")
            names.append(name)
            self.drawn += 1
        return names


def overlaid(image: np.ndarray, heat: np.ndarray) -> np.ndarray:
    """The image (uint8 `[C, H, W]`), in grey, under heat (on [0, 1], `[H, W]`), as uint8 `[H, W, 3]`."""
    import matplotlib

    grey = image.mean(0)[..., None]
    colours = 255 * matplotlib.colormaps["inferno"](heat)[..., :3]
    opacity = OPACITY * heat[..., None]
    return ((1 - opacity) * grey + opacity * colours).round().astype(np.uint8)


def enlarged(pixels: np.ndarray) -> Image.Image:
    """The picture with every pixel so many times as large that it can be seen."""
    height, width = pixels.shape[:2]
    times = -(-SIDE // max(height, width))
    return Image.fromarray(pixels).resize((times * width, times * height), Image.Resampling.NEAREST)
