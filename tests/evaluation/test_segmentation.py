"""Scores of the segmentation: the rows of `eval`, protocols by name, and the validation during training."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from afactl.datasets.images import read_image, reduce_image
from afactl.datasets.masks import enlarge_mask
from afactl.errors import DataError
from afactl.evaluation.metrics import confusion_matrix, mean_iou
from afactl.evaluation.pseudo_labels import score_pseudo_labels
from afactl.evaluation.segmentation import evaluate_segmentation, validate, with_protocol
from afactl.inference.segmentation import Passes, multi_scale, photo_mask, segment
from afactl.presets import PROTOCOLS, Eval, load_preset, protocol_name
from afactl.runs.folder import read_scores
from tests.conftest import TINY

CPU = torch.device("cpu")


def test_segmentation_rows(run, val):
    scores = evaluate_segmentation(run, val, crf="torch")
    assert [score.name for score in scores] == ["single scale", "multi-scale + flip", "multi-scale + flip + CRF"]
    counts = np.zeros((7, 7), np.int64)
    for sample in val.samples:
        prediction = segment(run.model, read_image(sample.image_path), CPU).argmax(0).numpy()
        counts += confusion_matrix(val.masks.read(sample), prediction, 7)
    assert np.array_equal(scores[0].confusion, counts)
    assert len(evaluate_segmentation(run, val)) == 2


def test_the_crf_scores_the_same_over_processes(run, val, monkeypatch):
    alone = evaluate_segmentation(run, val, crf="torch")[2].confusion
    monkeypatch.setattr("afactl.machine.parallel.WORTHWHILE", 2)
    assert np.array_equal(evaluate_segmentation(run, val, crf="torch")[2].confusion, alone)


def test_validation_agrees_with_the_commands(run, val):
    found = validate(run.model, val, load_preset("demo", TINY), CPU)
    assert found.scores["val_seg_miou"] == pytest.approx(evaluate_segmentation(run, val)[0].miou, abs=1e-6)
    assert found.left_out == found.non_finite == []
    assert found.scores["val_cam_miou"] == pytest.approx(
        score_pseudo_labels(run, val).scores["AFA (w/o prop.)"][0].miou, abs=1e-6
    )


class Spoiled:
    """Masks of which one is larger than its photo, one cannot be read, and the others are as they are."""

    def __init__(self, masks, larger, unreadable):
        self.masks, self.larger, self.unreadable = masks, larger, unreadable

    def read(self, sample):
        if sample == self.unreadable:
            raise DataError(f"{self.path(sample)}: truncated")
        mask = self.masks.read(sample)
        return np.pad(mask, 3) if sample == self.larger else mask

    def path(self, sample):
        return self.masks.path(sample)


def test_photos_that_cannot_be_scored_are_named_and_left_out(run, val):
    preset = load_preset("demo", TINY)
    first, second, *others = val.samples
    found = validate(run.model, replace(val, masks=Spoiled(val.masks, first, second)), preset, CPU)
    assert found.scores == validate(run.model, replace(val, samples=tuple(others)), preset, CPU).scores
    assert found.left_out == [
        f"{val.masks.path(first)}: the mask has 70 x 70 pixels, expected the photo's 64 x 64; "
        "draw it again at that size",
        f"{val.masks.path(second)}: truncated",
    ]
    with pytest.raises(DataError, match="the mask has 70 x 70 pixels, expected"):
        evaluate_segmentation(run, replace(val, masks=Spoiled(val.masks, first, None)))
    nothing = validate(run.model, replace(val, samples=(second,), masks=Spoiled(val.masks, None, second)), preset, CPU)
    assert nothing.scores == {} and len(nothing.left_out) == 1


@pytest.mark.parametrize("part", ["decoder.norm.running_mean", "classifier"])
def test_a_network_with_non_finite_values_has_no_score(run, val, part):
    """The statistics spoil the segmentation alone, the classifier the CAM alone."""
    value = run.model.get_parameter(part) if part == "classifier" else run.model.get_buffer(part)
    with torch.no_grad():
        value.flatten()[0] = float("nan")
    found = validate(run.model, val, load_preset("demo", TINY), CPU)
    assert found.scores == {} and found.left_out == []
    assert found.non_finite and set(found.non_finite) <= {sample.image_id for sample in val.samples}


@pytest.mark.parametrize("crf", [None, "torch"])
def test_large_photos_are_segmented_reduced_and_scored_at_their_own_size(run, val, crf):
    changes = {"eval": {"max_pixels": 2000}, "cam": {"max_pixels": 1500}}
    sections = {name: getattr(run.preset, name).model_copy(update=values) for name, values in changes.items()}
    bounded = run._replace(preset=run.preset.model_copy(update=sections))
    found = evaluate_segmentation(bounded, val, crf)
    counts = np.zeros((7, 7), np.int64)
    for sample in val.samples:
        small = reduce_image(read_image(sample.image_path), 2000)
        mask = segment(run.model, small, CPU, multi_scale(run.preset.eval)).argmax(0).numpy().astype(np.uint8)
        assert mask.shape == (44, 44)
        counts += confusion_matrix(val.masks.read(sample), enlarge_mask(mask, (64, 64)), 7)
        assert np.array_equal(photo_mask(bounded, read_image(sample.image_path)), enlarge_mask(mask, (64, 64)))
    assert np.array_equal(found[1].confusion, counts)
    assert all(score.confusion.sum() == counts.sum() for score in found)
    scores = validate(run.model, val, bounded.preset, CPU).scores
    assert scores["val_seg_miou"] == pytest.approx(found[0].miou, abs=1e-6)
    raw = score_pseudo_labels(bounded, val).scores["AFA (w/o prop.)"][0].miou
    assert scores["val_cam_miou"] == pytest.approx(raw, abs=1e-6)


def confusion_of(run, val, passes):
    counts = np.zeros((7, 7), np.int64)
    for sample in val.samples:
        prediction = segment(run.model, read_image(sample.image_path), CPU, passes).argmax(0).numpy()
        counts += confusion_matrix(val.masks.read(sample), prediction, 7)
    return counts


@pytest.mark.parametrize("protocol", [*PROTOCOLS, None])
def test_a_protocol_by_name_takes_the_place_of_the_runs_own(run, val, protocol):
    found = evaluate_segmentation(run, val, protocol=protocol)
    settings = PROTOCOLS[protocol] if protocol else run.preset.eval
    assert np.array_equal(found[1].confusion, confusion_of(run, val, multi_scale(settings)))
    kept = read_scores(run.folder)[f"segmentation-val-{protocol}" if protocol else "segmentation-val"]
    assert kept["protocol"] == (protocol or "own"), "the demo's protocol has no name"
    assert with_protocol(run, protocol).preset.eval == settings


def test_protocols_are_those_of_the_presets():
    assert protocol_name(load_preset("voc").eval) == protocol_name(load_preset("coco").eval) == "authors"
    assert protocol_name(load_preset("voc-authors").eval) == "authors"
    assert protocol_name(PROTOCOLS["paper"]) == "paper" and PROTOCOLS["paper"].mirror == "maximum"
    assert protocol_name(Eval(scales=(1.0, 2.0))) == "own"


def test_validation_passes_photos_at_its_own_size_or_the_tests(run, val):
    """The photos have 64 pixels; the test's long side is 96."""
    for size, passes in (("photo", Passes()), ("test", Passes(long_side=96))):
        preset = load_preset("demo", [*TINY, "eval.long_side=96", f"train.validation_size={size}"])
        expected = 100 * mean_iou(confusion_of(run, val, passes))
        assert validate(run.model, val, preset, CPU).scores["val_seg_miou"] == pytest.approx(expected, abs=1e-9)
    assert not np.array_equal(confusion_of(run, val, Passes()), confusion_of(run, val, Passes(long_side=96)))
