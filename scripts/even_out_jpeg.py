"""A copy of class folders of JPEG files whose compression says nothing of quarter turns.

    python scripts/even_out_jpeg.py cifar10_jpeg TARGET                          half of the images on their side
    python scripts/even_out_jpeg.py cifar10_jpeg TARGET --upright                all upright: the control
    python scripts/even_out_jpeg.py cifar10_jpeg TARGET --train 2000 --test 200  so many images of each class

JPEG keeps other frequencies along rows than along columns, so that a network can tell an image turned by a quarter from
its compression alone. Methods that learn to tell turns (GeoTrans, E3Outlier) then learn that, and not the content. Here
each image is compressed once more: half of them, drawn with a fixed seed, on their side and turned back after it, the
others upright. Both look alike to the eye, and how an image was compressed tells nothing of how it is turned any more.
TARGET gets the folders of the source, `train/<class>` and `test/<class>`, with PNG files, which lose nothing more.
"""

import argparse
import io
import sys
import zlib
from pathlib import Path

from PIL import Image


def encoded(image: Image.Image, quality: int) -> Image.Image:
    """The image as JPEG gives it back."""
    file = io.BytesIO()
    image.save(file, "JPEG", quality=quality)
    return Image.open(io.BytesIO(file.getvalue())).convert(image.mode)


def encoded_on_its_side(image: Image.Image, quality: int) -> Image.Image:
    """The same by a JPEG of the image turned by a quarter; not turned itself."""
    turned = encoded(image.transpose(Image.Transpose.ROTATE_90), quality)
    return turned.transpose(Image.Transpose.ROTATE_270)


def lies(name: str) -> bool:
    """Whether the image of this name is encoded on its side: a coin that falls alike everywhere."""
    return zlib.crc32(name.encode()) & 1 == 1


def main(arguments: list[str]) -> None:
    """Write the copy."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", type=Path, help="folder with train/<class>/*.jpg and test/<class>/*.jpg")
    parser.add_argument("target", type=Path, help="folder to make")
    parser.add_argument("--upright", action="store_true", help="encode all images upright")
    parser.add_argument("--quality", type=int, default=75, help="of JPEG, 1 to 95 (default 75)")
    parser.add_argument("--train", type=int, help="training images of each class (default all)")
    parser.add_argument("--test", type=int, help="test images of each class (default all)")
    given = parser.parse_args(arguments)
    classes = sorted(place for place in given.source.glob("t*/*") if place.parent.name in ("train", "test"))
    if not classes:
        sys.exit(f"{given.source}: it has no folders train/CLASS and test/CLASS")
    if given.target.exists():
        sys.exit(f"{given.target}: it is there already")
    counts = {"train": given.train, "test": given.test}
    for place in classes:
        folder = given.target / place.relative_to(given.source)
        folder.mkdir(parents=True)
        for path in sorted(place.glob("*.jpg"))[: counts[place.parent.name]]:
            on_its_side = not given.upright and lies(str(path.relative_to(given.source)))
            with Image.open(path) as image:
                again = (encoded_on_its_side if on_its_side else encoded)(image, given.quality)
            again.save(folder / f"{path.stem}.png")


if __name__ == "__main__":
    main(sys.argv[1:])
