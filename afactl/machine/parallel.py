"""One function over many items in several processes, in order and with bounded memory."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import TypeVar

import torch

from afactl.machine import distributed

Item = TypeVar("Item")
Made = TypeVar("Made")

# Starting processes takes seconds; for fewer items one process is as quick.
WORTHWHILE = 24


def processes_for(items: int, device: torch.device) -> int:
    """How many processes serve so many items: this one's share of the cores on a CPU, else this one alone."""
    cores = max(1, (os.cpu_count() or 1) // distributed.world_size())
    return cores if device.type == "cpu" and items >= WORTHWHILE else 1


def ordered_map(function: Callable[[Item], Made], items: Iterable[Item], processes: int) -> Iterator[Made]:
    """function(item) of every item, in order.

    Args:
        function: can be pickled where there are several processes, and so can items and results.
        processes: each computes with one thread; with 1 everything happens here. At most
            2 x processes items wait at a time.
    """
    if processes <= 1:
        yield from map(function, items)
        return
    # Forking a process whose torch has threads can hang; spawn starts clean.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=torch.set_num_threads, initargs=(1,))
    waiting: deque[Future[Made]] = deque()
    try:
        for item in items:
            waiting.append(pool.submit(function, item))
            if len(waiting) > 2 * processes:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        # After an error or an early stop what waits is dropped, and what runs is ended first.
        pool.shutdown(wait=True, cancel_futures=True)
