"""What several commands print alike."""

import numpy as np
from rich.console import Console

from afactl.cli.tables import numbers, print_per_class
from afactl.evaluation.intervals import tally
from afactl.evaluation.scores import Score


def test_numbers_are_written_as_short_as_they_are():
    assert numbers((1.0, 0.5, 1.25)) == "1, 0.5, 1.25"
    assert numbers(()) == ""


def test_a_row_per_class_and_a_column_per_score(monkeypatch):
    """Background 3 of 4 right and 1 of 5 in the union wrong, cat 1 of 3 in the union, dog not in the truth."""
    page = Console(width=80, record=True)
    monkeypatch.setattr("afactl.cli.tables.out", page)
    confusion = np.array([[3, 1, 0], [1, 1, 0], [0, 0, 0]])
    nothing = np.zeros((0, 3, 3), np.int64)  # of an earlier version: no intervals
    images = np.stack([tally(np.diag([4, 2, 0]))] * 3)
    scores = {"raw": Score("raw", confusion, nothing), "+ PAR": Score("+ PAR", np.diag([4, 2, 0]), images)}
    print_per_class(scores, ("cat", "dog"))
    cells = [
        [cell.strip() for cell in line.split("│")[1:-1]] for line in page.export_text().splitlines() if "│" in line
    ]
    assert ["background", "60.0", "100.0 ± 0.0"] in cells and ["cat", "33.3", "100.0 ± 0.0"] in cells
    assert ["dog", "-", "-"] in cells, "a class that the truth does not have is no zero"
    assert cells[-1] == ["mIoU", "46.7", "100.0 ± 0.0"]
