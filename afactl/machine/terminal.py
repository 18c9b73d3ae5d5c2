"""What the commands print: progress, tables, and one-line events where the output is no terminal."""

from __future__ import annotations

import json
import os
import sys
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from afactl.files import is_utf8, whole_file, writing

Item = TypeVar("Item")


def visible(text: str) -> str:
    """The text, with what a terminal would obey or cannot show written out, as "\\x1b", "\\n" or "\\udce9".

    That are Unicode's control characters, line breaks among them, and the halves of characters by which Python
    keeps file names that are no UTF-8.
    """
    return "".join(
        character.encode("unicode_escape").decode("ascii")
        if unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
        else character
        for character in text
    )


class PlainConsole(Console):
    """A console to which text is text: no markup, no codes of emoji, nothing that a terminal would obey.

    Names of classes and files come from anywhere. One string is one line.
    """

    def render_str(self, text: str, **settings: Any) -> Text:
        return super().render_str(visible(text), **{**settings, "markup": False, "emoji": False, "highlight": False})


# Figures and results go to the standard output, progress and events to the standard error.
# Where the output is a file, tables get the width they need.
out = PlainConsole(soft_wrap=True, width=None if sys.stdout.isatty() else 160)
log = PlainConsole(stderr=True, soft_wrap=True)
# A job shorter than this shows no progress.
QUIET_SECONDS = 2.0
# Where the output is no terminal, a line comes so often.
LINE_SECONDS = 10.0


class RateColumn(ProgressColumn):
    """Items per second."""

    def render(self, task: Task) -> Text:
        return Text(f"{task.speed:.1f}/s" if task.speed else "")


def progress_bar() -> Progress:
    """A bar with rate and expected end, on the standard error."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        RateColumn(),
        TimeRemainingColumn(),
        console=log,
        transient=True,
    )


def tracker(description: str) -> Callable[[Sequence[Item]], Iterator[Item]]:
    """A function that walks over a sequence and shows how far it is: a bar, or a line now and then."""

    def track(items: Sequence[Item]) -> Iterator[Item]:
        if log.is_terminal:
            with progress_bar() as bar:
                yield from bar.track(items, description=description)
            return
        start = shown = time.monotonic()
        for done, item in enumerate(items):
            now = time.monotonic()
            # Every ten seconds, and the first time once the job proves to be long.
            if now - shown > (LINE_SECONDS if shown != start else QUIET_SECONDS) and done:
                shown, rate = now, done / (now - start)
                log.print(
                    f"{description}: {done} of {len(items)}, {rate:.1f}/s, {(len(items) - done) / rate:.0f} s left"
                )
            yield item

    return track


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], texts: int = 1) -> Table:
    """A table whose first `texts` columns are text, which may wrap, and whose others are figures."""
    made = Table(title=title, title_justify="left")
    for i, column in enumerate(columns):
        made.add_column(column, justify="left" if i < texts else "right", no_wrap=i >= texts, overflow="fold")
    for row in rows:
        made.add_row(*row)
    return made


def percent(value: float) -> str:
    """One decimal, or a dash where there is no figure."""
    return "-" if value != value else f"{value:.1f}"


def duration(seconds: float) -> str:
    """As a clock shows it: 4:05, or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def keep_quiet() -> None:
    """Print errors only, with the number of the process: another one tells the rest."""
    out.quiet = log.quiet = True


def error_line(message: str) -> None:
    """One line on the standard error, however long; newlines of libraries are folded."""
    whose = f"rank {os.environ['RANK']}: " if out.quiet else ""
    print(f"error: {whose}{visible(' '.join(line.strip() for line in message.splitlines()))}", file=sys.stderr)


def write_json(path: Path, figures: object) -> None:
    """Write figures for `--json`. A name that is no UTF-8 stands there by escapes, which JSON has.

    Raises:
        UsageError: the file cannot be written.
    """
    text = json.dumps(figures, indent=2, ensure_ascii=False)
    if not is_utf8(text):
        text = json.dumps(figures, indent=2)
    with writing(f"--json {path}", "give another file"), whole_file(path) as fresh:
        fresh.write_text(text + "\n", encoding="utf-8")
