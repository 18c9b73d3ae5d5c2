"""What a training shows while it runs: a live view in a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table
from rich.text import Text

from afactl.machine.terminal import LINE_SECONDS, duration, log

if TYPE_CHECKING:
    from afactl.training.job import Event

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
        now, values = self.clock(), event.values
        if event.kind == "validating":
            self.bar.update(self.task, description=f"validation, {values['done']} of {values['of']}")
            self.last = None
        elif event.kind == "validation":
            scores = ", ".join(f"{NAMES.get(name, name)} {value:.1f}" for name, value in values.items())
            self.facts["last validation"] = f"step {event.step}: {scores} mIoU %"
        elif event.kind == "step":
            self._step(event, now)

    def _step(self, event: Event, now: float) -> None:
        values = event.values
        for name in [name for name in values if name.startswith("loss")]:
            before = self.smooth.get(name, values[name])
            self.smooth[name] = before + NEWEST * (values[name] - before)
        if self.last is not None:
            taken = now - self.last
            self.step_seconds = (
                taken if self.step_seconds is None else self.step_seconds + NEWEST * (taken - self.step_seconds)
            )
            self.facts["left"] = duration((event.total - event.step) * self.step_seconds)
        self.last = now
        self.facts["learning rate"] = f"{values['lr']:.2e}"
        if "images_per_second" in values:
            self.facts["photos per second"] = f"{values['images_per_second']:.1f}"
        if values.get("memory"):
            self.facts["peak memory"] = f"{values['memory'] / 2**30:.1f} GiB"
        self.bar.update(self.task, completed=event.step, total=event.total, description=values["phase"])

    def __rich__(self) -> Group:
        table = Table.grid(padding=(0, 2))
        # "loss", the sum, sorts before its terms.
        losses = "  ".join(f"{name.removeprefix('loss_')} {value:.3f}" for name, value in sorted(self.smooth.items()))
        for name, text in ([("losses", losses)] if losses else []) + list(self.facts.items()):
            table.add_row(Text(name, style="dim"), Text(text))
        return Group(table, self.bar)


@contextlib.contextmanager
def training_reporter(console: Console = log) -> Iterator[Callable[[Event], None]]:
    """What `training.train` calls for every event: the live view in a terminal, plain lines elsewhere.

    After Ctrl-C it says how to go on.
    """
    saved: dict[str, str] = {}
    shown = time.monotonic()
    with contextlib.ExitStack() as stack:
        view = TrainingView() if console.is_terminal and not console.quiet else None
        if view is not None:
            stack.enter_context(Live(view, console=console, refresh_per_second=4, transient=True))

        def report(event: Event) -> None:
            nonlocal shown
            if view is not None:
                view.update(event)
            if event.kind == "note":
                console.print(event.values["text"])
            elif event.kind == "checkpoint":
                saved["run"] = event.values["run"]
            elif event.kind == "validation":
                console.print(
                    f"step {event.step}: " + ", ".join(f"{name} {value:.1f}" for name, value in event.values.items())
                )
            elif view is None and event.kind == "validating" and time.monotonic() - shown > LINE_SECONDS:
                console.print(f"step {event.step}: validation, {event.values['done']} of {event.values['of']}")
                shown = time.monotonic()
            elif view is None and "images_per_second" in event.values:  # a logged step
                logged = {name: value for name, value in event.values.items() if name != "memory"}
                console.print(
                    f"step {event.step} of {event.total}: " + ", ".join(_value(*item) for item in logged.items())
                )
                shown = time.monotonic()

        try:
            yield report
        except KeyboardInterrupt:
            if saved:
                console.print(f"stopped; the last checkpoint is kept: afactl train --resume --out {saved['run']}")
            raise


def _value(name: str, value: float | str) -> str:
    return f"{name} {value:.4g}" if isinstance(value, float) else f"{name} {value}"
