import pytest
import torch

from afactl.errors import (
    LISTED,
    AfactlError,
    CacheError,
    DataError,
    PresetError,
    ShapeError,
    UsageError,
    check_shape,
    counted,
    nearest,
)


def test_exit_codes():
    assert {error("x").exit_code for error in (UsageError, PresetError)} == {2}
    assert {error("x").exit_code for error in (AfactlError, DataError, CacheError, ShapeError)} == {1}


def test_shapes_are_checked_by_axis():
    check_shape("cam", torch.zeros(2, 3, 4), "B C N", C=3)
    with pytest.raises(ShapeError, match=r"cam: expected 2 axes \(B C\), got shape \(2, 3, 4\)"):
        check_shape("cam", torch.zeros(2, 3, 4), "B C")
    with pytest.raises(ShapeError, match=r"cam: expected C = 5 in \(B C N\)"):
        check_shape("cam", torch.zeros(2, 3, 4), "B C N", C=5)


def test_the_nearest_name_or_the_list_as_far_as_it_can_be_read():
    assert nearest("vok", ["voc", "coco"]) == '; did you mean "voc"?'
    assert nearest("xyz", ["voc", "coco"]) == "; known: voc, coco"
    assert nearest("DGO", ["Dog", "cat"]) == '; did you mean "Dog"?'
    many = [f"name {number}" for number in range(LISTED + 2)]
    assert nearest("xyz", many).endswith(f"name {LISTED - 1} and 2 more")
    assert nearest("name 31x", many) == '; did you mean "name 31"?'


def test_a_number_has_the_word_that_fits():
    assert [counted(number, "photo") for number in (0, 1, 2)] == ["0 photos", "1 photo", "2 photos"]
    assert counted(1, "entry", "entries") == "1 entry" and counted(2, "entry", "entries") == "2 entries"
