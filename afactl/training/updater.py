"""Taking one step: forward and backward of every batch, then the update of the weights."""

from __future__ import annotations

import contextlib
import math
import threading
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from afactl.machine import distributed
from afactl.machine.devices import Answers
from afactl.method.schedule import Phase, phase_at
from afactl.training.optimizer import rest_or_count, set_learning_rate
from afactl.training.prepared import Prepared
from afactl.training.step import StepLosses


class Taken(NamedTuple):
    """A step that was taken.

    Attributes:
        losses: the unweighted terms by name. loss: their weighted sum; both are means over all photos of the step.
        rate: learning rate of the backbone.
        finite: whether the loss was finite; where it was not, everything is as before the step.
        stopping: whether any process was asked to stop.
    """

    phase: Phase
    losses: dict[str, float]
    loss: float
    rate: float
    finite: bool
    stopping: bool


class Updater:
    """Takes the steps of a training with one network and one optimizer, on every process its part.

    Args:
        stop: set where this process was asked to stop; that becomes the stop of all.
    """

    def __init__(self, prepared: Prepared, stop: threading.Event) -> None:
        self.stop = stop
        self.preset, self.device = prepared.preset, prepared.device
        self.model, self.optimizer = prepared.model, prepared.optimizer
        self.step = StepLosses(self.model, self.preset)
        self.losses: nn.Module = self.step
        if distributed.world_size() > 1:
            # The parameters in use change with the phase.
            self.losses = DistributedDataParallel(self.losses, find_unused_parameters=True)

    def take(self, step: int, batches: Iterable[dict[str, Any]]) -> Taken:
        """Take the step with number `step`, from 0.

        Args:
            batches: of `TrainingStream`, the step's share of this process.
        """
        job = self.preset.train
        torch.manual_seed(noise_seed(job.seed, step, distributed.rank()))
        rate = set_learning_rate(self.optimizer, step, self.preset)
        phase = phase_at(step, job.cls_warmup_iters, job.aff_warmup_iters, self.preset.affinity.enabled)
        statistics = self._statistics()
        names, means, mean, stopping = self._gradients(batches, phase)
        if math.isfinite(mean):
            rest_or_count(self.optimizer, self.preset)
            self.optimizer.step()
        else:
            self._undo(statistics)
        return Taken(phase, dict(zip(names, means, strict=True)), mean, rate, math.isfinite(mean), stopping)

    def rehearse(self, phase: Phase, batches: Iterable[dict[str, Any]]) -> None:
        """All that a step of a phase does but the update; leaves no trace, and returns when the device has done it."""
        statistics = self._statistics()
        self._gradients(batches, phase)
        # A number out of the last result of the backward pass: it is there when the pass is over.
        next(value.grad for value in self.model.parameters() if value.grad is not None).sum().item()
        self._undo(statistics)

    def _statistics(self) -> list[tuple[Tensor, Tensor]]:
        """What batch norms count while they normalise, with copies."""
        return [(buffer, buffer.clone()) for buffer in self.model.buffers()]

    def _gradients(self, batches: Iterable[dict[str, Any]], phase: Phase) -> tuple[list[str], list[float], float, bool]:
        """Forward and backward of every batch.

        Returns:
            (names of the terms, their means, mean of their weighted sum, whether any process was asked to stop).
        """
        self.optimizer.zero_grad(set_to_none=True)
        names: list[str] = []
        terms: list[Tensor] = []
        answers = Answers(torch.empty(0))
        held = [self._on_device(batch) for batch in batches]
        parts = len(held)
        targets = self.step.targets(held, phase)
        for number, (batch, target) in enumerate(zip(held, targets, strict=True), 1):
            # Gradients travel once per step, with the last batch.
            alone: contextlib.AbstractContextManager[None] = contextlib.nullcontext()
            if number < parts and isinstance(self.losses, DistributedDataParallel):
                alone = self.losses.no_sync()
            with alone:
                losses: dict[str, Tensor] = self.losses(batch, phase, target)
                weighted = (self._weight(name) * loss for name, loss in losses.items())
                total = sum(weighted, start=torch.zeros((), device=self.device)) / parts
                names = list(losses)
                terms.append(torch.stack([loss.detach().float() for loss in (*losses.values(), total)]))
                # Asked for before the backward pass: the device has that to do while the host waits, once a step.
                answers = Answers(torch.stack(terms))
                torch.autograd.backward(total)
        # A row for each batch: the terms, and last their weighted sum, which has been divided already.
        *columns, totals = zip(*answers.read().tolist(), strict=True)
        here = [*(sum(value / parts for value in column) for column in columns), sum(totals)]
        (*means, mean), stopping = _of_all(here, self.stop.is_set())
        return names, means, mean, stopping

    @torch.no_grad()
    def _undo(self, statistics: list[tuple[Tensor, Tensor]]) -> None:
        """Leave no trace of a step without an update: neither gradients nor statistics."""
        self.optimizer.zero_grad(set_to_none=True)
        for buffer, before in statistics:
            buffer.copy_(before)

    def _weight(self, name: str) -> float:
        weight: float = getattr(self.preset.loss, name)
        return weight

    def _on_device(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        # What the host has to know of labels and boxes it can read where they are.
        return {
            name: value if name in ("label", "box") else value.to(self.device, non_blocking=True)
            for name, value in batch.items()
            if name != "image_id"
        }


def noise_seed(seed: int, step: int, rank: int) -> int:
    """The seed of a step's dropout and stochastic depth: a resumed run draws the same, and each process its own.

    Of a seed, torch's generator on the CPU takes the lower 32 bits alone, so all three count in these. Multiples of
    2^32 over the golden ratio lie far from each other: steps of two seeds do not meet.
    """
    return int((step + 0x9E3779B1 * seed + 0x85EBCA6B * rank) % 2**32)


def _of_all(values: list[float], stop: bool) -> tuple[list[float], bool]:
    """The means of values over all processes, and whether any was asked to stop."""
    if distributed.world_size() == 1:
        return values, stop
    *sums, stops = distributed.all_reduce(torch.tensor([*values, stop], dtype=torch.float64)).tolist()
    return [value / distributed.world_size() for value in sums], stops > 0
