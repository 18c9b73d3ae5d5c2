"""Scores by name, and where a run keeps them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from afactl.datasets.samples import Split
from afactl.evaluation.metrics import mean_iou
from afactl.inference.trained_run import TrainedRun
from afactl.machine import distributed
from afactl.runs.folder import write_scores


def to_uint8(label: torch.Tensor) -> np.ndarray:
    return label.to(torch.uint8).cpu().numpy()


class Score(NamedTuple):
    """One confusion matrix by name; `confusion` is K x K, rows the truth."""

    name: str
    confusion: np.ndarray

    @property
    def miou(self) -> float:
        """Mean IoU in per cent over the classes that occur in the truth."""
        return 100 * mean_iou(self.confusion)


def keep_scores(run: TrainedRun, name: str, split: Split, confusions: dict[str, np.ndarray], **facts: str) -> None:
    """Leave the confusion matrices and what else is to be known of them in the run, for its report."""
    if distributed.rank() == 0:
        rows = {row: confusion.tolist() for row, confusion in confusions.items()}
        told = {"split": split.name, "images": len(split.samples), "classes": list(split.classes), **facts}
        write_scores(run.folder, name, {**told, "weights": run.weights_hash, "step": run.iteration, "rows": rows})
