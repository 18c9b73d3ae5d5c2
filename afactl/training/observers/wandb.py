"""Preset, curves and pictures of a training for Weights & Biases (extra [wandb]), offline, beside metrics.jsonl."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Any

from afactl.errors import DependencyError
from afactl.presets import values_by_key
from afactl.runs.folder import run_preset
from afactl.training.events import BetweenSteps, Ended, Event, Started, Stepped, Validated
from afactl.training.observers.photo_pictures import photo_pictures


class WandbLog:
    """RUN/wandb/offline-run-*, which `wandb sync` sends when the user wants it; nothing leaves the machine before.

    Each call of `train` is a run of its own there, named after the run folder: what is logged cannot be taken back,
    and a resumed training does some steps again. Its value `from_step` tells where it begins.

    Raises:
        DependencyError: wandb is not installed.
    """

    def __init__(self) -> None:
        try:
            self._wandb: Any = importlib.import_module("wandb")
        except ImportError as error:
            raise DependencyError("--wandb needs wandb: pip install 'afactl[wandb]'") from error
        self._run: Any = None

    def __call__(self, event: Event) -> None:
        """Keep an event, if there is something to keep."""
        if isinstance(event, Started):
            self._run = self._wandb.init(
                mode="offline",
                project="afactl",
                name=event.run.name,
                dir=str(event.run),
                config={**values_by_key(run_preset(event.run)), "from_step": event.step},
                settings=self._wandb.Settings(silent=True, disable_git=True),
            )
        if self._run is None:
            return
        match event:
            case Stepped(logged=True):
                self._curves(event.step, event.values())
            case Validated():
                self._curves(event.step, event.scores)
            case BetweenSteps():
                for name, picture in photo_pictures(event):
                    self._run.log({name: self._wandb.Image(picture)}, step=event.step)
            case Ended():
                self._run.finish()
            case _:
                pass

    def _curves(self, step: int, values: Mapping[str, float | str]) -> None:
        self._run.log({name: value for name, value in values.items() if isinstance(value, int | float)}, step=step)
