import numpy as np
import pytest
from PIL import Image

from afactl.datasets.images import image_size, read_image, read_mask, voc_palette, write_mask
from afactl.errors import DataError


@pytest.fixture
def photo():
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (20, 30, 3)).astype(np.uint8)


@pytest.mark.parametrize("suffix", [".png", ".tif", ".bmp"])
def test_lossless_formats_come_back(tmp_path, photo, suffix):
    path = tmp_path / f"ä b.c{suffix}"
    Image.fromarray(photo).save(path)
    assert np.array_equal(read_image(path), photo)
    assert image_size(path) == (20, 30)


def test_other_modes_become_rgb(tmp_path):
    grey = np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    Image.fromarray(grey).convert("P").save(tmp_path / "palette.png")
    expected = np.repeat(grey[..., None], 3, axis=2)
    for name in ("grey", "deep", "palette"):
        assert np.array_equal(read_image(tmp_path / f"{name}.png"), expected), name


def test_transparency_lies_on_white(tmp_path):
    rgba = np.zeros((2, 2, 4), np.uint8)
    rgba[0, 0, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "t.png")
    found = read_image(tmp_path / "t.png")
    assert found[0, 0].tolist() == [0, 0, 0] and found[1, 1].tolist() == [255, 255, 255]


def test_orientation_is_honoured(tmp_path, photo):
    image = Image.fromarray(photo)
    exif = image.getexif()
    exif[0x0112] = 6  # stored a quarter turn to the left
    image.save(tmp_path / "turned.png", exif=exif)
    found = read_image(tmp_path / "turned.png")
    assert np.array_equal(found, np.rot90(photo, k=-1))
    assert image_size(tmp_path / "turned.png") == found.shape[:2] == (30, 20)


def test_broken_files_are_named(tmp_path, photo):
    path = tmp_path / "photo.jpg"
    with pytest.raises(DataError, match="photo.jpg: expected an image file, found none"):
        read_image(path)
    path.symlink_to("gone.jpg")
    with pytest.raises(
        DataError, match="photo.jpg: expected an image file, found a link to gone.jpg, which is not there"
    ):
        read_image(path)
    path.unlink()
    path.write_bytes(b"")
    with pytest.raises(DataError, match="photo.jpg: the file is empty"):
        read_image(path)
    path.write_bytes(b"text")
    with pytest.raises(DataError, match="photo.jpg: no image format"):
        read_image(path)
    Image.fromarray(photo).resize((300, 200)).save(path)
    path.write_bytes(path.read_bytes()[:-800])
    with pytest.raises(DataError, match="photo.jpg: truncated"):
        read_image(path)


def test_an_image_over_pillows_limit_is_refused(tmp_path, photo, monkeypatch):
    Image.fromarray(photo).save(tmp_path / "p.png")
    for limit in (500, 200):  # Pillow warns up to twice the limit, and raises above
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(DataError, match=f"more than the {limit} pixels"):
            read_image(tmp_path / "p.png")


def test_masks_come_back_with_the_voc_palette(tmp_path):
    mask = np.array([[0, 1, 2], [20, 255, 0]], np.uint8)
    write_mask(tmp_path / "deep" / "m.png", mask)
    assert np.array_equal(read_mask(tmp_path / "deep" / "m.png", 20), mask)
    colors = np.asarray(Image.open(tmp_path / "deep" / "m.png").convert("RGB"))
    assert colors[0, 1].tolist() == [128, 0, 0] and colors[1, 1].tolist() == [224, 224, 192]
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["m.png"]


def test_palette_of_the_first_classes():
    expected = [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0], [0, 0, 128], [128, 0, 128], [0, 128, 128]]
    assert voc_palette()[:7].tolist() == expected


def test_a_value_that_is_no_class_is_named(tmp_path):
    write_mask(tmp_path / "m.png", np.array([[0, 7, 7]], np.uint8))
    with pytest.raises(DataError, match=r"m.png: expected mask values 0..6 or 255, got 7 in 2 pixels"):
        read_mask(tmp_path / "m.png", 6)
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(DataError, match="expected an indexed, grey or colour-coded mask, got mode F"):
        read_mask(tmp_path / "f.tif", 6)


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_colour_coded_masks_are_read_as_indexed_ones(tmp_path, mode):
    mask = np.arange(22, dtype=np.uint8).reshape(2, 11)
    mask[1, 10] = 255
    write_mask(tmp_path / "m.png", mask)
    Image.open(tmp_path / "m.png").convert(mode).save(tmp_path / "c.png")
    assert np.array_equal(read_mask(tmp_path / "c.png", 20), mask)
    with pytest.raises(DataError, match="expected mask values 0..6 or 255, got 7"):
        read_mask(tmp_path / "c.png", 6)


def test_a_colour_that_voc_does_not_use_is_named(tmp_path):
    Image.fromarray(np.array([[[0, 0, 0], [1, 2, 3]]], np.uint8)).save(tmp_path / "c.png")
    with pytest.raises(DataError, match="c.png: colour #010203 is none of VOC's"):
        read_mask(tmp_path / "c.png", 20)
