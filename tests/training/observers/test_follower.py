"""Which events the programs that follow a training keep."""

from pathlib import Path

from afactl.method.schedule import Phase
from afactl.training.events import Ended, Noted, Skipped, Started, Stepped, Validated
from afactl.training.observers.follower import Follower


class Noting(Follower):
    def __init__(self):
        self.calls = []

    def start(self, event):
        self.calls.append(("start", event.step))

    def curves(self, step, values):
        self.calls.append((step, dict(values)))

    def pictures(self, step, pictures):
        self.calls.append((step, "pictures"))

    def end(self):
        self.calls.append("end")


def test_numbers_of_logged_steps_and_validations_after_the_start():
    follower, losses = Noting(), {"cls": 0.5}
    logged = Stepped(2, 4, Phase.CLASSIFICATION, losses, 0.5, 0.1, images_per_second=3.0)
    follower(Ended(0))
    follower(logged)
    assert follower.calls == [], "nothing is open before the start"
    for event in (Started(1, 4, Path("run")), Noted(1, "words"), Stepped(1, 4, Phase.CLASSIFICATION, losses, 0.5, 0.1)):
        follower(event)
    for event in (logged, Skipped(3, ("a",)), Validated(4, {"val_seg_miou": 7.0}), Ended(4)):
        follower(event)
    assert follower.calls == [
        ("start", 1),
        (2, {"loss_cls": 0.5, "loss": 0.5, "lr": 0.1, "images_per_second": 3.0}),
        (4, {"val_seg_miou": 7.0}),
        "end",
    ], "the phase is no number, and a step between logged ones leaves nothing"
