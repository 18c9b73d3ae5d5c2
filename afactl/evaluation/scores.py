"""Scores by name, and where a run keeps them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from afactl.datasets.registry import data_fingerprint
from afactl.datasets.samples import Split
from afactl.evaluation.intervals import Interval, interval, mean_of_classes, resampled_iou, shown, tallied_iou, tally
from afactl.evaluation.metrics import confusion_matrix, mean_iou
from afactl.inference.trained_run import TrainedRun
from afactl.machine import distributed
from afactl.runs.folder import read_tallies, write_scores


def to_uint8(label: torch.Tensor) -> np.ndarray:
    return label.to(torch.uint8).cpu().numpy()


class Score(NamedTuple):
    """What was counted under one name.

    Attributes:
        confusion: K x K pixels of the whole split, rows the truth.
        tallies: n x 3 x K, of each image in the order of the split, as `intervals.tally` gives them. n is 0 where an
            earlier version kept none, and then there is no interval.
    """

    name: str
    confusion: np.ndarray
    tallies: np.ndarray

    @property
    def miou(self) -> float:
        """Mean IoU in per cent over the classes that occur in the truth."""
        return 100 * mean_iou(self.confusion)

    @property
    def interval(self) -> Interval:
        """95 % of it, by bootstrap over the images, in per cent."""
        return interval(100 * mean_of_classes(self._draws))

    @property
    def class_intervals(self) -> list[Interval]:
        """95 % of the IoU of each class, in per cent."""
        return [interval(column) for column in 100 * self._draws.T]

    @property
    def _draws(self) -> np.ndarray:
        return resampled_iou(self.tallies) if len(self.tallies) else np.full((1, len(self.confusion)), np.nan)

    @property
    def text(self) -> str:
        """The mIoU and half its interval: 68.7 ± 0.9."""
        return shown(self.miou, self.interval)

    @property
    def images(self) -> np.ndarray:
        """mIoU in per cent of each image, over the classes in its truth; NaN where all its pixels are ignored."""
        return 100 * mean_of_classes(tallied_iou(self.tallies))


class Counting:
    """Confusion matrices over a split, by name, as images come.

    Several processes may count shares of the images; `scores` then gives each what all have counted.
    """

    def __init__(self, names: Sequence[str], images: int, classes: int) -> None:
        """`images` of the whole split, and `classes` with the background."""
        self._confusions = {name: np.zeros((classes, classes), np.int64) for name in names}
        self._tallies = {name: np.zeros((images, 3, classes), np.int64) for name in names}

    def add(self, name: str, place: int, truth: np.ndarray, mask: np.ndarray) -> None:
        """Count an image under a name, by its place in the split; arguments as in `confusion_matrix`."""
        confusion = confusion_matrix(truth, mask, len(self._confusions[name]))
        self._confusions[name] += confusion
        self._tallies[name][place] += tally(confusion)

    def scores(self) -> list[Score]:
        """One per name, in their order."""
        return [
            Score(name, *map(distributed.all_reduce_array, (confusion, self._tallies[name])))
            for name, confusion in self._confusions.items()
        ]


def keep_scores(run: TrainedRun, name: str, split: Split, scores: Sequence[Score], **facts: str) -> None:
    """Leave what was counted and what else is to be known of it in the run, for its report and for comparisons.

    Not what was counted on the first photos alone, or with other settings than the run's: it is not the run's score.
    """
    if distributed.rank() == 0 and split.whole is None and not run.changes:
        told = {
            "split": split.name,
            "images": len(split.samples),
            "classes": list(split.classes),
            "data": data_fingerprint(split),
            **facts,
            "weights": run.weights_hash,
            "step": run.iteration,
            "rows": {score.name: score.confusion.tolist() for score in scores},
        }
        write_scores(run.folder, name, told, {score.name: score.tallies for score in scores})


def current_rows(run: TrainedRun, split: Split, name: str, files: Mapping[str, Mapping[str, Any]]) -> list[Score]:
    """The scores that a run kept under a name, where they are of these weights and of this data; else none.

    Args:
        files: what `read_scores` gives.

    Raises:
        CheckpointError: as `kept_rows`.
    """
    kept = files.get(name)
    if not kept or kept["weights"] != run.weights_hash or kept.get("data") != data_fingerprint(split):
        return []
    return kept_rows(run.folder, name, kept)


def kept_rows(folder: Path, name: str, scores: Mapping[str, Any]) -> list[Score]:
    """The scores of a file that `keep_scores` left.

    Args:
        folder: of the run. name: of the file. scores: what stands in it.

    Raises:
        CheckpointError: the tallies beside it are damaged.
    """
    tallies, nothing = read_tallies(folder, name), np.zeros((0, 3, len(scores["classes"]) + 1), np.int64)
    return [Score(row, np.array(counts), tallies.get(row, nothing)) for row, counts in scores["rows"].items()]
