"""metrics.jsonl of a run: one line per logged step, skipped step or validation, and what follows from them."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, NamedTuple

from afactl.files import whole_file

# Key of a line: why a validation has no score.
NO_SCORE = "no_score"


def append_metrics(run: Path, **values: Any) -> None:
    """Append one line to metrics.jsonl; opened and closed each time, so a kill loses nothing written."""
    with open(run / "metrics.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps(values) + "\n")


class Progress(NamedTuple):
    """How far a training is.

    Attributes:
        step: steps that are done. best: the best validation score (segmentation) up to there.
        validated: whether the validation of that step is done, if one is due.
    """

    step: int = 0
    best: float = -math.inf
    validated: bool = True


def progress_at(run: Path, step: int) -> Progress:
    """The progress of a run after so many steps, by its metrics."""
    lines = [line for line in read_metrics(run) if line["step"] <= step]
    scores = [line["val_seg_miou"] for line in lines if "val_seg_miou" in line]
    validated = any(line["step"] == step and ("val_seg_miou" in line or NO_SCORE in line) for line in lines)
    return Progress(step, max(scores, default=-math.inf), validated)


def read_metrics(run: Path) -> list[dict[str, Any]]:
    """All lines of metrics.jsonl; one that a kill cut off is left out."""
    lines = []
    path = run / "metrics.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(line))
        except ValueError:
            continue
    return lines


def forget_metrics_after(run: Path, step: int) -> None:
    """Take the lines of later steps off metrics.jsonl: a resumed job does those steps again."""
    kept = [line for line in read_metrics(run) if line["step"] <= step]
    path = run / "metrics.jsonl"
    with whole_file(path) as fresh:
        fresh.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
