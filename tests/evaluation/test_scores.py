"""Scores by name, and where a run keeps them."""

import math

import numpy as np
import pytest
import torch

from afactl.datasets.registry import data_fingerprint
from afactl.errors import CheckpointError
from afactl.evaluation.intervals import tally
from afactl.evaluation.scores import Counting, Score, keep_scores, to_uint8
from afactl.machine import distributed
from afactl.runs.folder import read_scores, read_tallies


def test_a_score_is_the_mean_over_the_classes_of_the_truth():
    """IoU 2/3 and 1/2; the third class is neither in the truth nor counted."""
    confusion = np.array([[2, 0, 0], [1, 1, 0], [0, 0, 0]])
    assert math.isclose(score_of(confusion).miou, 100 * (2 / 3 + 1 / 2) / 2)
    assert math.isnan(score_of(np.zeros((3, 3), int)).miou)


def score_of(*confusions):
    return Score("x", sum(confusions), np.stack([tally(one) for one in confusions]))


def test_the_scores_of_images_and_their_intervals():
    """The second class is right in the first image and wrong in the others; the third one occurs nowhere."""
    right, wrong, ignored = np.diag([3, 1, 0]), np.array([[3, 0, 0], [1, 0, 0], [0, 0, 0]]), np.zeros((3, 3), int)
    score = score_of(right, wrong, wrong, ignored)
    assert score.images[:3] == pytest.approx([100, 37.5, 37.5]) and math.isnan(score.images[3])
    assert score.interval.low <= score.miou <= score.interval.high
    ground, second, third = score.class_intervals
    assert ground.high == pytest.approx(100) and second.low == 0 < second.high and math.isnan(third.low)


def test_counting_adds_images_at_their_places():
    truth = [np.array([[0, 1, 2]], np.uint8), np.array([[2, 2, 255]], np.uint8)]
    counting = Counting(["a", "b"], images=3, classes=3)
    for place, mask in ((2, truth[0]), (0, truth[1])):
        counting.add("a", place, mask, np.zeros((1, 3), np.uint8))
        counting.add("b", place, mask, mask)
    a, b = counting.scores()
    assert (a.name, b.name) == ("a", "b")
    assert (
        a.confusion.tolist() == [[1, 0, 0], [1, 0, 0], [3, 0, 0]]
        and b.confusion.tolist() == np.diag([1, 1, 3]).tolist()
    )
    assert a.tallies[0].tolist() == [[0, 0, 0], [0, 0, 2], [2, 0, 0]] and not a.tallies[1].any()
    assert b.tallies[2].tolist() == [[1, 1, 1]] * 3


def test_labels_become_bytes_with_255_kept():
    found = to_uint8(torch.tensor([[0, 1], [20, 255]]))
    assert found.dtype == np.uint8 and found.tolist() == [[0, 1], [20, 255]]


def test_a_run_keeps_its_scores_with_what_they_are_of(run, val):
    images = [np.diag([5, 4, 0, 0, 0, 0, 0]), np.diag([0, 0, 3, 2, 1, 0, 0]), *[np.zeros((7, 7), int)] * 2]
    score = score_of(*images)._replace(name="single scale")
    keep_scores(run, "segmentation-val", val, [score], protocol="paper")
    kept = read_scores(run.folder)["segmentation-val"]
    assert (kept["split"], kept["images"], kept["step"], kept["weights"]) == ("val", 4, 4, run.weights_hash)
    assert kept["classes"] == list(val.classes) and kept["data"] == data_fingerprint(val)
    assert kept["protocol"] == "paper"
    assert kept["rows"] == {"single scale": np.diag([5, 4, 3, 2, 1, 0, 0]).tolist()}
    (tallies,) = read_tallies(run.folder, "segmentation-val").values()
    assert np.array_equal(tallies, score.tallies)
    (run.folder / "scores" / "segmentation-val.npz").write_bytes(b"PK broken")
    with pytest.raises(CheckpointError, match="segmentation-val.npz: cannot be read"):
        read_tallies(run.folder, "segmentation-val")
    assert read_tallies(run.folder, "segmentation-train") == {}


def test_one_of_several_processes_writes(run, val, monkeypatch):
    monkeypatch.setattr(distributed, "rank", lambda: 1)
    keep_scores(run, "segmentation-val", val, [score_of(np.eye(7, dtype=int))])
    assert not (run.folder / "scores").exists()
