"""Reading and writing masks: h x w uint8, background 0, class c as c + 1, ignored 255."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from afactl.datasets.images import open_upright, read_image
from afactl.datasets.mask_encodings import decode, values_of, voc_palette
from afactl.datasets.samples import Masks, Sample
from afactl.errors import DataError, UnknownValueError
from afactl.files import whole_file
from afactl.labels import IGNORE


@dataclass(frozen=True)
class MaskFiles:
    """The `Masks` of a split, each in a file of its own.

    Attributes:
        paths: by image id. classes: C.
        white: the value that 255 stands for, as in `read_mask`.
    """

    paths: Mapping[str, Path]
    classes: int
    white: int = IGNORE

    def read(self, sample: Sample) -> np.ndarray:
        """As `read_mask`."""
        return read_mask(self.paths[sample.image_id], self.classes, self.white)

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
        raise DataError(f"{where}: the mask has {sides}; draw it again at that size")
    return image, mask


def read_mask(path: Path, classes: int, white: int = IGNORE) -> np.ndarray:
    """A true mask as h x w uint8: background 0, class c as c + 1, ignored 255.

    Args:
        path: a mask in one of the encodings of `mask_encodings.py`.
        classes: C; values above it and below 255 are refused.
        white: what 255 stands for: IGNORE, or 1 in a set of black and white masks of one class (`white_of`). In masks
            of two tones, which cannot ignore anything, white is the class in any case.

    Raises:
        DataError: missing or damaged. UnknownValueError: a value or colour that is no class, a palette that can be
            read in two ways, or two tones for more than one class.
    """
    mask, two_tones = decode(path, open_upright(path), classes)
    if two_tones and classes > 1 and mask.any():
        raise UnknownValueError(
            f"{path}: black and white only, which does not say which of {classes} classes is white; "
            "save class numbers as a grey PNG"
        )
    if two_tones or white != IGNORE:
        mask[mask == IGNORE] = 1 if two_tones else white
    wrong = values_of(mask, classes + 1)
    if wrong:
        raise UnknownValueError(
            f"{path}: expected mask values 0..{classes} or 255, got {wrong[0]} in {np.count_nonzero(mask == wrong[0])} "
            "pixels; check the class list against the masks"
        )
    return mask


def write_mask(path: Path, mask: np.ndarray) -> None:
    """Write an h x w uint8 mask as an indexed PNG with the VOC palette, whole or not at all."""
    with whole_file(path) as fresh:
        indexed_png(mask).save(fresh, format="PNG")


def indexed_png(mask: np.ndarray) -> Image.Image:
    """An h x w uint8 mask as an indexed image with the VOC palette."""
    image = Image.fromarray(mask).convert("L")
    image.putpalette(voc_palette().ravel().tolist())
    return image


def enlarge_mask(mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """An h x w uint8 mask at another size (h, w), by the nearest pixel."""
    if mask.shape == size:
        return mask
    return np.array(Image.fromarray(mask).resize((size[1], size[0]), Image.Resampling.NEAREST))
