"""Whether this process is one of several that a launcher has started. No torch is needed to tell."""

from __future__ import annotations

import os
from typing import NamedTuple

from afactl.errors import UsageError

# What torchrun sets, and every launcher that takes its place.
VARIABLES = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


class Launched(NamedTuple):
    """One of `processes` processes: its number among all of them, and among those on this machine."""

    rank: int
    local_rank: int
    processes: int


def launched() -> Launched | None:
    """The place of this process among several that torchrun has started; None where it works alone.

    Some clusters set WORLD_SIZE for every program, or RANK and MASTER_ADDR too. That alone is no launch: torchrun is
    known by TORCHELASTIC_RUN_ID, another launcher by setting all of VARIABLES.

    Raises:
        UsageError: it is a launch, but a number is none.
    """
    if not os.environ.get("TORCHELASTIC_RUN_ID") and not all(os.environ.get(name) for name in VARIABLES):
        return None
    place = Launched(*(_number(name) for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE")))
    return place if place.processes > 1 else None


def unlaunched_note() -> str:
    """What is to be said where WORLD_SIZE speaks of several processes and nobody has launched them; or "" """
    size = os.environ.get("WORLD_SIZE", "")
    if not size.isdecimal() or int(size) < 2 or launched() is not None:
        return ""
    return f"WORLD_SIZE={size} is set, but not by torchrun: this process works alone"


def _number(name: str) -> int:
    text = os.environ.get(name, "")
    if not text.isdecimal():
        raise UsageError(
            f'{name}: expected a number as torchrun sets it, got "{text}"; start afactl by torchrun, or alone'
        )
    return int(text)
