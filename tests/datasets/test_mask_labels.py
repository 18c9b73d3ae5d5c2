"""Image-level labels out of masks, and the file that remembers them."""

import json
import os

import numpy as np
import pytest

from afactl.datasets import mask_labels
from afactl.datasets.mask_labels import labels_from_masks
from afactl.datasets.masks import write_mask
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
