import shutil

import pytest
import torch

from afactl.datasets import demo
from afactl.errors import DataError, UsageError
from afactl.machine.distributed import Shares
from afactl.training.prepared import load_data, prepare
from tests.conftest import tiny_preset

CPU = torch.device("cpu")


def test_what_is_prepared_fits_together(tiny_data):
    prepared = prepare(tiny_preset(tiny_data, "train.effective_batch=4"), CPU)
    assert prepared.model.classes == len(prepared.data.classes) == 6 and prepared.val.name == "val"
    assert prepared.shares == Shares(2, 2, 1)
    listed = {id(p) for group in prepared.optimizer.param_groups for p in group["params"]}
    assert listed == {id(p) for p in prepared.model.parameters() if p.requires_grad}


def test_photos_of_which_a_view_shows_little_are_told_of(tmp_path):
    data = demo.generate(tmp_path / "large", train=3, val=1, size=128)

    def notes(*changes):
        told = prepare(tiny_preset(data, *changes), CPU).notes
        return [note for note in told if "data.long_side" in note]

    assert notes("train.crop_size=48") == []
    (note,) = notes("train.crop_size=32")
    assert note.startswith("half of the photos are 128 pixels long or more, over 3 times train.crop_size=32")
    assert notes("train.crop_size=32", "data.long_side=96") == []


def test_tags_that_teach_little_are_told_of_where_tags_are_used(tiny_data):
    def told(*changes):
        return [note for note in prepare(tiny_preset(tiny_data, *changes), CPU).notes if "fewer than 20" in note]

    assert len(told()) == 1 and told("train.supervision=masks") == []


def test_the_seed_decides_the_weights(tiny_data):
    first, again, other = (
        prepare(tiny_preset(tiny_data, f"train.seed={seed}"), CPU).model.classifier for seed in (0, 0, 1)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_what_is_wrong_is_told(tmp_path, tiny_data):
    with pytest.raises(UsageError, match='cam.refiner: "pra" is unknown'):
        prepare(tiny_preset(tiny_data, "cam.refiner=pra"), CPU)
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    (data / "masks/val/0001.png").unlink()
    with pytest.raises(DataError, match="split val: 1 of 8 listed files"):
        prepare(tiny_preset(data), CPU)
    shutil.rmtree(data / "masks")
    assert load_data(tiny_preset(data))[1] is None, "nothing to score on"
