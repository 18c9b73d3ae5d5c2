import numpy as np
import pytest
from PIL import Image

from afactl.datasets.images import image_size, read_image
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
