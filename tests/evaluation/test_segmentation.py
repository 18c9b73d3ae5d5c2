"""Scores of the segmentation: the rows of `eval`, and the validation during training."""

import numpy as np
import pytest
import torch

from afactl.datasets.images import read_image
from afactl.evaluation.metrics import confusion_matrix
from afactl.evaluation.pseudo_labels import score_pseudo_labels
from afactl.evaluation.segmentation import evaluate_segmentation, validate
from afactl.inference.segmentation import segment
from afactl.presets import load_preset
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
