import pytest
import torch

from afactl.errors import AfactlError, CacheError, DataError, PresetError, ShapeError, UsageError, check_shape, nearest


def test_exit_codes():
    assert {error("x").exit_code for error in (UsageError, PresetError)} == {2}
    assert {error("x").exit_code for error in (AfactlError, DataError, CacheError, ShapeError)} == {1}


def test_shapes_are_checked_by_axis():
    check_shape("cam", torch.zeros(2, 3, 4), "B C N", C=3)
    with pytest.raises(ShapeError, match=r"cam: expected 2 axes \(B C\), got shape \(2, 3, 4\)"):
        check_shape("cam", torch.zeros(2, 3, 4), "B C")
    with pytest.raises(ShapeError, match=r"cam: expected C = 5 in \(B C N\)"):
        check_shape("cam", torch.zeros(2, 3, 4), "B C N", C=5)


def test_the_nearest_name_or_the_whole_list():
    assert nearest("vok", ["voc", "coco"]) == '; did you mean "voc"?'
    assert nearest("xyz", ["voc", "coco"]) == "; known: voc, coco"
