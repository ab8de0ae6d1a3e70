"""What a JPEG file says of quarter turns, and that a copy says it no more."""

import runpy
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_sample_image

SCRIPT = runpy.run_path(str(Path(__file__).parents[2] / "scripts/even_out_jpeg.py"))
encoded, encoded_on_its_side, main = (SCRIPT[name] for name in ("encoded", "encoded_on_its_side", "main"))


def patches(n: int) -> list[Image.Image]:
    """Small images of flowers, all different."""
    large = Image.fromarray(load_sample_image("flower.jpg"))
    small = large.resize((large.width // 3, large.height // 3))
    return [
        small.crop((32 * (i % 6), 32 * (i // 6), 32 * (i % 6) + 32, 32 * (i // 6) + 32)) for i in range(n)
    ]


def moved(image: Image.Image, other: Image.Image) -> float:
    return float(np.abs(np.asarray(image, float) - np.asarray(other, float)).mean())


@pytest.fixture
def source(tmp_path: Path) -> Path:
    folder = tmp_path / "source"
    for part in ("train", "test"):
        for name in ("cat", "ship"):
            (folder / part / name).mkdir(parents=True)
            for number, image in enumerate(patches(12)):
                image.save(folder / part / name / f"{number:04d}.jpg", quality=75)
    return folder


def test_which_way_an_image_was_compressed_shows_when_it_is_compressed_again() -> None:
    for image in patches(8):
        upright, on_its_side = encoded(image, 75), encoded_on_its_side(image, 75)
        assert moved(encoded(upright, 75), upright) < moved(encoded_on_its_side(upright, 75), upright)
        assert moved(encoded_on_its_side(on_its_side, 75), on_its_side) < moved(
            encoded(on_its_side, 75), on_its_side
        )
        assert moved(on_its_side, image) < 12, "it was turned, or spoilt"


def test_the_copy_has_half_of_the_images_on_their_side(source: Path, tmp_path: Path) -> None:
    main([str(source), str(tmp_path / "evened"), "--train", "9"])
    main([str(source), str(tmp_path / "again"), "--train", "9"])
    main([str(source), str(tmp_path / "upright"), "--train", "9", "--upright"])
    names = sorted(
        str(path.relative_to(tmp_path / "evened")) for path in (tmp_path / "evened").rglob("*.png")
    )
    assert len(names) == 2 * (9 + 12)
    turned = 0
    for name in names:
        before = Image.open((source / name).with_suffix(".jpg"))
        evened, upright = (Image.open(tmp_path / kind / name) for kind in ("evened", "upright"))
        assert moved(upright, encoded(before, 75)) == 0
        on_its_side = moved(evened, encoded_on_its_side(before, 75)) == 0
        assert on_its_side or moved(evened, upright) == 0
        assert (tmp_path / "evened" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()
        turned += on_its_side
    assert 0.25 < turned / len(names) < 0.75


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere", "new"], "nowhere: it has no JPEG files in train/CLASS and test/CLASS"),
        (["source", "source"], "source: it is there already"),
        (["source", "new", "--quality", "96"], "--quality 96: allowed is 1 to 95"),
        (["source", "new", "--train", "0"], "--train 0: allowed is 1 and more"),
        (["broken", "new"], "0000.jpg: it cannot be read"),
        (["twice", "new"], "0000.jpeg: another file there has its name but for the ending; rename one"),
    ],
)
def test_mistakes_get_one_line_and_leave_nothing_that_looks_whole(
    arguments: list[str],
    said: str,
    source: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken/train/cat").mkdir(parents=True)
    (tmp_path / "broken/train/cat/0000.jpg").write_bytes(b"no image")
    shutil.copytree(source, "twice")
    shutil.copy("twice/train/cat/0000.jpg", "twice/train/cat/0000.jpeg")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
