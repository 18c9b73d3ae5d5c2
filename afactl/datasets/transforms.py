"""Views of a photo: random ones for training, and the normalisation that the network expects."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# ImageNet statistics on the 0..255 scale, RGB.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)


def normalize(image: Tensor) -> Tensor:
    """(image - mean) / std per channel.

    Args:
        image: B x 3 x h x w RGB in 0..255, uint8 or float.

    Returns:
        B x 3 x h x w float32.
    """
    mean = torch.tensor(MEAN, device=image.device).view(1, 3, 1, 1)
    std = torch.tensor(STD, device=image.device).view(1, 3, 1, 1)
    return (image.float() - mean) / std


def random_view(
    image: np.ndarray, rng: np.random.Generator, crop_size: int, scale_range: tuple[float, float], flip: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Random rescale, horizontal flip and crop (paper 4.1).

    A side shorter than the crop is padded with 0; the image then lies at a random place in it.
    Only the part of the photo that the crop shows is resampled (Pillow's bilinear filter, which
    averages when it shrinks).

    Args:
        image: h x w x 3 uint8.
        rng: source of all randomness.
        crop_size: side of the view in pixels.
        scale_range: the scale is uniform in it.
        flip: mirror with probability 1/2.

    Returns:
        (crop_size x crop_size x 3 uint8, int64 box (y0, y1, x0, x1) of the true image in the view).
    """
    height, width = image.shape[:2]
    scale = rng.uniform(*scale_range)
    target = max(1, round(height * scale)), max(1, round(width * scale))
    mirrored = flip and rng.random() < 0.5
    (top, y0, rows), (left, x0, columns) = (_place(side, crop_size, rng) for side in target)
    # The window in the photo's own coordinates; resampling only it equals resize-then-crop.
    sy, sx = height / target[0], width / target[1]
    window = (left * sx, top * sy, (left + columns) * sx, (top + rows) * sy)
    part = Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR, box=window)
    view = np.zeros((crop_size, crop_size, 3), np.uint8)
    view[y0 : y0 + rows, x0 : x0 + columns] = np.asarray(part)
    if mirrored:
        view, x0 = view[:, ::-1], crop_size - x0 - columns
    return np.ascontiguousarray(view), np.array([y0, y0 + rows, x0, x0 + columns], np.int64)


def _place(side: int, crop: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """(first pixel shown of a side, where it lands in the crop, how many pixels are shown)."""
    if side >= crop:
        return int(rng.integers(0, side - crop + 1)), 0, crop
    return 0, int(rng.integers(0, crop - side + 1)), side


def resize_long_side(height: int, width: int, long_side: int) -> tuple[int, int]:
    """(height, width) scaled so that the longer one is `long_side`."""
    factor = long_side / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))
