"""What a training tells while it runs: one small class for each kind of event, and who is told.

This module knows nothing of torch, so that the command line starts quickly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from afactl.method.schedule import Phase

if TYPE_CHECKING:
    from afactl.datasets.samples import Split
    from afactl.inference.trained_run import TrainedRun


@dataclass(frozen=True)
class Noted:
    """Something to be said in words, before or while the steps are taken."""

    step: int
    text: str


@dataclass(frozen=True)
class Started:
    """The loop begins after `step` of `total` steps; all that follows belongs to the folder `run`."""

    step: int
    total: int
    run: Path


@dataclass(frozen=True)
class Stepped:
    """A step is done.

    Attributes:
        step: counted from 1.
        losses: the unweighted terms by name ("cls", "seg", "aff", "reg"). loss: their weighted sum.
        rate: learning rate of the backbone.
        images_per_second: since the last logged step, of all processes, validation left out; None for a step
            between two logged ones.
        peak_memory: bytes, or None where the system does not count them.
    """

    step: int
    total: int
    phase: Phase
    losses: Mapping[str, float]
    loss: float
    rate: float
    images_per_second: float | None = None
    peak_memory: int | None = None

    @property
    def logged(self) -> bool:
        """Whether the step is one that leaves a line (`train.log_iters`)."""
        return self.images_per_second is not None

    def finite_losses(self) -> dict[str, float]:
        """The terms, and last their sum as "sum"; those of a skipped step that are not finite are left out."""
        return {name: value for name, value in {**self.losses, "sum": self.loss}.items() if math.isfinite(value)}

    def values(self) -> dict[str, float | str]:
        """What is logged of the step, under the names of metrics.jsonl; JSON knows no NaN."""
        losses = {"loss" if name == "sum" else f"loss_{name}": value for name, value in self.finite_losses().items()}
        values: dict[str, float | str] = {"phase": self.phase.value, **losses, "lr": self.rate}
        if self.images_per_second is not None:
            values["images_per_second"] = self.images_per_second
        return values


@dataclass(frozen=True)
class Skipped:
    """The loss of a step was not finite, so nothing was learned from it."""

    step: int
    image_ids: tuple[str, ...]

    @property
    def text(self) -> str:
        """The event in words."""
        return f"step {self.step}: non-finite loss, step skipped; images: {', '.join(self.image_ids)}"


@dataclass(frozen=True)
class BetweenSteps:
    """The network stands still, and may be looked at: by `run`, and the photos of `split`."""

    step: int
    run: TrainedRun
    split: Split


@dataclass(frozen=True)
class Validating:
    """A validation has scored `done` of `of` photos."""

    step: int
    done: int
    of: int


@dataclass(frozen=True)
class Validated:
    """A validation is done.

    Attributes:
        scores: in per cent by name ("val_seg_miou", "val_cam_miou"); empty where there is none.
        no_score: why there is none.
    """

    step: int
    scores: Mapping[str, float]
    no_score: str = ""

    @property
    def text(self) -> str:
        """The event in words."""
        scores = ", ".join(f"{name} {value:.1f}" for name, value in self.scores.items())
        return f"step {self.step}: {scores or f'validation without a score: {self.no_score}'}"


@dataclass(frozen=True)
class Saved:
    """A checkpoint of the run lies on the disk: `which` is "last" or "best"."""

    step: int
    run: Path
    which: str


@dataclass(frozen=True)
class Ended:
    """No more events: the training is finished, was stopped, or failed after `step` steps."""

    step: int


Event = Noted | Started | Stepped | Skipped | BetweenSteps | Validating | Validated | Saved | Ended
Observer = Callable[[Event], None]
