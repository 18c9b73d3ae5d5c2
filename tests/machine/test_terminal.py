"""What the commands print, where the output is no terminal."""

import time

import pytest

from afactl.machine.terminal import duration, error_line, percent, tracker


@pytest.mark.parametrize(("seconds", "shown"), [(0, "0:00"), (4.6, "0:05"), (245, "4:05"), (3723, "1:02:03")])
def test_duration_is_written_as_on_a_clock(seconds, shown):
    assert duration(seconds) == shown


def test_percent_shows_a_dash_where_there_is_no_figure():
    assert percent(12.345) == "12.3" and percent(float("nan")) == "-"


def test_errors_are_one_line(capsys):
    error_line("a library\n  spoke in\nlines")
    assert capsys.readouterr().err == "error: a library spoke in lines\n"


def test_a_tracker_gives_every_item_and_speaks_only_of_long_jobs(capsys, monkeypatch):
    assert list(tracker("short")([1, 2, 3])) == [1, 2, 3]
    assert capsys.readouterr().err == ""
    clock = iter(range(0, 100, 3))  # three seconds an item
    monkeypatch.setattr(time, "monotonic", lambda: next(clock))
    assert list(tracker("long")([1, 2, 3])) == [1, 2, 3]
    assert "long: 1 of 3" in capsys.readouterr().err
