"""What several commands print alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

from afactl.machine.terminal import out, percent, table

if TYPE_CHECKING:
    from afactl.evaluation.scores import Score


def numbers(values: tuple[float, ...]) -> str:
    """1, 0.5, 1.5."""
    return ", ".join(f"{value:g}" for value in values)


def print_per_class(scores: dict[str, Score], classes: tuple[str, ...]) -> None:
    """A table of IoU with a row per class and a column per score."""
    from afactl.evaluation.metrics import class_iou

    ious = [100 * class_iou(score.confusion) for score in scores.values()]
    rows = [(name, *(percent(iou[i]) for iou in ious)) for i, name in enumerate(("background", *classes))]
    rows.append(("mIoU", *(percent(score.miou) for score in scores.values())))
    out.print(table("IoU % per class (a dash: not in the truth)", ("class", *scores), rows))
