import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from anomaly_bench.data.decode import Failure, decode, decode_all, is_grey, size_of


def test_decoding_needs_no_torch():
    code = "import sys, anomaly_bench.data.decode; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"


def test_sixteen_bit_grey_is_scaled(tmp_path):
    values = np.array([[0, 257, 4863, 65535]], dtype=np.uint16)
    for name in ("a.png", "a.tif"):
        Image.fromarray(values).save(tmp_path / name)
        assert decode(str(tmp_path / name), (1, 1, 4), None).ravel().tolist() == [
            0,
            1,
            19,
            255,
        ]  # 4863 / 257 = 18.9


def test_sixteen_bit_pgm_is_scaled(tmp_path):
    (tmp_path / "a.pgm").write_bytes(b"P5 2 1 65535\n" + np.array([65535, 257], dtype=">u2").tobytes())
    assert decode(str(tmp_path / "a.pgm"), (1, 1, 2), None).ravel().tolist() == [255, 1]


def test_transparency_is_laid_on_black(tmp_path):
    pixels = np.array([[(200, 100, 50, 255), (200, 100, 50, 0)]], dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert decode(str(tmp_path / "a.png"), (3, 1, 2), None).tolist() == [[[200, 100, 50], [0, 0, 0]]]


def test_palette_gives_its_colours(tmp_path):
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    image.save(tmp_path / "a.png")
    image.save(tmp_path / "transparent.png", transparency=b"\xff\x00")
    assert decode(str(tmp_path / "a.png"), (3, 1, 2), None).tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert decode(str(tmp_path / "transparent.png"), (3, 1, 2), None).tolist() == [[[10, 20, 30], [0, 0, 0]]]


def test_colour_becomes_grey_and_grey_becomes_colour(tmp_path):
    Image.new("RGB", (4, 4), (255, 0, 0)).save(tmp_path / "red.png")
    Image.new("L", (4, 4), 7).save(tmp_path / "grey.png")
    assert decode(str(tmp_path / "red.png"), (1, 4, 4), "stretch").ravel()[0] == 76  # 0.299 * 255
    assert (decode(str(tmp_path / "grey.png"), (3, 4, 4), "stretch") == 7).all()


@pytest.fixture
def wide(tmp_path):
    """24 x 8: black, white, black thirds."""
    pixels = np.zeros((8, 24), dtype=np.uint8)
    pixels[:, 8:16] = 255
    Image.fromarray(pixels).save(tmp_path / "wide.png")
    return str(tmp_path / "wide.png")


def test_stretch_keeps_all_of_the_picture(wide):
    picture = decode(wide, (1, 24, 24), "stretch")[..., 0]
    assert (picture[:, 9:15] == 255).all()
    assert (picture[:, :7] == 0).all()


def test_crop_keeps_the_centre(wide):
    assert (decode(wide, (1, 8, 8), "crop") == 255).all()


def test_pad_keeps_the_aspect(wide):
    picture = decode(wide, (1, 24, 24), "pad")[..., 0]
    assert (picture[8:16, 8:16] == 255).all()
    assert (picture[:8] == 0).all()
    assert (picture[16:] == 0).all()


@pytest.mark.parametrize("fit", ["stretch", "pad", "crop"])
def test_pixels_between_others_lie_between_them(tmp_path, fit):
    Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "a.png")
    expected = [0, 64, 191, 255]  # bilinear; other filters go beyond the ends, or are steps
    assert decode(str(tmp_path / "a.png"), (1, 2, 4), fit)[..., 0].tolist() == [expected] * 2


def test_large_jpeg_is_like_its_png(tmp_path):
    ramp = np.broadcast_to(np.linspace(0, 255, 512).astype(np.uint8), (512, 512))
    blocks = np.kron(np.indices((16, 16)).sum(0) % 2, np.full((4, 4), 200)).astype(np.uint8)
    for pixels in (ramp, blocks):
        Image.fromarray(pixels.copy()).save(tmp_path / "a.png")
        Image.fromarray(pixels.copy()).save(tmp_path / "a.jpg", quality=95)
        png, jpg = (decode(str(tmp_path / f"a.{kind}"), (1, 32, 32), "stretch") for kind in ("png", "jpg"))
        assert abs(png.astype(int) - jpg).mean() <= 2


def test_rows_are_channels_first_and_upright(tmp_path):
    pixels = np.arange(4 * 4 * 3, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    out = np.zeros((1, 3, 4, 4), dtype=np.uint8)
    assert decode_all([str(tmp_path / "a.png")], out, "stretch") == []
    assert (out[0] == pixels.transpose(2, 0, 1)).all()


def test_reasons_of_failure(tmp_path):
    (tmp_path / "text.png").write_text("not an image")
    Image.new("F", (4, 4)).save(tmp_path / "float.tif")
    Image.new("L", (4, 5)).save(tmp_path / "tall.png")
    with pytest.raises(Failure, match="not an image"):
        decode(str(tmp_path / "text.png"), (1, 4, 4), "stretch")
    with pytest.raises(Failure, match="floating-point"):
        decode(str(tmp_path / "float.tif"), (1, 4, 4), "stretch")
    with pytest.raises(Failure, match=r"4x5, not 4x4: set data\.image_size"):
        decode(str(tmp_path / "tall.png"), (1, 4, 4), None)
    for value in (-1, 65536):
        Image.fromarray(np.array([[7, value]], np.int32)).save(tmp_path / "wide.tif")
        with pytest.raises(Failure, match="which are not of 16 bits"):
            decode(str(tmp_path / "wide.tif"), (1, 1, 2), None)


def test_formats_that_run_programs_are_refused(tmp_path):
    (tmp_path / "a.png").write_bytes(
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\n%%EOF\n"
    )
    with pytest.raises(Failure, match="not an image"):
        decode(str(tmp_path / "a.png"), (1, 4, 4), "stretch")
    with pytest.raises(Failure, match="not an image"):
        size_of(str(tmp_path / "a.png"))


def test_is_grey(tmp_path):
    for mode, grey in (
        ("L", True),
        ("1", True),
        ("LA", True),
        ("I;16", True),
        ("RGB", False),
        ("RGBA", False),
    ):
        Image.new(mode, (4, 4)).save(tmp_path / "a.png")
        assert is_grey(str(tmp_path / "a.png")) == grey, mode
    Image.fromarray(np.array([[1]], ">u2")).save(tmp_path / "a.tif")
    assert is_grey(str(tmp_path / "a.tif"))
