"""metrics.jsonl of a run: a line for every logged step, skipped step and validation."""

from __future__ import annotations

from pathlib import Path

from afactl.runs.metrics import NO_SCORE, append_metrics
from afactl.training.events import Event, Skipped, Stepped, Validated


class MetricsFile:
    """Appends to metrics.jsonl in a run folder."""

    def __init__(self, run: Path) -> None:
        self.run = run

    def __call__(self, event: Event) -> None:
        """Keep what an event measures; other events leave no line."""
        match event:
            case Stepped(logged=True):
                append_metrics(self.run, step=event.step, **event.values())
            case Skipped():
                append_metrics(self.run, step=event.step, skipped=list(event.image_ids))
            case Validated():
                why = {} if event.scores else {NO_SCORE: event.no_score}
                append_metrics(self.run, step=event.step, **event.scores, **why)
            case _:
                pass
