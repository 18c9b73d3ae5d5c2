"""What a training shows while it runs: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from afactl.machine.terminal import LINE_SECONDS, duration, log
from afactl.training.events import Event, Noted, Observer, Saved, Skipped, Stepped, Validated, Validating

# Weight of the newest value in a smoothed one; about the last twenty steps count.
NEWEST = 0.1
NAMES = {"val_seg_miou": "segmentation", "val_cam_miou": "CAM"}


class TrainingView:
    """The live view: phase, smoothed losses, rate, photos per second, end, memory and the last validation.

    Args:
        clock: seconds; validation does not count for the expected end.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.clock = clock
        self.smooth: dict[str, float] = {}
        self.facts: dict[str, str] = {}
        self.step_seconds: float | None = None
        self.last: float | None = None
        self.bar = Progress(
            TextColumn("{task.description}", markup=False), BarColumn(bar_width=None), MofNCompleteColumn()
        )
        self.task = self.bar.add_task("starting", total=None)

    def update(self, event: Event) -> None:
        """Take an event in."""
        now = self.clock()
        match event:
            case Validating():
                self.bar.update(self.task, description=f"validation, {event.done} of {event.of}")
                self.last = None
            case Validated():
                scores = ", ".join(f"{NAMES.get(name, name)} {value:.1f}" for name, value in event.scores.items())
                self.facts["last validation"] = f"step {event.step}: {f'{scores} mIoU %' if scores else 'no score'}"
            case Stepped():
                self._step(event, now)
            case _:
                pass

    def _step(self, event: Stepped, now: float) -> None:
        for name, value in event.finite_losses().items():
            before = self.smooth.get(name, value)
            self.smooth[name] = before + NEWEST * (value - before)
        if self.last is not None:
            taken = now - self.last
            self.step_seconds = (
                taken if self.step_seconds is None else self.step_seconds + NEWEST * (taken - self.step_seconds)
            )
            self.facts["left"] = duration((event.total - event.step) * self.step_seconds)
        self.last = now
        self.facts["learning rate"] = f"{event.rate:.2e}"
        if event.images_per_second is not None:
            self.facts["photos per second"] = f"{event.images_per_second:.1f}"
        if event.peak_memory:
            self.facts["peak memory"] = f"{event.peak_memory / 2**30:.1f} GiB"
        self.bar.update(self.task, completed=event.step, total=event.total, description=event.phase.value)

    def __rich__(self) -> Group:
        table = Table.grid(padding=(0, 2))
        # The sum before its terms.
        shown = sorted(self.smooth.items(), key=lambda item: (item[0] != "sum", item[0]))
        losses = "  ".join(f"{'loss' if name == 'sum' else name} {value:.3f}" for name, value in shown)
        for name, text in ([("losses", losses)] if losses else []) + list(self.facts.items()):
            table.add_row(Text(name, style="dim"), Text(text))
        return Group(table, self.bar)


class TrainingLines:
    """A line for each note, validation, and where `steps` are wanted each logged step and long validation.

    Attributes:
        saved: the run folder, once it holds a checkpoint.
    """

    def __init__(self, console: Console, steps: bool) -> None:
        self.console, self.steps = console, steps
        self.saved: Path | None = None
        self.shown = time.monotonic()

    def update(self, event: Event) -> None:
        """Print what there is to say about an event."""
        match event:
            case Noted() | Skipped() | Validated():
                self.console.print(event.text)
            case Saved():
                self.saved = event.run
            case Validating() if self.steps and time.monotonic() - self.shown > LINE_SECONDS:
                self.console.print(f"step {event.step}: validation, {event.done} of {event.of}")
                self.shown = time.monotonic()
            case Stepped(logged=True) if self.steps:
                values = ", ".join(_value(*item) for item in event.values().items())
                self.console.print(f"step {event.step} of {event.total}: {values}")
                self.shown = time.monotonic()
            case _:
                pass


def _value(name: str, value: float | str) -> str:
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"


@contextlib.contextmanager
def watch_training(console: Console = log) -> Iterator[Observer]:
    """The observer that shows a training: the live view in a terminal, plain lines elsewhere.

    After Ctrl-C it says how to go on.
    """
    view = TrainingView() if console.is_terminal and not console.quiet else None
    lines = TrainingLines(console, steps=view is None)

    def observe(event: Event) -> None:
        if view is not None:
            view.update(event)
        lines.update(event)

    with contextlib.ExitStack() as stack:
        if view is not None:
            stack.enter_context(Live(view, console=console, refresh_per_second=4, transient=True))
        try:
            yield observe
        except KeyboardInterrupt:
            if lines.saved is not None:
                console.print(f"stopped; the last checkpoint is kept: afactl train --resume --out {lines.saved}")
            raise
