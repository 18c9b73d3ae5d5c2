"""Backbones beside each other: size, tokens, time and memory of a training step: python benchmarks/backbones.py [SIDE]

From random weights; two pictures, a step of the last phase, forward and backward. Times are ratios to MiT-B1, whose
steps are timed in turns with those of each other.
"""

import statistics
import sys
from collections.abc import Callable

import torch
from ratio import machine, peak_memory, picture, seconds

from afactl.machine.allocator import keep_freed_memory
from afactl.method.schedule import Phase
from afactl.network.model import AFA
from afactl.presets import load_preset
from afactl.training.step import training_losses

FIRST = "mit_b1"
OTHERS = (
    *(
        "mit_b0",
        "mit_b2",
        "pvt_v2_b1",
        "deit_small_patch16_224",
        "vit_small_patch14_dinov2",
        "vit_small_patch16_dinov3",
    ),
    *("vit_base_patch16_clip_224", "hybrid:tf_efficientnet_lite0", "hybrid:resnet50", "hybrid:convnext_tiny"),
)
ROUNDS = 3


def step_of(name: str, side: int) -> tuple[AFA, Callable[[], None]]:
    """A network with this backbone, and a step of it."""
    torch.manual_seed(0)
    model = AFA(name, 20).train()
    image = torch.stack([picture(side, side, seed) for seed in range(2)]).to(torch.uint8)
    label, box = torch.zeros(2, 20), torch.tensor([[0, side, 0, side]] * 2)
    label[0, :2] = label[1, 3] = 1
    preset = load_preset("voc", ["cam.scales=[1.0, 0.5]"])

    def step() -> None:
        losses = training_losses(model, image, label, box, Phase.PROPAGATED, preset)
        torch.stack(list(losses.values())).sum().backward()
        model.zero_grad()

    return model, step


if __name__ == "__main__":
    machine()
    keep_freed_memory()  # as the command line does
    side = int(sys.argv[1]) if len(sys.argv) > 1 else 224
    _, first = step_of(FIRST, side)
    first()
    print(f"batch 2, {side} x {side}, float32, random weights; CAMs at scales 1 and 0.5")
    print("| backbone | parameters, million | stride | heads | time of a step | peak memory, MiB |")
    print("|---|---|---|---|---|---|")
    for name in (FIRST, *OTHERS):
        model, step = step_of(name, side)
        step()
        pairs = [(seconds(step), seconds(first)) for _ in range(ROUNDS)]
        took = statistics.median(own / other for own, other in pairs)
        size = sum(value.numel() for value in model.backbone.parameters()) / 1e6
        setup = "from backbones import *; keep_freed_memory()\n"
        setup += f"model, step = step_of({name!r}, {side})"
        memory = peak_memory(setup, "step()")
        print(
            f"| `{name}` | {size:.1f} | {model.backbone.strides[-1]:g} | {model.backbone.attention_heads} "
            f"| {took:.2f}x | {memory:.0f} |",
            flush=True,
        )
