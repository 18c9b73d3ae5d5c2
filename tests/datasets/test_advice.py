"""What tags alone can teach, told before a training."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afactl.datasets import advice
from afactl.datasets.advice import object_advice, size_advice, tag_advice
from afactl.datasets.checking import SplitFacts
from afactl.datasets.samples import Sample, Split

NAMES = ("cat", "dog", "cow")


def split_of(*labels, names=NAMES):
    samples = tuple(Sample(str(number), Path("x"), tuple(one)) for number, one in enumerate(labels))
    return Split("train", names, samples)


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(advice, "FEW", 2)


def test_tags_that_tell_classes_apart_need_no_advice():
    assert tag_advice(split_of([0], [0], [1, 2], [1, 2], [2, 0], [1])) == []
    assert tag_advice(split_of([])) == []


def test_the_same_tags_everywhere_teach_nothing():
    (note,) = tag_advice(split_of([0, 1], [0, 1], [0, 1]))
    assert note.startswith("every photo of train has the same tags (cat, dog): there is nothing to learn from")
    (note,) = tag_advice(split_of([], []))
    assert "the same tags (none)" in note


def test_a_class_that_is_always_there_is_told():
    (note,) = tag_advice(split_of([0, 1], [0, 1], [0, 2], [0, 2]))
    assert note.startswith("in every photo of train: cat; what is always there cannot be told from the background")


def test_classes_that_occur_only_together_are_told():
    (note,) = tag_advice(split_of([0, 1], [0, 1], [2], [2]))
    assert note.startswith("only together in train: cat and dog; tags cannot tell them apart")
    names = ("a", "b", "c", "d", "e")
    (note,) = tag_advice(split_of([0, 1, 2, 3], [0, 1, 2, 3], [4], [4], names=names))
    assert "a and b; a and c; a and d ...;" in note


def test_a_class_with_few_photos_is_told_and_one_with_none_is_a_defect_of_its_own():
    (note,) = tag_advice(split_of([0], [0], [1]))
    assert note.startswith("classes with fewer than 2 photos in train: dog 1;")


def test_names_that_differ_only_in_case_are_told():
    (note,) = tag_advice(split_of([0], [0], [1], [1], [2], [2], names=("Cat", "cat", "dog")))
    assert note == "class names that differ only in case: Cat and cat; one of each, if they mean the same"


def test_photos_of_which_a_view_shows_little(tmp_path):
    samples = []
    for number, width in enumerate((90, 100, 110)):
        Image.fromarray(np.zeros((20, width, 3), np.uint8)).save(tmp_path / f"{number}.png")
        samples.append(Sample(str(number), tmp_path / f"{number}.png", ()))
    split = Split("train", NAMES, tuple(samples))
    assert size_advice(split, 34, None) == [] and size_advice(split, 33, 64) == []
    (note,) = size_advice(split, 33, None)
    assert note.startswith("half of the photos are 100 pixels long or more, over 3 times train.crop_size=33")
    assert note.endswith("--set data.long_side=99 reduces them first")


@pytest.mark.parametrize("name", ["a,b", "a;b", "a|b", " a", "a "])
def test_names_that_tables_would_take_apart_are_told(name):
    (note,) = tag_advice(split_of([0], [0], [1], [1], names=(name, "dog")))
    assert note.startswith("class names with") and repr(name) in note and "'dog'" not in note


def test_classes_that_cover_next_to_nothing_are_told():
    facts = SplitFacts("train", 3, (1, 1, 1), (1, 1, 1), (1, 1, 1), {1: 3}, True, (0.5, 0.004, None))
    (note,) = object_advice(facts, NAMES)
    assert "tiny objects in train" in note and "dog 0.4 %" in note and "cat" not in note and "cow" not in note
    assert object_advice(facts._replace(shares=(0.5, 0.01, None)), NAMES) == []
