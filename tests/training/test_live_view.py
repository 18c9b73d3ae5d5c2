import io

import pytest
from rich.console import Console

from afactl.training.job import Event
from afactl.training.live_view import NEWEST, TrainingView, training_reporter


def step(number, total=100, **values):
    return Event(
        "step",
        number,
        total,
        {"phase": "refined labels", "loss_cls": 0.5, "loss": 1.0, "lr": 6e-5, "memory": 3 * 2**30, **values},
    )


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
    view.update(Event("validation", 3, 100, {"val_seg_miou": 41.23, "val_cam_miou": 50.0}))
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
    view.update(Event("validating", 3, 100, {"done": 2, "of": 9}))
    assert "validation, 2 of 9" in shown(view)


def test_losses_are_smoothed_and_validation_is_no_part_of_a_step():
    times = iter([0.0, 1.0, 500.0, 501.0, 502.0])
    view = TrainingView(lambda: next(times))
    for value in (1.0, 2.0):
        view.update(step(1, loss=value))
    assert view.smooth["loss"] == pytest.approx(1 + NEWEST)
    view.update(Event("validating", 2, 100, {"done": 0, "of": 9}))
    view.update(step(3))
    view.update(step(4))
    assert view.facts["left"] == "1:36"


def test_lines_where_the_output_is_no_terminal():
    console = Console(file=io.StringIO(), width=200)
    with pytest.raises(KeyboardInterrupt), training_reporter(console) as report:
        report(Event("note", 0, 4, {"text": "weights: random weights"}))
        report(step(1, total=4))  # not a logged one
        report(step(2, total=4, images_per_second=3.0))
        report(Event("validation", 2, 4, {"val_seg_miou": 12.0}))
        report(Event("checkpoint", 2, 4, {"run": "runs/x"}))
        raise KeyboardInterrupt
    lines = console.file.getvalue().splitlines()
    assert lines == [
        "weights: random weights",
        "step 2 of 4: phase refined labels, loss_cls 0.5, loss 1, lr 6e-05, images_per_second 3",
        "step 2: val_seg_miou 12.0",
        "stopped; the last checkpoint is kept: afactl train --resume --out runs/x",
    ]


def test_a_live_view_in_a_terminal():
    console = Console(file=io.StringIO(), width=100, force_terminal=True)
    with training_reporter(console) as report:
        report(step(1))
        report(step(2, images_per_second=3.0))
    text = console.file.getvalue()
    assert "photos per second" in text and "step 2 of" not in text
