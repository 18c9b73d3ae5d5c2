"""Scores of pseudo labels over thresholds: whether a row is better at the best threshold of each, too."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch

from afactl.datasets.images import read_image
from afactl.datasets.masks import enlarge_mask
from afactl.datasets.samples import Split, Track
from afactl.errors import UsageError
from afactl.evaluation.metrics import confusion_matrix, mean_iou
from afactl.evaluation.pseudo_labels import labels_over, preset_threshold, row_ends, table3_rows
from afactl.inference.cams import open_cam_cache, record_of
from afactl.inference.trained_run import TrainedRun
from afactl.presets import Preset

# More are no curve, but hours.
MOST = 101


class Sweep(NamedTuple):
    """mIoU of rows of Table 3 over thresholds.

    Attributes:
        split: whose truth was used. thresholds: T, rising.
        miou: per row T values in per cent. ends: how the names of rows end, as they are and refined.
    """

    split: str
    thresholds: tuple[float, ...]
    miou: dict[str, np.ndarray]
    ends: tuple[str, str]

    def best(self, row: str) -> float:
        """The threshold at which a row is best; the smallest of several."""
        return self.thresholds[int(np.argmax(self.miou[row]))]

    def at(self, row: str, threshold: float) -> float:
        """mIoU of a row at one of the thresholds, in per cent."""
        return float(self.miou[row][self.thresholds.index(threshold)])


def parse_thresholds(text: str) -> tuple[float, ...]:
    """`0.2:0.7:0.05` -> 0.2, 0.25, ... 0.7.

    Raises:
        UsageError: not of this form, outside (0, 1), or no rising range.
    """
    try:
        first, last, step = (float(part) for part in text.split(":"))
    except ValueError:
        first = last = step = math.nan
    if not (0 < first <= last < 1 and step > 0):
        raise UsageError(f'--thresholds: expected FROM:TO:STEP between 0 and 1, such as 0.2:0.7:0.05, got "{text}"')
    count = int((last - first) / step + 1e-6) + 1
    if count > MOST:
        raise UsageError(f"--thresholds {text}: {count} thresholds; take a larger step, {MOST} are the most")
    return tuple(round(first + step * number, 6) for number in range(count))


def sweep_pseudo_labels(
    run: TrainedRun, split: Split, thresholds: Sequence[float], track: Track = iter, refiner: str | None = None
) -> Sweep:
    """Score each row of Table 3 that a run gives at every threshold, and at its own of the preset.

    CAMs and affinity come out of the run's cache or go into it; image-level truth is used.

    Args:
        thresholds: in (0, 1): where CAMs are cut (refined: the background plane), and the background plane of
            propagated rows.
        refiner: as in `score_pseudo_labels`.
    """
    preset, masks, classes = run.preset, split.require_masks(), len(split.classes) + 1
    values = tuple(sorted({*thresholds, *(preset_threshold(preset, row) for row in table3_rows(preset))}))
    ends = row_ends(preset, refiner)
    rows = [f"{row}{end}" for row in table3_rows(preset) for end in ends]
    counts = np.zeros((len(rows), len(values), classes, classes), np.int64)
    with open_cam_cache(run, split) as cams, torch.inference_mode():
        for sample in track(split.samples):
            image, truth = read_image(sample.image_path), masks.read(sample)
            record, _ = record_of(run, cams, sample, image)
            labels = labels_over(image, record, preset, run.device, [values] * len(table3_rows(preset)), refiner)
            for number, over in enumerate(labels.reshape(len(rows), len(values), *labels.shape[3:])):
                for place, label in enumerate(over):
                    counts[number, place] += confusion_matrix(truth, enlarge_mask(label, image.shape[:2]), classes)
    miou = {row: np.array([100 * mean_iou(count) for count in over]) for row, over in zip(rows, counts, strict=True)}
    return Sweep(split.name, values, miou, ends)


class Choice(NamedTuple):
    """A row at the preset's threshold and at a chosen one: (threshold, mIoU in per cent) each."""

    row: str
    preset: tuple[float, float]
    chosen: tuple[float, float]


def choices(sweep: Sweep, preset: Preset, source: Sweep | None = None) -> list[Choice]:
    """Every row both ways.

    Args:
        source: the sweep whose best thresholds are taken: of another split, since those of this split have seen its
            truth. None: of this one.
    """
    made = []
    for row in sweep.miou:
        own, best = preset_threshold(preset, row.removesuffix(sweep.ends[1])), (source or sweep).best(row)
        made.append(Choice(row, (own, sweep.at(row, own)), (best, sweep.at(row, best))))
    return made
