import json
import shutil

import numpy as np
import pytest
from PIL import Image

from afactl.datasets.images import read_image
from afactl.datasets.mask_labels import labels_from_masks
from afactl.datasets.masks import write_mask
from afactl.datasets.registry import check_files
from afactl.datasets.voc import CLASSES, load
from afactl.errors import DataError
from tests.conftest import make_voc


@pytest.fixture
def tiny(tmp_path):
    """Three official photos, two in val, and one of SBD."""
    masks = {"t1": [0, 1], "v1": [15, 255], "v2": [0, 0]}
    root = make_voc(tmp_path / "VOC2012", {"train": ["t1"], "val": ["v1", "v2"]}, masks)
    for image_id, row in {**masks, "s1": [20, 3]}.items():
        Image.fromarray(np.zeros((4, 2, 3), np.uint8)).save(root / "JPEGImages" / f"{image_id}.jpg")
        write_mask(root / "SegmentationClassAug" / f"{image_id}.png", np.array([row] * 4, np.uint8))
    return root


def test_lists_and_labels_come_from_the_files(tiny):
    train, val, augmented = (load(tiny, name) for name in ("train", "val", "train_aug"))
    assert [s.image_id for s in train.samples] == ["t1"] and train.samples[0].labels == (0,)
    assert [(s.image_id, s.labels) for s in val.samples] == [("v1", (14,)), ("v2", ())]
    assert [s.image_id for s in augmented.samples] == ["s1", "t1"], "SegmentationClassAug minus val"
    assert augmented.samples[0].labels == (2, 19)
    assert augmented.masks.read(augmented.samples[0])[0].tolist() == [20, 3]
    assert train.classes == CLASSES and len(CLASSES) == 20


def test_without_sbd_the_plain_list_is_named(tiny):
    shutil.rmtree(tiny / "SegmentationClassAug")
    with pytest.raises(DataError, match="--set data.train_split=train"):
        load(tiny, "train_aug")
    assert len(load(tiny, "train").samples) == 1


def test_the_right_folder_is_offered(tiny):
    with pytest.raises(DataError, match=f"give --data {tiny}"):
        load(tiny.parent, "train")
    with pytest.raises(DataError, match="give the VOC2012 folder"):
        load(tiny / "JPEGImages", "train")
    with pytest.raises(DataError, match='no split "trian"; did you mean "train"'):
        load(tiny, "trian")


def test_missing_masks_and_values_outside_the_classes_are_named(tiny):
    (tiny / "SegmentationClass" / "t1.png").unlink()
    (tiny / "SegmentationClassAug" / "t1.png").unlink()
    with pytest.raises(DataError, match=r"1 of 1 masks of split train are missing \(first: t1\)"):
        load(tiny, "train")
    write_mask(tiny / "SegmentationClass" / "t1.png", np.array([[21]], np.uint8))
    with pytest.raises(DataError, match="got 21 in 1 pixels"):
        load(tiny, "train")


@pytest.mark.parametrize(
    "line",
    [
        *("t1  ", "\ufefft1", "t1  1"),
        *("/JPEGImages/t1.jpg  /SegmentationClass/t1.png", "JPEGImages/t1.jpg SegmentationClass/t1.png"),
    ],
)
def test_lists_of_other_tools_are_read(tiny, line):
    (tiny / "ImageSets/Segmentation/train.txt").write_text(f"{line}\n\n", encoding="utf-8")
    assert [sample.image_id for sample in load(tiny, "train").samples] == ["t1"]


@pytest.mark.parametrize("line", ["t1 -1", "t1 0", "t1 v1 v2"])
def test_lists_that_say_something_else_are_told(tiny, line):
    (tiny / "ImageSets/Segmentation/train.txt").write_text(f"v1\n{line}\n")
    with pytest.raises(DataError, match=f'train.txt, line 2: expected the id of a photo, got "{line}"'):
        load(tiny, "train")


def test_masks_without_any_class_are_refused(tmp_path):
    root = make_voc(tmp_path / "VOC2012", {"train": ["a", "b"]}, {"a": [0, 255], "b": [0, 0]})
    with pytest.raises(DataError, match="no mask of split train holds a class, all values are 0 or 255"):
        load(root, "train")


def test_masks_that_an_editor_saved_again_keep_their_classes(tmp_path):
    root = make_voc(tmp_path / "VOC2012", {"train": ["a"]}, {"a": [0, 15, 7, 255]})
    path = root / "SegmentationClass" / "a.png"
    with Image.open(path) as image:
        again = image.convert("RGB").convert("P", palette=Image.Palette.ADAPTIVE)
    assert 15 not in np.asarray(again), "the indices are others"
    again.save(path)
    (sample,) = load(root, "train").samples
    assert sample.labels == (6, 14)


def test_labels_are_remembered_and_derived_again_when_a_mask_changes(tmp_path, monkeypatch):
    monkeypatch.setenv("AFACTL_CACHE", str(tmp_path / "cache"))
    mask = tmp_path / "m.png"
    write_mask(mask, np.array([[0, 3]], np.uint8))
    assert labels_from_masks([mask], 20) == [(2,)]
    (known,) = (tmp_path / "cache" / "labels").glob("*.json")
    known.write_text(json.dumps([[7]]))
    assert labels_from_masks([mask], 20) == [(7,)], "the second call reads what was kept"
    known.write_text("[[")
    assert labels_from_masks([mask], 20) == [(2,)], "a damaged file is derived again"
    write_mask(mask, np.array([[5, 3, 1, 1]], np.uint8))
    assert labels_from_masks([mask], 20) == [(0, 2, 4)]


def test_a_cache_folder_that_cannot_be_written_costs_nothing_but_time(tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("AFACTL_CACHE", str(tmp_path / "file"))
    write_mask(tmp_path / "m.png", np.array([[0, 3]], np.uint8))
    assert labels_from_masks([tmp_path / "m.png"], 20) == [(2,)]


def test_voc_mini(shared):
    root = shared / "data" / "voc-mini" / "VOCdevkit" / "VOC2012"
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    splits = {name: load(root, name) for name in ("train", "val", "train_aug")}
    assert {name: len(split.samples) for name, split in splits.items()} == {"train": 90, "val": 70, "train_aug": 120}
    ids = {name: {s.image_id for s in split.samples} for name, split in splits.items()}
    assert ids["train"] < ids["train_aug"] and not ids["train_aug"] & ids["val"]
    for split in splits.values():
        check_files(split, masks=True)
        for sample in split.samples:
            assert sample.labels, sample.image_id
    sample = splits["val"].samples[0]
    assert splits["val"].masks.read(sample).shape == read_image(sample.image_path).shape[:2]
