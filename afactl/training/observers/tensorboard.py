"""Curves and pictures of a training for TensorBoard (extra [tensorboard]), beside metrics.jsonl."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch

from afactl.datasets.images import read_image, reduce_image
from afactl.errors import DataError, DependencyError
from afactl.evaluation.pseudo_labels import pseudo_label_of
from afactl.inference.cams import cam_record, query_maps
from afactl.inference.segmentation import segment, single_scale
from afactl.network.model import evaluation_mode
from afactl.pictures.drawing import map_over, overlay, resize_map
from afactl.pictures.palettes import PALETTES
from afactl.training.events import BetweenSteps, Ended, Event, Started, Stepped, Validated

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

PHOTOS = 4


class TensorBoardLog:
    """Event files in RUN/tensorboard: what metrics.jsonl has as curves, and pictures between steps.

    What an earlier call wrote of steps that a resumed run does again is hidden.

    Raises:
        DependencyError: tensorboard is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise DependencyError("--tensorboard needs tensorboard: pip install 'afactl[tensorboard]'") from error
        self._make_writer = SummaryWriter
        self._writer: SummaryWriter | None = None

    def __call__(self, event: Event) -> None:
        """Draw an event, if there is something to draw."""
        if isinstance(event, Started):
            self._writer = self._make_writer(str(event.run / "tensorboard"), purge_step=event.step + 1)
        if self._writer is None:
            return
        match event:
            case Stepped(logged=True):
                _curves(self._writer, event.step, event.values())
            case Validated():
                _curves(self._writer, event.step, event.scores)
            case BetweenSteps():
                _pictures(self._writer, event)
            case Ended():
                self._writer.close()
            case _:
                pass


def _curves(writer: SummaryWriter, step: int, values: Mapping[str, float | str]) -> None:
    for name, value in values.items():
        if isinstance(value, int | float):
            writer.add_scalar(name, value, step)


@torch.no_grad()
def _pictures(writer: SummaryWriter, event: BetweenSteps) -> None:
    """What the network makes of the first photos of a split.

    CAM, attention of the centre, pseudo label, segmentation.
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
                writer.add_image(f"{sample.image_id}/{name}", picture, event.step, dataformats="HWC")
    writer.flush()
