"""Several runs, or masks of any origin, on the same images: which is better, how surely, and where."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from afactl.datasets.masks import read_mask
from afactl.datasets.registry import data_fingerprint
from afactl.datasets.samples import Split, Track
from afactl.errors import DataError, UnknownValueError, UsageError
from afactl.evaluation.intervals import Difference, class_differences
from afactl.evaluation.pseudo_labels import row_ends, table3_rows
from afactl.evaluation.scores import Counting, Score, current_rows
from afactl.evaluation.segmentation import SEGMENTATION_ROWS, evaluate_segmentation
from afactl.inference.trained_run import TrainedRun
from afactl.labels import IGNORE
from afactl.presets import protocol_name
from afactl.runs.folder import read_scores

# The row by which images are told apart, which every run has.
MAIN_ROW = SEGMENTATION_ROWS[1]


def require_same_split(runs: Sequence[TrainedRun], splits: Sequence[Split]) -> None:
    """See that runs can be compared.

    Args:
        splits: the split of each run.

    Raises:
        UsageError: other classes, or other photos or image-level labels.
    """
    first, *others = zip(runs, splits, strict=True)
    for run, split in others:
        if split.classes != first[1].classes:
            raise UsageError(
                f"{run.folder}: has other classes ({', '.join(split.classes[:5])}{' ...' * (len(split.classes) > 5)}) "
                f"than {first[0].folder}; compare runs of one dataset"
            )
        if data_fingerprint(split) != data_fingerprint(first[1]):
            raise UsageError(
                f"{run.folder}: its split {split.name} has other photos or labels than that of {first[0].folder}; "
                "give the dataset of both with --data"
            )


def run_scores(run: TrainedRun, split: Split, track: Track = iter) -> dict[str, Score]:
    """By row what a run scores on a split: its segmentation, and its pseudo labels where they have been scored.

    What the run keeps of these weights is taken; the segmentation is scored where it is missing.
    """
    kept = _kept(run, split, f"segmentation-{split.name}")
    scores = (
        kept if MAIN_ROW in kept else {score.name: score for score in evaluate_segmentation(run, split, None, track)}
    )
    judged = _kept(run, split, f"pseudo-{split.name}")
    rows = [f"{row}{end}" for row in table3_rows(run.preset) for end in row_ends(run.preset)]
    return {**scores, **{row: judged[row] for row in rows if row in judged}}


def _kept(run: TrainedRun, split: Split, name: str) -> dict[str, Score]:
    files = read_scores(run.folder)
    rows = current_rows(run, split, name, files)
    if rows and files[name].get("protocol") not in (None, protocol_name(run.preset.eval)):
        return {}
    return {score.name: score for score in rows if len(score.tallies)}


class ClassChange(NamedTuple):
    """IoU of a class, in per cent, of the first and of another; and their difference."""

    name: str
    before: float
    after: float
    difference: Difference


def class_changes(first: Score, other: Score, classes: Sequence[str]) -> list[ClassChange]:
    """What each class in the truth gained, the greatest gain first.

    Args:
        classes: C names, without the background.
    """
    before, after = (100 * np.diag(score.confusion) / _union(score.confusion) for score in (first, other))
    gains = class_differences(other.tallies, first.tallies)
    changes = [
        ClassChange(name, float(before[i]), float(after[i]), gains[i])
        for i, name in enumerate(("background", *classes))
        if np.isfinite(gains[i].value)
    ]
    return sorted(changes, key=lambda change: -change.difference.value)


def _union(confusion: np.ndarray) -> np.ndarray:
    union: np.ndarray = np.maximum(confusion.sum(axis=0) + confusion.sum(axis=1) - np.diag(confusion), 1)
    return union


def most_changed(first: Score, other: Score, count: int) -> list[int]:
    """Places of the images that gained and lost most: half of `count` each, the greatest gain first.

    An image that did not change is none of them.
    """
    gains = other.images - first.images
    order = [int(place) for place in np.argsort(-gains, kind="stable") if np.isfinite(gains[place])]
    gained = [place for place in order if gains[place] > 0][: count // 2]
    lost = [place for place in order if gains[place] < 0][-(count // 2) :]
    return [*gained, *lost]


class MaskScores(NamedTuple):
    """Masks of any origin, each folder scored against the truth.

    Attributes:
        scores: one per folder. images: names of the images, without suffix. classes: their names.
    """

    scores: list[Score]
    images: list[str]
    classes: tuple[str, ...]


def score_mask_folders(
    folders: Sequence[Path], truth: Path, classes: Sequence[str] | None = None, track: Track = iter
) -> MaskScores:
    """Score folders of masks against a folder of true ones, matched by name (VOC's layout: one PNG per image).

    Args:
        classes: C names; None: as many as the largest true value, which are their names.

    Raises:
        UsageError: a folder is missing, or holds no PNG. DataError: a mask is missing, damaged, of another size, or
            has a value that is no class.
    """
    paths = [_masks_below(folder) for folder in (*folders, truth)]
    *_, true = paths
    for folder, found in zip(folders, paths, strict=False):
        missing = [name for name in true if name not in found]
        if missing:
            raise DataError(f"{folder}: {len(missing)} of {len(true)} masks are missing (first: {missing[0]}.png)")
    names = tuple(classes) if classes is not None else _numbered(true)
    counting = Counting([str(folder) for folder in folders], len(true), len(names) + 1)
    for place, name in enumerate(track(sorted(true))):
        expected = read_mask(true[name], len(names))
        for folder, found in zip(folders, paths, strict=False):
            mask = read_mask(found[name], len(names))
            if mask.shape != expected.shape:
                raise DataError(
                    f"{found[name]}: {mask.shape[1]} x {mask.shape[0]} pixels, "
                    f"expected the truth's {expected.shape[1]} x {expected.shape[0]}"
                )
            # A mask that leaves pixels open is wrong there: they count as background, as the VOC server has it.
            counting.add(str(folder), place, expected, np.where(mask == IGNORE, 0, mask).astype(np.uint8))
    return MaskScores(counting.scores(), sorted(true), names)


def _masks_below(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise UsageError(f"{folder}: expected a folder of masks, found none")
    found = {path.relative_to(folder).with_suffix("").as_posix(): path for path in sorted(folder.rglob("*.png"))}
    if not found:
        raise UsageError(f"{folder}: expected masks as PNG files, found none")
    return found


def _numbered(paths: dict[str, Path]) -> tuple[str, ...]:
    """As many classes as the truth has values."""
    largest = 0
    for path in paths.values():
        try:
            mask = read_mask(path, IGNORE - 1)
        except UnknownValueError as error:
            raise DataError(f"{error}; name the classes with --classes FILE") from error
        largest = max(largest, int(mask[mask != IGNORE].max(initial=0)))
    if not largest:
        raise DataError(f"{next(iter(paths.values())).parent}: the true masks hold no class")
    return tuple(str(value) for value in range(1, largest + 1))
