"""Scores from one confusion matrix over a split.

Shapes: K classes with background 0; rows of a confusion matrix are the truth, columns the prediction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np

from afactl.errors import ShapeError
from afactl.labels import IGNORE


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Count pixels by (true class, predicted class).

    Args:
        truth: h x w uint8, 0..K-1 or 255. prediction: the same; a pixel that is 255 in either
            does not count.
        classes: K.

    Returns:
        K x K int64.

    Raises:
        ShapeError: sizes differ, or a value lies outside 0..K-1 and is not 255.
    """
    if truth.shape != prediction.shape:
        raise ShapeError(f"prediction: expected the size of the truth {truth.shape}, got {prediction.shape}")
    # One histogram over pairs of bytes: values that do not belong land outside the K x K corner.
    pairs = truth.astype(np.uint16).ravel()
    pairs <<= 8
    pairs |= prediction.astype(np.uint8).ravel()
    counts = np.bincount(pairs, minlength=1 << 16).reshape(256, 256)
    table = counts[:classes, :classes]
    used = counts[:IGNORE, :IGNORE].sum()
    if used != table.sum():
        raise ShapeError(f"labels: expected values 0..{classes - 1} or 255, got others in {used - table.sum()} pixels")
    return table.astype(np.int64)


def class_iou(confusion: np.ndarray) -> np.ndarray:
    """Intersection over union per class: K floats, NaN for a class that does not occur in the truth."""
    hits = np.diag(confusion).astype(np.float64)
    union = confusion.sum(axis=0) + confusion.sum(axis=1) - hits
    present = confusion.sum(axis=1) > 0
    iou = np.full(len(hits), np.nan)
    np.divide(hits, union, out=iou, where=present)
    return iou


def mean_iou(confusion: np.ndarray) -> float:
    """Mean IoU over the classes that occur in the truth; NaN where none does."""
    iou = class_iou(confusion)
    return float(np.nanmean(iou)) if np.isfinite(iou).any() else float("nan")


def pixel_accuracy(confusion: np.ndarray) -> float:
    """Share of counted pixels that are right."""
    total = confusion.sum()
    return float(np.diag(confusion).sum() / total) if total else float("nan")


def mean_accuracy(confusion: np.ndarray) -> float:
    """Mean over the classes that occur in the truth of the share of their pixels that are right."""
    per_class = confusion.sum(axis=1)
    present = per_class > 0
    return float((np.diag(confusion)[present] / per_class[present]).mean()) if present.any() else float("nan")


def label_f1(truth: Sequence[Collection[int]], predicted: Sequence[Collection[int]]) -> float:
    """F1 of image-level labels, counted over all images and classes: 2 hits / (true + predicted).

    Args:
        truth, predicted: the class indices of each image. NaN where neither holds any.
    """
    hits = sum(len(set(true) & set(other)) for true, other in zip(truth, predicted, strict=True))
    total = sum(map(len, truth)) + sum(map(len, predicted))
    return 2 * hits / total if total else float("nan")
