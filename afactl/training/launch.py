"""Starting a training, and going on with one."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch

from afactl.datasets.registry import data_fingerprint
from afactl.errors import UsageError, counted
from afactl.machine import distributed
from afactl.machine.devices import choose_device, peak_memory
from afactl.presets import Preset, as_override, differences
from afactl.runs.checkpoints import find_checkpoint, restore_training
from afactl.runs.folder import (
    change_preset,
    find_run,
    lock_run,
    new_run,
    note_job,
    read_manifest,
    run_preset,
    write_manifest,
)
from afactl.runs.metrics import forget_metrics_after, progress_at
from afactl.runs.starting_weights import initialize
from afactl.training.estimate import CHECKPOINTS, checkpoint_bytes, megabytes, require_disk
from afactl.training.events import Noted, Observer
from afactl.training.job import Job
from afactl.training.observers.metrics_file import MetricsFile
from afactl.training.prepared import Prepared, prepare


@dataclass(frozen=True)
class Request:
    """A training that is to be started.

    Attributes:
        preset: what is trained.
        name: of the preset, for the run folder `runs/NAME-DATE-TIME`. out: the run folder instead.
        device: "auto", "cpu" or "cuda".
        observers: are told every event, after the metrics file of the run.
    """

    preset: Preset
    name: str = "run"
    out: Path | None = None
    device: str = "auto"
    observers: Sequence[Observer] = ()


class Trained(NamedTuple):
    """What a job leaves behind.

    Attributes:
        run: its folder. steps: of the whole run. validation: the last one; None where the
            dataset has no masks.
        seconds: wall time of this call, validation included. peak_memory: bytes, or None where
            the system does not count them.
    """

    run: Path
    steps: int
    seconds: float
    peak_memory: int | None
    validation: dict[str, float] | None


def start(request: Request) -> Trained:
    """Train a preset in a new run folder.

    Nothing is written before the preset, the data and the starting weights have been checked.

    Raises:
        UsageError: the folder holds something, or the device is not there.
        PresetError, DataError, CheckpointError: what is wrong with preset, data or weights.
        AfactlError: the loss stayed non-finite.
        KeyboardInterrupt: passed on after a checkpoint has been written.
    """
    began = time.perf_counter()
    prepared = prepare(request.preset, choose_device(request.device))
    for text in prepared.notes:
        _note(request.observers, 0, text)
    _note(request.observers, 0, f"weights: {initialize(prepared.model, request.preset.model.init)}")
    _note(request.observers, 0, _needs(request, prepared))
    with contextlib.ExitStack() as held:
        run = _new_folder(request, prepared, held)
        return _trained(Job(prepared, run, (MetricsFile(run), *request.observers)), began)


def resume(
    run: Path,
    wanted: Preset | None = None,
    allow_changes: bool = False,
    device: str = "auto",
    observers: Sequence[Observer] = (),
) -> Trained:
    """Go on with a run from its last whole checkpoint.

    Args:
        run: its folder.
        wanted: the preset to go on with; by default the run's own.
        allow_changes: take the values of `wanted` where they differ from those of the run.
        device, observers: as in `Request`.

    Raises:
        UsageError: values differ and must not, or the run is finished. BusyError: another process is training it.
        Others: as `start`.
    """
    find_run(run)  # says what is expected where it is none
    with lock_run(run) if distributed.rank() == 0 else contextlib.nullcontext():
        return _resumed(run, wanted or run_preset(run), allow_changes, choose_device(device), observers)


def _resumed(
    run: Path, preset: Preset, allow_changes: bool, device: torch.device, observers: Sequence[Observer]
) -> Trained:
    began = time.perf_counter()
    own = run_preset(run)
    changed = differences(own, preset)
    if not allow_changes and (own.data.name, own.data.root) != (preset.data.name, preset.data.root):
        raise UsageError(
            f"--resume: {run} is another run, trained on {own.data.root or own.data.name} and not on "
            f"{preset.data.root or preset.data.name}; leave --data out, start a new run, or add "
            "--allow-changes where the same photos have moved"
        )
    if changed and not allow_changes:
        raise UsageError(
            f"--resume: {run} was started with other values ({'; '.join(changed)}); leave them, "
            "go on with the new ones by --allow-changes, or start a new run"
        )
    if weights := read_manifest(run).get("adopted_from"):
        raise UsageError(f"--resume: {run} was made of weights alone; start a training from them: --init {weights}")
    prepared = prepare(preset, device)
    for text in prepared.notes:
        _note(observers, 0, text)
    checkpoint, damaged = find_checkpoint(run, "last")
    if damaged:
        _note(observers, 0, damaged)
    step, total = restore_training(checkpoint, prepared.model, prepared.optimizer), preset.train.max_iters
    progress = progress_at(run, step)
    if step > total or (step == total and (progress.validated or prepared.val is None)):
        raise UsageError(f"--resume: {run} is finished ({step} of {total} steps)")
    if distributed.rank() == 0:
        forget_metrics_after(run, step)
        if changed:
            change_preset(run, preset, step, changed)
    _note(observers, step, f"resumed at step {step} of {total}")
    return _trained(Job(prepared, run, (MetricsFile(run), *observers), progress), began)


def preset_changes(data: Path | None, init: str | None, overrides: Sequence[str]) -> list[str]:
    """--data, --init and --set as changes of a preset, in this order.

    Paths become full ones, so that the run's preset means the same from any folder.
    """
    changes = [as_override("data.root", str(data.resolve()))] if data else []
    if init:
        plain = init in ("none", "timm") or init.startswith("hf:")
        changes.append(as_override("model.init", init if plain else str(Path(init).resolve())))
    return [*changes, *overrides]


def _needs(request: Request, prepared: Prepared) -> str:
    """What the training will do and take, as far as it is known before its first step.

    Raises:
        UsageError: its checkpoints would not fit on the disk.
    """
    size = checkpoint_bytes(prepared.model, prepared.optimizer)
    free = require_disk(request.out or Path("runs"), size)
    steps, photos, each = request.preset.train.max_iters, len(prepared.data.samples), prepared.shares.photos
    return (
        f"{counted(steps, 'step')} of {counted(each, 'photo')}: {steps * each / photos:.1f} times through "
        f"{counted(photos, 'photo')}; checkpoints take up to {megabytes(CHECKPOINTS * size)} "
        f"of the {megabytes(free)} that are free"
    )


def _new_folder(request: Request, prepared: Prepared, held: contextlib.ExitStack) -> Path:
    """Make the run folder with its preset and manifest, and hold it; rank 0 does it for all."""
    if distributed.rank() > 0:
        return Path(distributed.broadcast([])[0])
    job = request.preset.train
    run, lock = new_run(request.preset, request.name, request.out)
    held.enter_context(lock)
    write_manifest(
        run,
        preset=request.name,
        seed=job.seed,
        device=str(prepared.device),
        effective_batch=prepared.shares.photos,
        processes=distributed.world_size(),
        data_fingerprint=data_fingerprint(prepared.data),
        classes=list(prepared.data.classes),
        images=len(prepared.data.samples),
    )
    return Path(distributed.broadcast([str(run)])[0])


def _note(observers: Sequence[Observer], step: int, text: str) -> None:
    if distributed.rank() == 0:
        for observer in observers:
            observer(Noted(step, text))


def _trained(job: Job, began: float) -> Trained:
    try:
        validation = job.run_steps()
    finally:
        seconds, memory = time.perf_counter() - began, peak_memory(job.device)
        if distributed.rank() == 0 and job.done > job.start:
            note_job(job.run, (job.start, job.done), seconds, memory)
    return Trained(job.run, job.preset.train.max_iters, seconds, memory, validation)
