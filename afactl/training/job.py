"""A training job: the loop over its steps, with validations, checkpoints and whoever watches."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from torch.utils.data import DataLoader

from afactl.datasets.samples import Item, Split
from afactl.datasets.training_stream import Crops, TrainingStream
from afactl.errors import AfactlError
from afactl.evaluation.segmentation import validate
from afactl.inference.trained_run import TrainedRun
from afactl.machine import distributed
from afactl.machine.devices import memory_advice, peak_memory
from afactl.method.schedule import Phase, phase_starts
from afactl.network.backbones import smaller_crop
from afactl.runs.checkpoints import save_checkpoint
from afactl.runs.metrics import Progress
from afactl.training.estimate import Forecast, about, moments_bytes, rehearse, seconds_left, steps_left
from afactl.training.events import (
    BetweenSteps,
    Ended,
    Event,
    Noted,
    Observer,
    Saved,
    Skipped,
    Started,
    Stepped,
    Validated,
    Validating,
)
from afactl.training.prepared import Prepared
from afactl.training.step import lower_precision
from afactl.training.stopping import leave_stops_to_the_job, stop_requests
from afactl.training.updater import Taken, Updater

# So many steps with a non-finite loss in a row end the job.
MAX_SKIPPED = 5


class Job:
    """A training in its run folder.

    The data order, the views and the network's random numbers are functions of (seed, step), so
    going on after a stop repeats nothing and needs no stored random state.

    Args:
        prepared: with the weights to start or go on with.
        run: its folder.
        observers: are told every event, in this order; of several processes rank 0 tells for all.
        progress: where a resumed run stands; None: at its beginning.
    """

    def __init__(
        self, prepared: Prepared, run: Path, observers: Sequence[Observer] = (), progress: Progress | None = None
    ) -> None:
        self.prepared, self.run, self.observers = prepared, run, tuple(observers)
        self.preset, self.device, self.shares = prepared.preset, prepared.device, prepared.shares
        self.progress = progress or Progress()
        self.start, self.best = self.progress.step, self.progress.best
        self.done, self.skipped, self.stop = self.start, 0, threading.Event()
        self.updater = Updater(prepared, self.stop)

    def run_steps(self) -> dict[str, float] | None:
        """The loop; gives the scores of the last validation.

        Ctrl-C or SIGTERM lets the step at hand end and writes a checkpoint before it stops the job.

        Raises:
            AfactlError: the loss stayed non-finite. KeyboardInterrupt: stopped, after a checkpoint was written.
        """
        with stop_requests(self.stop):
            self.tell(Started(self.start, self.preset.train.max_iters, self.run))
            try:
                return self._steps()
            finally:
                self.tell(Ended(self.done))

    def _steps(self) -> dict[str, float] | None:
        job, shares = self.preset.train, self.shares
        loader = DataLoader(
            self.stream,
            shares.batch,
            num_workers=job.workers,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=leave_stops_to_the_job,
        )
        if shares.photos > shares.batch:
            processes = f"{shares.processes} processes x " if shares.processes > 1 else ""
            text = f"effective batch {shares.photos}: {processes}{shares.batches} x {shares.batch} photos per step"
            self.tell(Noted(self.start, text))
        precision = "bfloat16" if lower_precision(self.preset, self.device) else "float32"
        advice = (
            f"at batch {shares.batch}, crop {job.crop_size} and {precision}: try --set train.batch_size="
            f"{max(1, shares.batch // 2)} (train.effective_batch keeps the photos per step), train.precision=bfloat16 "
            f"or train.crop_size={smaller_crop(self.prepared.model.backbone, job.crop_size)}"
        )
        validation = None
        starts = phase_starts(job.cls_warmup_iters, job.aff_warmup_iters, self.preset.affinity.enabled)
        self.prepared.model.train()
        with memory_advice(self.device, advice):
            forecast = Forecast(self.rehearsed(starts), starts, job.max_iters)
        if self.prepared.val and self.due(self.start) and not self.progress.validated:
            validation = self.look(self.start)  # stopped between checkpoint and score
        logged, spent = self.start, 0.0
        batches = iter(loader)
        for step in range(self.start, job.max_iters):
            clock = time.perf_counter()
            with memory_advice(self.device, advice):
                taken = self.updater.take(step, itertools.islice(batches, shares.batches))
            spent += (took := time.perf_counter() - clock)
            self.done = done = step + 1
            last = done == job.max_iters
            self.count(taken, done)
            rate = None
            if done % job.log_iters == 0 or last:
                rate = round((done - logged) * shares.photos / spent, 2)
                logged, spent = done, 0.0
            self.tell(self.stepped(taken, done, rate))
            if left := forecast.after(done, taken.phase, took):
                self.tell(Noted(done, left))
            # Alone, a stop counts at once; processes stop after the same step, in which they all heard of it.
            stopping = taken.stopping if shares.processes > 1 else self.stop.is_set()
            if done % job.checkpoint_iters == 0 or self.due(done) or stopping:
                self.save("last", done)  # before whatever may fail
            if self.due(done) and (last or not stopping):
                validation = self.look(done)
            if not last and (stopping or (shares.processes == 1 and self.stop.is_set())):
                raise KeyboardInterrupt
        return validation

    def rehearsed(self, starts: Mapping[str, int]) -> dict[str, float]:
        """Try a step of every phase to come, and say what the training will take; gives their seconds by phase."""
        job, shares = self.preset.train, self.shares
        phases = [Phase(name) for name in steps_left(self.start, starts, job.max_iters)]
        if not phases:
            return {}
        batches = list(itertools.islice(DataLoader(self.stream, shares.batch), shares.batches))
        paces = rehearse(self.updater, batches, phases)
        told = ", ".join(f"{seconds:.2f} s ({name})" for name, seconds in paces.items())
        lasts, held = about(seconds_left(self.start, paces, starts, job.max_iters)), peak_memory(self.device)
        optimizer = self.prepared.optimizer
        moments = 0 if optimizer.state else moments_bytes(optimizer)  # the first update makes them
        memory = f", {(held + moments) / 2**30:.1f} GiB of memory" if held else ""
        self.tell(Noted(self.start, f"a step takes {told}: {lasts}{memory}; validations come on top"))
        return paces

    def due(self, step: int) -> bool:
        """Whether the network is looked at after so many steps."""
        return step == self.preset.train.max_iters or (step > 0 and step % self.preset.train.eval_iters == 0)

    @functools.cached_property
    def stream(self) -> TrainingStream:
        """The views of this process from the next step to the last."""
        job, shares = self.preset.train, self.shares
        first, end = self.start * shares.photos + distributed.rank(), job.max_iters * shares.photos
        return TrainingStream(
            self.prepared.data,
            Crops(job.crop_size, job.scale_range, long_side=self.preset.data.long_side),
            job.seed,
            range(first, end, shares.processes),
            masks=job.supervision == "masks",
        )

    def stepped(self, taken: Taken, step: int, images_per_second: float | None) -> Stepped:
        """A step in the words of an event."""
        return Stepped(
            step,
            self.preset.train.max_iters,
            taken.phase,
            taken.losses,
            taken.loss,
            taken.rate,
            images_per_second,
            peak_memory(self.device),
        )

    def count(self, taken: Taken, step: int) -> None:
        """Name the photos of a step that was left out, for a loss that was not finite.

        Raises:
            AfactlError: several in a row.
        """
        self.skipped = 0 if taken.finite else self.skipped + 1
        if taken.finite:
            return
        photos = self.shares.photos
        positions = range((step - 1) * photos, step * photos)
        skipped = Skipped(step, tuple(self.stream.sample_at(position).image_id for position in positions))
        self.tell(skipped)
        if self.skipped >= MAX_SKIPPED:
            raise AfactlError(
                f"{skipped.text}; {MAX_SKIPPED} in a row: stopped. Lower optim.lr, or look at those images"
            )

    def look(self, step: int) -> dict[str, float] | None:
        """Let the observers see the network, and score it where there is something to score it on."""
        prepared = self.prepared
        run = TrainedRun(self.run, self.preset, prepared.model, prepared.architecture, self.device, "", step)
        self.tell(BetweenSteps(step, run, prepared.val or prepared.data))
        return self.validate(prepared.val, step) if prepared.val else None

    def validate(self, val: Split, step: int) -> dict[str, float] | None:
        """Score the validation split; the best weights so far are kept."""

        def track(items: Sequence[Item], /) -> Iterator[Item]:
            for done, item in enumerate(items):
                self.tell(Validating(step, done, len(items)))
                yield item

        validation = validate(self.prepared.model, val, self.preset, self.device, track)
        if validation.left_out:
            shown = "; ".join(validation.left_out[:3])
            self.tell(
                Noted(step, f"step {step}: {len(validation.left_out)} of {len(val.samples)} photos not scored: {shown}")
            )
        if validation.scores and validation.scores["val_seg_miou"] > self.best:
            self.best = validation.scores["val_seg_miou"]
            self.save("best", step)  # before the score is on record: a resumed run would not know that this is missing
        self.tell(Validated(step, validation.scores, validation.no_score))
        return validation.scores or None

    def save(self, which: str, step: int) -> None:
        """Write a checkpoint, "last" or "best"; rank 0 does it for all."""
        if distributed.rank() == 0:
            prepared, folder = self.prepared, self.run / "checkpoints" / which
            save_checkpoint(folder, prepared.model, prepared.optimizer, step, prepared.architecture)
        self.tell(Saved(step, self.run, which))

    def tell(self, event: Event) -> None:
        """Tell every observer."""
        if distributed.rank() == 0:
            for observer in self.observers:
                observer(event)
