"""Colours of classes in pictures."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import numpy as np

from afactl.datasets.mask_encodings import voc_palette
from afactl.labels import IGNORE

# Okabe and Ito's colours for all eyes (2008), without black.
_FIRST = [(230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0), (204, 121, 167)]
# Linear RGB as people without red or green cones see it (Machado et al. 2009, severity 1).
_SIGHT = np.array(
    [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ]
)
_XYZ = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])


def as_seen(colors: np.ndarray) -> np.ndarray:
    """n x 3 uint8 RGB -> 3 x n x 3 in CIELAB, as seen with all cones, without red, without green ones."""
    values = colors / 255
    linear = np.where(values <= 0.04045, values / 12.92, ((values + 0.055) / 1.055) ** 2.4)
    seen = (linear @ _SIGHT.transpose(0, 2, 1)).clip(0, 1)
    ratios = seen @ _XYZ.T / _XYZ.sum(1)
    curve = np.where(ratios > 0.008856, np.cbrt(ratios), 7.787 * ratios + 16 / 116)
    x, y, z = np.moveaxis(curve, -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


@lru_cache(maxsize=1)
def safe_palette() -> np.ndarray:
    """256 x 3 uint8 for all eyes: black, Okabe and Ito's seven, then always the colour farthest from all before.

    Distance is the smallest one of the three ways to see. 255 (ignored) is VOC's pale one.
    """
    steps = np.linspace(30, 245, 9).round()
    candidates = np.stack(np.meshgrid(steps, steps, steps), axis=-1).reshape(-1, 3)
    colors = [*_FIRST]
    known, seen = as_seen(np.array([(0, 0, 0), (255, 255, 255), *_FIRST])), as_seen(candidates)
    nearest = np.linalg.norm(seen[:, :, None] - known[:, None], axis=-1).min(axis=(0, 2))
    while len(colors) < IGNORE - 1:
        best = int(nearest.argmax())
        colors.append(tuple(candidates[best]))
        nearest = np.minimum(nearest, np.linalg.norm(seen - seen[:, best : best + 1], axis=-1).min(axis=0))
    return np.array([(0, 0, 0), *colors, voc_palette()[IGNORE]], np.uint8)


PALETTES: dict[str, Callable[[], np.ndarray]] = {"safe": safe_palette, "voc": voc_palette}
