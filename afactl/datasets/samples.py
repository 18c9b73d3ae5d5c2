"""What every dataset format yields: a split is a named list of photos with image-level labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from afactl.errors import DataError

Item = TypeVar("Item")


class Sample(NamedTuple):
    """One photo.

    Attributes:
        image_id: unique in its split; any text, may contain slashes, dots and Unicode.
        image: path of the photo.
        labels: indices of the foreground classes present, sorted, each in [0, C). Class c is
            value c + 1 in masks, where 0 is background.
    """

    image_id: str
    image: Path
    labels: tuple[int, ...]


@dataclass(frozen=True)
class Split:
    """The samples of one split, and how to read their masks.

    Attributes:
        name: the split's name, such as `train_aug`.
        classes: the C foreground class names; background is not among them.
        samples: the photos, in a fixed order.
        read_mask: gives the true mask of a sample as h x w uint8, values 0..C or 255 (ignore).
            None where the dataset has no masks: training and prediction work, scoring does not.
        mask_path: where a sample's mask lies; None where masks are not files of their own.
    """

    name: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    read_mask: Callable[[Sample], np.ndarray] | None
    mask_path: Callable[[Sample], Path] | None = None

    def require_masks(self) -> Callable[[Sample], np.ndarray]:
        """`read_mask` of a split that has masks.

        Raises:
            DataError: it has none.
        """
        if self.read_mask is None:
            raise DataError(f"split {self.name}: expected true masks, and this dataset has none")
        return self.read_mask


class Track(Protocol):
    """Walks over a sequence, in order, and may show how far it is; `iter` shows nothing."""

    def __call__(self, items: Sequence[Item], /) -> Iterator[Item]: ...
