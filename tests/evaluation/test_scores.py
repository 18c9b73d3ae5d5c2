"""Scores by name, and where a run keeps them."""

import math

import numpy as np
import torch

from afactl.evaluation.scores import Score, keep_scores, to_uint8
from afactl.machine import distributed
from afactl.runs.folder import read_scores


def test_a_score_is_the_mean_over_the_classes_of_the_truth():
    """IoU 2/3 and 1/2; the third class is neither in the truth nor counted."""
    confusion = np.array([[2, 0, 0], [1, 1, 0], [0, 0, 0]])
    assert math.isclose(Score("x", confusion).miou, 100 * (2 / 3 + 1 / 2) / 2)
    assert math.isnan(Score("x", np.zeros((3, 3), int)).miou)


def test_labels_become_bytes_with_255_kept():
    found = to_uint8(torch.tensor([[0, 1], [20, 255]]))
    assert found.dtype == np.uint8 and found.tolist() == [[0, 1], [20, 255]]


def test_a_run_keeps_its_scores_with_what_they_are_of(run, val):
    keep_scores(run, "segmentation-val", val, {"single scale": np.diag([5, 4, 3, 2, 1, 0, 0])})
    kept = read_scores(run.folder)["segmentation-val"]
    assert (kept["split"], kept["images"], kept["step"], kept["weights"]) == ("val", 4, 4, run.weights_hash)
    assert kept["classes"] == list(val.classes)
    assert kept["rows"] == {"single scale": np.diag([5, 4, 3, 2, 1, 0, 0]).tolist()}


def test_one_of_several_processes_writes(run, val, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    keep_scores(run, "segmentation-val", val, {"single scale": np.eye(7)})
    assert not (run.folder / "scores").exists()
