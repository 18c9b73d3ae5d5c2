"""The same photos by several runs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from afactl.datasets.images import read_image, reduce_image
from afactl.datasets.masks import enlarge_mask
from afactl.datasets.samples import Split
from afactl.inference.segmentation import photo_mask
from afactl.inference.trained_run import TrainedRun
from afactl.pictures.drawing import overlay, picture_grid
from afactl.pictures.figures import SHEET_PIXELS, TRUTH, save_figure
from afactl.pictures.palettes import PALETTES


def draw_comparison(
    runs: Sequence[TrainedRun],
    split: Split,
    chosen: Sequence[tuple[int, Sequence[float]]],
    out: Path,
    palette: str = "safe",
) -> Path:
    """A row per photo: itself, its true mask, and the mask of each run.

    Args:
        chosen: the place of each photo in the split, and its mIoU in per cent by each run.

    Raises:
        UsageError: `out` cannot be written. DataError: a photo or mask cannot be read.
    """
    colors, masks, cells = PALETTES[palette](), split.require_masks(), []
    for place, scores in chosen:
        sample = split.samples[place]
        image = read_image(sample.image_path)
        small = reduce_image(image, SHEET_PIXELS)
        titles = [TRUTH, *(f"{run.folder.name} {score:.1f} %" for run, score in zip(runs, scores, strict=True))]
        shown = [masks.read(sample), *(photo_mask(run, image) for run in runs)]
        cells.append((sample.image_id, small))
        cells += [
            (title, overlay(small, enlarge_mask(mask, small.shape[:2]), colors, classes=split.classes))
            for title, mask in zip(titles, shown, strict=True)
        ]
    return save_figure(picture_grid(cells, columns=2 + len(runs)), out)
