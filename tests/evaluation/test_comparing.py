"""Runs and folders of masks on the same images."""

import dataclasses

import numpy as np
import pytest

from afactl.datasets.masks import write_mask
from afactl.errors import DataError, UsageError
from afactl.evaluation import comparing
from afactl.evaluation.comparing import (
    MAIN_ROW,
    class_changes,
    most_changed,
    require_same_split,
    run_scores,
    score_mask_folders,
)
from afactl.evaluation.intervals import tally
from afactl.evaluation.metrics import class_iou
from afactl.evaluation.pseudo_labels import score_pseudo_labels
from afactl.evaluation.scores import Score
from afactl.evaluation.segmentation import evaluate_segmentation


def score_of(*confusions):
    return Score("x", sum(confusions), np.stack([tally(one) for one in confusions]))


def test_what_a_run_keeps_is_taken_and_what_is_missing_is_scored(run, val, monkeypatch):
    fresh = run_scores(run, val)
    assert [*fresh] == ["single scale", "multi-scale + flip"]
    counted = []
    original = evaluate_segmentation
    monkeypatch.setattr(comparing, "evaluate_segmentation", lambda *given: counted.append(1) or original(*given))
    judged = score_pseudo_labels(run, val).scores
    kept = run_scores(run, val)
    assert not counted and [*kept][2:] == [f"{row}{par}" for row in judged for par in ("", " + PAR")]
    for row, score in fresh.items():
        assert np.array_equal(kept[row].confusion, score.confusion) and np.array_equal(kept[row].tallies, score.tallies)
    assert np.array_equal(kept["AFA + PAR"].tallies, judged["AFA"][1].tallies)
    # Scores of other weights, other data or another protocol are none of these.
    other = dataclasses.replace(val, samples=val.samples[:2])
    assert run_scores(run._replace(weights_hash="0" * 16), val).keys() == fresh.keys() and len(counted) == 1
    assert len(run_scores(run, other)[MAIN_ROW].tallies) == 2 and len(counted) == 2


def test_runs_of_other_data_or_classes_are_refused(run, val):
    require_same_split([run, run], [val, val])
    with pytest.raises(UsageError, match="has other photos or labels than that of"):
        require_same_split([run, run], [val, dataclasses.replace(val, samples=val.samples[1:])])
    with pytest.raises(UsageError, match=r"has other classes \(cat\) than"):
        require_same_split([run, run], [val, dataclasses.replace(val, classes=("cat",))])


def test_classes_come_by_what_they_gained():
    ground, better, worse = np.diag([9, 0, 0, 0]), np.zeros((4, 4), int), np.zeros((4, 4), int)
    better[1, 1] = worse[2, 2] = 10
    first = score_of(ground, better // 2 + np.array([[0] * 4, [5, 0, 0, 0], [0] * 4, [0] * 4]), worse)
    other = score_of(ground, better, worse // 2 + np.array([[0] * 4, [0] * 4, [5, 0, 0, 0], [0] * 4]))
    changes = class_changes(first, other, ("up", "down", "absent"))
    assert [change.name for change in changes] == ["up", "background", "down"]
    before, after = 100 * class_iou(first.confusion), 100 * class_iou(other.confusion)
    for change, place in zip(changes, (1, 0, 2), strict=True):
        assert (change.before, change.after) == pytest.approx((before[place], after[place]))
        assert change.difference.value == pytest.approx(after[place] - before[place])
        assert change.difference.interval.low <= change.difference.value <= change.difference.interval.high


def test_images_that_changed_most_are_told_apart():
    def images(*rights):
        return score_of(*(np.array([[10, 0], [10 - right, right]]) for right in rights), np.zeros((2, 2), int))

    first, other = images(5, 5, 5, 5, 5, 9), images(6, 9, 5, 2, 4, 1)
    assert most_changed(first, other, 4) == [1, 0, 3, 5], "the last image has nothing but ignored pixels"
    assert most_changed(first, other, 12) == [1, 0, 4, 3, 5], "the third one did not change"
    assert most_changed(first, first, 12) == []


def folder_of(path, masks):
    for name, mask in masks.items():
        write_mask(path / f"{name}.png", np.array(mask, np.uint8))
    return path


def test_folders_of_masks_against_the_truth(tmp_path):
    truth = folder_of(tmp_path / "truth", {"a": [[0, 1, 2, 255]], "sub/b": [[2, 2, 0, 0]]})
    one = folder_of(tmp_path / "one", {"a": [[0, 1, 2, 2]], "sub/b": [[2, 255, 0, 1]], "more": [[0]]})
    found = score_mask_folders([one, truth], truth)
    assert found.images == ["a", "sub/b"] and found.classes == ("1", "2")
    mine, perfect = found.scores
    assert mine.name == str(one) and perfect.miou == 100
    # An open pixel (255) of a mask is background; one of the truth does not count.
    assert mine.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [1, 0, 2]]
    assert mine.tallies[0].tolist() == [[1, 1, 1]] * 3
    named = score_mask_folders([one, truth], truth, ("cat", "dog"))
    assert named.classes == ("cat", "dog") and named.scores[0].miou == mine.miou


def test_bad_folders_of_masks_are_told(tmp_path):
    truth = folder_of(tmp_path / "truth", {"a": [[0, 1, 2]], "b": [[2, 2, 0]]})
    half = folder_of(tmp_path / "half", {"a": [[0, 1, 2]]})
    with pytest.raises(DataError, match=r"half: 1 of 2 masks are missing \(first: b.png\)"):
        score_mask_folders([half, truth], truth)
    wide = folder_of(tmp_path / "wide", {"a": [[0, 1, 2, 0]], "b": [[2, 2, 0]]})
    with pytest.raises(DataError, match="a.png: 4 x 1 pixels, expected the truth's 3 x 1"):
        score_mask_folders([truth, wide], truth)
    with pytest.raises(DataError, match="expected mask values 0..1 or 255, got 2"):
        score_mask_folders([truth, truth], truth, ("cat",))
    with pytest.raises(UsageError, match="nowhere: expected a folder of masks"):
        score_mask_folders([tmp_path / "nowhere", truth], truth)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="expected masks as PNG files"):
        score_mask_folders([truth, truth], tmp_path / "empty")
    nothing = folder_of(tmp_path / "nothing", {"a": [[0, 0, 0]]})
    with pytest.raises(DataError, match="hold no class"):
        score_mask_folders([nothing, nothing], nothing)
