"""A copy of class folders of JPEG files whose compression says less of quarter turns.

    python scripts/even_out_jpeg.py cifar10_jpeg TARGET                          half of the images on their side
    python scripts/even_out_jpeg.py cifar10_jpeg TARGET --upright                all upright: the control
    python scripts/even_out_jpeg.py cifar10_jpeg TARGET --train 2000 --test 200  so many images of each class

JPEG keeps other frequencies along rows than along columns, so that a network can tell an image turned by a quarter from
its compression alone. Methods that learn to tell turns (GeoTrans, E3Outlier) then learn that, and not the content. Here
each image is compressed once more: half of them, drawn by their names, on their side and turned back after it, the
others upright. How an image was compressed last tells nothing of how it is turned any more; traces of the first time
remain. TARGET gets the folders of the source, `train/<class>` and `test/<class>`, with PNG files, which lose nothing
more.
"""

import argparse
import io
import shutil
import sys
import zlib
from collections import Counter
from pathlib import Path

from PIL import Image
from tqdm import tqdm


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


def chosen(source: Path, counts: dict[str, int | None]) -> list[Path]:
    """The JPEG files of each class, the first by name."""
    files: list[Path] = []
    for part, count in counts.items():
        for place in sorted((source / part).glob("*/")):
            found = sorted(path for path in place.iterdir() if path.suffix.lower() in (".jpg", ".jpeg"))
            files += found[:count]
    return files


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
    for name, value in {"quality": given.quality, "train": given.train, "test": given.test}.items():
        if value is not None and not 1 <= value <= (95 if name == "quality" else value):
            parser.error(f"--{name} {value}: allowed is 1 {'to 95' if name == 'quality' else 'and more'}")
    if given.target.exists():
        parser.error(f"{given.target}: it is there already")
    files = chosen(given.source, {"train": given.train, "test": given.test})
    if not files:
        parser.error(f"{given.source}: it has no JPEG files in train/CLASS and test/CLASS")
    copies = Counter(path.with_suffix("") for path in files)
    if alike := [path for path in files if copies[path.with_suffix("")] > 1]:
        parser.error(f"{alike[0]}: another file there has its name but for the ending; rename one")
    half_done = given.target.with_name(f"{given.target.name}.part")
    shutil.rmtree(half_done, ignore_errors=True)
    for path in tqdm(files, desc="compressing", unit=" files", disable=None, leave=False):
        name = path.relative_to(given.source)
        encode = encoded_on_its_side if not given.upright and lies(name.as_posix()) else encoded
        copy = (half_done / name).with_suffix(".png")
        copy.parent.mkdir(parents=True, exist_ok=True)
        try:
            with Image.open(path) as image:
                encode(image, given.quality).save(copy)
        except OSError as error:
            parser.error(f"{path}: it cannot be read: {error}")
    half_done.rename(given.target)


if __name__ == "__main__":
    main(sys.argv[1:])
