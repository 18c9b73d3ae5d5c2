"""What several commands print alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from afactl.machine.terminal import out, table

if TYPE_CHECKING:
    from afactl.evaluation.scores import Score


def numbers(values: tuple[float, ...]) -> str:
    """1, 0.5, 1.5."""
    return ", ".join(f"{value:g}" for value in values)


def score_figures(score: Score, classes: Sequence[str]) -> dict[str, Any]:
    """A score for `--json`, in per cent: mIoU, its 95 % interval, and the same for each class in the truth."""
    from afactl.evaluation.metrics import class_iou

    ious = zip(("background", *classes), 100 * class_iou(score.confusion), score.class_intervals, strict=True)
    per_class = {name: {"iou": float(iou), "interval": list(span)} for name, iou, span in ious if math.isfinite(iou)}
    return {"miou": score.miou, "interval": list(score.interval), "classes": per_class}


def print_per_class(scores: dict[str, Score], classes: tuple[str, ...]) -> None:
    """A table of IoU with a row per class and a column per score."""
    from afactl.evaluation.intervals import shown
    from afactl.evaluation.metrics import class_iou

    columns = [
        [shown(*one) for one in zip(100 * class_iou(score.confusion), score.class_intervals, strict=True)]
        for score in scores.values()
    ]
    rows = [*zip(("background", *classes), *columns, strict=True)]
    rows.append(("mIoU", *(score.text for score in scores.values())))
    out.print(table("IoU % per class (a dash: not in the truth)", ("class", *scores), rows))
