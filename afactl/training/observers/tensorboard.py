"""Curves and pictures of a training for TensorBoard (extra [tensorboard]), beside metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from afactl.errors import DependencyError
from afactl.training.events import Started
from afactl.training.observers.follower import Follower

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLog(Follower):
    """Event files in RUN/tensorboard: what metrics.jsonl has as curves, and pictures between steps.

    What an earlier call wrote of steps that a resumed run does again is hidden.

    Raises:
        DependencyError: tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise DependencyError("--tensorboard needs tensorboard: pip install 'afactl[tensorboard]'") from error
        self._make_writer = SummaryWriter
        self._writer: SummaryWriter

    def start(self, event: Started) -> None:
        self._writer = self._make_writer(str(event.run / "tensorboard"), purge_step=event.step + 1)

    def curves(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def pictures(self, step: int, pictures: Iterator[tuple[str, np.ndarray]]) -> None:
        for name, picture in pictures:
            self._writer.add_image(name, picture, step, dataformats="HWC")
        self._writer.flush()

    def end(self) -> None:
        self._writer.close()
