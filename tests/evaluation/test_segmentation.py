"""Scores of the segmentation: the rows of `eval`, protocols by name, and the validation during training."""

import numpy as np
import pytest
import torch

from afactl.datasets.images import read_image
from afactl.evaluation.metrics import confusion_matrix, mean_iou
from afactl.evaluation.pseudo_labels import score_pseudo_labels
from afactl.evaluation.segmentation import evaluate_segmentation, validate, with_protocol
from afactl.inference.segmentation import Passes, multi_scale, segment
from afactl.presets import PROTOCOLS, Eval, load_preset, protocol_name
from afactl.runs.folder import read_scores
from tests.conftest import TINY

CPU = torch.device("cpu")


def test_segmentation_rows(run, val):
    scores, _ = evaluate_segmentation(run, val, crf="torch")
    assert [score.name for score in scores] == ["single scale", "multi-scale + flip", "multi-scale + flip + CRF"]
    counts = np.zeros((7, 7), np.int64)
    for sample in val.samples:
        prediction = segment(run.model, read_image(sample.image_path), CPU).argmax(0).numpy()
        counts += confusion_matrix(val.masks.read(sample), prediction, 7)
    assert np.array_equal(scores[0].confusion, counts)
    assert len(evaluate_segmentation(run, val).scores) == 2


def test_the_crf_scores_the_same_over_processes(run, val, monkeypatch):
    alone = evaluate_segmentation(run, val, crf="torch").scores[2].confusion
    monkeypatch.setattr("afactl.machine.parallel.WORTHWHILE", 2)
    assert np.array_equal(evaluate_segmentation(run, val, crf="torch").scores[2].confusion, alone)


def test_validation_agrees_with_the_commands(run, val):
    found = validate(run.model, val, load_preset("demo", TINY), CPU)
    assert found["val_seg_miou"] == pytest.approx(evaluate_segmentation(run, val).scores[0].miou, abs=1e-6)
    # The cache keeps float16, so a pixel on the threshold may fall to the other side.
    assert found["val_cam_miou"] == pytest.approx(
        score_pseudo_labels(run, val).scores["AFA (w/o prop.)"][0].miou, abs=0.5
    )


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
    assert np.array_equal(found.scores[1].confusion, confusion_of(run, val, multi_scale(settings)))
    kept = read_scores(run.folder)[f"segmentation-val-{protocol}" if protocol else "segmentation-val"]
    assert kept["protocol"] == (protocol or "own"), "the demo's protocol has no name"
    assert with_protocol(run, protocol).preset.eval == settings


def test_protocols_are_those_of_the_presets():
    assert protocol_name(load_preset("voc").eval) == protocol_name(load_preset("coco").eval) == "paper"
    assert protocol_name(load_preset("voc-authors").eval) == "authors"
    assert protocol_name(Eval(scales=(1.0, 2.0))) == "own"


def test_validation_passes_photos_at_its_own_size_or_the_tests(run, val):
    """The photos have 64 pixels; the test's long side is 96."""
    for size, passes in (("photo", Passes()), ("test", Passes(long_side=96))):
        preset = load_preset("demo", [*TINY, "eval.long_side=96", f"train.validation_size={size}"])
        expected = 100 * mean_iou(confusion_of(run, val, passes))
        assert validate(run.model, val, preset, CPU)["val_seg_miou"] == pytest.approx(expected, abs=1e-9)
    assert not np.array_equal(confusion_of(run, val, Passes()), confusion_of(run, val, Passes(long_side=96)))
