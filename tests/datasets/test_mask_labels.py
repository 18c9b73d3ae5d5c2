"""What masks say as a whole: image-level labels, what white means; and the file that remembers it."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from afactl.datasets import mask_labels
from afactl.datasets.mask_labels import labels_from_masks, white_of
from afactl.datasets.masks import read_mask, write_mask
from afactl.errors import DataError


@pytest.fixture
def masks(tmp_path, monkeypatch):
    """Three masks: classes 0 and 4 with ignored pixels, nothing, class 2; the cache folder is empty."""
    monkeypatch.setenv("AFACTL_CACHE", str(tmp_path / "cache"))
    paths = [tmp_path / f"{name}.png" for name in "abc"]
    for path, values in zip(paths, ([5, 1, 255, 0], [0, 255, 0, 0], [3, 3, 3, 3]), strict=True):
        write_mask(path, np.array(values, np.uint8).reshape(2, 2))
    return paths


def kept(tmp_path):
    return sorted((tmp_path / "cache" / "labels").glob("*.json"))


def never(*arguments):
    raise AssertionError("a mask is read again")


def test_labels_are_the_classes_that_are_drawn(masks):
    assert labels_from_masks(masks, 20) == [(0, 4), (), (2,)]


def test_a_second_call_reads_no_mask(masks, monkeypatch):
    first = labels_from_masks(masks, 20)
    monkeypatch.setattr(mask_labels, "read_mask", never)
    assert labels_from_masks(masks, 20) == first
    with pytest.raises(AssertionError):
        labels_from_masks(masks[:2], 20)


def test_a_mask_that_changed_is_read_again(masks):
    labels_from_masks(masks, 20)
    status = masks[1].stat()
    write_mask(masks[1], np.full((2, 2), 7, np.uint8))
    os.utime(masks[1], ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert labels_from_masks(masks, 20)[1] == (6,)


def test_with_fewer_classes_a_value_is_none_of_them(masks):
    labels_from_masks(masks, 20)
    with pytest.raises(DataError, match=r"a\.png: expected mask values 0\.\.4 or 255, got 5"):
        labels_from_masks(masks, 4)


@pytest.mark.parametrize("text", ["", "[[1]", "[1, 2, 3]", "[[0, 4], []]", "{}"])
def test_a_damaged_memory_is_written_anew(masks, tmp_path, text):
    labels_from_masks(masks, 20)
    (path,) = kept(tmp_path)
    path.write_text(text)
    assert labels_from_masks(masks, 20) == [(0, 4), (), (2,)]
    assert json.loads(path.read_text()) == [[0, 4], [], [2]]


def test_a_cache_folder_that_cannot_be_written_costs_nothing_but_time(masks, tmp_path):
    (tmp_path / "cache").write_text("a file stands in its place")
    assert labels_from_masks(masks, 20) == [(0, 4), (), (2,)]


ONE_BIT = "1 bit"


def put(folder, *rows):
    """Grey masks of one row each, or such of one bit."""
    paths = []
    for number, row in enumerate(rows):
        paths.append(folder / f"{number}.png")
        image = Image.fromarray(np.array([row[1:] if row[0] == ONE_BIT else row], np.uint8))
        (image.convert("1") if row[0] == ONE_BIT else image).save(paths[-1])
    return paths


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[0, 255], [0, 0], [255, 255]], 1),
        ([[0, 255], [1, 0]], 255),
        ([[0, 1], [0, 255]], 255),
        ([[0, 1], [0, 0]], 255),
        # Masks of one bit say nothing of 255 in others.
        ([[ONE_BIT, 0, 255], [0, 255]], 1),
        ([[ONE_BIT, 0, 255], [0, 1, 255]], 255),
    ],
)
def test_white_is_the_one_class_where_no_mask_holds_its_number(tmp_path, rows, expected):
    paths = put(tmp_path, *rows)
    assert white_of(tmp_path, paths, 1) == expected
    first = read_mask(paths[0], 1, white_of(tmp_path, paths, 1))
    assert first.tolist() == [[0, 1] if rows[0][0] == ONE_BIT or expected == 1 else rows[0]]


def test_of_several_classes_white_is_never_one(tmp_path):
    assert white_of(tmp_path, put(tmp_path, [0, 255], [0, 3]), 3) == 255
    with pytest.raises(DataError, match="none of 2 masks holds a class, all values are 0 or 255, and black and white"):
        white_of(tmp_path, put(tmp_path, [0, 255], [ONE_BIT, 0, 255]), 3)


@pytest.mark.parametrize("classes", [1, 3])
def test_masks_without_any_class_are_refused(tmp_path, classes):
    with pytest.raises(DataError, match="none of 2 masks holds a class, all values are 0; save class numbers"):
        white_of(tmp_path, put(tmp_path, [0, 0], [0]), classes)


def test_masks_that_cannot_be_read_are_left_to_those_who_name_them(tmp_path):
    paths = put(tmp_path, [0, 255])
    (tmp_path / "broken.png").write_bytes(b"cut")
    others = [tmp_path / "broken.png", tmp_path / "missing.png"]
    assert white_of(tmp_path, others, 1) == 255
    assert white_of(tmp_path, [*others, *paths], 1) == 1


def test_what_white_means_is_found_again_when_a_mask_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("AFACTL_CACHE", str(tmp_path / "cache"))
    paths = put(tmp_path, [0, 255], [0, 255])
    assert white_of(tmp_path, paths, 1) == 1
    put(tmp_path, [0, 255], [0, 1, 1])
    assert white_of(tmp_path, paths, 1) == 255
