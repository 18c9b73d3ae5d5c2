"""Rows of Table 3: the pseudo labels of a photo, and their scores over a split."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from afactl.datasets.images import read_image, reduce_image
from afactl.datasets.masks import enlarge_mask
from afactl.errors import ShapeError
from afactl.evaluation.metrics import confusion_matrix, mean_iou
from afactl.evaluation.pseudo_labels import (
    TABLE3_ROWS,
    pseudo_label_of,
    pseudo_labels_of,
    row_ends,
    score_pseudo_labels,
    score_refined_cams,
    table3_rows,
)
from afactl.inference.cams import CamRecord, cam_record
from afactl.inference.refiners import preset_refiner
from afactl.method.affinity import half_windows
from afactl.method.cam import Thresholds, threshold_cam
from afactl.method.pseudo_labels import refine_cam
from afactl.presets import load_preset
from afactl.runs.folder import read_scores
from tests.method.test_affinity import slow_windows

CPU = torch.device("cpu")


def square_record():
    """A photo with a bright square; the CAM of class 2 covers its left half. Radius 2."""
    image = np.full((64, 64, 3), 40, np.uint8)
    image[16:48, 16:48] = 220
    cam = np.zeros((1, 64, 64), np.float16)
    cam[0, 16:48, 16:32] = 0.95
    tokens = torch.from_numpy(image[::16, ::16, 0] > 100).flatten()
    logits = torch.where(tokens[:, None] == tokens, 300.0, -300.0)[None]
    uniform = torch.full((1, 16, 16), 1 / 16).log()
    affinity = half_windows(slow_windows(logits, 4, 4, 2))[0].half().numpy()
    return image, CamRecord(cam, np.array([2]), affinity, slow_windows(uniform, 4, 4, 2)[0].half().numpy())


def test_rows_of_a_photo_whose_answer_is_known():
    image, record = square_record()
    preset = load_preset("demo", ["affinity.background=0.35", "affinity.radius=2"])
    labels = pseudo_labels_of(image, record, preset, CPU)
    truth = np.where(image[..., 0] > 100, 3, 0)
    plain, refined = labels[TABLE3_ROWS.index("AFA (w/o prop.)")]
    assert set(np.unique(labels)) <= {0, 3}
    assert (plain == np.where(record.cam[0] > 0.45, 3, 0)).all(), "without PAR it is the threshold"
    assert (refined != plain).any()
    walked = labels[TABLE3_ROWS.index("AFA"), 1]
    mhsa = labels[TABLE3_ROWS.index("AFA (prop. with MHSA)"), 0]
    inside = truth == 3
    assert (walked[inside] == 3).mean() > 0.85, "the affinity fills the square"
    assert (walked[~inside] == 0).mean() > 0.85
    assert len(np.unique(mhsa)) == 1, "uniform attention knows no shape"


@pytest.mark.parametrize(
    ("own", "asked", "used", "end"),
    [
        ("par", None, "par", " + PAR"),
        ("pamr", None, "pamr", " + PAMR"),
        ("none", None, "par", " + PAR"),
        ("par", "crf", "crf", " + CRF"),
        ("pamr", "none", "none", " + no refiner"),
    ],
)
def test_the_second_column_is_refined_by_the_runs_refiner_or_the_one_asked_for(own, asked, used, end):
    image, record = square_record()
    image = np.where(np.random.default_rng(0).random(image.shape) < 0.5, image, image // 2)  # else PAMR does as PAR
    preset = load_preset("demo", ["affinity.radius=2", f"cam.refiner={own}"])
    assert row_ends(preset, asked) == ("", end)
    labels = pseudo_labels_of(image, record, preset, CPU, asked)
    by_hand = refine_cam(
        torch.from_numpy(image).permute(2, 0, 1).float(),
        torch.from_numpy(record.cam).float(),
        torch.from_numpy(record.classes),
        (preset.cam.background,),
        preset_refiner(preset, used),
    )[0]
    assert np.array_equal(labels[0, 1], by_hand.numpy())
    others = {name: pseudo_labels_of(image, record, preset, CPU, name) for name in ("par", "pamr", "crf", "none")}
    assert all((other != labels).any() for name, other in others.items() if name != used), "they can be told apart"
    assert all(np.array_equal(other[:, 0], labels[:, 0]) for other in others.values())


def test_a_photo_without_classes_is_background():
    image, record = square_record()
    nothing = record._replace(cam=record.cam[:0], classes=record.classes[:0])
    assert not pseudo_labels_of(image, nothing, load_preset("demo"), CPU).any()


def test_the_first_row_without_par_is_the_cam_at_the_threshold(run, val):
    sample = val.samples[0]
    image = read_image(sample.image_path)
    record = cam_record(run, image, sample.labels)
    full = torch.zeros(1, 6, 64, 64)
    full[0, record.classes] = torch.from_numpy(record.cam).float()
    label = torch.zeros(1, 6)
    label[0, list(sample.labels)] = 1
    threshold = run.preset.cam.background
    expected = threshold_cam(full, label, Thresholds(threshold, threshold))[0].numpy()
    assert np.array_equal(pseudo_labels_of(image, record, run.preset, CPU)[0, 0], expected)


def test_large_photos_are_labelled_reduced_and_scored_at_their_own_size(run, val, monkeypatch):
    section = run.preset.cam.model_copy(update={"max_pixels": 2000})
    bounded = run._replace(preset=run.preset.model_copy(update={"cam": section}))
    scores = score_pseudo_labels(bounded, val).scores["AFA"]
    counts = np.zeros((7, 7), np.int64)
    for sample in val.samples:
        small = reduce_image(read_image(sample.image_path), 2000)
        label = pseudo_labels_of(small, cam_record(run, small, sample.labels), run.preset, CPU)[2, 1]
        assert label.shape == small.shape[:2] == (44, 44)
        counts += confusion_matrix(val.masks.read(sample), enlarge_mask(label, (64, 64)), 7)
    assert np.array_equal(scores[1].confusion, counts)


def test_a_mask_of_another_size_is_no_truth(run, val):
    """Labels are brought to the size of the photo, never to that of the mask."""
    masks = SimpleNamespace(read=lambda sample: np.zeros((32, 32), np.uint8))
    for score in (score_pseudo_labels, score_refined_cams):
        with pytest.raises(ShapeError):
            score(run, replace(val, masks=masks))


def test_a_second_scoring_passes_nothing_and_says_the_same(run, val, monkeypatch):
    first = score_pseudo_labels(run, val)
    assert (first.images, first.passes, first.labelled) == (4, 4, 4)
    monkeypatch.setattr(run.model, "multi_scale_cam", None)
    second = score_pseudo_labels(run, val)
    assert (second.images, second.passes, second.labelled) == (4, 0, 0)
    for name in TABLE3_ROWS:
        for one, other in zip(first.scores[name], second.scores[name], strict=True):
            assert np.array_equal(one.confusion, other.confusion)


def test_a_half_filled_cache_is_used(run, val):
    from afactl.inference.cams import open_cam_cache, record_of

    with open_cam_cache(run, val) as cache:
        record_of(run, cache, val.samples[0])
    assert score_pseudo_labels(run, val).passes == 3


def test_scores_are_counted_over_all_photos(run, val):
    scores = score_pseudo_labels(run, val).scores["AFA"]
    counts = np.zeros((7, 7), np.int64)
    for sample in val.samples:
        image = read_image(sample.image_path)
        record = cam_record(run, image, sample.labels)
        counts += confusion_matrix(val.masks.read(sample), pseudo_labels_of(image, record, run.preset, CPU)[2, 1], 7)
    assert np.array_equal(scores[1].confusion, counts)
    assert scores[1].miou == pytest.approx(100 * mean_iou(counts))


def test_a_run_without_the_branch_has_no_row_of_its_affinity(run, val):
    """Its head has learned nothing; the other rows are the same, under names that say so."""
    section = run.preset.affinity.model_copy(update={"enabled": False})
    plain = run._replace(preset=run.preset.model_copy(update={"affinity": section}))
    assert table3_rows(run.preset) == TABLE3_ROWS
    assert table3_rows(plain.preset) == ("w/o AFA", "w/o AFA (prop. with MHSA)")
    sample = val.samples[0]
    image = read_image(sample.image_path)
    record = cam_record(run, image, sample.labels)
    whole = pseudo_labels_of(image, record, run.preset, CPU)
    labels = pseudo_labels_of(image, record, plain.preset, CPU)
    assert len(whole) == 3 and np.array_equal(labels, whole[:2])
    assert np.array_equal(pseudo_label_of(image, record, run.preset, CPU), whole[2, 1])
    assert np.array_equal(pseudo_label_of(image, record, plain.preset, CPU), whole[0, 1])
    assert tuple(score_pseudo_labels(plain, val).scores) == table3_rows(plain.preset)
    kept = read_scores(run.folder)["pseudo-val"]["rows"]
    assert set(kept) == {f"{name}{par}" for name in table3_rows(plain.preset) for par in ("", " + PAR")}
