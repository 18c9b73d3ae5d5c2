import itertools
import shutil
from collections import namedtuple
from types import SimpleNamespace

import pytest

from afactl.errors import UsageError
from afactl.method.schedule import Phase, phase_at, phase_starts
from afactl.training.estimate import CHECKPOINTS, LABELS_COST, checkpoint_bytes, require_disk, seconds_left
from afactl.training.events import Noted
from tests.conftest import train_tiny


@pytest.mark.parametrize("affinity", [True, False])
@pytest.mark.parametrize("schedule", [(10, 7, 40), (0, 7, 40), (40, 0, 40), (50, 5, 40)])
def test_what_is_left_equals_a_loop_over_the_steps(schedule, affinity):
    warm, second, total = schedule
    starts = phase_starts(warm, second, affinity)
    for step in range(total + 1):
        here = phase_at(step, warm, second, affinity)
        for side, factor in enumerate(LABELS_COST):
            seconds = 0.0
            for later in range(step, total):
                labelled = phase_at(later, warm, second, affinity) is not Phase.CLASSIFICATION
                seconds += 0.5 * (factor if labelled and here is Phase.CLASSIFICATION else 1)
            assert seconds_left(step, 0.5, starts, total)[side] == pytest.approx(seconds)


def test_a_checkpoint_takes_what_is_said(tiny_run):
    from afactl.runs.checkpoints import load_model
    from afactl.runs.folder import run_preset
    from afactl.training.optimizer import build_optimizer

    model, _, _ = load_model(tiny_run / "checkpoints/last")
    said = checkpoint_bytes(model, build_optimizer(model, run_preset(tiny_run)))
    found = sum(file.stat().st_size for file in (tiny_run / "checkpoints/last").iterdir())
    assert said == pytest.approx(found, rel=0.1)


def test_a_disk_without_room_is_refused_before_anything_is_written(tmp_path, tiny_data, monkeypatch):
    usage = namedtuple("usage", "total used free")
    asked = []

    def full(place):
        asked.append(place)
        return usage(10**9, 10**9, 2_000_000)

    monkeypatch.setattr(shutil, "disk_usage", full)
    with pytest.raises(UsageError, match=r"expected \d+ MB of free disk for the checkpoints, found 2 MB; .* --out"):
        train_tiny(tiny_data, tmp_path / "deep" / "run")
    assert asked == [tmp_path] and not [*tmp_path.iterdir()]
    assert require_disk(tmp_path, 2_000_000 // CHECKPOINTS) == 2_000_000


def test_every_phase_says_what_is_left_by_its_own_pace(tmp_path, tiny_data, monkeypatch):
    """By a clock that goes a second a step in the first phase, and 4 in the others."""
    monkeypatch.setattr("afactl.training.job.TIMED_STEPS", 2)
    steps = [1.0] * 4 + [4.0] * 8
    # Once before the training, twice a step, once after it.
    ticks = iter([0.0, *itertools.accumulate(tick for second in steps for tick in (0.001, second)), 99.0])
    monkeypatch.setattr("afactl.training.job.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr("afactl.training.launch.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    told = []
    changes = ["train.max_iters=12", "train.cls_warmup_iters=4", "train.aff_warmup_iters=4", "train.eval_iters=12"]
    monkeypatch.setattr("afactl.training.job.about", lambda low, high: f"{low:g} to {high:g}")
    train_tiny(tiny_data, tmp_path / "run", *changes, observers=(told.append,))
    left = [(event.step, event.text) for event in told if isinstance(event, Noted) and " left (" in event.text]
    assert [step for step, _ in left] == [3, 7, 11]
    low, high = (1 + 8 * cost for cost in LABELS_COST)
    assert left[0][1].startswith(f"{low:g} to {high:g} left (classification, 1.00 s")
    assert left[1][1].startswith("20 to 20 left (refined labels, 4.00 s")
    assert left[2][1].startswith("4 to 4 left (propagated labels, 4.00 s")
    start = [event.text for event in told if isinstance(event, Noted) and "times through" in event.text]
    assert start and start[0].startswith("12 steps of 2 photos: 3.0 times through 8 photos; checkpoints take up to ")
