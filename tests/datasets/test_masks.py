import numpy as np
import pytest
from PIL import Image

from afactl.datasets.images import read_image
from afactl.datasets.mask_encodings import voc_palette
from afactl.datasets.masks import MaskFiles, indexed_png, read_mask, read_pair, write_mask
from afactl.datasets.samples import Sample
from afactl.errors import DataError


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


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_mask_is_turned_as_a_photo_is(tmp_path, orientation):
    """A mask that carries the orientation of its photo is one of the stored pixels."""
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    exif = Image.Exif()
    exif[0x0112] = orientation
    indexed_png(values).save(tmp_path / "m.png", exif=exif)
    Image.fromarray(values).save(tmp_path / "p.png", exif=exif)
    assert np.array_equal(read_mask(tmp_path / "m.png", 20), read_image(tmp_path / "p.png")[..., 0])


def test_a_photo_and_its_mask_have_one_size(tmp_path):
    Image.new("RGB", (7, 5)).save(tmp_path / "a.png")
    sample = Sample("a", tmp_path / "a.png", ())
    for width in (7, 6):
        write_mask(tmp_path / f"{width}.png", np.ones((5, width), np.uint8))
    image, mask = read_pair(sample, MaskFiles({"a": tmp_path / "7.png"}, 1))
    assert image.shape == (5, 7, 3) and mask.shape == (5, 7) and mask.min() == 1
    with pytest.raises(DataError, match=r"6.png: the mask has 6 x 5 pixels, expected the photo's 7 x 5"):
        read_pair(sample, MaskFiles({"a": tmp_path / "6.png"}, 1))
