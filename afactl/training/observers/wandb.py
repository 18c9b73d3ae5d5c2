"""Preset, curves and pictures of a training for Weights & Biases (extra [wandb]), offline, beside metrics.jsonl."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from afactl.errors import DependencyError
from afactl.presets import values_by_key
from afactl.runs.folder import run_preset
from afactl.training.events import Started
from afactl.training.observers.follower import Follower


class WandbLog(Follower):
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

    def start(self, event: Started) -> None:
        self._run = self._wandb.init(
            mode="offline",
            project="afactl",
            name=event.run.name,
            dir=str(event.run),
            config={**values_by_key(run_preset(event.run)), "from_step": event.step},
            settings=self._wandb.Settings(silent=True, disable_git=True),
        )

    def curves(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def pictures(self, step: int, pictures: Iterator[tuple[str, np.ndarray]]) -> None:
        for name, picture in pictures:
            self._run.log({name: self._wandb.Image(picture)}, step=step)

    def end(self) -> None:
        self._run.finish()
