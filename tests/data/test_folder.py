import dataclasses
import logging
import os
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from anomaly_bench.data import folder
from anomaly_bench.errors import SettingError


def test_ganomaly_layout(ganomaly, draw):
    draw(ganomaly / "train/0.normal/.hidden.png", 0)
    (ganomaly / "train/0.normal/notes.txt").write_text("no image")
    data = folder.load(root=ganomaly, image_size=8, channels=1)
    assert data.class_names == ("0.normal", "1.abnormal/gun", "1.abnormal/knife")
    assert data.classes.tolist() == [0] * 7 + [1, 2]
    assert data.official_train.tolist() == [True] * 6 + [False] * 3
    assert data.files[0] == "train/0.normal/0.png"
    assert data.files[-1] == "test/1.abnormal/knife/b.jpeg"
    assert data.source == "folder"
    assert data.x.shape == (9, 1, 8, 8)
    assert data.x.dtype == torch.uint8
    expected = torch.tensor([10, 11, 12, 13, 14, 15, 50, 100, 150])
    assert (data.x.float().mean((1, 2, 3)) - expected).abs().max() <= 2  # webp and jpeg lose a little


def test_mvtec_layout(tmp_path, draw):
    draw(tmp_path / "train/good/0.png", 1)
    draw(tmp_path / "test/good/0.png", 2)
    draw(tmp_path / "test/crack/0.png", 3)
    draw(tmp_path / "ground_truth/crack/0_mask.png", 4)
    data = folder.load(root=tmp_path, image_size=8)
    assert data.class_names == ("crack", "good")
    assert data.x[:, 0, 0, 0].tolist() == [1, 3, 2]
    assert data.masks is not None
    assert data.masks.all((1, 2)).tolist() == [False, True, False]
    assert not data.masks[[0, 2]].any()


@pytest.mark.parametrize("mask", ["ground_truth/gun/a_mask.png", "ground_truth/gun/a.bmp"])
def test_a_mask_marks_its_brighter_half_where_the_image_is(tmp_path, draw, mask):
    draw(tmp_path / "train/good/a.png", 1)
    draw(tmp_path / "test/good/a.png", 1)
    draw(tmp_path / "test/gun/a.jpg", 1, size=(16, 16))
    draw(tmp_path / "test/gun/b.png", 1)
    pixels = np.zeros((16, 16), np.uint8)
    pixels[:8, :8] = 1  # of 0 and 1, as some sets have them
    (tmp_path / mask).parent.mkdir(parents=True)
    Image.fromarray(pixels).save(tmp_path / mask)
    data = folder.load(root=tmp_path, image_size=8)
    expected = np.zeros((4, 8, 8), bool)
    expected[data.files.index("test/gun/a.jpg"), :4, :4] = True
    assert np.array_equal(data.masks, expected)
    (tmp_path / mask).unlink()
    unmarked = folder.load(root=tmp_path, image_size=8)
    assert unmarked.masks is None
    assert unmarked.fingerprint() != data.fingerprint()


def test_each_mask_has_a_scale_of_its_own_and_its_image_may_have_points_in_its_name(tmp_path, draw):
    for path in ("train/good/a.png", "test/good/a.png", "test/gun/a.1.png", "test/gun/a.2.png"):
        draw(tmp_path / path, 1)
    draw(tmp_path / "ground_truth/gun/a.1_mask.png", 1)
    draw(tmp_path / "ground_truth/gun/a.2_mask.png", 255)
    data = folder.load(root=tmp_path, image_size=8)
    assert data.masks.all((1, 2)).tolist() == [False, False, True, True]


@pytest.mark.parametrize("peak", [1, 255, 300, 65535])
def test_a_mask_of_16_bits_marks_what_one_of_8_bits_marks(tmp_path, draw, peak):
    for path in ("train/good/a.png", "test/good/a.png", "test/gun/a.png"):
        draw(tmp_path / path, 1)
    (tmp_path / "ground_truth/gun").mkdir(parents=True)
    pixels = np.zeros((8, 8), np.uint16)
    pixels[:4] = peak
    pixels[4] = peak // 3
    Image.fromarray(pixels).save(tmp_path / "ground_truth/gun/a_mask.png")
    data = folder.load(root=tmp_path, image_size=8)
    assert np.array_equal(data.masks[data.files.index("test/gun/a.png")], pixels == peak)


def test_masks_without_an_image_are_told_of(tmp_path, draw, caplog):
    for path in ("train/good/a.png", "test/good/a.png", "test/gun/a.png", "test/gun/b.png"):
        draw(tmp_path / path, 1)
    for path in ("gun/a_mask.png", "gun/b_mask.png"):
        draw(tmp_path / "ground_truth" / path, 1)
    folder.load(root=tmp_path, image_size=8, limit=2)  # which leaves b.png out, and not without a word
    assert "masks under" not in caplog.text
    for path in ("gun/c_mask.png", "knife/a.png"):
        draw(tmp_path / "ground_truth" / path, 1)
    folder.load(root=tmp_path, image_size=8)
    assert (
        "2 of 4 masks under ground_truth/ belong to no image under test/, the first is 'gun/c_mask.png'"
        in caplog.text
    )


def test_a_mask_of_another_size_is_not_stretched_where_images_keep_theirs(tmp_path, draw):
    for path in ("train/good/a.png", "test/good/a.png", "test/gun/a.png"):
        draw(tmp_path / path, 1)
    draw(tmp_path / "ground_truth/gun/a_mask.png", 1, size=(4, 4))
    with pytest.raises(SettingError, match=r"a_mask\.png.*4x4, not 8x8"):
        folder.load(root=tmp_path, image_size=None)


def test_a_mask_that_cannot_be_read_is_named(tmp_path, draw):
    for path in ("train/good/a.png", "test/good/a.png", "test/gun/a.png"):
        draw(tmp_path / path, 1)
    (tmp_path / "ground_truth/gun").mkdir(parents=True)
    (tmp_path / "ground_truth/gun/a_mask.png").write_bytes(b"none")
    with pytest.raises(SettingError, match=r"1 of 1 image files cannot be read: .*a_mask\.png"):
        folder.load(root=tmp_path, image_size=8)


def test_channels(tmp_path, draw):
    draw(tmp_path / "train/a/0.png", 9)
    draw(tmp_path / "test/a/0.png", 9)
    assert folder.load(root=tmp_path).shape == (1, 64, 64)
    assert folder.load(root=tmp_path, channels=3).shape == (3, 64, 64)
    draw(tmp_path / "test/a/1.png", 9, mode="RGB")
    mixed = folder.load(root=tmp_path)
    assert mixed.shape == (3, 64, 64)
    assert (mixed.x == 9).all()
    assert folder.load(root=tmp_path, channels=1).shape == (1, 64, 64)


def test_pixels_are_scaled_as_a_run_has_it(ganomaly):
    data = folder.load(root=ganomaly, image_size=8, mean=0.1, std=0.2)
    assert (data.mean, data.std) == (0.1, 0.2)


def test_hidden_folders_are_left_out(ganomaly, draw):
    draw(ganomaly / "train/.cache/a.png", 0)
    draw(ganomaly / "test/0.normal/.thumbnails/a.png", 0)
    assert folder.load(root=ganomaly, image_size=8).class_names == (
        *("0.normal", "1.abnormal/gun", "1.abnormal/knife"),
    )


def test_synthetic_is_said(ganomaly):
    (ganomaly / "SYNTHETIC.txt").write_text("drawn")
    assert folder.load(root=ganomaly).source == "synthetic"


def test_what_was_found_is_logged(ganomaly, caplog):
    with caplog.at_level(logging.INFO, "anomaly_bench"):
        folder.load(root=ganomaly)
    assert "train 6 '0.normal'; test 1 '0.normal', 1 '1.abnormal/gun', 1 '1.abnormal/knife'" in caplog.text


def test_files_come_by_part_then_class_then_name(tmp_path, draw):
    names = ("b/1.png", "b/0.PNG", "a/x/2.png", "a/1.png", "a b/1.png", "a/x.png/3.png")
    for number, name in enumerate(names):
        draw(tmp_path / "train" / name, number)
        draw(tmp_path / "test" / name, number)
    data = folder.load(root=tmp_path, image_size=8)
    order = ("a/1.png", "a b/1.png", "a/x/2.png", "a/x.png/3.png", "b/0.PNG", "b/1.png")
    assert data.files == tuple(f"{part}/{name}" for part in ("train", "test") for name in order)
    assert data.class_names == ("a", "a b", "a/x", "a/x.png", "b")
    assert data.classes.tolist() == [0, 1, 2, 3, 4, 4] * 2
    assert data.x[:, 0, 0, 0].tolist() == [names.index(name) for name in order] * 2


def test_fingerprint_is_of_the_content(ganomaly, tmp_path):
    shutil.copytree(ganomaly, tmp_path / "elsewhere")
    here = folder.load(root=ganomaly)
    there = folder.load(root=tmp_path / "elsewhere")
    assert here.fingerprint() == there.fingerprint()
    assert dataclasses.replace(here, x=here.x + 1).fingerprint() != here.fingerprint()


def test_own_size_must_be_one(ganomaly, tmp_path, draw):
    with pytest.raises(SettingError, match=r"9x8, not 8x8: set data\.image_size"):
        folder.load(root=ganomaly, image_size=None)
    (ganomaly / "train/0.normal/0.png").write_bytes(b"nothing")
    with pytest.raises(SettingError, match=r"^1 of 9 image files cannot be read: .*0\.png"):
        folder.load(root=ganomaly, image_size=None)
    draw(tmp_path / "even/train/a/0.png", 1, size=(12, 10))
    draw(tmp_path / "even/test/a/0.png", 2, size=(12, 10))
    assert folder.load(root=tmp_path / "even", image_size=None).shape == (1, 10, 12)


@pytest.mark.parametrize(
    "made", [[], ["train"], ["train/a/0.png"], ["train/0.png", "test/0.png"], ["a/0.png"]]
)
def test_other_layouts_are_answered_with_the_layouts(tmp_path, draw, made):
    root = tmp_path / "set"
    root.mkdir()
    for path in made:
        draw(root / path, 0) if path.endswith("png") else (root / path).mkdir()
    with pytest.raises(
        SettingError, match=r"data\.root=.*no images.*expected train/<class>/\* and test/<class>"
    ) as error:
        folder.load(root=root)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"root": "/no/such/folder"}, r"data\.root=.*no such folder"),
        ({"root": None}, r"data\.root=.*no such folder; set data\.root=FOLDER"),
        ({"fit": "zoom"}, r"data\.fit=zoom: allowed are stretch, pad, crop"),
        ({"channels": 2}, r"data\.channels=2"),
        ({"image_size": 0}, r"data\.image_size=0"),
        ({"limit": 0}, r"data\.limit=0"),
    ],
)
def test_settings_that_cannot_work(ganomaly, settings, said, monkeypatch):
    monkeypatch.delenv("ANOMALY_BENCH_DATA", raising=False)
    with pytest.raises(SettingError, match=said):
        folder.load(**{"root": ganomaly} | settings)


def test_root_defaults_to_the_name_under_the_data_root(ganomaly, monkeypatch):
    monkeypatch.setenv("ANOMALY_BENCH_DATA", str(ganomaly.parent))
    assert len(folder.load("set").x) == 9


def test_limit_is_even_over_classes_and_keeps_the_first(tmp_path, draw):
    for part in ("train", "test"):
        for class_name, count in (("a", 9), ("b", 2), ("c", 9)):
            for number in range(count):
                draw(tmp_path / part / class_name / f"{number}.png", number)
    data = folder.load(root=tmp_path, limit=8, image_size=8)
    assert data.files[:8] == tuple(
        f"train/{name}.png" for name in ("a/0", "a/1", "a/2", "b/0", "b/1", "c/0", "c/1", "c/2")
    )
    assert (~data.official_train).sum() == 8
    assert data.x[:3, 0, 0, 0].tolist() == [0, 1, 2]


def test_names_are_data(tmp_path, draw, caplog):
    strange = "{x} $(touch y) %s 'q'"
    draw(tmp_path / "train" / strange / "%d {}.png", 1)
    draw(tmp_path / "test" / strange / "\x1b[31m.png", 2)
    (tmp_path / "test" / strange / "bad\n.png").write_bytes(b"")
    with pytest.raises(SettingError) as error:
        folder.load(root=tmp_path)
    assert "\n" not in str(error.value)
    (tmp_path / "test" / strange / "bad\n.png").unlink()
    assert folder.load(root=tmp_path).class_names == (strange,)


def test_names_need_not_be_text(tmp_path, draw):
    odd = os.fsdecode(b"\xff.png")
    draw(tmp_path / "test/a/0.png", 2)
    try:
        draw(tmp_path / "train/a" / odd, 1)
    except OSError:
        pytest.skip("this file system has only names that are text")
    assert folder.load(root=tmp_path).files == (r"train/a/\udcff.png", "test/a/0.png")


def test_a_class_folder_may_be_a_link_and_links_below_are_not_followed(tmp_path, draw):
    draw(tmp_path / "far/0.png", 1)
    draw(tmp_path / "set/train/a/0.png", 1)
    (tmp_path / "set/test").mkdir()
    (tmp_path / "set/test/a").symlink_to(tmp_path / "far")
    (tmp_path / "set/train/a/loop").symlink_to(tmp_path / "set/train")
    assert folder.load(root=tmp_path / "set").files == ("train/a/0.png", "test/a/0.png")


def test_list_images(ganomaly, tmp_path, draw):
    draw(ganomaly / "test/.hidden.png", 0)
    found = folder.list_images([ganomaly])
    assert len(found) == 9
    assert found == sorted(found)
    one = ganomaly / "test/0.normal/a.gif"
    assert folder.list_images([one, ganomaly / "test"]) == folder.list_images([ganomaly / "test"])
    assert folder.list_images([one]) == [one]
    (tmp_path / "empty").mkdir()
    with pytest.raises(SettingError, match="no images"):
        folder.list_images([tmp_path / "empty"])
    with pytest.raises(SettingError, match="no such file"):
        folder.list_images([one, tmp_path / "nothing.png"])


@pytest.mark.parametrize(
    "read", [lambda root: folder.load(root=root, image_size=8), lambda root: folder.list_images([root])]
)
def test_a_folder_that_cannot_be_looked_into_is_named(ganomaly, monkeypatch, read):
    scan, closed = os.scandir, str(ganomaly / "test/1.abnormal/gun")

    def scandir(path):
        if os.fspath(path) == closed:
            raise PermissionError(13, "Permission denied", closed)
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(SettingError, match=f"{closed}: it cannot be looked into: Permission denied"):
        read(ganomaly)


def test_names_are_said_with_their_letters_and_without_control_characters(tmp_path, draw, caplog):
    caplog.set_level(logging.INFO, "anomaly_bench")
    for kind in ("nägel", "日本", "a\nb", "\udcff", "\u202eevil"):
        draw(tmp_path / f"train/{kind}/0.png", 1)
        draw(tmp_path / f"test/{kind}/0.png", 1)
    folder.load(root=tmp_path, image_size=8)
    assert r"'nägel'" in caplog.text
    assert r"'日本'" in caplog.text
    for escaped in (r"'a\nb'", r"'\udcff'", r"'\u202eevil'"):
        assert escaped in caplog.text
    (tmp_path / "test/nägel/0.png").write_bytes(b"no image")
    with pytest.raises(SettingError, match=r"test/nägel/0\.png'"):
        folder.load(root=tmp_path, image_size=8)


@pytest.mark.parametrize("closed", ["", "train", "train/a"])
def test_a_folder_that_may_not_be_looked_into_is_told_in_a_line(tmp_path, draw, monkeypatch, closed):
    draw(tmp_path / "train/a/0.png", 1)
    shut = str(tmp_path / closed)

    def scandir(path):
        if str(path) == shut:
            raise PermissionError(13, "Permission denied", str(path))
        return whole(path)

    whole = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    monkeypatch.setattr(os, "listdir", lambda path: [entry.name for entry in scandir(path)])
    if closed == "":
        monkeypatch.setattr(folder.Path, "is_dir", lambda path: scandir(path) and True)
    with pytest.raises(SettingError, match=f"{shut}: it cannot be looked into: Permission denied"):
        folder.find_files(tmp_path)
