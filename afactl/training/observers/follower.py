"""What the programs that follow a training have in common: which events they keep, and as what."""

from __future__ import annotations

import abc
from collections.abc import Iterator, Mapping

import numpy as np

from afactl.training.events import BetweenSteps, Ended, Event, Started, Stepped, Validated
from afactl.training.observers.photo_pictures import photo_pictures


class Follower(abc.ABC):
    """An observer that hands curves and pictures to a program of its own; what comes before a start is left."""

    _started = False

    def __call__(self, event: Event) -> None:
        """Keep an event, if there is something to keep."""
        if isinstance(event, Started):
            self.start(event)
            self._started = True
        if not self._started:
            return
        match event:
            case Stepped(logged=True):
                self.curves(event.step, _numbers(event.values()))
            case Validated():
                self.curves(event.step, _numbers(event.scores))
            case BetweenSteps():
                self.pictures(event.step, photo_pictures(event))
            case Ended():
                self.end()
            case _:
                pass

    @abc.abstractmethod
    def start(self, event: Started) -> None:
        """Open what is written into, in the run folder."""

    @abc.abstractmethod
    def curves(self, step: int, values: Mapping[str, float]) -> None:
        """Add a point to each of these curves."""

    @abc.abstractmethod
    def pictures(self, step: int, pictures: Iterator[tuple[str, np.ndarray]]) -> None:
        """Keep pictures: "IMAGE_ID/KIND" and h x w x 3 uint8."""

    @abc.abstractmethod
    def end(self) -> None:
        """Close it."""


def _numbers(values: Mapping[str, float | str]) -> dict[str, float]:
    return {name: value for name, value in values.items() if isinstance(value, int | float)}
