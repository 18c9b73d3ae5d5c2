"""Segmentation of one photo: over scales and flips, and in windows.

Shapes: C foreground classes, K = C + 1, h x w image, N = hs * ws tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.datasets.transforms import normalize, resize_long_side
from afactl.errors import UsageError
from afactl.inference.trained_run import to_tensor
from afactl.network.model import AFA


@torch.inference_mode()
def segment(
    model: AFA,
    image: np.ndarray,
    device: torch.device,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    long_side: int | None = None,
) -> Tensor:
    """Segmentation logits of one photo, fused by maximum over scales and flips.

    Args:
        image: h x w x 3 uint8.
        scales: factors on top of `long_side`.
        flip: also pass the mirrored image.
        long_side: resize the photo so first; None keeps its size.

    Returns:
        K x h x w float32 at the photo's size.

    Raises:
        UsageError: no scales.
    """
    pixels = normalize(to_tensor(image, device))
    height, width = size = image.shape[:2]
    base = resize_long_side(height, width, long_side) if long_side else size
    fused: Tensor | None = None
    for scale in scales:
        target = (max(1, math.floor(scale * base[0])), max(1, math.floor(scale * base[1])))
        scaled = pixels
        if target != size:
            scaled = F.interpolate(pixels, size=target, mode="bilinear", align_corners=False)
        views = torch.cat([scaled, scaled.flip(-1)]) if flip else scaled
        logits = model.decoder(model.backbone(views).features).float()
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        logits = torch.maximum(logits[0], logits[1].flip(-1)) if flip else logits[0]
        fused = logits if fused is None else torch.maximum(fused, logits)
    if fused is None:
        raise UsageError("scales: expected one or more, got none")
    return fused


def segment_windows(
    model: AFA,
    image: np.ndarray,
    device: torch.device,
    scales: Sequence[float],
    flip: bool,
    window: int,
    size: tuple[int, int],
) -> Tensor:
    """Segmentation logits of a large photo, passed at its own size in windows that overlap by a third.

    Each window is a photo of its own for `segment`. Where windows overlap, the mean of their logits is taken,
    weighted by the distance from the window's edge, near which the network sees the least around a pixel.

    Args:
        image: h x w x 3 uint8.
        window: side of the windows in pixels of the photo; a photo that is smaller fills one.
        size: (h', w') of the logits, at most the photo's: those of a whole large photo would take GiB.

    Returns:
        K x h' x w' float32.
    """
    total = torch.zeros(model.classes + 1, *size, device=device)
    weights = torch.zeros(size, device=device)
    rows, columns = (_windows(side, small, window) for side, small in zip(image.shape[:2], size, strict=True))
    for row, small_row in rows:
        for column, small_column in columns:
            logits = segment(model, image[row, column], device, scales, flip)
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
