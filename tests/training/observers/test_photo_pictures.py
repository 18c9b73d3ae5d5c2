"""The pictures that programs which follow a training are given."""

import numpy as np
import torch

from afactl.datasets.registry import load_split
from afactl.inference.trained_run import open_run
from afactl.training.events import BetweenSteps
from afactl.training.observers.photo_pictures import PHOTOS, photo_pictures

KINDS = ("CAM", "attention", "pseudo label", "segmentation")


def test_four_pictures_of_each_of_the_first_photos(tiny_run, tiny_data):
    run, split = open_run(tiny_run, torch.device("cpu")), load_split("folder", tiny_data, "val")
    pictures = dict(photo_pictures(BetweenSteps(4, run, split)))
    assert list(pictures) == [f"{sample.image_id}/{kind}" for sample in split.samples[:PHOTOS] for kind in KINDS]
    assert {picture.shape for picture in pictures.values()} == {(64, 64, 3)}
    assert {picture.dtype for picture in pictures.values()} == {np.dtype(np.uint8)}
    assert len({picture.tobytes() for picture in pictures.values()}) > 3 * PHOTOS, "they are different pictures"


def test_a_damaged_photo_is_left_out_and_the_mode_comes_back(tiny_run, tiny_data, tmp_path):
    run, split = open_run(tiny_run, torch.device("cpu")), load_split("folder", tiny_data, "val")
    (tmp_path / "bad.png").write_bytes(b"no picture")
    first = split.samples[0]._replace(image_path=tmp_path / "bad.png")
    split = split.__class__(split.name, split.classes, (first, *split.samples[1:]))
    run.model.train()
    names = {name.rpartition("/")[0] for name, _ in photo_pictures(BetweenSteps(4, run, split))}
    assert run.model.training and names == {sample.image_id for sample in split.samples[1:PHOTOS]}
