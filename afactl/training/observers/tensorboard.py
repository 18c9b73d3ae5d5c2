"""Curves and pictures of a training for TensorBoard (extra [tensorboard]), beside metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from afactl.errors import DependencyError
from afactl.training.events import BetweenSteps, Ended, Event, Started, Stepped, Validated
from afactl.training.observers.photo_pictures import photo_pictures

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoardLog:
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
        self._writer: SummaryWriter | None = None

    def __call__(self, event: Event) -> None:
        """Draw an event, if there is something to draw."""
        if isinstance(event, Started):
            self._writer = self._make_writer(str(event.run / "tensorboard"), purge_step=event.step + 1)
        if self._writer is None:
            return
        match event:
            case Stepped(logged=True):
                _curves(self._writer, event.step, event.values())
            case Validated():
                _curves(self._writer, event.step, event.scores)
            case BetweenSteps():
                for name, picture in photo_pictures(event):
                    self._writer.add_image(name, picture, event.step, dataformats="HWC")
                self._writer.flush()
            case Ended():
                self._writer.close()
            case _:
                pass


def _curves(writer: SummaryWriter, step: int, values: Mapping[str, float | str]) -> None:
    for name, value in values.items():
        if isinstance(value, int | float):
            writer.add_scalar(name, value, step)
