"""What a training on VOC and COCO takes of a card with 24 or 80 GB, calculated: python benchmarks/cards.py

Time and memory of a step of `voc` were measured on an H100 with MiT-B1 (docs/performance.md, "On a GPU"). Other
backbones take as many times more as on the CPU (`backbones.py`), other crops as their pixels; a slower card takes as
much longer as its memory is slower, as if that alone set the pace. None of this was measured: it says what order of
time to expect. Validation and loading come on top.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

from afactl.method.schedule import Phase, phase_starts
from afactl.presets import load_preset


class Card(NamedTuple):
    """A card: its memory in GiB, and its memory's bandwidth in GB/s as its maker states it."""

    name: str
    memory: float
    bandwidth: float


class Backbone(NamedTuple):
    """Time and memory of a step against MiT-B1, as `backbones.py` printed them on 2026-11-27."""

    time: float
    memory: float


class Measured(NamedTuple):
    """A step of `voc` (MiT-B1, batch 8, crop 512) on an H100: ms of each phase, and its peak in GiB."""

    milliseconds: tuple[float, float, float]
    memory: float


H100 = Card("80 GB (H100 SXM)", 80, 3350)
CARDS = (Card("24 GB (RTX 4090)", 24, 1008), H100)
STEPS = {"bfloat16": Measured((31.7, 99.3, 121.4), 3.6), "float32": Measured((47.4, 185.0, 204.3), 4.9)}
BACKBONES = {
    "mit_b1": Backbone(1.0, 1.0),
    "pvt_v2_b1": Backbone(1.30, 1.22),
    "deit_small_patch16_224": Backbone(1.39, 1.18),
    "vit_base_patch14_dinov2.lvd142m": Backbone(4.91, 3.76),
    "vit_base_patch16_dinov3.lvd1689m": Backbone(4.59, 3.80),
    "vit_base_patch16_clip_224.openai": Backbone(4.29, 3.51),
}
PRESETS = ("voc", "coco", "voc-pvtv2-b1", "voc-deit-s16", "voc-dinov2-b14", "voc-dinov3-b16", "voc-clip-b16")
# Of a card's memory, what is left beside the driver, the context and what the allocator cannot place.
USABLE = 0.85
MEASURED_BATCH, MEASURED_CROP = 8, 512


class Needed(NamedTuple):
    """What a training takes: photos that pass at once, batches a step, GiB, and hours without validation."""

    batch: int
    accumulation: int
    memory: float
    hours: float


def needed(preset_name: str, card: Card, precision: str) -> Needed:
    """Batch, accumulation, memory and hours of a shipped preset on a card."""
    preset = load_preset(preset_name)
    backbone, step = BACKBONES[preset.model.backbone], STEPS[precision]
    pixels = (preset.train.crop_size / MEASURED_CROP) ** 2
    batch = preset.train.batch_size
    while (memory := step.memory * backbone.memory * pixels * batch / MEASURED_BATCH) > USABLE * card.memory:
        batch //= 2
    starts = phase_starts(preset.train.cls_warmup_iters, preset.train.aff_warmup_iters)
    borders = [*(starts[phase.value] for phase in Phase), preset.train.max_iters]
    seconds = sum(
        (end - start) * time / 1000 for (start, end), time in zip(pairwise(borders), step.milliseconds, strict=True)
    )
    slower = backbone.time * pixels * H100.bandwidth / card.bandwidth
    return Needed(batch, -(-preset.train.batch_size // batch), memory, seconds * slower / 3600)


def main() -> None:
    """Print the table; the batch is that of the smallest card."""
    hours = (f"hours, {card.name}" for card in CARDS)
    heads = ("preset", "crop", "precision", "batch x accumulation", "memory, GiB", *hours)
    print(f"| {' | '.join(heads)} |\n|{'---|' * len(heads)}")
    for name in PRESETS:
        for precision in STEPS:
            of = [needed(name, card, precision) for card in CARDS]
            least, crop = of[0], load_preset(name).train.crop_size
            cells = [f"`{name}`", f"{crop}", precision, f"{least.batch} x {least.accumulation}", f"{least.memory:.1f}"]
            print(f"| {' | '.join([*cells, *(f'{one.hours:.1f}' for one in of)])} |")


if __name__ == "__main__":
    main()
