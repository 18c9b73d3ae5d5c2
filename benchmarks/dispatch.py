"""Operations and waits of the host in a training step of `voc`: python benchmarks/dispatch.py [BACKBONE]

What a GPU would be given, counted without one: on the stand-in of the tests, MiT-B1 at crop 128. A step that asks the
device for few values and hands it few, large operations is as quick as the card. Exit code 1 where a bar is missed.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from afactl.machine.devices import Answers
from afactl.method.schedule import Phase
from afactl.network.model import AFA
from afactl.presets import Preset, load_preset
from afactl.training.optimizer import build_optimizer
from afactl.training.step import training_losses
from tests.stand_in_accelerator import DEVICE, stand_in

# The third phase, forward, at batch 8; how much more than at batch 2; waits of the host in a whole step.
MOST_OPERATIONS, MOST_GROWTH, MOST_WAITS = 5000, 1.15, 2


class Counted(NamedTuple):
    """One step: operations of its forward pass and of the rest, and what the host waited for."""

    forward: int
    rest: int
    waits: Counter[str]
    names: Counter[str]


def count_step(backbone: str, preset: Preset, phase: Phase, batch: int, side: int) -> Counted:
    """Count the second of two steps, which is like all that follow."""
    torch.manual_seed(0)
    with stand_in() as counts:
        model = AFA(backbone, 20).to(DEVICE).train()
        optimizer = build_optimizer(model, preset)
        image = torch.nn.functional.interpolate(torch.rand(batch, 3, 9, 9), size=(side, side), mode="bicubic")
        label = torch.zeros(batch, 20)
        label[:, 3] = label[::2, 7] = label[::4, 12] = 1
        box = torch.tensor([[0, side, 0, side - 16 * (i % 2)] for i in range(batch)])
        inputs = [image.clamp(0, 1).mul(255).to(torch.uint8).to(DEVICE), label, box]  # as the job hands them over
        for _ in range(2):
            counts.operations.clear(), counts.waits.clear()
            losses = training_losses(model, *inputs, phase, preset)
            forward, names = counts.operations.total(), Counter(counts.operations)
            answers = Answers(torch.stack([*losses.values()]))
            sum(losses.values()).backward()
            answers.read()
            optimizer.step()
            optimizer.zero_grad()
        return Counted(forward, counts.operations.total() - forward, Counter(counts.waits), names)


def main(backbone: str = "mit_b1", side: int = 128) -> int:
    """Print the table; 1 where a bar is missed."""
    preset, counted = load_preset("voc"), {}
    print(f"`voc`, {backbone}, crop {side}; operations that a step dispatches to an accelerator, and waits of the host")
    print(
        "| phase | batch | operations forward | backward and optimizer | waits | for what |\n|---|---|---|---|---|---|"
    )
    for phase in Phase:
        for batch in (2, 8):
            one = counted[phase, batch] = count_step(backbone, preset, phase, batch, side)
            what = ", ".join(f"{name} {count}" for name, count in one.waits.most_common()) or "nothing"
            print(
                f"| {phase.value} | {batch} | {one.forward} | {one.rest} | {one.waits.total()} | {what} |", flush=True
            )
    last, small = counted[Phase.PROPAGATED, 8], counted[Phase.PROPAGATED, 2]
    print("most often, third phase, batch 8:", ", ".join(f"{name} {n}" for name, n in last.names.most_common(8)))
    most_waits = max(one.waits.total() for one in counted.values())
    bars = {
        f"forward, third phase, batch 8: {last.forward}, at most {MOST_OPERATIONS}": last.forward <= MOST_OPERATIONS,
        f"batch 8 over batch 2: {last.forward / small.forward:.2f}, at most {MOST_GROWTH}": (
            last.forward <= MOST_GROWTH * small.forward
        ),
        f"waits in a step: {most_waits}, at most {MOST_WAITS}": most_waits <= MOST_WAITS,
    }
    for text, kept in bars.items():
        print(f"{'kept' if kept else 'MISSED'}: {text}")
    return int(not all(bars.values()))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
