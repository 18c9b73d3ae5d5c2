"""Reading every file of a dataset before it is trained on: what is there, and what is wrong with it."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from afactl.datasets.images import decoded_photo
from afactl.datasets.mask_encodings import pixels_of
from afactl.datasets.samples import Sample, Split, Track
from afactl.errors import DataError, UnknownValueError
from afactl.labels import IGNORE

# So many photos are one task of a thread.
AT_ONCE = 16


class Defect(NamedTuple):
    """Something wrong with one file or class: `kind` in a few words, `where` it is, and the detail."""

    kind: str
    where: str
    detail: str


class SplitFacts(NamedTuple):
    """What a split holds.

    Attributes:
        heights, widths: of the readable photos, (smallest, median, largest).
        classes: photos per class, in the order of the classes.
        labels: photos by their number of labels, {0: 3, 1: 20, ...}.
        masked: whether there are masks.
        shares: per class the share of the photo that it covers, in the median of the photos whose mask has it; None
            where no mask does.
    """

    name: str
    images: int
    heights: tuple[int, int, int]
    widths: tuple[int, int, int]
    classes: tuple[int, ...]
    labels: dict[int, int]
    masked: bool
    shares: tuple[float | None, ...]


class Checked(NamedTuple):
    """The facts of every split, and all defects."""

    classes: tuple[str, ...]
    splits: list[SplitFacts]
    defects: list[Defect]


def check_splits(splits: Sequence[Split], train: str, track: Track = iter) -> Checked:
    """Decode every photo and mask of the splits.

    Defects: a photo or mask that cannot be read; a mask with values that are no class; a mask of another size;
    labels that contradict the mask; the same photo twice; a class that occurs, but never in the training split.

    Args:
        train: name of the training split.
    """
    facts: list[SplitFacts] = []
    defects: list[Defect] = []
    seen: dict[bytes, str] = {}
    for split in splits:
        split_facts, wrong = _check_split(split, seen, track)
        facts.append(split_facts)
        defects += wrong
    taught = next((known.classes for known in facts if known.name == train), ())
    classes = splits[0].classes
    for number, (name, photos) in enumerate(zip(classes, taught, strict=False)):  # no training split, no such defect
        elsewhere = [known.name for known in facts if known.classes[number]]
        if elsewhere and not photos:
            defects.append(
                Defect("class without training photos", name, f"occurs in {', '.join(elsewhere)} but never in {train}")
            )
    return Checked(classes, facts, defects)


def unequal_sizes(split: Split) -> list[Defect]:
    """Masks with other sides than their photos, as far as the beginnings of the files tell it; nothing is decoded.

    A mask that lies on its side is not among them: which way up a photo is, is known only when it is decoded.
    """

    def compared(sample: Sample) -> Defect | None:
        path = split.masks.path(sample) if split.masks is not None else None
        if path is None:
            return None
        photo, mask = _stored_size(sample.image_path), _stored_size(path)
        if photo is None or mask is None or sorted(photo) == sorted(mask):
            return None
        return _another_size(str(path), mask, photo)

    with ThreadPoolExecutor() as pool:
        return [defect for defect in pool.map(compared, split.samples) if defect is not None]


def median_long_side(split: Split) -> int:
    """Pixels of the longer side of the median photo, by the beginnings of a hundred files; 0 where none can be read."""
    samples = split.samples[:: max(1, len(split.samples) // 100)]
    sizes = [size for sample in samples if (size := _stored_size(sample.image_path))]
    return int(np.median([max(size) for size in sizes])) if sizes else 0


def _stored_size(path: Path) -> tuple[int, int] | None:
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except Exception:  # who decodes it says what is wrong with it
        return None


def _another_size(where: str, mask: tuple[int, ...], photo: tuple[int, ...]) -> Defect:
    sides = f"{mask[1]} x {mask[0]} pixels, the photo has {photo[1]} x {photo[0]}"
    return Defect("mask of another size", where, sides)


class _Read(NamedTuple):
    size: tuple[int, int] | None
    digest: bytes | None
    defects: list[Defect]
    shares: dict[int, float]


def _check_split(split: Split, seen: dict[bytes, str], track: Track) -> tuple[SplitFacts, list[Defect]]:
    sizes, defects = [], []
    shares: list[list[float]] = [[] for _ in split.classes]
    # Pillow and NumPy leave the interpreter's lock while they decode, so threads use all cores.
    with ThreadPoolExecutor() as pool:
        # A task for each photo would cost as much as a tenth of decoding it.
        parts = [split.samples[start : start + AT_ONCE] for start in range(0, len(split.samples), AT_ONCE)]
        reads = itertools.chain.from_iterable(pool.map(lambda part: [_read(split, sample) for sample in part], parts))
        for sample, read in zip(track(split.samples), reads, strict=True):
            defects += read.defects
            for label, share in read.shares.items():
                shares[label].append(share)
            if read.size:
                sizes.append(read.size)
            if read.digest:
                first = seen.setdefault(read.digest, str(sample.image_path))
                if first != str(sample.image_path):
                    defects.append(Defect("photo twice", str(sample.image_path), f"the same bytes as {first}"))
    heights, widths = zip(*sizes, strict=True) if sizes else ((0,), (0,))
    counts = Counter(label for sample in split.samples for label in sample.labels)
    return SplitFacts(
        split.name,
        len(split.samples),
        _spread(heights),
        _spread(widths),
        tuple(counts[number] for number in range(len(split.classes))),
        dict(sorted(Counter(len(sample.labels) for sample in split.samples).items())),
        split.masks is not None,
        tuple(float(np.median(values)) if values else None for values in shares),
    ), defects


def _spread(values: Sequence[int]) -> tuple[int, int, int]:
    return min(values), int(np.median(values)), max(values)


def _read(split: Split, sample: Sample) -> _Read:
    defects, size, digest, shares = [], None, None, {}
    try:
        size, digest = decoded_photo(sample.image_path)
    except DataError as error:
        defects.append(_unreadable("photo", str(sample.image_path), error))
    if split.masks is not None:
        where = str(split.masks.path(sample) or f"mask of {sample.image_id}")
        try:
            mask = split.masks.read(sample)
        except DataError as error:
            return _Read(size, digest, [*defects, _unreadable("mask", where, error)], {})
        if size and mask.shape != size:
            defects.append(_another_size(where, mask.shape, size))
        pixels = pixels_of(mask)
        drawn = {value for value in range(1, IGNORE) if pixels[value]}
        shares = {value - 1: pixels[value] / mask.size for value in drawn}
        named = {label + 1 for label in sample.labels}
        if drawn != named:
            pairs = [(value, "in the mask") for value in drawn - named] + [
                (value, "among the labels") for value in named - drawn
            ]
            only = [f"{split.classes[value - 1]} is only {place}" for value, place in sorted(pairs)]
            if not drawn and IGNORE in mask:
                only.append("the mask holds nothing but 0 and 255, which is ignored")
            defects.append(Defect("labels contradict the mask", str(sample.image_path), "; ".join(only)))
    return _Read(size, digest, defects, shares)


def _unreadable(what: str, where: str, error: DataError) -> Defect:
    kind = f"{what} with unknown values" if isinstance(error, UnknownValueError) else f"{what} cannot be read"
    return Defect(kind, where, str(error).removeprefix(f"{where}: "))
