"""The values of labels: 255 is the one that takes no part, in every place that writes or reads labels."""

import numpy as np
import torch

from afactl.datasets.masks import read_mask, write_mask
from afactl.evaluation.metrics import confusion_matrix
from afactl.labels import IGNORE
from afactl.method.affinity import affinity_label
from afactl.method.cam import ignore_outside
from afactl.method.losses import segmentation_loss


def test_ignored_pixels_take_no_part_anywhere(tmp_path):
    label = torch.tensor([[[0, 1], [2, 1]]], dtype=torch.uint8)
    outside = ignore_outside(label, torch.tensor([[0, 2, 0, 1]]))
    assert outside[0].tolist() == [[0, IGNORE], [2, IGNORE]]
    write_mask(tmp_path / "a.png", outside[0].numpy())
    assert read_mask(tmp_path / "a.png", 2).tolist() == outside[0].tolist(), "a mask with 2 classes may hold it"
    counts = confusion_matrix(label[0].numpy(), outside[0].numpy(), 3)
    assert counts.sum() == 2 and counts[1].sum() == 0
    assert set(affinity_label(outside, (2, 2), 1).unique().tolist()) == {0, 1, IGNORE}
    logits = torch.randn(1, 3, 2, 2)
    changed = logits.clone()
    changed[..., 1] += torch.randn(1, 3, 2)
    assert torch.equal(segmentation_loss(logits, outside), segmentation_loss(changed, outside))


def test_it_is_no_class_of_any_dataset():
    """Masks are bytes; VOC's palette gives 255 a colour of its own, and 254 classes still fit below it."""
    assert np.uint8(IGNORE) == 255 == np.iinfo(np.uint8).max
