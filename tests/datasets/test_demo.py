import json
import os

import numpy as np
import pytest

from afactl.datasets import demo
from afactl.datasets.images import read_image
from afactl.datasets.registry import check_files, load_split
from afactl.errors import DataError


@pytest.fixture(scope="module")
def pictures():
    return [demo.draw_image(np.random.default_rng((0, 0, i)), 96) for i in range(40)]


def test_labels_are_the_classes_of_the_mask(pictures):
    for image, mask, labels in pictures:
        assert image.shape == (96, 96, 3) and mask.shape == (96, 96)
        assert [label + 1 for label in labels] == [value for value in np.unique(mask).tolist() if value]


def test_the_set_is_varied(pictures):
    counts = [len(labels) for _, _, labels in pictures]
    assert {1, 2, 3} <= set(counts)
    assert {label for _, _, labels in pictures for label in labels} == set(range(len(demo.CLASSES)))
    share = np.mean([(mask > 0).mean() for _, mask, _ in pictures])
    assert 0.15 < share < 0.35


def test_the_head_is_more_vivid_than_the_body(pictures):
    """A raw CAM is meant to find a part: every object has a saturated part smaller than itself."""
    for image, mask, labels in pictures:
        saturation = np.ptp(image.astype(int), axis=2)
        for label in labels:
            inside = saturation[mask == label + 1]
            assert (inside > 90).any()
            assert (inside > 90).mean() < 0.75


def test_the_same_seed_draws_the_same(tmp_path):
    first, second = (demo.generate(tmp_path / name, train=3, val=2, size=64) for name in "ab")
    for path in sorted(first.rglob("*.png")):
        assert path.read_bytes() == (second / path.relative_to(first)).read_bytes()
    assert (first / "labels.csv").read_text() == (second / "labels.csv").read_text()
    other = demo.generate(tmp_path / "c", train=3, val=2, size=64, seed=1)
    assert (other / "images/train/0000.png").read_bytes() != (first / "images/train/0000.png").read_bytes()


def test_the_folder_loads_as_a_dataset(tmp_path):
    folder = demo.generate(tmp_path / "demo", train=3, val=2, size=64)
    train, val = (load_split("demo", folder, name) for name in ("train", "val"))
    assert (len(train.samples), len(val.samples)) == (3, 2) and train.classes == demo.CLASSES
    check_files(val, masks=True)
    assert read_image(val.samples[0].image_path).shape == (64, 64, 3)
    assert val.masks.read(val.samples[0]).shape == (64, 64)


def test_it_is_made_once_and_again_for_another_recipe(tmp_path):
    folder = demo.generate(tmp_path / "demo", train=2, val=1, size=64)
    before = os.stat(folder / "labels.csv").st_mtime_ns
    demo.generate(folder, train=2, val=1, size=64)
    assert os.stat(folder / "labels.csv").st_mtime_ns == before
    demo.generate(folder, train=3, val=1, size=64)
    assert json.loads((folder / "dataset.json").read_text())["train"] == 3
    assert len(load_split("demo", folder, "train").samples) == 3


def test_a_half_made_set_is_made_whole(tmp_path):
    half = tmp_path / "demo.new" / "images"
    half.mkdir(parents=True)
    (half / "left over.png").write_bytes(b"half")
    folder = demo.generate(tmp_path / "demo", train=2, val=1, size=64)
    assert not (tmp_path / "demo.new").exists() and not list(folder.rglob("left over.png"))


def test_other_files_are_never_replaced(tmp_path):
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "mine.txt").write_text("keep")
    with pytest.raises(DataError, match="found other files; set AFACTL_CACHE"):
        demo.generate(tmp_path / "demo", train=2, val=1, size=64)
    assert (tmp_path / "demo" / "mine.txt").read_text() == "keep"


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written there"):
        demo.generate(tmp_path / "file" / "demo", train=1, val=1, size=64)


def test_the_default_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("AFACTL_CACHE", str(tmp_path))
    assert demo.default_folder() == tmp_path / "demo"
    monkeypatch.delenv("AFACTL_CACHE")
    assert demo.default_folder().parts[-3:] == (".cache", "afactl", "demo")
