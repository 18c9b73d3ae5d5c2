"""Several processes on one job, started by torchrun; on its own, a process is rank 0 of 1.

Every process runs the same command. Each takes its share of the work; what it counts is added up over
all of them; rank 0 alone writes what belongs to the job as a whole.
"""

from __future__ import annotations

import contextlib
import datetime
import json
import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from afactl.errors import AfactlError
from afactl.machine.launch import Launched

Item = TypeVar("Item")

# A process waits so long for the others: validation and checkpoints of rank 0 lie between two steps.
PATIENCE = datetime.timedelta(hours=1)


def rank() -> int:
    """Number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes there are."""
    return dist.get_world_size() if dist.is_initialized() else 1


@contextlib.contextmanager
def joined(place: Launched) -> Iterator[None]:
    """Join the processes that torchrun has started, of which this is one, and leave them at the end.

    Tensors on the CPU travel by gloo, those on a GPU by NCCL.

    Raises:
        AfactlError: another process has stopped.
    """
    # Gradients of depthwise convolutions have strides of their own; it costs a copy, and a warning on every process.
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
    if place.local_rank < torch.cuda.device_count():  # where there are too few, the choice of the device says so
        torch.cuda.set_device(place.local_rank)
    dist.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo", timeout=PATIENCE)
    try:
        yield
    except RuntimeError as error:
        # What gloo and NCCL say when the other end of a connection is gone.
        if isinstance(error, dist.DistError) or "onnection" in str(error):
            raise AfactlError(
                f"rank {rank()}: stopped, since another process has ended; its message tells why"
            ) from error
        raise
    # After an error this might wait for processes that are gone.
    dist.destroy_process_group()


def shard(items: Sequence[Item]) -> Sequence[Item]:
    """This process's part: every item belongs to exactly one process, whatever their number."""
    return items[rank() :: world_size()]


def wait() -> None:
    """Go on when every process has come here."""
    if world_size() > 1:
        dist.barrier()


def all_reduce(values: Tensor) -> Tensor:
    """The sum over all processes, on every process.

    The gradient is that of the sum of what the processes make of it.
    """
    if world_size() == 1:
        return values
    summed: Tensor = _AllReduce.apply(values)
    return summed


class _AllReduce(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, values: Tensor) -> Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return _AllReduce.forward(context, gradient.contiguous())


def broadcast(texts: Sequence[str]) -> list[str]:
    """What rank 0 gives, on every process."""
    if world_size() == 1:
        return list(texts)
    # As bytes of JSON: torch would send objects as pickles.
    content = torch.frombuffer(bytearray(json.dumps(list(texts)).encode()), dtype=torch.uint8)
    length = torch.tensor(len(content))
    dist.broadcast(length, 0)
    content = content if rank() == 0 else torch.empty(int(length), dtype=torch.uint8)
    dist.broadcast(content, 0)
    texts_of_first: list[str] = json.loads(content.numpy().tobytes())
    return texts_of_first


def all_gather(texts: Sequence[str]) -> list[str]:
    """What all processes give, one after the other, on every process."""
    if world_size() == 1:
        return list(texts)
    content = torch.frombuffer(bytearray(json.dumps(list(texts)).encode()), dtype=torch.uint8)
    lengths = [torch.tensor(0) for _ in range(world_size())]
    dist.all_gather(lengths, torch.tensor(len(content)))
    # Parts of one length: gloo gathers no others.
    parts = [torch.zeros(int(max(lengths)), dtype=torch.uint8) for _ in lengths]
    dist.all_gather(parts, torch.nn.functional.pad(content, (0, len(parts[0]) - len(content))))
    whole: list[str] = []
    for part, length in zip(parts, lengths, strict=True):
        whole += json.loads(part[: int(length)].numpy().tobytes())
    return whole


def all_reduce_array(counts: np.ndarray) -> np.ndarray:
    """The sum of an array over all processes, on every process."""
    return all_reduce(torch.from_numpy(counts)).numpy()


class Shares(NamedTuple):
    """How the photos of a step are shared out: `processes` pass `batches` batches of `batch` photos each."""

    batch: int
    batches: int
    processes: int

    @property
    def photos(self) -> int:
        """Photos per step, the effective batch."""
        return self.batch * self.batches * self.processes


def step_shares(batch_size: int, effective_batch: int | None, processes: int) -> Shares:
    """Share the effective batch out, rounded up to whole batches.

    Args:
        batch_size: the most photos that a process passes at once. effective_batch: per step, of all
            processes together; None: one batch per process.
    """
    if effective_batch is None:
        return Shares(batch_size, 1, processes)
    batch = min(batch_size, math.ceil(effective_batch / processes))
    return Shares(batch, math.ceil(effective_batch / (batch * processes)), processes)
