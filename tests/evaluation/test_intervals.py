"""How sure a mean IoU is: against a slow loop, and against scores of many made splits."""

import numpy as np
import pytest

from afactl.errors import ShapeError
from afactl.evaluation import intervals
from afactl.evaluation.intervals import (
    Difference,
    Interval,
    difference,
    interval,
    mean_of_classes,
    resampled_iou,
    tallied_iou,
    tally,
)
from afactl.evaluation.metrics import class_iou, mean_iou


def made_images(rng, count, classes=4, right=0.8):
    """Confusion matrices of images that hold some of the classes; `right` of their pixels are, more or less."""
    made = []
    for _ in range(count):
        confusion = np.zeros((classes, classes), np.int64)
        for kind in rng.choice(classes, size=2, replace=False):
            pixels, share = rng.integers(20, 200), np.clip(rng.normal(right, 0.2), 0, 1)
            hits = rng.binomial(pixels, share)
            confusion[kind, kind] += hits
            confusion[kind] += rng.multinomial(pixels - hits, np.full(classes, 1 / classes))
        made.append(confusion)
    return np.stack(made)


def tallies_of(confusions):
    return np.stack([tally(one) for one in confusions])


def test_iou_of_tallies_is_that_of_the_confusion_matrix():
    confusions = made_images(np.random.default_rng(0), 5)
    confusions[0][1] = confusions[0][:, 1] = 0
    for confusion in (*confusions, confusions.sum(axis=0), np.zeros((4, 4), int)):
        np.testing.assert_allclose(tallied_iou(tally(confusion)), class_iou(confusion))
        np.testing.assert_allclose(mean_of_classes(tallied_iou(tally(confusion))), mean_iou(confusion))


@pytest.mark.parametrize("chunk", [7, 200])
def test_draws_equal_a_slow_loop(chunk, monkeypatch):
    monkeypatch.setattr(intervals, "_CHUNK", chunk)
    confusions = made_images(np.random.default_rng(1), 9, classes=6)
    rng = np.random.default_rng(5)
    expected = []
    for _ in range(30):
        total = np.zeros((6, 6), np.int64)
        for image in rng.integers(9, size=9):
            total += confusions[image]
        expected.append(class_iou(total))
    assert np.isnan(expected).any(), "some draws lack a class"
    np.testing.assert_allclose(resampled_iou(tallies_of(confusions), draws=30, seed=5), expected)


def test_the_interval_is_the_middle_of_the_draws():
    values = np.arange(1000.0)
    low, high = interval(np.append(values, np.nan))
    assert (low, high) == pytest.approx((24.975, 974.025)) and interval(values, share=0.5).half == pytest.approx(249.75)
    assert np.isnan(interval(np.array([np.nan]))).all()


def test_the_interval_covers_the_score_of_all_photos():
    """Of 200 splits of 60 photos, about 95 % have an interval that holds the score of all photos there are."""
    rng = np.random.default_rng(2)
    truth = mean_iou(made_images(rng, 20_000).sum(axis=0))
    spans = [interval(mean_of_classes(resampled_iou(tallies_of(made_images(rng, 60)), draws=300))) for _ in range(200)]
    covered = np.mean([low <= truth <= high for low, high in spans])
    assert 0.9 <= covered <= 0.985


def test_a_difference_is_paired():
    """Images of very different difficulty, each a little better in the first: far surer than either score."""
    rng = np.random.default_rng(3)
    first = []
    second = []
    for _ in range(40):
        hits = rng.integers(20, 180)
        first.append(np.array([[200, 0], [200 - hits, hits]]))
        second.append(np.array([[200, 0], [205 - hits, hits - 5]]))
    one, other = tallies_of(first), tallies_of(second)
    found = difference(one, other)
    assert found.value == pytest.approx(100 * (mean_iou(sum(first)) - mean_iou(sum(second))))
    assert 0 < found.interval.low < found.value < found.interval.high
    alone = interval(100 * mean_of_classes(resampled_iou(one)))
    assert found.interval.half < alone.half / 10
    back = difference(other, one)
    assert (back.value, *back.interval) == pytest.approx((-found.value, -found.interval.high, -found.interval.low))


@pytest.mark.parametrize(
    ("value", "low", "high", "text"),
    [
        (2.44, 1.1, 3.6, "+2.4 [1.1, 3.6]"),
        (-2.44, -3.6, 0.04, "-2.4 [-3.6, 0.0]"),
        (-0.04, -0.04, -0.01, "+0.0 [0.0, 0.0]"),  # zero has no sign
    ],
)
def test_a_difference_in_words(value, low, high, text):
    assert Difference(value, Interval(low, high)).text == text


def test_what_cannot_be_compared_is_refused():
    one = tallies_of(made_images(np.random.default_rng(4), 3))
    with pytest.raises(ShapeError, match="same images and classes"):
        difference(one, one[:2])
    with pytest.raises(ShapeError, match="n x 3 x K with n > 0"):
        resampled_iou(one[:0])
