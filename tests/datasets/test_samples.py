"""A split goes to worker processes whole, whichever way those are started."""

import json
import pickle
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader

from afactl.datasets.preparing import prepare_coco
from afactl.datasets.registry import load_split
from afactl.datasets.samples import Sample, Split
from afactl.datasets.training_stream import Crops, TrainingStream
from afactl.errors import UsageError
from tests.conftest import make_voc


def make_coco(root):
    """A photo of 10 x 10 pixels with one object."""
    pytest.importorskip("pycocotools", reason="COCO masks need the extra [coco]")
    pytest.importorskip("ijson", reason="COCO annotations need the extra [coco]")
    shape = {"segmentation": [[2, 2, 8, 2, 8, 8, 2, 8]], "area": 36}
    table = {
        "images": [{"id": 1, "file_name": "a.png", "height": 10, "width": 10}],
        "categories": [{"id": 18, "name": "dog"}],
        "annotations": [{"image_id": 1, "category_id": 18, "iscrowd": 0, **shape}],
    }
    (root / "annotations").mkdir(parents=True)
    (root / "annotations" / "instances_train2014.json").write_text(json.dumps(table))
    (root / "train2014").mkdir()
    Image.new("RGB", (10, 10), "white").save(root / "train2014" / "a.png")
    return root


def make_folder(root):
    (root / "images").mkdir(parents=True)
    (root / "masks").mkdir()
    (root / "labels.csv").write_text("image,split,labels\nimages/a.png,train,dog\n")
    Image.new("RGB", (10, 10), "white").save(root / "images" / "a.png")
    Image.fromarray(np.eye(10, dtype=np.uint8)).save(root / "masks" / "a.png")
    return root


def split_of(name, root, tiny_data):
    """A split with masks of each format."""
    if name == "voc":
        make_voc(root, {"train": ["s1"], "val": []}, {"s1": [0, 3, 255]})
        Image.new("RGB", (3, 4), "white").save(root / "JPEGImages" / "s1.jpg")
    elif name == "folder":
        make_folder(root)
    elif name != "demo":
        make_coco(root)
        if name == "prepared coco":
            prepare_coco(root, "train")
    return load_split(name.removeprefix("prepared "), tiny_data if name == "demo" else root, "train")


FORMATS = ("voc", "coco", "prepared coco", "folder", "demo")


@pytest.mark.parametrize("name", FORMATS)
def test_a_split_is_the_same_after_pickling(name, tmp_path, tiny_data):
    split = split_of(name, tmp_path / "data", tiny_data)
    copy = pickle.loads(pickle.dumps(split))
    assert (copy.name, copy.classes, copy.samples) == (split.name, split.classes, split.samples)
    for sample in split.samples:
        mask = split.masks.read(sample)
        assert mask.any() and np.array_equal(copy.masks.read(sample), mask)
        assert copy.masks.path(sample) == split.masks.path(sample)
        assert (split.masks.path(sample) is None) == (name == "coco")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_read_masks_of_every_format_however_they_are_started(method, tmp_path, tiny_data):
    streams = [
        TrainingStream(split_of(name, tmp_path / name, tiny_data), Crops(32, (0.5, 2.0)), 0, range(2), masks=True)
        for name in FORMATS
    ]
    views = ConcatDataset(streams)
    loader = DataLoader(views, batch_size=None, num_workers=1, multiprocessing_context=method)
    loaded = list(loader)
    assert len(loaded) == 2 * len(FORMATS)
    for number, view in enumerate(loaded):
        assert (view["mask"] == views[number]["mask"]).all() and (view["image"] == views[number]["image"]).all()


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_a_training_reads_in_workers_however_they_are_started(method, tmp_path, tiny_data):
    """Full supervision needs the masks there; macOS and Windows spawn, Python 3.14 starts by a fork server."""
    script = f"""
import multiprocessing, sys
from afactl.cli.main import main
if __name__ == "__main__":
    multiprocessing.set_start_method("{method}")
    main(sys.argv[1:])
"""
    (tmp_path / "job.py").write_text(script)
    sets = [
        "train.max_iters=1",
        "train.batch_size=2",
        "train.crop_size=32",
        "model.decoder_width=16",
        "train.supervision=masks",
        "train.workers=1",
        "data.val_split=train",
        "model.init=none",
    ]
    options = ["--data", tiny_data, "--out", tmp_path / "run", "--device", "cpu"]
    call = [sys.executable, tmp_path / "job.py", "train", "demo", *options]
    call += [part for override in sets for part in ("--set", override)]
    done = subprocess.run(call, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"loss_seg"' in (tmp_path / "run" / "metrics.jsonl").read_text()


def test_a_stream_without_masks_carries_none_to_its_workers(tmp_path, tiny_data):
    """COCO's outlines are hundreds of megabytes."""
    split = split_of("demo", tmp_path, tiny_data)
    assert TrainingStream(split, Crops(32, (1.0, 1.0)), 0, range(2)).split.masks is None
    assert TrainingStream(split, Crops(32, (1.0, 1.0)), 0, range(2), masks=True).split.masks is split.masks


def test_a_split_without_masks_says_what_needs_them(tmp_path):
    split = Split("val", ("a",), (Sample("1", tmp_path / "1.png", ()),))
    with pytest.raises(UsageError, match="split val: scoring needs true masks and it has none"):
        split.require_masks()
    with pytest.raises(UsageError, match=r"split val: train\.supervision=masks needs true masks"):
        split.require_masks("train.supervision=masks")
