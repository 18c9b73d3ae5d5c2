"""Views of a photo: random ones for training, and the normalisation that the network expects."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.labels import IGNORE

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
    mean, std = _statistics(image.device)
    return torch.sub(image, mean).div_(std)


def denormalize(image: Tensor) -> Tensor:
    """image * std + mean per channel, which undoes `normalize` but for its rounding.

    Args:
        image: B x 3 x h x w float, normalised.

    Returns:
        B x 3 x h x w float32 RGB, about 0..255.
    """
    mean, std = _statistics(image.device)
    return image * std + mean


@lru_cache(maxsize=4)
def _statistics(device: torch.device) -> tuple[Tensor, Tensor]:
    # Kept on the device: every copy onto it makes the host wait.
    mean, std = (torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (MEAN, STD))
    return mean, std


class Window(NamedTuple):
    """A random rescale, flip and crop of a photo.

    Attributes:
        part: (top, bottom, left, right) of what is shown, in pixels of the photo.
        rows, columns: its size in the view.
        y0, x0: where it lies in the view before mirroring.
        side: of the view. mirrored: whether the view is mirrored.
    """

    part: tuple[int, int, int, int]
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
    size: tuple[int, int],
    rng: np.random.Generator,
    crop_size: int,
    scale_range: tuple[float, float],
    flip: bool = True,
    long_side: int | None = None,
) -> Window:
    """Random rescale, horizontal flip and crop (paper 4.1).

    A side shorter than the crop is padded; the image then lies at a random place in it. The part
    that is shown begins and ends on whole pixels of the photo, so that cropping comes before
    resampling; the scale of each axis follows the drawn one to the nearest pixel.

    Args:
        size: (h, w) of the photo.
        rng: source of all randomness.
        crop_size: side of the view in pixels.
        scale_range: the scale is uniform in it.
        flip: mirror with probability 1/2.
        long_side: a photo that is longer is taken as one of this length, before the drawn scale.
    """
    scale = rng.uniform(*scale_range)
    if long_side is not None:
        scale *= min(1.0, long_side / max(size))
    mirrored = bool(flip and rng.random() < 0.5)
    (top, bottom, y0, rows), (left, right, x0, columns) = (_place(side, scale, crop_size, rng) for side in size)
    return Window((top, bottom, left, right), rows, columns, y0, x0, crop_size, mirrored)


def _place(side: int, scale: float, crop: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Along one axis: (first pixel shown, end of them, where they land in the crop, their length there)."""
    target = max(1, round(side * scale))
    if target <= crop:
        return 0, side, int(rng.integers(0, crop - target + 1)), target
    shown = max(1, round(crop * side / target))
    first = int(rng.integers(0, side - shown + 1))
    return first, first + shown, 0, crop


def image_view(image: np.ndarray, window: Window) -> Tensor:
    """What a window shows of a photo: h x w x 3 uint8 -> 3 x side x side uint8, padding 0.

    Bilinear, averaging where it shrinks.
    """
    return _view(torch.from_numpy(image).permute(2, 0, 1), window, "bilinear", 0)


def mask_view(mask: np.ndarray, window: Window) -> Tensor:
    """What a window shows of a mask: h x w uint8 -> side x side uint8, nearest pixel, padding 255."""
    return _view(torch.from_numpy(mask)[None], window, "nearest-exact", IGNORE)[0]


def _view(planes: Tensor, window: Window, mode: str, padding: int) -> Tensor:
    top, bottom, left, right = window.part
    shown = F.interpolate(
        planes[None, :, top:bottom, left:right],
        size=(window.rows, window.columns),
        mode=mode,
        antialias=mode == "bilinear",
    )[0]
    if window.mirrored:
        shown = shown.flip(-1)
    y0, y1, x0, x1 = window.box
    view = torch.full((len(planes), window.side, window.side), padding, dtype=torch.uint8)
    view[:, y0:y1, x0:x1] = shown
    return view


def resize_long_side(height: int, width: int, long_side: int) -> tuple[int, int]:
    """(height, width) scaled so that the longer one is `long_side`."""
    factor = long_side / max(height, width)
    return max(1, round(height * factor)), max(1, round(width * factor))
