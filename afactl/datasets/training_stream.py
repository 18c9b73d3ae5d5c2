"""The endless stream of training views, as a function of seed and position alone."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

from afactl.datasets.images import read_image
from afactl.datasets.masks import read_pair
from afactl.datasets.samples import Sample, Split
from afactl.datasets.transforms import image_view, mask_view, random_window


class Crops(NamedTuple):
    """The random views of photos; see `transforms.random_window`."""

    size: int
    scale_range: tuple[float, float]
    flip: bool = True
    long_side: int | None = None


class TrainingStream(Dataset[dict[str, Any]]):
    """Some positions of the stream.

    Position p shows photo number permutation(seed, epoch)[p % n] of epoch p // n, in a view drawn
    with (seed, p). So resuming at any position needs no stored random state.

    Args:
        split: what to show. crops: in which views.
        seed: of order and views.
        positions: item i is positions[i]. Several processes walk the stream with their number as step.
        masks: whether the items also have the true "mask", for full supervision.
    """

    def __init__(self, split: Split, crops: Crops, seed: int, positions: range, masks: bool = False) -> None:
        # Worker processes get a copy of this: without masks that nobody reads.
        self.split = split if masks else dataclasses.replace(split, masks=None)
        self.crops, self.seed, self.positions, self.masks = crops, seed, positions, masks
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __len__(self) -> int:
        return len(self.positions)

    def sample_at(self, position: int) -> Sample:
        """The sample of a position of the stream, whether or not it lies in the range."""
        epoch, place = divmod(position, len(self.split.samples))
        if epoch != self._epoch:
            order = np.random.default_rng((self.seed, 0, epoch)).permutation(len(self.split.samples))
            self._epoch, self._order = epoch, order
        return self.split.samples[int(self._order[place])]

    def __getitem__(self, item: int) -> dict[str, Any]:
        """ "image" 3 x s x s uint8, "label" C float32, "box" 4 int64 (y0, y1, x0, x1), "image_id"."""
        if not 0 <= item < len(self):
            # Plain iteration over a sequence ends by this error.
            raise IndexError(f"item {item}: the stream has {len(self)}")
        position = self.positions[item]
        sample = self.sample_at(position)
        rng = np.random.default_rng((self.seed, 1, position))
        if self.masks:
            image, mask = read_pair(sample, self.split.require_masks("full supervision"))
        else:
            image, mask = read_image(sample.image_path), None
        window = random_window(image.shape[:2], rng, *self.crops)
        label = torch.zeros(len(self.split.classes))
        label[list(sample.labels)] = 1
        view = {
            "image": image_view(image, window),
            "label": label,
            "box": torch.tensor(window.box),
            "image_id": sample.image_id,
        }
        if mask is not None:
            view["mask"] = mask_view(mask, window)
        return view
