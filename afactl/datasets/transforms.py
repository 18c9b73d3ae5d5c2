"""Views of a photo: random ones for training, and the normalisation that the network expects."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

# ImageNet statistics on the 0..255 scale, RGB.
MEAN = (123.675, 116.28, 103.53)
STD = (58.395, 57.12, 57.375)
IGNORE = 255


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


class Window(NamedTuple):
    """A random rescale, flip and crop of a photo.

    Attributes:
        part: (left, top, right, bottom) of what is shown, in the photo's own coordinates.
        rows, columns: its size in the view.
        y0, x0: where it lies in the view before mirroring.
        side: of the view. mirrored: whether the view is mirrored.
    """

    part: tuple[float, float, float, float]
    rows: int
    columns: int
    y0: int
    x0: int
    side: int
    mirrored: bool

    @property
    def box(self) -> tuple[int, int, int, int]:
        """(y0, y1, x0, x1) of the true image in the view."""
        x0 = self.side - self.x0 - self.columns if self.mirrored else self.x0
        return self.y0, self.y0 + self.rows, x0, x0 + self.columns


def random_window(
    size: tuple[int, int], rng: np.random.Generator, crop_size: int, scale_range: tuple[float, float], flip: bool = True
) -> Window:
    """Random rescale, horizontal flip and crop (paper 4.1).

    A side shorter than the crop is padded; the image then lies at a random place in it.

    Args:
        size: (h, w) of the photo.
        rng: source of all randomness.
        crop_size: side of the view in pixels.
        scale_range: the scale is uniform in it.
        flip: mirror with probability 1/2.
    """
    height, width = size
    scale = rng.uniform(*scale_range)
    target = max(1, round(height * scale)), max(1, round(width * scale))
    mirrored = bool(flip and rng.random() < 0.5)
    (top, y0, rows), (left, x0, columns) = (_place(side, crop_size, rng) for side in target)
    sy, sx = height / target[0], width / target[1]
    part = (left * sx, top * sy, (left + columns) * sx, (top + rows) * sy)
    return Window(part, rows, columns, y0, x0, crop_size, mirrored)


def image_view(image: np.ndarray, window: Window) -> np.ndarray:
    """What a window shows of a photo: h x w x 3 uint8 -> side x side x 3 uint8, padding 0.

    Only the part that is shown is resampled, which equals resize-then-crop (Pillow's bilinear
    filter, which averages when it shrinks).
    """
    return _view(image, window, Image.Resampling.BILINEAR, 0)


def mask_view(mask: np.ndarray, window: Window) -> np.ndarray:
    """What a window shows of a mask: h x w uint8 -> side x side uint8, padding 255."""
    return _view(mask, window, Image.Resampling.NEAREST, IGNORE)


def _view(picture: np.ndarray, window: Window, filter: Image.Resampling, padding: int) -> np.ndarray:
    shown = Image.fromarray(picture).resize((window.columns, window.rows), filter, box=window.part)
    view = np.full((window.side, window.side, *picture.shape[2:]), padding, np.uint8)
    view[window.y0 : window.y0 + window.rows, window.x0 : window.x0 + window.columns] = np.asarray(shown)
    return np.ascontiguousarray(view[:, ::-1] if window.mirrored else view)


def _place(side: int, crop: int, rng: np.random.Generator) -> tuple[int, int, int]:
    """(first pixel shown of a side, where it lands in the crop, how many pixels are shown)."""
    if side >= crop:
        return int(rng.integers(0, side - crop + 1)), 0, crop
    return 0, int(rng.integers(0, crop - side + 1)), side


def resize_long_side(height: int, width: int, long_side: int) -> tuple[int, int]:
    """(height, width) scaled so that the longer one is `long_side`."""
    factor = long_side / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))
