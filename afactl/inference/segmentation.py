"""Segmentation of one photo: over scales and flips, and in windows.

Shapes: C foreground classes, K = C + 1, h x w image, N = hs * ws tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.datasets.images import reduce_image
from afactl.datasets.masks import enlarge_mask
from afactl.datasets.transforms import normalize, resize_long_side
from afactl.errors import UsageError
from afactl.inference.trained_run import TrainedRun, to_tensor
from afactl.network.model import AFA
from afactl.presets import Eval

# With the CRF, pixels times classes that are anywhere probable: its lattice of more would take several GiB.
MAX_CRF_VALUES = 2**24


@dataclass(frozen=True)
class Passes:
    """How a photo is passed through the network, and how the passes become one segmentation.

    Attributes:
        scales: factors on top of `long_side`, fused by maximum.
        flip: also pass the mirrored image.
        long_side: resize the photo so first; None keeps its size.
        mirror, fuse_at, sizes: as in the preset's section `eval`.
    """

    scales: tuple[float, ...] = (1.0,)
    flip: bool = False
    long_side: int | None = None
    mirror: Literal["mean", "maximum"] = "maximum"
    fuse_at: Literal["logits", "photo"] = "photo"
    sizes: Literal["nearest", "floor"] = "nearest"


def single_scale(settings: Eval) -> Passes:
    """One pass per photo."""
    return Passes(long_side=settings.long_side, sizes=settings.sizes)


def multi_scale(settings: Eval) -> Passes:
    """All scales, each with its mirror image."""
    return Passes(flip=True, **settings.model_dump(exclude={"max_pixels"}))


@torch.inference_mode()
def segment(model: AFA, image: np.ndarray, device: torch.device, passes: Passes = Passes()) -> Tensor:
    """Segmentation logits of one photo, fused over scales and flips.

    Args:
        image: h x w x 3 uint8.

    Returns:
        K x h x w float32 at the photo's size.

    Raises:
        UsageError: no scales.
    """
    pixels = normalize(to_tensor(image, device))
    size = (image.shape[0], image.shape[1])
    grid = size if passes.fuse_at == "photo" else None
    fused: Tensor | None = None
    # Scale 1 comes first: with `fuse_at` = logits its grid is that of all.
    for scale in sorted(passes.scales, key=lambda scale: scale != 1.0):
        scaled = _resized(pixels, scale, passes)
        views = torch.cat([scaled, scaled.flip(-1)]) if passes.flip else scaled
        logits = model.segment(model(views)).float()
        grid = grid or (logits.shape[2], logits.shape[3])
        logits = _resize(logits, grid)
        if passes.flip:
            # Mirroring commutes with the resize.
            both = torch.stack([logits[0], logits[1].flip(-1)])
            at_scale = both.mean(dim=0) if passes.mirror == "mean" else both.amax(dim=0)
        else:
            at_scale = logits[0]
        fused = at_scale if fused is None else torch.maximum(fused, at_scale)
    if fused is None:
        raise UsageError("scales: expected one or more, got none")
    return _resize(fused[None], size)[0]


def photo_mask(run: TrainedRun, image: np.ndarray) -> np.ndarray:
    """The mask of an h x w x 3 uint8 photo by all passes of the run's preset, as h x w uint8."""
    small = reduce_image(image, run.preset.eval.max_pixels)
    logits = segment(run.model, small, run.device, multi_scale(run.preset.eval))
    return enlarge_mask(logits.max(dim=0).indices.to(torch.uint8).cpu().numpy(), image.shape[:2])


def input_of_crf(image: np.ndarray, logits: Tensor, drop_below: float) -> tuple[np.ndarray, Tensor]:
    """The photo, h x w x 3 uint8, and its K x h x w logits, smaller where the CRF would take too much memory for them.

    Args:
        drop_below: classes nowhere as probable take no part in it.
    """
    classes, height, width = logits.shape
    if classes * height * width <= MAX_CRF_VALUES:
        return image, logits
    alive = max(1, int((logits.softmax(0).flatten(1).amax(1) >= drop_below).sum()))
    image = reduce_image(image, MAX_CRF_VALUES // alive)
    return image, F.interpolate(logits[None], size=image.shape[:2], mode="bilinear", align_corners=False)[0]


def _resized(pixels: Tensor, scale: float, passes: Passes) -> Tensor:
    """The photo, 1 x 3 x h x w, at a scale."""
    height, width = size = (pixels.shape[2], pixels.shape[3])
    if passes.sizes == "floor":
        factors = (passes.long_side / max(size) if passes.long_side else 1.0, scale)
        for factor in factors:
            pixels = _scaled(pixels, factor)
        return pixels
    base = resize_long_side(height, width, passes.long_side) if passes.long_side else size
    return _resize(pixels, (max(1, math.floor(scale * base[0])), max(1, math.floor(scale * base[1]))))


def _scaled(pixels: Tensor, factor: float) -> Tensor:
    """Sides times the factor, cut off to whole ones; pixels are sampled 1 / factor apart all the same."""
    if min(math.floor(side * factor) for side in pixels.shape[2:]) < 1:
        return _resize(pixels, tuple(max(1, math.floor(side * factor)) for side in pixels.shape[2:]))
    return F.interpolate(pixels, scale_factor=factor, mode="bilinear", align_corners=False)


def _resize(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """B x D x h x w -> B x D x size, bilinear; the same maps where they have that size already."""
    if tuple(maps.shape[2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)


def segment_windows(
    model: AFA,
    image: np.ndarray,
    device: torch.device,
    passes: Passes,
    window: int,
    size: tuple[int, int],
) -> Tensor:
    """Segmentation logits of a large photo, passed at its own size in windows that overlap by a third.

    Each window is a photo of its own for `segment`, without `long_side`. Where windows overlap, the mean of their
    logits is taken, weighted by the distance from the window's edge, near which the network sees the least around
    a pixel.

    Args:
        image: h x w x 3 uint8.
        window: side of the windows in pixels of the photo; a photo that is smaller fills one.
        size: (h', w') of the logits, at most the photo's: those of a whole large photo would take GiB.

    Returns:
        K x h' x w' float32.
    """
    passes = replace(passes, long_side=None)
    total = torch.zeros(model.classes + 1, *size, device=device)
    weights = torch.zeros(size, device=device)
    rows, columns = (_windows(side, small, window) for side, small in zip(image.shape[:2], size, strict=True))
    for row, small_row in rows:
        for column, small_column in columns:
            logits = segment(model, image[row, column], device, passes)
            target = (small_row.stop - small_row.start, small_column.stop - small_column.start)
            if logits.shape[1:] != target:
                logits = F.interpolate(logits[None], size=target, mode="area")[0]
            weight = torch.outer(*(_tent(side, device) for side in target))
            total[:, small_row, small_column] += weight * logits
            weights[small_row, small_column] += weight
    return total / weights


def _windows(side: int, small: int, window: int) -> list[tuple[slice, slice]]:
    """Evenly spread windows over a side, each as (slice of the photo, slice of a grid of `small` cells)."""
    count = max(1, -((window - 3 * side) // (2 * window)))
    starts = [round(i * (side - window) / max(1, count - 1)) for i in range(count)]
    ends = [min(start + window, side) for start in starts]
    return [
        (slice(start, end), slice(round(start * small / side), round(end * small / side)))
        for start, end in zip(starts, ends, strict=True)
    ]


def _tent(side: int, device: torch.device) -> Tensor:
    """Distance of each of `side` cells from the nearer end, above 0."""
    ramp = torch.arange(side, device=device) + 0.5
    return torch.minimum(ramp, side - ramp)
