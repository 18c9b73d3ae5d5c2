"""Training: three phases, one loop, a run folder that survives being stopped."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader

from afactl.datasets.registry import check_files, data_fingerprint, is_missing, load_split
from afactl.datasets.samples import Item, Split
from afactl.datasets.training_stream import TrainingStream
from afactl.errors import AfactlError, UsageError
from afactl.evaluation.segmentation import validate
from afactl.inference.refiners import preset_refiner
from afactl.inference.trained_run import TrainedRun
from afactl.machine import distributed
from afactl.machine.devices import choose_device, memory_advice, peak_memory, require_compiler, seed_everything
from afactl.method.schedule import Phase, phase_at
from afactl.network.backbones import require_whole_tokens
from afactl.network.model import AFA
from afactl.presets import Preset, as_override, differences, load_preset, preset_names
from afactl.runs.checkpoints import Architecture, find_checkpoint, initialize, restore_training, save_checkpoint
from afactl.runs.folder import (
    append_metrics,
    change_preset,
    find_run,
    forget_metrics_after,
    lock_run,
    new_run,
    read_metrics,
    run_preset,
    write_manifest,
)
from afactl.training.step import StepLosses, build_optimizer, set_learning_rate
from afactl.training.tensorboard import TensorBoardLog

# So many steps with a non-finite loss in a row end the job.
MAX_SKIPPED = 5


class Event(NamedTuple):
    """What a job tells while it runs: `kind` is "note", "step", "validating", "validation" or "checkpoint"."""

    kind: str
    step: int
    total: int
    values: dict[str, Any]


Report = Callable[[Event], None]


def ignore(event: Event) -> None:
    """The report of a job that nobody watches."""


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


def train(
    preset_name: str | None,
    data: Path | None = None,
    out: Path | None = None,
    init: str | None = None,
    resume: bool = False,
    overrides: Sequence[str] = (),
    device_name: str = "auto",
    report: Report = ignore,
    allow_changes: bool = False,
    tensorboard: bool = False,
) -> Trained:
    """Train a preset in a new run folder, or go on with a run.

    Nothing is written before the preset, the data and the starting weights have been checked.

    Args:
        preset_name: a shipped preset or a file; not needed with `resume`.
        data, init, overrides: changes of the preset, in this order.
        out: run folder; with `resume` the run to go on with, by default the newest.
        report: is called for every event.
        allow_changes: a resumed run takes the values given now where they differ from its own.
        tensorboard: write curves and pictures for it as well.

    Raises:
        UsageError: the options do not go together, or the folder holds something.
        BusyError: another process is training the run.
        PresetError, DataError, CheckpointError: what is wrong with preset, data or weights.
        AfactlError: the loss stayed non-finite.
        KeyboardInterrupt: passed on after a checkpoint has been written.
    """
    started = time.perf_counter()
    device = choose_device(device_name)
    changes = preset_changes(data, init, overrides)
    with contextlib.ExitStack() as held:
        if resume:
            run, how = find_run(out)
            preset = run_preset(run)
            report(Event("note", 0, preset.train.max_iters, {"text": f"run: {run} ({how})"}))
            if distributed.rank() == 0:
                held.enter_context(lock_run(run))
            wanted = load_preset(preset_name or str(run / "preset.yaml"), changes)
            changed = differences(preset, wanted)
            if changed and not allow_changes:
                raise UsageError(
                    f"--resume: {run} was started with other values ({'; '.join(changed)}); leave them, "
                    "go on with the new ones by --allow-changes, or start a new run"
                )
            job = Job(wanted, run, device, report)
            found = find_checkpoint(run, "last")
            if found.note:
                report(Event("note", 0, preset.train.max_iters, {"text": found.note}))
            job.restore(found.folder)
            if changed and distributed.rank() == 0:
                change_preset(run, wanted, job.start, changed)
        else:
            if preset_name is None:
                raise UsageError(f"train: expected a preset, one of {', '.join(preset_names())}, or a YAML file")
            preset = load_preset(preset_name, changes)
            job = Job(preset, Path(), device, report)
            report(
                Event(
                    "note", 0, preset.train.max_iters, {"text": f"weights: {initialize(job.model, preset.model.init)}"}
                )
            )
            if distributed.rank() == 0:
                job.run, lock = new_run(preset, Path(preset_name).stem, out)
                held.enter_context(lock)
                job.describe()
        if tensorboard and distributed.rank() == 0:
            job.tensorboard = TensorBoardLog(job.run, job.start)
        validation = job.run_steps()
    return Trained(job.run, job.preset.train.max_iters, time.perf_counter() - started, peak_memory(device), validation)


def preset_changes(data: Path | None, init: str | None, overrides: Sequence[str]) -> list[str]:
    """--data, --init and --set as changes of a preset, in this order.

    Paths become full ones, so that the run's preset means the same from any folder.
    """
    changes = [as_override("data.root", str(data.resolve()))] if data else []
    if init:
        plain = init == "none" or init.startswith("hf:")
        changes.append(as_override("model.init", init if plain else str(Path(init).resolve())))
    return [*changes, *overrides]


def load_data(preset: Preset) -> tuple[Split, Split | None]:
    """The training split, and the validation split where there is one with masks; every listed file exists.

    Raises:
        DataError: what is missing.
    """
    root = preset.data.folder()
    data = load_split(preset.data.name, root, preset.data.train_split, preset.data.labels)
    masks = preset.train.supervision == "masks"
    if masks:
        data.require_masks("train.supervision=masks")
    check_files(data, masks=masks)
    if is_missing(preset.data.name, root, preset.data.val_split):
        return data, None
    val = load_split(preset.data.name, root, preset.data.val_split, preset.data.labels)
    if val.masks is None:
        return data, None
    check_files(val, masks=True)
    return data, val


@contextlib.contextmanager
def stop_requests(stop: threading.Event) -> Iterator[None]:
    """Inside the block, the first Ctrl-C or SIGTERM sets the event; a second one stops at once."""
    if threading.current_thread() is not threading.main_thread():
        yield  # Python hands signals to the main thread only
        return

    def note(number: int, frame: object) -> None:
        if stop.is_set():
            raise KeyboardInterrupt
        stop.set()

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


class Job:
    """A training job: network, optimizer, data, and how far it is.

    The data order, the views and the network's random numbers are functions of (seed, step), so
    going on after a stop repeats nothing and needs no stored random state.
    """

    def __init__(self, preset: Preset, run: Path, device: torch.device, report: Report) -> None:
        self.preset, self.run, self.device, self.report = preset, run, device, report
        preset_refiner(preset)  # a wrong name is told now
        self.data, self.val = load_data(preset)
        model = preset.model
        self.architecture = Architecture(
            model.backbone, self.data.classes, model.pooling, model.decoder_width, model.drop_path
        )
        seed_everything(preset.train.seed, preset.train.deterministic)
        self.model: AFA = self.architecture.build().to(device)
        require_whole_tokens(self.model.backbone, preset.train.crop_size)
        if preset.train.compile:
            require_compiler()
            # One graph for all sizes: the CAM passes come in several, validation in many.
            self.model.backbone.compile(dynamic=True)
        self.optimizer = build_optimizer(self.model, preset)
        self.step_losses: nn.Module = StepLosses(self.model, preset)
        if distributed.world_size() > 1:
            # The parameters in use change with the phase.
            self.step_losses = DistributedDataParallel(self.step_losses, find_unused_parameters=True)
        self.start, self.best, self.skipped = 0, -math.inf, 0
        self.stop, self.agreed = threading.Event(), False
        self.tensorboard: TensorBoardLog | None = None
        self.shares = distributed.step_shares(
            preset.train.batch_size, preset.train.effective_batch, distributed.world_size()
        )

    def restore(self, checkpoint: Path) -> None:
        """Go back to where a checkpoint was written.

        Raises:
            UsageError: the run is finished. CheckpointError: the checkpoint does not fit.
        """
        self.start = restore_training(checkpoint, self.model, self.optimizer)
        total = self.preset.train.max_iters
        if self.start >= total:
            raise UsageError(f"--resume: {self.run} is finished ({self.start} of {total} steps)")
        if distributed.rank() == 0:
            forget_metrics_after(self.run, self.start)
        seen = [line["val_seg_miou"] for line in read_metrics(self.run) if "val_seg_miou" in line]
        self.best = max(seen, default=-math.inf)
        self.tell("note", self.start, text=f"resumed at step {self.start} of {total}")

    def describe(self) -> None:
        """Write the manifest."""
        job = self.preset.train
        write_manifest(
            self.run,
            seed=job.seed,
            device=str(self.device),
            effective_batch=self.shares.photos,
            processes=distributed.world_size(),
            data_fingerprint=data_fingerprint(self.data),
            classes=list(self.data.classes),
            images=len(self.data.samples),
        )

    def run_steps(self) -> dict[str, float] | None:
        """The loop; gives the last validation.

        Ctrl-C or SIGTERM lets the step at hand end and writes a checkpoint before it stops the job.
        """
        job, shares = self.preset.train, self.shares
        advice = (
            f"at batch {shares.batch}, crop {job.crop_size} and {job.precision}: try --set train.batch_size="
            f"{max(1, shares.batch // 2)} (train.effective_batch keeps the photos per step), train.precision=bfloat16 "
            f"or train.crop_size={max(32, job.crop_size // 32 * 16)}"
        )
        loader = DataLoader(self.stream, shares.batch, num_workers=job.workers, pin_memory=self.device.type == "cuda")
        if shares.photos > shares.batch:
            processes = f"{shares.processes} processes x " if shares.processes > 1 else ""
            self.tell(
                "note",
                self.start,
                text=f"effective batch {shares.photos}: {processes}{shares.batches} x {shares.batch} photos per step",
            )
        done, validation = self.start, None
        clock, logged = time.perf_counter(), done
        self.model.train()
        with stop_requests(self.stop):
            batches = iter(loader)
            for step in range(self.start, job.max_iters):
                with memory_advice(self.device, advice):
                    values = self.one_step(step, itertools.islice(batches, shares.batches))
                done = step + 1
                last = done == job.max_iters
                if done % job.log_iters == 0 or last:
                    now = time.perf_counter()
                    values["images_per_second"] = round((done - logged) * shares.photos / (now - clock), 2)
                    clock, logged = now, done
                    self.record(step=done, **values)
                self.tell("step", done, **values, memory=peak_memory(self.device))
                if self.tensorboard and (done % job.eval_iters == 0 or last):
                    self.show(self.tensorboard, done)
                if self.val and (done % job.eval_iters == 0 or last):
                    validation = self.validate(self.val, done)
                # Alone, a stop counts at once; processes stop after the same step, in which they all heard of it.
                stopping = self.agreed if shares.processes > 1 else self.stop.is_set()
                if done % job.checkpoint_iters == 0 or last or stopping:
                    self.checkpoint(done)
                if stopping and not last:
                    raise KeyboardInterrupt
        if self.tensorboard:
            self.tensorboard.close()
        return validation

    def show(self, board: TensorBoardLog, step: int) -> None:
        """Pictures of where the training stands."""
        run = TrainedRun(self.run, self.preset, self.model, self.architecture, self.device, "", step)
        board.pictures(step, run, self.val or self.data)

    @functools.cached_property
    def stream(self) -> TrainingStream:
        """The views of this process from the next step to the last."""
        job, shares = self.preset.train, self.shares
        return TrainingStream(
            self.data,
            job.crop_size,
            job.scale_range,
            flip=True,
            masks=job.supervision == "masks",
            seed=job.seed,
            start=self.start * shares.photos + distributed.rank(),
            stop=job.max_iters * shares.photos,
            step=shares.processes,
        )

    def one_step(self, step: int, batches: Iterator[dict[str, Any]]) -> dict[str, Any]:
        """Forward and backward of every batch, then the update; gives what is logged, the means over them.

        A stop that any process has been asked for becomes the stop of all.
        """
        job, weights, parts = self.preset.train, self.preset.loss, self.shares.batches
        # Dropout and stochastic depth follow from (seed, step): a resumed run draws the same, each process its own.
        torch.manual_seed((distributed.rank() << 54) ^ (job.seed << 32) + step)
        rate = set_learning_rate(self.optimizer, step, self.preset)
        phase = phase_at(step, job.cls_warmup_iters, job.aff_warmup_iters, self.preset.affinity.enabled)
        self.optimizer.zero_grad(set_to_none=True)
        values: dict[str, float] = {}
        for number, batch in enumerate(batches, 1):
            # Gradients travel once per step, with the last batch.
            job_losses = self.step_losses
            alone = contextlib.nullcontext()
            with job_losses.no_sync() if number < parts and isinstance(job_losses, DistributedDataParallel) else alone:
                losses = self.losses(batch, phase)
                total = sum(getattr(weights, name) * loss for name, loss in losses.items()) / parts
                total.backward()
            for name, loss in losses.items():
                values[f"loss_{name}"] = values.get(f"loss_{name}", 0.0) + loss.item() / parts
            values["loss"] = values.get("loss", 0.0) + total.item()
        if distributed.world_size() > 1:
            sums = distributed.all_reduce(
                torch.tensor([*values.values(), self.stop.is_set()], dtype=torch.float64)
            ).tolist()
            values = {name: value / distributed.world_size() for name, value in zip(values, sums, strict=False)}
            self.agreed = bool(sums[-1])
        if math.isfinite(values["loss"]):
            self.skipped = 0
            self.optimizer.step()
        else:
            self.skip(step)
        return {"phase": phase.value, **values, "lr": rate}

    def losses(self, batch: dict[str, Any], phase: Phase) -> dict[str, torch.Tensor]:
        """The loss terms of one batch."""
        tensors = {
            name: value.to(self.device, non_blocking=True) for name, value in batch.items() if name != "image_id"
        }
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.preset.train.precision == "bfloat16"):
            losses: dict[str, torch.Tensor] = self.step_losses(tensors, phase)
        return losses

    def skip(self, step: int) -> None:
        """Leave out a step with a non-finite loss.

        Raises:
            AfactlError: several in a row.
        """
        self.skipped += 1
        photos = self.shares.photos
        image_ids = [self.stream.sample_at(position).image_id for position in range(step * photos, (step + 1) * photos)]
        text = f"step {step + 1}: non-finite loss, step skipped; images: {', '.join(image_ids)}"
        self.record(step=step + 1, skipped=image_ids)
        self.tell("note", step + 1, text=text)
        if self.skipped >= MAX_SKIPPED:
            raise AfactlError(f"{text}; {MAX_SKIPPED} in a row: stopped. Lower optim.lr, or look at those images")

    def validate(self, val: Split, step: int) -> dict[str, float]:
        """Score the validation split; the best weights so far are kept."""

        def track(items: Sequence[Item], /) -> Iterator[Item]:
            for done, item in enumerate(items):
                self.tell("validating", step, done=done, of=len(items))
                yield item

        scores = validate(self.model, val, self.preset, self.device, track)
        self.record(step=step, **scores)
        self.tell("validation", step, **scores)
        if scores["val_seg_miou"] > self.best:
            self.best = scores["val_seg_miou"]
            self.save("best", step)
        return scores

    def checkpoint(self, step: int) -> None:
        """Write the last checkpoint."""
        self.save("last", step)
        self.tell("checkpoint", step, run=str(self.run))

    def record(self, **values: Any) -> None:
        """Append to metrics.jsonl; rank 0 does it for all."""
        if distributed.rank() == 0:
            append_metrics(self.run, **values)
        if self.tensorboard:
            self.tensorboard.curves(values["step"], values)

    def tell(self, kind: str, step: int, **values: Any) -> None:
        self.report(Event(kind, step, self.preset.train.max_iters, values))

    def save(self, which: str, step: int) -> None:
        if distributed.rank() == 0:
            save_checkpoint(self.run / "checkpoints" / which, self.model, self.optimizer, step, self.architecture)
