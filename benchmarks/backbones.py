"""What each backbone has and costs, as a table against MiT-B1: python benchmarks/backbones.py [NAME ...]

One member of every family, from random weights, so no network is needed. A step is one of the last phase of the
preset `voc` (batch 2, 224 pixels, which 14 and 16 divide; nothing frozen): passes for the CAMs, forward, backward and
the update by AdamW. Every member's time is taken in turns with MiT-B1's; peak memory is that of a process of its own,
with the network, its gradients and AdamW's state, above what torch takes by itself.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NamedTuple

import timm
import torch
from ratio import in_turns, machine, peak_memory, picture, seconds

from afactl.machine.allocator import keep_freed_memory
from afactl.method.schedule import Phase
from afactl.network.backbones import build_backbone
from afactl.network.model import AFA
from afactl.presets import load_preset
from afactl.training.step import training_losses

REFERENCE = "mit_b1"
MEMBERS = (
    "mit_b0",
    REFERENCE,
    "mit_b2",
    "pvt_v2_b1",
    "deit_small_patch16_224",
    "vit_small_patch16_224",
    "vit_small_patch14_dinov2",
    "vit_base_patch14_dinov2",
    "vit_small_patch16_dinov3",
    "vit_base_patch16_dinov3",
    "vit_base_patch16_clip_224.openai",
    "hybrid:tf_efficientnet_lite0",
    "hybrid:resnet50",
    "hybrid:convnext_tiny",
)
SIDE, BATCH, CLASSES = 224, 2, 20


class Weights(NamedTuple):
    """Published weights: what fetches them (`model.init`), and their licence."""

    init: str
    licence: str


def published(name: str) -> Weights:
    """MiT's are NVIDIA's, on Hugging Face's hub; the others' are timm's, with the licence that timm names."""
    if name.startswith("mit_"):
        return Weights(f"hf:nvidia/{name.replace('_', '-')}", "NVIDIA, non-commercial")
    return Weights("timm", timm.get_pretrained_cfg(name.removeprefix("hybrid:")).license or "not named")


def step_of(name: str) -> Callable[[], None]:
    """One step of training with this backbone, to be called again and again."""
    torch.manual_seed(0)
    model = AFA(name, CLASSES).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6)
    image = torch.stack([picture(SIDE, SIDE, seed) for seed in range(BATCH)]).to(torch.uint8)
    label, box = torch.zeros(BATCH, CLASSES), torch.tensor([[0, SIDE, 0, SIDE]] * BATCH)
    label[0, :2] = label[1, 3] = 1
    preset = load_preset("voc")

    def step() -> None:
        optimizer.zero_grad()
        losses = training_losses(model, image, label, box, Phase.PROPAGATED, preset)
        torch.stack(list(losses.values())).sum().backward()
        optimizer.step()

    return step


def memory(name: str) -> float:
    """MiB that two steps take at their peak, network included."""
    # Imports and the picture's own modules come first: they are nobody's backbone.
    setup = "from backbones import *; keep_freed_memory(); picture(32, 32); timm.list_models('mit')"
    return peak_memory(setup, f"step = step_of({name!r}); step(); step()")


def main(names: list[str]) -> None:
    """Print the table, a row as soon as it is measured."""
    machine()
    keep_freed_memory()  # as the command line does
    reference, reference_memory = step_of(REFERENCE), memory(REFERENCE)
    print("\n| backbone | parameters, M | stride | heads | time | memory | weights and their licence |")
    print("|---|---|---|---|---|---|---|", flush=True)
    reference()
    best = seconds(reference)
    for name in names:
        backbone = build_backbone(name, 0.1)
        million = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
        if name == REFERENCE:
            time, share = 1.0, 1.0
        else:
            mine, theirs = zip(*in_turns(step_of(name), reference, rounds=3), strict=True)
            best = min(best, *theirs)
            time, share = min(mine) / min(theirs), memory(name) / reference_memory
        init, licence = published(name)
        print(
            f"| `{name}` | {million:.1f} | {backbone.stride} | {backbone.attention_heads} "
            f"| {time:.2f} | {share:.2f} | `{init}`, {licence} |",
            flush=True,
        )
    print(f"\n`{REFERENCE}`: {1000 * best:.0f} ms a step at best, {reference_memory:.0f} MiB")


if __name__ == "__main__":
    main(sys.argv[1:] or list(MEMBERS))
