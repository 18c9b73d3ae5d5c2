"""What a network makes of the first photos of a split, as pictures for the programs that follow a training."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from afactl.datasets.images import read_image, reduce_image
from afactl.errors import DataError
from afactl.evaluation.pseudo_labels import pseudo_label_of
from afactl.inference.cams import cam_record, query_maps
from afactl.inference.segmentation import segment, single_scale
from afactl.network.model import evaluation_mode
from afactl.pictures.drawing import map_over, overlay, resize_map
from afactl.pictures.palettes import PALETTES
from afactl.training.events import BetweenSteps

PHOTOS = 4


@torch.no_grad()
def photo_pictures(event: BetweenSteps) -> Iterator[tuple[str, np.ndarray]]:
    """CAM, attention of the centre, pseudo label and segmentation of each of the first photos.

    Yields:
        "IMAGE_ID/KIND" and h x w x 3 uint8.
    """
    run = event.run
    colors = PALETTES["safe"]()
    with evaluation_mode(run.model):
        for sample in event.split.samples[:PHOTOS]:
            try:
                image = reduce_image(read_image(sample.image_path), run.preset.cam.max_pixels)
            except DataError:
                continue  # the validation names it
            size = image.shape[:2]
            record = cam_record(run, image, sample.labels)
            attention = resize_map(query_maps(run, image, [(size[1] // 2, size[0] // 2)]).attention[0], size)
            logits = segment(run.model, image, run.device, single_scale(run.preset.eval))
            shown = {
                "CAM": map_over(image, record.cam.astype(np.float32).max(axis=0, initial=0.0)),
                "attention": map_over(image, attention / max(float(attention.max()), 1e-12)),
                "pseudo label": overlay(image, pseudo_label_of(image, record, run.preset, run.device), colors),
                "segmentation": overlay(image, logits.max(dim=0).indices.to(torch.uint8).cpu().numpy(), colors),
            }
            for name, picture in shown.items():
                yield f"{sample.image_id}/{name}", picture
