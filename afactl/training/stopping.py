"""Stopping a job: the first request lets the step at hand end, the second one does not."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator


def leave_stops_to_the_job(worker: int) -> None:
    """Called in a process that reads photos: Ctrl-C and SIGTERM are for the job, which ends it.

    A terminal, a scheduler and a service manager send them to all processes of a job; a reader that died of it
    would end the job in the middle of a step, without its checkpoint.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def stop_requests(stop: threading.Event) -> Iterator[None]:
    """Inside the block, the first Ctrl-C or SIGTERM sets the event; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python hands signals to the main thread only
        return

    def note(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
