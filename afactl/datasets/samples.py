"""What a dataset format is, and what every one yields: a split, a named list of photos with image-level labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from afactl.errors import UsageError

Item = TypeVar("Item")


class Sample(NamedTuple):
    """One photo.

    Attributes:
        image_id: unique in its split; any text, may contain slashes, dots and Unicode.
        image_path: of the photo.
        labels: indices of the foreground classes present, sorted, each in [0, C). Class c is
            value c + 1 in masks, where 0 is background.
    """

    image_id: str
    image_path: Path
    labels: tuple[int, ...]


class Masks(Protocol):
    """The true masks of a split. Worker processes get a copy, so it must be possible to pickle one."""

    def read(self, sample: Sample, /) -> np.ndarray:
        """The true mask of a sample as h x w uint8, values 0..C or 255 (ignore)."""

    def path(self, sample: Sample, /) -> Path | None:
        """Where that mask lies; None where masks are not files of their own."""


@dataclass(frozen=True)
class Split:
    """The samples of one split, and its masks where it has some.

    Attributes:
        name: the split's name, such as `train_aug`.
        classes: the C foreground class names; background is not among them.
        samples: the photos, in a fixed order.
        masks: None where the dataset has none: training and prediction work, scoring does not.
        category_ids: the dataset's own numbers of the classes, such as COCO's 1..90; () where it has none of its own.
        notes: what is to be said about how the dataset was read: what was passed over, or how it was understood.
        whole: the split of which this one is the first photos, see `head`; None where it is all of them.
    """

    name: str
    classes: tuple[str, ...]
    samples: tuple[Sample, ...]
    masks: Masks | None = None
    notes: tuple[str, ...] = ()
    category_ids: tuple[int, ...] = ()
    whole: Split | None = None

    def head(self, count: int | None) -> Split:
        """The first photos alone, for a quick look; None, or as many as there are, leaves all.

        What is kept of a photo in a run's caches belongs to the whole split.
        """
        if count is None or count >= len(self.samples):
            return self
        return replace(self, samples=self.samples[:count], whole=self)

    def require_masks(self, purpose: str = "scoring") -> Masks:
        """The masks of a split that has some.

        Args:
            purpose: what they are needed for, for the message.

        Raises:
            UsageError: it has none.
        """
        if self.masks is None:
            raise UsageError(
                f"split {self.name}: {purpose} needs true masks and it has none; see masks/ in docs/data-formats.md"
            )
        return self.masks


def _never(root: Path) -> bool:
    return False


@dataclass(frozen=True)
class DatasetFormat:
    """A way in which a dataset may lie in a folder.

    Attributes:
        load: (folder, split's name) -> that split.
        splits: folder -> names of the splits that are there, the first one for training.
        recognizes: whether a folder holds this format, told by what lies in it; for commands that get a folder alone.
        generate: makes the data and gives their folder; None: the user has to give one.
        val_may_be_missing: training goes without validation where the split for it is not there.
        sources: other sources of the image-level labels, `data.labels`, by name: each loads as `load` does.
        classes: the classes of every dataset of this format; () where each has its own.
    """

    load: Callable[[Path, str], Split]
    splits: Callable[[Path], list[str]]
    recognizes: Callable[[Path], bool] = _never
    generate: Callable[[], Path] | None = None
    val_may_be_missing: bool = False
    sources: Mapping[str, Callable[[Path, str], Split]] = field(default_factory=dict)
    classes: tuple[str, ...] = ()


class Track(Protocol):
    """Walks over a sequence, in order, and may show how far it is; `iter` shows nothing."""

    def __call__(self, items: Sequence[Item], /) -> Iterator[Item]: ...
