"""The chain for a whole batch, the form of accelerators, against the chain photo by photo: both here on the CPU."""

import pytest
import torch
import torch.nn.functional as F

from afactl.inference.refiners import build_refiner
from afactl.labels import IGNORE
from afactl.method.affinity import Walk
from afactl.method.boxes import inside_boxes
from afactl.method.cam import Thresholds
from afactl.method.pseudo_labels import Photos, combine_labels, propagated_label, refined_label
from afactl.method.side_by_side import Propagation, present_classes, propagated, refined

THRESHOLDS = Thresholds(0.35, 0.55)
BETAS = (THRESHOLDS.high, THRESHOLDS.low)
SETTINGS = {
    "par": {"iterations": 4},
    "pamr": {"iterations": 4, "dilations": (1, 2, 4)},
    "none": {},
    "crf": {"iterations": 3, "drop_below": 1e-3},
}


@pytest.fixture
def batch():
    """Four soft pictures with three, no, one and two of five classes, each with a box of its own."""
    torch.manual_seed(0)

    def soft(channels):
        return F.interpolate(torch.rand(4, channels, 7, 7), size=(50, 64), mode="bicubic").clamp(0, 1)

    label = torch.tensor([[1.0, 0, 1, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 1, 1]])
    box = torch.tensor([[0, 50, 0, 64], [3, 41, 0, 64], [7, 8, 5, 60], [0, 33, 20, 21]])
    return Photos((255 * soft(3)).round().to(torch.uint8), label, box), soft(5)


def test_classes_come_first_and_in_order(batch):
    present = present_classes(batch[0].label, torch.device("cpu"))
    assert present.taken.tolist() == [[True] * 3, [False] * 3, [True, False, False], [True, True, False]]
    chosen = [row[taken].tolist() for row, taken in zip(present.classes, present.taken, strict=True)]
    assert chosen == [[0, 2, 4], [], [1], [3, 4]]
    assert present_classes(torch.zeros(2, 5), torch.device("cpu")).classes.shape == (2, 1)


@pytest.mark.parametrize("name", SETTINGS)
def test_refined_labels_are_those_of_each_photo_alone(batch, name):
    photos, cam = batch
    refine = build_refiner(name, **SETTINGS[name])
    present = present_classes(photos.label, cam.device)
    high, low = refined(photos.image, cam, present, refine.together, BETAS).unbind(1)
    expected = refined_label(photos._replace(box=None), cam, refine, THRESHOLDS)
    assert len(expected.unique()) > 4 and torch.equal(combine_labels(high, low), expected)


@pytest.mark.parametrize("name", SETTINGS)
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_propagated_labels_are_those_of_each_photo_alone(batch, name, eps):
    photos, cam = batch
    refine, walk = build_refiner(name, **SETTINGS[name]), Walk(radius=2, alpha=2.0, eps=eps)
    log_affinity = F.logsigmoid(torch.randn(4, 4, 5, 25))
    present = present_classes(photos.label, cam.device)
    propagation = Propagation(log_affinity, walk)
    labels = propagated(photos.image, photos.box, cam, present, propagation, refine.together, BETAS)
    expected = propagated_label(photos, cam, log_affinity, walk, refine, THRESHOLDS)
    inside = inside_boxes(photos.box, (50, 64))
    assert torch.equal(combine_labels(*labels.unbind(1))[inside], expected[inside])
    assert (expected[~inside] == IGNORE).all() and len(expected[inside].unique()) > 4
