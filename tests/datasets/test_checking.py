import dataclasses
import shutil

import numpy as np
import pytest
from PIL import Image

from afactl.datasets import demo
from afactl.datasets.checking import check_splits, unequal_sizes
from afactl.datasets.masks import read_mask, write_mask
from afactl.datasets.registry import format_of, load_all
from afactl.errors import DataError


@pytest.fixture
def data(tmp_path):
    """Enough pictures that every class is trained."""
    return demo.generate(tmp_path / "data", train=24, val=4, size=64)


def check(data):
    return check_splits(load_all("folder", data), "train")


def kinds(data):
    return {defect.kind: defect for defect in check(data).defects}


def test_a_sound_dataset_has_no_defects_and_its_facts(data):
    report = check(data)
    train, val = report.splits
    assert report.defects == [] and (train.name, train.images, val.name, val.images) == ("train", 24, "val", 4)
    assert train.heights == train.widths == (64, 64, 64) and train.masked
    labels = [line.split(",")[2].split("|") for line in (data / "labels.csv").read_text().split()[1:25]]
    assert sum(train.classes) == sum(map(len, labels)) and sum(train.labels.values()) == 24


def test_shares_are_those_of_a_loop_over_the_masks(data):
    (split, _) = check(data).splits
    for label, share in enumerate(split.shares):
        masks = [read_mask(path, 6) for path in sorted((data / "masks/train").glob("*.png"))]
        covered = [(mask == label + 1).sum() / mask.size for mask in masks if (mask == label + 1).any()]
        assert share == pytest.approx(np.median(covered))
    shutil.rmtree(data / "masks")
    assert check(data).splits[0].shares == (None,) * 6


def test_every_kind_of_defect_is_found_and_named(data):
    shutil.copy(data / "images/train/0000.png", data / "images/train/0001.png")
    assert {"photo twice", "labels contradict the mask"} >= set(kinds(data)) and "0000.png" in kinds(data)[
        "photo twice"
    ].detail
    (data / "images/train/0002.png").write_bytes((data / "images/train/0002.png").read_bytes()[:500])
    write_mask(data / "masks/train/0003.png", np.full((64, 64), 77, np.uint8))
    mask = read_mask(data / "masks/val/0000.png", 6)
    write_mask(data / "masks/val/0000.png", mask[:40])
    drawn = read_mask(data / "masks/val/0001.png", 6)
    assert drawn.any()
    write_mask(data / "masks/val/0001.png", np.zeros_like(drawn))
    write_mask(data / "masks/val/0002.png", np.where(drawn > 0, 255, 0).astype(np.uint8))
    found = kinds(data)
    assert "0002.png" in found["photo cannot be read"].where and found["photo cannot be read"].detail.startswith(
        "truncated"
    )
    assert "got 77" in found["mask with unknown values"].detail
    (data / "masks/train/0004.png").write_bytes(b"cut off")
    assert kinds(data)["mask cannot be read"].detail.startswith("no image format")
    assert found["mask of another size"].detail == "64 x 40 pixels, the photo has 64 x 64"
    contradictions = {
        defect.where[-8:]: defect.detail
        for defect in check(data).defects
        if defect.kind == "labels contradict the mask" and "val" in defect.where
    }
    assert "only among the labels" in contradictions["0001.png"] and "255" not in contradictions["0001.png"]
    assert contradictions["0002.png"].endswith("the mask holds nothing but 0 and 255, which is ignored")


def test_a_class_that_is_never_trained_is_named(data):
    table = (data / "labels.csv").read_text().splitlines()
    (data / "classes.txt").write_text((data / "classes.txt").read_text() + "zebra\n")
    (data / "labels.csv").write_text("\n".join([*table[:-1], table[-1] + "|zebra"]) + "\n")
    found = kinds(data)["class without training photos"]
    assert found.where == "zebra" and found.detail == "occurs in val but never in train"


def test_real_photos_of_voc_have_no_defects_but_the_known_one(shared):
    report = check_splits(load_all("voc", shared / "data/voc-mini/VOCdevkit/VOC2012"), "train_aug")
    assert [(one.name, one.images) for one in report.splits] == [("train_aug", 120), ("train", 90), ("val", 70)]
    assert report.defects == []


def test_formats_are_told_by_what_lies_in_the_folder(shared, tiny_data, tmp_path):
    assert format_of(tiny_data) == "folder"
    assert format_of(shared / "data/voc-mini/VOCdevkit/VOC2012") == "voc"
    assert format_of(shared / "data/coco-mini") == "coco"
    assert [split.name for split in load_all("coco", shared / "data/coco-mini")] == ["train", "val"]
    with pytest.raises(DataError, match="found none"):
        format_of(tmp_path)


def test_masks_of_another_size_are_told_without_decoding(data):
    """By the beginning of the files: what follows may be damaged, and a mask on its side is left to who decodes it."""
    masks = data / "masks/val"
    write_mask(masks / "0001.png", np.zeros((64, 50), np.uint8))
    for name, size in (("images/val/0002.png", (64, 48)), ("masks/val/0002.png", (48, 64))):
        Image.new("L", size[::-1]).save(data / name)
    (masks / "0001.png").write_bytes((masks / "0001.png").read_bytes()[:-20])
    (masks / "0003.png").write_bytes(b"no image")
    (split,) = (split for split in load_all("folder", data) if split.name == "val")
    (found,) = unequal_sizes(split)
    assert (found.where, found.detail) == (str(masks / "0001.png"), "50 x 64 pixels, the photo has 64 x 64")
    assert unequal_sizes(dataclasses.replace(split, masks=None)) == []
