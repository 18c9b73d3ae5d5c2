"""What a training will need, said before and while it runs: time, disk."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import nn

from afactl.errors import UsageError
from afactl.files import nearest_existing
from afactl.method.schedule import Phase

# A phase is timed over so many steps, after its first one, which is slower than all others.
TIMED_STEPS = 20
# How many times as long a step with pseudo labels takes as one of classification. Measured: 2.7 (hybrid, CPU),
# 3.4 (MiT-B1, CPU), 3.1 to 4.3 (MiT-B1, H100); docs/performance.md.
LABELS_COST = (2.5, 4.5)
# last, the former last, best, and the one that is being written.
CHECKPOINTS = 4


def seconds_left(step: int, pace: float, starts: Mapping[str, int], total: int) -> tuple[float, float]:
    """How long the steps that are left will take, at the least and at the most; validations come on top.

    Args:
        step: done. pace: seconds a step of the phase that it lies in. starts: first step of each phase, as
            `schedule.phase_starts` gives them. total: steps of the training.

    Example:
        >>> starts = {"classification": 0, "refined labels": 100, "propagated labels": 300}
        >>> seconds_left(20, 1.0, starts, 500)  # 80 as now, and 400 of which each takes 2.5 to 4.5 times as long
        (1080.0, 1880.0)
        >>> seconds_left(300, 3.0, starts, 500)
        (600.0, 600.0)
    """
    cheap = max(0, min(starts[Phase.REFINED.value], total) - step)
    dear = total - step - cheap
    if step < starts[Phase.REFINED.value]:
        low, high = (pace * (cheap + cost * dear) for cost in LABELS_COST)
        return low, high
    return pace * dear, pace * dear


def about(low: float, high: float) -> str:
    """Two durations in seconds as a person says them.

    Example:
        >>> about(40, 40), about(600, 610), about(1080, 1880), about(9000, 16000)
        ('less than a minute', 'about 10 min', '18 to 32 min', '2.5 to 4.4 h')
    """
    if high < 60:
        return "less than a minute"
    size, unit, digits = (3600, "h", 1) if high >= 2 * 3600 else (60, "min", 0)
    first, last = f"{low / size:.{digits}f}", f"{high / size:.{digits}f}"
    return f"about {first} {unit}" if first == last else f"{first} to {last} {unit}"


def checkpoint_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """Bytes of one checkpoint: the weights, and two moments of each parameter that learns."""
    weights: int = sum(value.numel() * value.element_size() for value in model.state_dict().values())
    learned = [value for group in optimizer.param_groups for value in group["params"] if value.requires_grad]
    moments: int = 2 * sum(value.numel() * value.element_size() for value in learned)
    return weights + moments


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
