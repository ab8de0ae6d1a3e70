"""Image files to `uint8` arrays. Imports no torch: decoding processes start with this module alone."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF", "PPM")
"""What Pillow may take a file for, whatever its suffix: some of its other readers run external programs."""

GREY_MODES = ("1", "L", "LA", "I", "I;16", "I;16L", "I;16B", "I;16N")


WHITE = 65_535
"""The value of 16-bit grey that becomes 255."""


class Failure(Exception):
    """Why one file cannot be used, in a few words."""


def decode(path: str, shape: tuple[int, int, int], fit: str | None, white: int | None = WHITE) -> np.ndarray:
    """The first picture of an image file as `uint8` `[H, W, C]`, its rows as they are stored.

    A camera's note of how it was held (EXIF orientation) is not followed, as torchvision does not. A file whose header
    claims more than some 179 million pixels is refused before anything is decoded.

    Args:
        path: of the file.
        shape: `(C, H, W)` wanted; C is 1 or 3.
        fit: `stretch` changes the aspect, `pad` keeps it on black, `crop` scales the shorter side and keeps
            the centre; `None` takes only files of exactly H x W.
        white: which value of 16-bit grey becomes 255; None is the file's highest.

    Raises:
        Failure: the file is damaged, is no image, or has another size where `fit` is None.
    """
    channels, height, width = shape
    try:
        with Image.open(path, formats=FORMATS) as image:
            if fit is None and image.size != (width, height):
                raise Failure(f"{image.width}x{image.height}, not {width}x{height}: set data.image_size")
            image.draft(None, (2 * width, 2 * height))  # lets JPEG leave out detail that is scaled away
            picture = np.asarray(fitted(eight_bit(image, channels, white), (width, height), fit))
    except Failure:
        raise
    except Exception as error:  # on damaged files, Pillow's readers raise nearly anything
        raise Failure(why(error)) from error
    return picture.reshape(height, width, channels)


def eight_bit(image: Image.Image, channels: int, white: int | None) -> Image.Image:
    """The image in mode `L` or `RGB`; 16-bit grey is scaled to 8 bits, transparency is laid on black."""
    if is_16_bit(image):
        image = Image.fromarray(from_16_bits(np.asarray(image), white))
    if image.mode == "F":
        raise Failure("floating-point pixels, whose range is not known")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black"), image)
    mode = "L" if channels == 1 else "RGB"
    return image if image.mode == mode else image.convert(mode)


def is_16_bit(image: Image.Image) -> bool:
    """Whether the image is of more than 8 bits of grey."""
    return image.mode.startswith("I")


def from_16_bits(pixels: np.ndarray, white: int | None) -> np.ndarray:
    """Grey values on 0..65535 as `uint8` on 0..255, rounded; `white` becomes 255, None is the highest of them."""
    if pixels.min() < 0 or pixels.max() > 65535:
        raise Failure(f"grey values {pixels.min()}..{pixels.max()}, which are not of 16 bits")
    white = white or max(1, int(pixels.max()))
    return ((pixels.astype(np.uint32) * 255 + white // 2) // white).astype(np.uint8)


def peak_of(path: str) -> int | None:
    """The highest value of a file of 16-bit grey; None of any other file."""
    with Image.open(path, formats=FORMATS) as image:
        return int(np.asarray(image).max()) if is_16_bit(image) else None


def fitted(image: Image.Image, size: tuple[int, int], fit: str | None) -> Image.Image:
    """The image at `size` `(W, H)`, by antialiased bilinear resizing."""
    if image.size == size:
        return image
    if fit == "pad":
        return ImageOps.pad(image, size, Image.Resampling.BILINEAR)
    if fit == "crop":
        return ImageOps.fit(image, size, Image.Resampling.BILINEAR)
    return image.resize(size, Image.Resampling.BILINEAR)


def is_grey(path: str) -> bool:
    """Whether the file's header says that it has no colours; False where the header cannot be read."""
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.mode in GREY_MODES
    except Exception:  # said in full when the file is decoded
        return False


def size_of(path: str) -> tuple[int, int]:
    """`(H, W)` from the file's header.

    Raises:
        Failure: the header cannot be read.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            return image.height, image.width
    except Exception as error:
        raise Failure(why(error)) from error


def why(error: Exception) -> str:
    """What stopped Pillow, in words; its own of a file that is no image only repeat the path."""
    if isinstance(error, UnidentifiedImageError):
        return "not an image, or of a kind that is not read"
    return f"{type(error).__name__}: {error}"


def decode_all(
    paths: Sequence[str], out: np.ndarray, fit: str | None, white: int | None = WHITE
) -> list[tuple[str, str]]:
    """Decode files into `out`, `uint8` `[N, C, H, W]`; gives path and reason of each that failed."""
    failures = []
    for row, path in zip(out, paths, strict=True):
        try:
            row[:] = decode(path, row.shape, fit, white).transpose(2, 0, 1)
        except Failure as failure:
            failures.append((path, str(failure)))
    return failures


def decode_chunk(npy: Path, start: int, paths: Sequence[str], fit: str | None) -> list[tuple[str, str]]:
    """Decode files into rows `start...` of a `.npy` file that is there already."""
    out = np.load(npy, mmap_mode="r+")
    return decode_all(paths, out[start : start + len(paths)], fit)
