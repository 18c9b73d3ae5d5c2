"""Labels of one trained run on the CPU and on another device: python benchmarks/agreement.py RUN [DEVICE] [bfloat16]

Where a row says "same CAM", both devices start from the CPU's maps, so that it is the refiner alone that is compared.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from afactl.datasets.images import read_image
from afactl.datasets.samples import Sample
from afactl.datasets.transforms import normalize
from afactl.evaluation.pseudo_labels import pseudo_labels_of
from afactl.inference.cams import CamRecord, cam_record
from afactl.inference.refiners import preset_refiner
from afactl.inference.segmentation import multi_scale, segment
from afactl.inference.trained_run import TrainedRun, multi_hot, open_run, open_split, to_tensor
from afactl.machine.devices import choose_device
from afactl.method.affinity import Walk, log_sigmoid
from afactl.method.cam import Thresholds
from afactl.method.pseudo_labels import Photos, best_class, propagate, propagated_label, refine_cam, refined_label
from afactl.method.refinement.crf import DenseCrf, crf_label

CPU = torch.device("cpu")


def agreement(folder: Path, device: torch.device, precision: torch.dtype, count: int) -> dict[str, float]:
    """The share of pixels to which the CPU in float32 and the device in a precision give the same label, by part.

    Args:
        folder: a trained run. count: photos of its validation split.
    """
    here, there = open_run(folder, CPU), open_run(folder, device)
    samples = open_split(here, here.preset.data.val_split, None, masks=False).samples[:count]
    expected = labels_of(here, samples, torch.float32)
    records = [record for record, _ in expected]
    found = labels_of(there, samples, precision, records)
    equal = {name: [] for name in expected[0][1]}
    for (_, one), (_, other) in zip(expected, found, strict=True):
        for name in equal:
            equal[name].append(float((one[name] == other[name]).mean()))
    return {name: float(np.mean(shares)) for name, shares in equal.items()}


@torch.no_grad()
def labels_of(
    run: TrainedRun, samples: Sequence[Sample], precision: torch.dtype, records: Sequence[CamRecord] | None = None
) -> list[tuple[CamRecord, dict[str, np.ndarray]]]:
    """Per photo what the network says, and every label that is made of it.

    Args:
        records: maps that PAR, walk and CRF start from; None takes the run's own.
    """
    made = []
    preset, device, cam = run.preset, run.device, run.preset.cam
    par, crf = preset_refiner(preset, "par"), DenseCrf(**preset.crf.model_dump())
    walk, both = Walk(**preset.walk_settings()), Thresholds(cam.beta_low, cam.beta_high)
    values = (both.high, both.low)
    for number, sample in enumerate(samples):
        image = read_image(sample.image_path)
        pixels, size = to_tensor(image, device), image.shape[:2]
        own = cam_record(run, image, sample.labels)
        start = own if records is None else records[number]
        maps = torch.from_numpy(start.cam).to(device).float()
        classes = torch.from_numpy(start.classes).to(device)
        photos = Photos(pixels, multi_hot(sample.labels, run.model.classes)[None])
        # The network alone is in the lower precision, as in training.
        with torch.autocast(device.type, precision, enabled=precision != torch.float32):
            passed = run.model.multi_scale_cam(normalize(pixels), cam.scales, max(cam.scales))
            logits = segment(run.model, image, device, multi_scale(preset.eval))
        learned = run.model.affinity_head.windows(passed.queries, passed.keys, passed.grid, walk.radius)
        # The maps once more as scores of all classes, background first: what the CRF starts from.
        scores = torch.zeros(1 + run.model.classes, *size, device=device)
        scores[0], scores[classes + 1] = cam.background, maps
        labels = {
            "PAR, same CAM": refine_cam(pixels[0], maps, classes, values, par),
            "random walk, same CAM": best_class(
                propagate(maps, start.log_affinity(device), values, walk), classes, size
            ),
            "CRF, same CAM": crf_label((pixels[0], 5 * scores), "torch", crf),
            "refined label of training": refined_label(photos, passed.cam, par, both),
            "propagated label of training": propagated_label(photos, passed.cam, log_sigmoid(learned), walk, par, both),
            "pseudo label (Table 3, AFA + PAR)": torch.from_numpy(pseudo_labels_of(image, own, preset, device)[-1, 1]),
            "segmentation (predict)": logits.max(dim=0).indices,
            "segmentation + CRF": crf_label((pixels[0], logits), "torch", crf),
        }
        made.append((own, {name: one.cpu().numpy() for name, one in labels.items()}))
    return made


if __name__ == "__main__":
    device = choose_device(sys.argv[2] if len(sys.argv) > 2 else "auto")
    precision = torch.bfloat16 if "bfloat16" in sys.argv else torch.float32
    for name, share in agreement(Path(sys.argv[1]), device, precision, 20).items():
        print(f"{name}: {100 * share:.3f} % of pixels equal")
