"""What the commands print, where the output is no terminal."""

import io
import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afactl.machine import terminal
from afactl.machine.terminal import PlainConsole, duration, error_line, percent, progress_bar, table, tracker, visible

# Class names and file names come from anywhere. What a terminal obeys or cannot show is written out.
NAMES = [
    "dog [adult]",
    "[/red]",
    "[bold]x[/bold]",
    "a\\[b",
    ":dog:",
    "x\x1b[31mred",
    "two\nlines",
    "50% {name}",
    "\udce9t\u00e9",
]
names = (
    st.text(min_size=1, max_size=30) | st.sampled_from(NAMES) | st.text("[]/\\:{}%bolredimx\n\x1b\udce9", max_size=12)
)


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (4.6, "0:05"), (245, "4:05"), (3723, "1:02:03")])
def test_duration_is_written_as_on_a_clock(seconds, shown):
    assert duration(seconds) == shown


def test_percent_shows_a_dash_where_there_is_no_figure():
    assert percent(12.345) == "12.3" and percent(float("nan")) == "-"


def test_errors_are_one_line(capsys):
    error_line("a library\n  spoke in\nlines")
    error_line("a  b.jpg: \x1b[2Jbroken")
    assert capsys.readouterr().err == "error: a library spoke in lines\nerror: a  b.jpg: \\x1b[2Jbroken\n"


def test_a_tracker_gives_every_item_and_speaks_only_of_long_jobs(capsys, monkeypatch):
    assert list(tracker("short")([1, 2, 3])) == [1, 2, 3]
    assert capsys.readouterr().err == ""
    clock = iter(range(0, 100, 3))  # three seconds an item
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert list(tracker("long")([1, 2, 3])) == [1, 2, 3]
    assert "long: 1 of 3" in capsys.readouterr().err


@given(names)
def test_what_is_visible_can_be_written_and_obeyed_by_nothing(name):
    visible(name).encode("utf-8")
    written = [repr(one)[1:-1] if unicodedata.category(one) in ("Cc", "Cs", "Zl", "Zp") else one for one in name]
    assert visible(name) == "".join(written)


def test_visible_names():
    assert visible("dog [adult] \u00e9\U0001f415\u200d") == "dog [adult] \u00e9\U0001f415\u200d"
    assert visible("a\x1b[31m\n\t\udce9\u2028") == "a\\x1b[31m\\n\\t\\udce9\\u2028"


@given(names)
def test_a_name_is_text_and_one_line_wherever_it_is_printed(name):
    console = PlainConsole(file=io.StringIO(), width=400, soft_wrap=True)
    console.print(f"run: {name}")
    assert console.file.getvalue() == f"run: {visible(name)}\n"


@settings(max_examples=40)
@given(names)
def test_a_name_is_text_in_every_part_of_a_table(name):
    console = PlainConsole(file=io.StringIO(), width=400)
    console.print(table(name, (name, name), [(name, name)], texts=2))
    shown, words = console.file.getvalue(), visible(name).split(" ")
    cells = [line for line in shown.splitlines() if line[:1] in "│┃"]
    assert len(cells) == 2, "the head and the row, one line each"
    for line in cells:
        assert [part.strip() for part in line.replace("┃", "│").strip("│").split("│")].count(
            visible(name).strip()
        ) == 2 or ("│" in name or "┃" in name)
    assert all(word in shown.split("┏")[0] or not word.strip() for word in words), "the title"


@pytest.mark.parametrize("name", ["dog [adult]", "[/red]", "[bold]x[/bold]", ":dog:"])
def test_a_bar_shows_a_name_as_it_is(name, monkeypatch):
    console = PlainConsole(file=io.StringIO(), width=400, force_terminal=True)
    monkeypatch.setattr(terminal, "log", console)
    with progress_bar() as bar:
        list(bar.track([1], description=name))
    assert name in console.file.getvalue()


def test_names_that_no_encoding_has_are_written_to_the_errors_too(capsys):
    error_line("caf\udce9.jpg: truncated")
    assert capsys.readouterr().err == "error: caf\\udce9.jpg: truncated\n"
