import itertools
import re
import shutil
import threading
from collections import Counter, namedtuple
from types import SimpleNamespace

import pytest
import torch
from torch.utils.data import default_collate

from afactl.datasets.training_stream import Crops, TrainingStream
from afactl.errors import AfactlError, UsageError
from afactl.method.schedule import Phase, phase_at, phase_starts
from afactl.presets import changed_preset, find_preset, load_preset, preset_names
from afactl.runs.checkpoints import architecture_of, load_model
from afactl.runs.folder import run_preset
from afactl.training.estimate import (
    CHECKPOINTS,
    checkpoint_bytes,
    megabytes,
    rehearse,
    require_disk,
    seconds_left,
    steps_left,
)
from afactl.training.events import Noted, Stepped
from afactl.training.launch import resume
from afactl.training.optimizer import build_optimizer
from afactl.training.prepared import prepare
from afactl.training.updater import Updater
from tests.conftest import tiny_preset, train_tiny


@pytest.mark.parametrize("affinity", [True, False])
@pytest.mark.parametrize("schedule", [(10, 7, 40), (0, 7, 40), (40, 0, 40), (50, 5, 40)])
def test_what_is_left_equals_a_loop_over_the_steps(schedule, affinity):
    warm, second, total = schedule
    starts = phase_starts(warm, second, affinity)
    paces = {phase.value: seconds for phase, seconds in zip(Phase, (1.0, 3.0, 4.5), strict=True)}
    for step in range(total + 1):
        phases = [phase_at(later, warm, second, affinity).value for later in range(step, total)]
        assert steps_left(step, starts, total) == dict(Counter(phases))
        assert seconds_left(step, paces, starts, total) == pytest.approx(sum(paces[name] for name in phases))


def test_a_rehearsal_leaves_no_trace_and_tries_every_phase(tiny_data):
    prepared = prepare(tiny_preset(tiny_data), torch.device("cpu"))
    prepared.model.train()
    updater = Updater(prepared, threading.Event())
    tried, gradients = [], updater._gradients
    updater._gradients = lambda batches, phase: tried.append(phase) or gradients(batches, phase)
    stream = TrainingStream(prepared.data, Crops(64, (1.0, 1.0)), 0, range(2))
    before = {name: value.clone() for name, value in prepared.model.state_dict().items()}
    took = rehearse(updater, [default_collate([stream[0], stream[1]])], list(Phase))
    assert tried == [Phase.PROPAGATED, *Phase]
    assert list(took) == [phase.value for phase in Phase] and min(took.values()) > 0
    after = prepared.model.state_dict()
    assert not [name for name, value in before.items() if not torch.equal(value, after[name])]
    assert not prepared.optimizer.state and all(value.grad is None for value in prepared.model.parameters())


def test_a_phase_without_memory_is_told_before_the_first_step(tmp_path, tiny_data, monkeypatch):
    """The labels of the last phase need it, and the first step is one of classification."""
    told = []

    def short(*arguments):
        raise RuntimeError("CUDA out of memory")

    monkeypatch.setattr("afactl.training.step.make_targets", short)
    with pytest.raises(
        AfactlError, match="out of memory at batch 2, crop 64 and float32: try --set train.batch_size=1"
    ):
        train_tiny(tiny_data, tmp_path / "run", observers=(told.append,))
    assert not [event for event in told if isinstance(event, Stepped)]


def test_a_checkpoint_takes_what_is_said(tiny_run):

    model, _, _ = load_model(tiny_run / "checkpoints/last")
    said = checkpoint_bytes(model, build_optimizer(model, run_preset(tiny_run)))
    found = sum(file.stat().st_size for file in (tiny_run / "checkpoints/last").iterdir())
    assert said == pytest.approx(found, rel=0.1)


@pytest.mark.parametrize("name", preset_names())
def test_the_header_of_a_preset_says_the_disk_that_it_needs(name):
    preset = load_preset(name)
    classes = {"voc": 20, "coco": 80, "demo": 8, "folder": 6}[preset.data.name]
    model = architecture_of(preset.model, tuple(map(str, range(classes))), ()).build()
    size = CHECKPOINTS * checkpoint_bytes(model, build_optimizer(model, preset))
    needs = next(line for line in find_preset(name).read_text().splitlines() if line.startswith("# Needs: "))
    told = re.search(r"([\d.]+) GB of disk$", needs)
    assert float(told[1]) == pytest.approx(size / 1e9, abs=0.06), megabytes(size)


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
    """Rehearsed at 1, 3 and 4 seconds; the steps take 2, 3 and 8."""
    monkeypatch.setattr("afactl.training.estimate.TIMED_STEPS", 2)
    rehearsed = {"classification": 1.0, "refined labels": 3.0, "propagated labels": 4.0}
    monkeypatch.setattr("afactl.training.job.rehearse", lambda updater, batches, phases: dict(rehearsed))
    steps = [2.0] * 4 + [3.0] * 4 + [8.0] * 4
    # Once before the training, twice a step, once after it.
    ticks = iter([0.0, *itertools.accumulate(tick for second in steps for tick in (0.001, second)), 99.0])
    monkeypatch.setattr("afactl.training.job.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr("afactl.training.launch.time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    for module in ("job", "estimate"):
        monkeypatch.setattr(f"afactl.training.{module}.about", lambda seconds: f"{seconds:g} s")
    monkeypatch.setattr("afactl.training.job.peak_memory", lambda device: 3 * 2**30)
    told = []
    changes = ["train.max_iters=12", "train.cls_warmup_iters=4", "train.aff_warmup_iters=4", "train.eval_iters=12"]
    train_tiny(tiny_data, tmp_path / "run", *changes, observers=(told.append,))
    notes = [(event.step, event.text) for event in told if isinstance(event, Noted)]
    assert [note for note in notes if " left (" in note[1]] == [
        (3, "58 s left (classification, 2.00 s a step; validations come on top)"),  # 2 + 4 * 6 + 4 * 8
        (7, "19 s left (refined labels, 3.00 s a step; validations come on top)"),
        (11, "8 s left (propagated labels, 8.00 s a step; validations come on top)"),
    ]
    start = [text for step, text in notes if step == 0 and "times through" in text]
    assert start and start[0].startswith("12 steps of 2 photos: 3.0 times through 8 photos; checkpoints take up to ")
    takes = "a step takes 1.00 s (classification), 3.00 s (refined labels), 4.00 s (propagated labels): 32 s, 3.0 GiB"
    assert [text for step, text in notes if text.startswith(takes)], notes


def test_a_resumed_training_rehearses_what_is_left_of_it(tmp_path, tiny_data):
    told = []
    run = train_tiny(tiny_data, tmp_path / "run", "train.checkpoint_iters=3", "train.eval_iters=9").run
    longer = changed_preset(run_preset(run), ["train.max_iters=6"])
    resume(run, longer, allow_changes=True, device="cpu", observers=(told.append,))
    takes = [event.text for event in told if isinstance(event, Noted) and event.text.startswith("a step takes")]
    assert len(takes) == 1 and "propagated labels" in takes[0] and "classification" not in takes[0]
