"""How sure a mean IoU is: bootstrap over the images of a split.

A split is one draw of photos out of many that could have been taken. Resampling its images with replacement, each
with its own counts, shows how far the score would move with others; two scores of the same images move together, so
their difference is resampled with the same draws (paired).

Shapes: n images, K classes with background 0, R draws.
"""

from __future__ import annotations

import functools
import warnings
from typing import NamedTuple

import numpy as np

from afactl.errors import ShapeError

DRAWS = 2000
SHARE = 0.95
# So many draws at a time bound the memory: 40,000 images of 81 classes take 80 MiB.
_CHUNK = 200


class Interval(NamedTuple):
    """The middle 95 % of the draws, in the unit of what was drawn."""

    low: float
    high: float

    @property
    def half(self) -> float:
        """Half its width, what stands behind the ±."""
        return (self.high - self.low) / 2


def tally(confusion: np.ndarray) -> np.ndarray:
    """What the IoU of an image needs of its K x K confusion matrix: 3 x K int64, hits, true and predicted pixels.

    Example:
        >>> tally(np.array([[5, 1], [2, 4]])).tolist()
        [[5, 4], [6, 6], [7, 5]]
    """
    return np.stack([np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0)])


def tallied_iou(tallies: np.ndarray) -> np.ndarray:
    """IoU per class of ... x 3 x K tallies: ... x K in [0, 1], NaN for a class that does not occur in the truth."""
    hits, true, predicted = (tallies[..., row, :].astype(np.float64) for row in range(3))
    iou = np.full(hits.shape, np.nan)
    np.divide(hits, true + predicted - hits, out=iou, where=true > 0)
    return iou


def resampled_iou(tallies: np.ndarray, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """IoU per class of every draw.

    Args:
        tallies: n x 3 x K, as `tally` gives them.
        draws: each takes n of the n images, with replacement. seed: the same n, draws and seed take the same images,
            whatever the tallies: this is what pairs two scores.

    Returns:
        R x K in [0, 1]; NaN where a class does not occur in the truth of a draw.

    Raises:
        ShapeError: `tallies` has another form, or no image.
    """
    if tallies.ndim != 3 or tallies.shape[1] != 3 or not len(tallies):
        raise ShapeError(f"tallies: expected n x 3 x K with n > 0, got {tallies.shape}")
    flat = tallies.reshape(len(tallies), -1).astype(np.float64)
    times = _times(len(tallies), draws, seed)
    sums = [times[start : start + _CHUNK].astype(np.float64) @ flat for start in range(0, draws, _CHUNK)]
    return tallied_iou(np.concatenate(sums).reshape(draws, 3, -1))


@functools.lru_cache(maxsize=1)
def _times(images: int, draws: int, seed: int) -> np.ndarray:
    """R x n uint16: how often each draw takes each image."""
    generator = np.random.default_rng(seed)
    return np.stack(
        [np.bincount(generator.integers(images, size=images), minlength=images).astype(np.uint16) for _ in range(draws)]
    )


def mean_of_classes(iou: np.ndarray) -> np.ndarray:
    """Mean over the last axis, over the classes that occur; NaN where none does."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Mean of empty slice", RuntimeWarning)
        mean: np.ndarray = np.nanmean(iou, axis=-1)
    return mean


def interval(values: np.ndarray, share: float = SHARE) -> Interval:
    """The middle share of R draws; NaN ones are left out."""
    values = values[np.isfinite(values)]
    if not len(values):
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(values, [(1 - share) / 2, (1 + share) / 2])
    return Interval(float(low), float(high))


def shown(value: float, span: Interval) -> str:
    """A figure with half its interval; without where that is not known, and a dash where there is no figure.

    Example:
        >>> shown(68.71, Interval(67.8, 69.6))
        '68.7 ± 0.9'
    """
    if np.isnan(value):
        return "-"
    return f"{value:.1f}" if np.isnan(span.half) else f"{value:.1f} ± {span.half:.1f}"


class Difference(NamedTuple):
    """How much one score is above another on the same images.

    Attributes:
        value: in the unit of the scores. interval: 95 %, paired; one that holds 0 says that the split cannot tell.
    """

    value: float
    interval: Interval

    @property
    def text(self) -> str:
        """+2.4 [1.1, 3.6]."""
        value, low, high = (round(number, 1) + 0.0 for number in (self.value, *self.interval))  # + 0.0: no "-0.0"
        return f"{value:+.1f} [{low:.1f}, {high:.1f}]"


def difference(first: np.ndarray, second: np.ndarray) -> Difference:
    """mIoU of the first n x 3 x K tallies minus that of the second, in per cent.

    Raises:
        ShapeError: they are not of the same images and classes.
    """
    if first.shape != second.shape:
        raise ShapeError(f"tallies: expected those of the same images and classes, got {first.shape}, {second.shape}")
    whole = [mean_of_classes(tallied_iou(tallies.sum(axis=0))) for tallies in (first, second)]
    drawn = [mean_of_classes(resampled_iou(tallies)) for tallies in (first, second)]
    return Difference(100 * float(whole[0] - whole[1]), interval(100 * (drawn[0] - drawn[1])))


def class_differences(first: np.ndarray, second: np.ndarray) -> list[Difference]:
    """As `difference`, of the IoU of each class; NaN where a class does not occur in the truth."""
    if first.shape != second.shape:
        raise ShapeError(f"tallies: expected those of the same images and classes, got {first.shape}, {second.shape}")
    whole = tallied_iou(first.sum(axis=0)) - tallied_iou(second.sum(axis=0))
    drawn = resampled_iou(first) - resampled_iou(second)
    return [
        Difference(float(value), interval(column)) for value, column in zip(100 * whole, 100 * drawn.T, strict=True)
    ]
