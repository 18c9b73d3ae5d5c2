"""Reading and writing masks: h x w uint8, background 0, class c as c + 1, ignored 255."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from afactl.datasets.images import open_upright, read_image
from afactl.datasets.samples import Masks, Sample
from afactl.errors import DataError, UnknownValueError
from afactl.files import whole_file
from afactl.labels import IGNORE


@dataclass(frozen=True)
class MaskFiles:
    """The `Masks` of a split, each in a file of its own.

    Attributes:
        paths: by image id. classes: C.
    """

    paths: Mapping[str, Path]
    classes: int

    def read(self, sample: Sample) -> np.ndarray:
        """As `read_mask`."""
        return read_mask(self.paths[sample.image_id], self.classes)

    def path(self, sample: Sample) -> Path:
        """Where the mask of a sample lies, or should lie."""
        return self.paths[sample.image_id]


def read_pair(sample: Sample, masks: Masks) -> tuple[np.ndarray, np.ndarray]:
    """A photo, h x w x 3 uint8, and its true mask, h x w uint8.

    Raises:
        DataError: one of them cannot be read, or the mask has another size.
    """
    image, mask = read_image(sample.image_path), masks.read(sample)
    if mask.shape != image.shape[:2]:
        sides = f"{mask.shape[1]} x {mask.shape[0]} pixels, expected the photo's {image.shape[1]} x {image.shape[0]}"
        where = masks.path(sample) or f"mask of {sample.image_id}"
        raise DataError(f"{where}: the mask has {sides}; draw it anew at that size")
    return image, mask


def read_mask(path: Path, classes: int) -> np.ndarray:
    """A true mask as h x w uint8: background 0, class c as c + 1, ignored 255.

    Args:
        path: an indexed or grey PNG, or one in the colours of VOC.
        classes: C; values above it and below 255 are refused.

    Raises:
        DataError: missing or damaged. UnknownValueError: a value that is no class, or a colour that VOC does not use.
    """
    image = open_upright(path)
    if image.mode in ("RGB", "RGBA"):
        mask = _indices_of(path, np.asarray(image.convert("RGB")))
    elif image.mode in ("P", "L", "1"):
        mask = np.array(image.convert("L") if image.mode == "1" else image)
    else:
        raise DataError(
            f"{path}: expected an indexed, grey or colour-coded mask, got mode {image.mode}; save class numbers as PNG"
        )
    counts = np.array(Image.fromarray(mask).histogram())
    wrong = np.flatnonzero(counts[classes + 1 : IGNORE]) + classes + 1
    if len(wrong):
        raise UnknownValueError(
            f"{path}: expected mask values 0..{classes} or 255, got {wrong[0]} in {counts[wrong[0]]} pixels; "
            "check the class list against the masks"
        )
    return mask


def values_of(mask: np.ndarray) -> list[int]:
    """The values that occur in an h x w uint8 mask, sorted, without 0 and 255."""
    # Pillow counts bytes as they are; NumPy would make integers of eight bytes of them first.
    counts = Image.fromarray(mask).histogram()
    return [value for value in range(1, IGNORE) if counts[value]]


def _indices_of(path: Path, colors: np.ndarray) -> np.ndarray:
    """h x w x 3 in the colours of VOC -> h x w uint8."""
    steps = np.array([1 << 16, 1 << 8, 1])
    known = voc_palette().astype(np.int64) @ steps
    order = np.argsort(known)
    codes, place = np.unique(colors.astype(np.int64) @ steps, return_inverse=True)
    found = order[np.searchsorted(known, codes, sorter=order).clip(max=255)]
    strange = codes[known[found] != codes]
    if len(strange):
        raise UnknownValueError(
            f"{path}: colour #{strange[0]:06x} is none of VOC's; save class numbers as an indexed PNG, "
            "or use VOC's colours"
        )
    indices: np.ndarray = found.astype(np.uint8)[place].reshape(colors.shape[:2])
    return indices


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write an h x w uint8 mask as an indexed PNG with the VOC palette, whole or not at all."""
    with whole_file(path) as fresh:
        indexed_png(mask).save(fresh, format="PNG")


def indexed_png(mask: np.ndarray) -> Image.Image:
    """An h x w uint8 mask as an indexed image with the VOC palette."""
    image = Image.fromarray(mask).convert("L")
    image.putpalette(voc_palette().ravel().tolist())
    return image


def voc_palette() -> np.ndarray:
    """The colours of PASCAL VOC: 256 x 3 uint8; bit k of a class number goes to bit 7 - k // 3 of channel k % 3."""
    numbers = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        palette[:, bit % 3] |= (((numbers >> bit) & 1) << (7 - bit // 3)).astype(np.uint8)
    return palette


def enlarge_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An h x w uint8 mask at another size (h, w), by the nearest pixel."""
    if mask.shape == size:
        return mask
    return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
