"""Curves and pictures of a training for TensorBoard (extra [tensorboard]), beside metrics.jsonl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from afactl.datasets.images import read_image
from afactl.datasets.samples import Split
from afactl.errors import DependencyError
from afactl.evaluation.pseudo_labels import pseudo_labels_of
from afactl.inference.cams import cam_record
from afactl.inference.segmentation import segment, single_scale
from afactl.inference.trained_run import TrainedRun
from afactl.network.model import evaluation_mode
from afactl.pictures.drawing import map_over, overlay, query_token, resize_map
from afactl.pictures.palettes import PALETTES

PHOTOS = 4


class TensorBoardLog:
    """Event files in RUN/tensorboard.

    Args:
        start: the step that is done next; what an earlier call wrote of later steps is hidden.

    Raises:
        DependencyError: tensorboard is not installed.
    """

    def __init__(self, run: Path, start: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise DependencyError("--tensorboard needs tensorboard: pip install 'afactl[tensorboard]'") from error
        self.writer = SummaryWriter(str(run / "tensorboard"), purge_step=start + 1)

    def curves(self, step: int, values: dict[str, Any]) -> None:
        """Every number of a line of metrics.jsonl."""
        for name, value in values.items():
            if isinstance(value, int | float):
                self.writer.add_scalar(name, value, step)

    @torch.no_grad()
    def pictures(self, step: int, run: TrainedRun, split: Split) -> None:
        """What the network makes of the first photos of a split.

        CAM, attention of the centre, pseudo label, segmentation.
        """
        colors = PALETTES["safe"]()
        with evaluation_mode(run.model):
            for sample in split.samples[:PHOTOS]:
                image = read_image(sample.image_path)
                size = image.shape[:2]
                record = cam_record(run, image, sample.labels)
                centre = query_token((size[1] // 2, size[0] // 2), size, record.grid)
                attention = resize_map(record.attention[centre].astype(np.float32).reshape(record.grid), size)
                logits = segment(run.model, image, run.device, single_scale(run.preset.eval))
                shown = {
                    "CAM": map_over(image, record.cam.astype(np.float32).max(axis=0, initial=0.0)),
                    "attention": map_over(image, attention / max(float(attention.max()), 1e-12)),
                    "pseudo label": overlay(
                        image, pseudo_labels_of(image, record, run.preset, run.device)[-1, 1], colors
                    ),
                    "segmentation": overlay(image, logits.max(dim=0).indices.to(torch.uint8).cpu().numpy(), colors),
                }
                for name, picture in shown.items():
                    self.writer.add_image(f"{sample.image_id}/{name}", picture, step, dataformats="HWC")
        self.writer.flush()

    def close(self) -> None:
        """Bring everything to the disk."""
        self.writer.close()
