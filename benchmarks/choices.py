"""bfloat16, channels_last and torch.compile: their effect on speed, and on the labels of a trained run.

python benchmarks/choices.py RUN [DATA] [--compile]   (the speed is that of MiT-B1 at batch 2, 512)
"""

import sys
import time
from pathlib import Path

import torch
from ratio import compare, machine
from step import backward, inputs

from afactl.datasets.images import read_image
from afactl.datasets.transforms import normalize
from afactl.inference.refiners import preset_refiner
from afactl.inference.trained_run import multi_hot, open_run, open_split, to_tensor
from afactl.machine.allocator import keep_freed_memory
from afactl.method.affinity import Walk, log_sigmoid
from afactl.method.cam import Thresholds
from afactl.method.pseudo_labels import Photos, propagated_label, refined_label
from afactl.method.schedule import Phase
from afactl.presets import load_preset
from afactl.training.step import training_losses


@torch.no_grad()
def labels(run, samples, precision: torch.dtype) -> list[torch.Tensor]:
    """Refined and propagated label of every sample, as training makes them."""
    cam, walk, found = run.preset.cam, Walk(**run.preset.walk_settings()), []
    refine = preset_refiner(run.preset)
    for sample in samples:
        image = to_tensor(read_image(sample.image_path), run.device)
        label = multi_hot(sample.labels, run.model.classes).to(run.device)[None]
        with torch.autocast(run.device.type, precision, enabled=precision != torch.float32):
            passed = run.model.multi_scale_cam(normalize(image), cam.scales, max(cam.scales))
        photos, thresholds = Photos(image, label), Thresholds(cam.beta_low, cam.beta_high)
        found.append(refined_label(photos, passed.cam, refine, thresholds))
        logits = run.model.affinity_head.windows(passed.queries, passed.keys, passed.grid, walk.radius)
        found.append(propagated_label(photos, passed.cam, log_sigmoid(logits), walk, refine, thresholds))
    return found


def agreement(one: list[torch.Tensor], other: list[torch.Tensor]) -> str:
    """Pixels with the same label, of refined and of propagated labels."""
    shares = [
        sum((a == b).sum().item() for a, b in zip(one[start::2], other[start::2], strict=True))
        / sum(a.numel() for a in one[start::2])
        for start in range(2)
    ]
    return f"{100 * shares[0]:.2f} % of pixels of refined labels equal, {100 * shares[1]:.2f} % of propagated ones"


if __name__ == "__main__":
    machine()
    keep_freed_memory()
    positional = [word for word in sys.argv[1:] if not word.startswith("--")]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = open_run(Path(positional[0]), device)
    split = open_split(
        run, run.preset.data.val_split, Path(positional[1]) if len(positional) > 1 else None, masks=False
    )
    plain = labels(run, split.samples[:80], torch.float32)
    print(f"labels of {len(plain) // 2} photos")
    print(f"  bfloat16: {agreement(plain, labels(run, split.samples[:80], torch.bfloat16))}")
    run.model.to(memory_format=torch.channels_last)
    print(f"  channels_last weights: {agreement(plain, labels(run, split.samples[:80], torch.float32))}")

    presets = {name: load_preset("voc", [f"train.precision={name}"]) for name in ("float32", "bfloat16")}
    model, image, label, box = (part.to(device) for part in inputs(512))
    other = inputs(512)[0].to(device).to(memory_format=torch.channels_last)

    def step(network=model, precision="float32") -> None:
        backward(training_losses(network, image, label, box, Phase.PROPAGATED, presets[precision]))

    print("a whole step, MiT-B1, batch 2, 512; the ratio is how much longer float32 takes")
    compare("  bfloat16", lambda: step(precision="bfloat16"), step, "float32", rounds=3)
    compare("  channels_last weights", lambda: step(other), step, "float32", rounds=3)
    if "--compile" in sys.argv:
        other = inputs(512)[0].to(device)
        other.backbone.compile(dynamic=True)
        start = time.perf_counter()
        step(other), step(other)
        print(f"  the first two compiled steps: {time.perf_counter() - start:.0f} s")
        compare("  torch.compile", lambda: step(other), step, "float32", rounds=3)
