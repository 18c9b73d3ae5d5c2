import dataclasses
import subprocess
import sys
import typing

import pytest

from afactl.method.schedule import Phase
from afactl.training import events
from afactl.training.events import Skipped, Started, Stepped
from tests.conftest import train_tiny


def test_what_a_step_logs_has_the_names_of_the_metrics_file():
    step = Stepped(3, 9, Phase.PROPAGATED, {"cls": 1.0, "aff": 2.0}, 1.2, 6e-5)
    assert not step.logged and list(step.values()) == ["phase", "loss_cls", "loss_aff", "loss", "lr"]
    logged = dataclasses.replace(step, images_per_second=0.0)
    assert logged.logged and logged.values() == {**step.values(), "images_per_second": 0.0}
    assert logged.values()["phase"] == "propagated labels"
    skipped = dataclasses.replace(step, loss=float("inf"), losses={"cls": 1.0, "aff": float("nan")})
    assert skipped.values() == {"phase": "propagated labels", "loss_cls": 1.0, "lr": 6e-5}


def test_events_stay_as_they_were_told():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Skipped(1, ()).step = 2


def test_a_training_tells_its_story_in_order(tmp_path, tiny_data):
    told = []
    run = train_tiny(tiny_data, tmp_path / "run", observers=(told.append,)).run
    assert all(isinstance(event, typing.get_args(events.Event)) for event in told)
    kinds = [type(event).__name__ for event in told if type(event).__name__ != "Validating"]
    assert kinds[:4] == ["Noted", "Noted", "Noted", "Started"] and kinds[-1] == "Ended"
    assert "fewer than 20 photos" in told[0].text and told[1].text.startswith("weights:")
    assert told[2].text.startswith("4 steps of 2 photos: 1.0 times through 8 photos")
    assert kinds.count("Stepped") == 4 and [event.step for event in told if isinstance(event, Stepped)] == [1, 2, 3, 4]
    (started,) = (event for event in told if isinstance(event, Started))
    assert started == Started(0, 4, run) and told[-1].step == 4


def test_the_command_line_can_name_events_without_torch():
    code = "import sys, afactl.training.events, afactl.training.observers.live_view; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
