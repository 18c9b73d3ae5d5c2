"""What a training will need, said before and while it runs: time, memory, disk."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from afactl.errors import UsageError
from afactl.files import nearest_existing
from afactl.method.schedule import Phase
from afactl.training.updater import Updater

# A phase is timed over so many steps, after its first one, which is slower than all others.
TIMED_STEPS = 20
# last, the former last, best, and the one that is being written.
CHECKPOINTS = 4


def rehearse(updater: Updater, batches: Sequence[dict[str, Any]], phases: Sequence[Phase]) -> dict[str, float]:
    """Seconds that a step of each phase takes: each is tried once, and leaves no trace.

    The last phase takes the most memory, so a device that is too small is found out now and not after hours.

    Args:
        batches: one step's, of `TrainingStream`. phases: that are still to come, in their order.
    """
    updater.rehearse(phases[-1], batches)  # the very first step is slower than all others
    took = {}
    for phase in phases:
        clock = time.perf_counter()
        updater.rehearse(phase, batches)
        took[phase.value] = time.perf_counter() - clock
    return took


def steps_left(step: int, starts: Mapping[str, int], total: int) -> dict[str, int]:
    """How many steps of each phase are still to come, those without any left out.

    Args:
        step: done. starts: first step of each phase, as `schedule.phase_starts` gives them. total: steps of the
            training.

    Example:
        >>> steps_left(120, {"classification": 0, "refined labels": 100, "propagated labels": 300}, 500)
        {'refined labels': 180, 'propagated labels': 200}
    """
    ends = [*starts.values(), total][1:]
    left = {name: min(end, total) - max(first, step) for (name, first), end in zip(starts.items(), ends, strict=True)}
    return {name: count for name, count in left.items() if count > 0}


def seconds_left(step: int, paces: Mapping[str, float], starts: Mapping[str, int], total: int) -> float:
    """How long the steps that are left will take; validations come on top.

    Args:
        paces: seconds a step of each phase that is still to come. Others: as in `steps_left`.

    Example:
        >>> starts = {"classification": 0, "refined labels": 100, "propagated labels": 300}
        >>> seconds_left(20, {"classification": 1.0, "refined labels": 3.0, "propagated labels": 4.0}, starts, 500)
        1480.0
    """
    return float(sum(count * paces[name] for name, count in steps_left(step, starts, total).items()))


class Forecast:
    """Says once in each phase, by the pace of its own steps, how long the rest will take.

    Args:
        paces: seconds a step of each phase to come, as `rehearse` found them. Others: as in `steps_left`.
    """

    def __init__(self, paces: Mapping[str, float], starts: Mapping[str, int], total: int) -> None:
        self._paces, self._starts, self._total = dict(paces), starts, total
        self._phase: Phase | None = None
        self._timed, self._seconds = 0, 0.0

    def after(self, step: int, phase: Phase, seconds: float) -> str | None:
        """What is to be said after so many steps, of which the last one was of `phase` and took `seconds`."""
        if phase is not self._phase:
            self._phase, self._timed, self._seconds = phase, 0, 0.0
            return None
        self._timed, self._seconds = self._timed + 1, self._seconds + seconds
        if self._timed != TIMED_STEPS:
            return None
        # The steps to come are as much slower or quicker than they were rehearsed as these were.
        pace = self._seconds / TIMED_STEPS
        slower = pace / self._paces[phase.value]
        self._paces = {name: slower * rehearsed for name, rehearsed in self._paces.items()}
        left = about(seconds_left(step, self._paces, self._starts, self._total))
        return f"{left} left ({phase.value}, {pace:.2f} s a step; validations come on top)"


def about(seconds: float) -> str:
    """A duration as a person says it.

    Example:
        >>> about(40), about(610), about(9000)
        ('less than a minute', 'about 10 min', 'about 2.5 h')
    """
    if seconds < 60:
        return "less than a minute"
    return f"about {seconds / 3600:.1f} h" if seconds >= 2 * 3600 else f"about {seconds / 60:.0f} min"


def checkpoint_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of one checkpoint: the weights, and two moments of each parameter that learns."""
    weights: int = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    return weights + moments_bytes(optimizer)


def moments_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of the two moments that AdamW keeps of each parameter that learns, from its first update on."""
    learned = [value for group in optimizer.param_groups for value in group["params"] if value.requires_grad]
    size: int = 2 * sum(value.numel() * value.element_size() for value in learned)
    return size


def require_disk(run: Path, needed: int) -> int:
    """See that the disk of a run, which need not be there yet, has room for its checkpoints.

    Args:
        needed: bytes of one checkpoint.

    Returns:
        Bytes that are free.

    Raises:
        UsageError: CHECKPOINTS of them do not fit.
    """
    place = nearest_existing(run.absolute())
    if not hasattr(shutil, "disk_usage"):  # systems that do not tell
        return CHECKPOINTS * needed
    free = shutil.disk_usage(place).free
    if free < CHECKPOINTS * needed:
        raise UsageError(
            f"{place}: expected {megabytes(CHECKPOINTS * needed)} of free disk for the checkpoints, "
            f"found {megabytes(free)}; free some, or choose another place by --out"
        )
    return free


def megabytes(size: int) -> str:
    """A number of bytes as a person says it.

    Example:
        >>> megabytes(3_400_000), megabytes(2_140_000_000)
        ('3 MB', '2.1 GB')
    """
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"
