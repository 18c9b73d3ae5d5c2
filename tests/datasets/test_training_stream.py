import dataclasses
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from afactl.datasets.masks import MaskFiles
from afactl.datasets.samples import Sample, Split
from afactl.datasets.training_stream import Crops, TrainingStream


@pytest.fixture
def split(tmp_path):
    samples = []
    for i in range(5):
        Image.fromarray(np.full((20, 24, 3), 40 * i, np.uint8)).save(tmp_path / f"{i}.png")
        samples.append(Sample(str(i), tmp_path / f"{i}.png", (i % 3,)))
    return Split("train", ("a", "b", "c"), tuple(samples), None)


def stream(split, start=0, stop=20, seed=0, masks=False):
    return TrainingStream(split, Crops(32, (0.5, 2.0)), seed, range(start, stop), masks)


def test_each_epoch_shows_every_photo_once_in_another_order(split):
    ids = [item["image_id"] for item in stream(split)]
    epochs = [ids[i : i + 5] for i in range(0, 20, 5)]
    assert all(sorted(epoch) == list("01234") for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1


def test_a_stream_that_starts_later_goes_on_the_same(split):
    whole, later = list(stream(split)), list(stream(split, start=7))
    assert len(later) == 13
    for one, other in zip(whole[7:], later, strict=True):
        assert one["image_id"] == other["image_id"]
        assert torch.equal(one["image"], other["image"]) and torch.equal(one["box"], other["box"])


def test_another_seed_gives_other_views(split):
    first, second = list(stream(split)), list(stream(split, seed=1))
    assert any(a["image_id"] != b["image_id"] for a, b in zip(first, second, strict=True))


def test_what_an_item_holds(split):
    item = stream(split)[3]
    index = int(item["image_id"]) % 3
    assert item["image"].shape == (3, 32, 32) and item["image"].dtype == torch.uint8
    assert item["label"].tolist() == [float(i == index) for i in range(3)]
    y0, y1, x0, x1 = item["box"].tolist()
    assert (item["image"][:, y0:y1, x0:x1] == 40 * int(item["image_id"])).all()


def test_masks_come_along_for_full_supervision(split):
    for sample in split.samples:
        mask = np.full((20, 24), 1 + sample.labels[0], np.uint8)
        Image.fromarray(mask).save(sample.image_path.with_suffix(".mask.png"))
    paths = {sample.image_id: sample.image_path.with_suffix(".mask.png") for sample in split.samples}
    masked = dataclasses.replace(split, masks=MaskFiles(paths, 3))
    plain, item = stream(split)[3], stream(masked, masks=True)[3]
    y0, y1, x0, x1 = item["box"].tolist()
    assert "mask" not in plain and torch.equal(plain["image"], item["image"])
    assert (item["mask"][y0:y1, x0:x1] == 1 + item["label"].argmax()).all()
    assert int((item["mask"] != 255).sum()) == (y1 - y0) * (x1 - x0)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_reading_two_thousand_photos_takes_no_more_memory(tiny_data):
    """What a worker holds after 200 photos it holds after 2,000."""
    script = """
import sys
from pathlib import Path
from afactl.datasets.registry import load_split
from afactl.datasets.training_stream import Crops, TrainingStream
stream = TrainingStream(load_split("folder", Path(sys.argv[1]), "train"), Crops(64, (0.5, 2.0)), 0, range(2000), True)
def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])
for item in range(2000):
    stream[item]
    if item == 200:
        early = resident()
print(resident() / early)
"""
    grown = subprocess.run([sys.executable, "-c", script, str(tiny_data)], capture_output=True, text=True, check=True)
    assert float(grown.stdout) < 1.05
