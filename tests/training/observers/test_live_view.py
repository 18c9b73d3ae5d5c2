import io
from pathlib import Path

import pytest
from rich.console import Console

from afactl.method.schedule import Phase
from afactl.training.events import Noted, Saved, Skipped, Stepped, Validated, Validating
from afactl.training.observers.live_view import NEWEST, TrainingView, watch_training


def step(number, total=100, loss=1.0, images_per_second=None):
    return Stepped(number, total, Phase.REFINED, {"cls": 0.5}, loss, 6e-5, images_per_second, 3 * 2**30)


def shown(view):
    console = Console(file=io.StringIO(), width=100)
    console.print(view)
    return console.file.getvalue()


def test_the_view_tells_everything_about_a_training():
    times = iter([0.0, 2.0, 4.0, 6.0, 7.0])
    view = TrainingView(lambda: next(times))
    view.update(step(1))
    view.update(step(2, images_per_second=12.34))
    view.update(step(3))
    view.update(Validated(3, {"val_seg_miou": 41.23, "val_cam_miou": 50.0}))
    text = shown(view)
    for part in (
        "refined labels",
        "3/100",
        "loss 1.000  cls 0.500",
        "6.00e-05",
        "12.3",
        "3.0 GiB",
        "step 3: segmentation 41.2, CAM 50.0 mIoU %",
    ):
        assert part in text, part
    assert "3:14" in text, "97 steps of two seconds are left"
    view.update(Validating(3, 2, 9))
    assert "validation, 2 of 9" in shown(view)


def test_losses_are_smoothed_and_validation_is_no_part_of_a_step():
    times = iter([0.0, 1.0, 2.0, 500.0, 501.0, 502.0])
    view = TrainingView(lambda: next(times))
    for value in (1.0, 2.0):
        view.update(step(1, loss=value))
    assert view.smooth["sum"] == pytest.approx(1 + NEWEST)
    view.update(step(1, loss=float("nan")))
    assert view.smooth["sum"] == pytest.approx(1 + NEWEST), "a skipped step leaves no trace"
    view.update(Validating(2, 0, 9))
    view.update(step(3))
    view.update(step(4))
    assert view.facts["left"] == "1:36"


def test_lines_where_the_output_is_no_terminal():
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(KeyboardInterrupt), watch_training(console) as observe:
        observe(Noted(0, "weights: random weights"))
        observe(step(1, total=4))  # not a logged one
        observe(step(2, total=4, images_per_second=3.0))
        observe(Skipped(2, ("a", "b")))
        observe(Validated(2, {"val_seg_miou": 12.0}))
        observe(Saved(2, Path("runs/x"), "last"))
        raise KeyboardInterrupt
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "weights: random weights",
        "step 2 of 4: phase refined labels, loss_cls 0.5, loss 1, lr 6e-05, images_per_second 3",
        "step 2: non-finite loss, step skipped; images: a, b",
        "step 2: val_seg_miou 12.0",
        "stopped; the last checkpoint is kept: afactl train --resume --out runs/x",
    ]


def test_a_live_view_in_a_terminal():
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with watch_training(console) as observe:
        observe(step(1))
        observe(step(2, images_per_second=3.0))
    text = console.file.getvalue()
    assert "photos per second" in text and "step 2 of" not in text
