"""What is made once of a downloaded dataset: lists, labels and masks, written beside it.

Every file is written whole or not at all and finished ones are left alone, so a stopped job goes on.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from types import MappingProxyType
from typing import Literal, NamedTuple

import numpy as np

from afactl.datasets import coco, folder, voc
from afactl.datasets.keywords import read_keywords, require_classes, strangers
from afactl.datasets.mask_encodings import values_of
from afactl.datasets.mask_labels import labels_from_masks, white_of
from afactl.datasets.masks import read_mask, write_mask
from afactl.datasets.samples import Track
from afactl.datasets.tables import (
    CATEGORIES,
    JOINERS,
    Row,
    photos_without_labels,
    read_classes,
    read_tags,
    read_xml,
    write_csv,
)
from afactl.errors import DataError, DependencyError, MissingDataError, UsageError, counted
from afactl.files import whole_file, writing

# What the full dataset has, by split.
KNOWN_VOC = {voc.AUGMENTED: 10_582, "train": 1_464, "val": 1_449}
KNOWN_COCO = {"train": 82_783, "val": 40_504}
# Photos with about so many bytes of annotations are drawn at a time; their outlines take twice as much memory.
AT_ONCE_BYTES = 128 * 2**20


class Disagreement(NamedTuple):
    """A photo whose mask and XML do not name the same classes."""

    image_id: str
    only_in_mask: tuple[str, ...]
    only_in_xml: tuple[str, ...]


class PreparedVoc(NamedTuple):
    """What `prepare_voc` found and wrote.

    Attributes:
        counts: photos by split. converted: SBD masks written now. augmented: whether train_aug is there.
        compared: photos with both a mask and an XML file. without_xml: photos without one.
    """

    counts: dict[str, int]
    converted: int
    augmented: bool
    compared: int
    without_xml: int
    disagreements: list[Disagreement]


def prepare_voc(
    root: Path, sbd: Path | None = None, difficult: bool = True, overwrite: bool = False, track: Track = iter
) -> PreparedVoc:
    """Write the list train_aug of VOC, and the image-level labels of Annotations/*.xml for `data.labels: xml`.

    train_aug is every photo with a mask, official or of SBD, that is not in val.

    Args:
        sbd: SBD's folder of `.mat` files, or a folder of its masks as PNG; they go to SegmentationClassAug.
        difficult: objects marked as difficult count as well in the labels of XML.
        overwrite: replace a list train_aug that names other photos, such as one that was downloaded.

    Raises:
        UsageError: there is such a list. DataError: another layout, a damaged file, or a folder that cannot be written.
        DependencyError: `.mat` files need scipy.
    """
    official = {split: voc.read_list(root, split) for split in ("train", "val")}
    held_out = set(official["val"])
    target = root / voc.AUGMENTED_FOLDER
    converted = 0
    given = [path for path in (_sbd_masks(sbd) if sbd else []) if path.stem not in held_out]
    augmented = target.is_dir() or bool(given)
    listed = dict(official)
    if augmented:
        with_masks = {path.stem for path in (*target.glob("*.png"), *given)} | set(official["train"])
        listed[voc.AUGMENTED] = sorted(with_masks - held_out)
        there = root / "ImageSets" / "Segmentation" / f"{voc.AUGMENTED}.txt"
        if there.is_file() and not overwrite and set(voc.read_list(root, voc.AUGMENTED)) != set(listed[voc.AUGMENTED]):
            raise UsageError(f"{there}: is there already and names other photos; --overwrite writes it again")
    for path in track(given):
        if not (target / f"{path.stem}.png").exists():
            _write_mask(target / f"{path.stem}.png", _read_sbd(path))
            converted += 1
    if augmented:
        _write_text(there, "\n".join(listed[voc.AUGMENTED]) + "\n")

    masks = voc.mask_files(root)
    ids = sorted({image_id for ids in listed.values() for image_id in ids if image_id in masks})
    drawn = labels_from_masks([masks[image_id] for image_id in ids], len(voc.CLASSES))
    disagreements, labels, compared = [], {}, 0
    for image_id, classes in zip(ids, drawn, strict=True):
        xml = root / "Annotations" / f"{image_id}.xml"
        if not xml.is_file():
            continue
        compared += 1
        in_mask = {voc.CLASSES[number] for number in classes}
        in_xml = {name for name, hard in read_xml(xml)[1] if difficult or not hard} & set(voc.CLASSES)
        labels[image_id] = sorted(in_xml)
        if in_mask != in_xml:
            disagreements.append(
                Disagreement(image_id, tuple(sorted(in_mask - in_xml)), tuple(sorted(in_xml - in_mask)))
            )
    if labels:
        _write_text(root / voc.XML_LABELS, json.dumps(labels, indent=0))
    counts = {split: len(ids) for split, ids in listed.items()}
    return PreparedVoc(counts, converted, augmented, compared, len(ids) - compared, disagreements)


def _sbd_masks(folder: Path) -> list[Path]:
    for pattern in ("cls/*.mat", "dataset/cls/*.mat", "*.mat", "*.png", "SegmentationClassAug/*.png"):
        masks = sorted(folder.glob(pattern))
        if masks:
            return masks
    raise MissingDataError(f"--sbd {folder}: expected SBD's cls/*.mat or its masks as *.png, found neither")


def _read_sbd(path: Path) -> np.ndarray:
    if path.suffix == ".png":
        return read_mask(path, len(voc.CLASSES))
    try:
        from scipy.io import loadmat
    except ImportError as error:
        raise DependencyError("SBD's .mat files need scipy: pip install 'afactl[sbd]'") from error
    try:
        mask = np.asarray(loadmat(path, squeeze_me=True, struct_as_record=False)["GTcls"].Segmentation)
    except Exception as error:
        raise DataError(f"{path}: cannot be read as a mask of SBD ({error}); copy it again") from error
    if mask.ndim != 2 or mask.min() < 0 or mask.max() > len(voc.CLASSES):
        raise DataError(
            f"{path}: expected class numbers 0..{len(voc.CLASSES)} by pixel, got {mask.shape} up to {mask.max()}"
        )
    return mask.astype(np.uint8)


class PreparedCoco(NamedTuple):
    """Of one split: photos, those without any object, masks drawn now, and where they lie."""

    split: str
    photos: int
    empty: int
    drawn: int
    folder: Path


def prepare_coco(root: Path, split: str, track: Track = iter) -> PreparedCoco:
    """Draw the masks of a split of COCO as PNG, and write its labels as a small table.

    A large annotation file is read several times, each time for a part of the photos, so that memory holds the
    outlines of one part only.

    Raises:
        DataError: annotations missing or damaged, or a folder that cannot be written.
        DependencyError: pycocotools or ijson is not installed.
    """
    table, masks = coco.prepared_paths(root, split)
    path = coco.annotations_path(root, split)
    parts = max(1, math.ceil(path.stat().st_size / AT_ONCE_BYTES))
    photos, empty, drawn = [], 0, 0
    for part in range(parts):
        instances = coco.read_part(path, part, parts)

        def draw(photo: coco.Photo, index: dict[int, int] = instances.class_of) -> int:
            target = masks / f"{Path(photo.name).stem}.png"
            if target.exists():
                return 0
            _write_mask(target, coco.draw_mask(photo, index))
            return 1

        with ThreadPoolExecutor() as pool:
            drawn += sum(
                done for done, _ in zip(pool.map(draw, instances.photos), track(instances.photos), strict=True)
            )
        photos += [(photo.name, instances.labels(photo)) for photo in instances.photos]
        empty += sum(not photo.regions for photo in instances.photos)
    # Last: with the table there, the masks are there.
    _write_text(
        table, json.dumps({"classes": instances.classes, "ids": list(instances.class_of), "photos": sorted(photos)})
    )
    return PreparedCoco(split, len(photos), empty, drawn, masks)


# Where the labels of own photos come from.
LabelSource = Literal["tags", "masks", "keywords"]


class PreparedFolder(NamedTuple):
    """The table that was written and what is in it.

    Attributes:
        classes: their names. splits: photos per class, by split. photos: by split.
        left_out: photos without a mask, or without any keyword. excluded: photos that were not wanted.
        keywords: how many photos have each, where the labels come from keywords.
        notes: what is to be said about files that are no photos here, and about photos that cannot be read.
    """

    table: Path
    classes: tuple[str, ...]
    splits: dict[str, Counter[str]]
    photos: dict[str, int]
    left_out: int
    excluded: int = 0
    keywords: Mapping[str, int] = MappingProxyType({})
    notes: tuple[str, ...] = ()


class _Found(NamedTuple):
    """The rows of a source of labels; the rest as in `PreparedFolder`."""

    rows: list[Row]
    left_out: int = 0
    keywords: Mapping[str, int] = MappingProxyType({})
    notes: tuple[str, ...] = ()


def prepare_folder(
    root: Path,
    val: float = 0.0,
    seed: int = 0,
    labels_from: LabelSource = "tags",
    overwrite: bool = False,
    track: Track = iter,
    classes: Sequence[str] | None = None,
    exclude: Collection[str] = (),
) -> PreparedFolder:
    """Write labels.csv of own photos, out of their tags in any other form, of their masks, or of their keywords.

    Args:
        val: share of the training photos to set aside as the split val, in [0, 1), where there is none yet.
        seed: which ones.
        labels_from: "masks": masks/, whose values classes.txt names. "keywords": those that the photos' files hold;
            a photo without any is left out, since nothing says what is in it.
        overwrite: write a table that is there again.
        classes: with keywords, those that are classes; None takes classes.txt, or all that are frequent.
        exclude: photos that the table leaves out, as paths below `root`.

    Raises:
        DataError: nothing says what is in the photos, or what does is wrong; no photo has a mask; the table cannot
            be written.
        UsageError: the table is there already, or so is a split val; no photo has a keyword of the classes; a photo of
            `exclude` is none of the folder.
    """
    table = root / "labels.csv"
    if table.exists() and not overwrite:
        raise UsageError(f"{table}: is there already; --overwrite writes it again")
    tags = read_tags(root) if labels_from == "tags" else None
    if tags:
        found = _Found(tags.rows, notes=tags.notes)
    else:
        found = _rows_of_masks(root, track) if labels_from == "masks" else _rows_of_keywords(root, classes, track)
    if strange := sorted(name for name in exclude if not (root / name).is_file()):
        raise UsageError(f"--exclude: {root} has no {strange[0]}; expected paths of photos below it")
    rows, excluded = _without(found.rows, exclude)
    if val:
        held = sum(row.split == "val" for row in rows)
        if held:
            raise UsageError(f"--val {val:g}: there is a split val already ({counted(held, 'photo')}); leave --val out")
        training = [number for number, row in enumerate(rows) if row.split == "train"]
        for chosen in set_aside([rows[number].names for number in training], val, seed):
            rows[training[chosen]] = rows[training[chosen]]._replace(split="val")
    with _writing(table):
        write_csv(table, rows)
    if tags and tags.numbers and not (root / CATEGORIES).exists():
        # From now on the table is read, which has no place for them.
        entries = [{"id": number, "name": name} for name, number in tags.numbers.items()]
        _write_text(root / CATEGORIES, json.dumps(entries, ensure_ascii=False, indent=1) + "\n")
    names = sorted({name for row in rows for name in row.names})
    if read_classes(root) is None and any(sign in name for name in names for sign in JOINERS):
        # In the table alone such a name could be several.
        _write_text(root / "classes.txt", "\n".join(names) + "\n")
    splits: dict[str, Counter[str]] = {}
    for row in rows:
        splits.setdefault(row.split, Counter()).update(row.names)
    photos = dict(Counter(row.split for row in rows))
    listed = read_classes(root)
    known = listed.names if listed else sorted(set().union(*splits.values()))
    return PreparedFolder(table, tuple(known), splits, photos, found.left_out, excluded, found.keywords, found.notes)


def set_aside(labels: Sequence[Sequence[str]], share: float, seed: int) -> set[int]:
    """Numbers of photos for validation, drawn at random; no class loses its last photo to it.

    Args:
        labels: class names of each photo. share: of the photos, in [0, 1).
    """
    left = Counter(name for names in labels for name in names)
    chosen: set[int] = set()
    for number in np.random.default_rng(seed).permutation(len(labels)).tolist():
        if len(chosen) >= round(share * len(labels)):
            break
        if all(left[name] > 1 for name in labels[number]):
            left.subtract(labels[number])
            chosen.add(number)
    return chosen


def _without(rows: list[Row], exclude: Collection[str]) -> tuple[list[Row], int]:
    """The rows of the photos that are not to be left out, and how many these are."""
    kept = [row for row in rows if row.image not in exclude]
    return kept, len(rows) - len(kept)


def _rows_of_keywords(root: Path, classes: Sequence[str] | None, track: Track) -> _Found:
    """The photos that have keywords, with the classes among them."""
    listed = read_classes(root)
    require_classes(classes or ())
    if classes is not None and listed and set(classes) - set(listed.names):
        raise UsageError(
            f"--classes: {root / 'classes.txt'} names the classes already ({', '.join(listed.names)}); "
            "leave --classes out, or change that file"
        )
    rows, notes, _ = photos_without_labels(root)
    chosen = listed.names if classes is None and listed else classes
    found = read_keywords([root / row.image for row in rows], chosen, track)
    notes = (*notes, *strangers(found.classes, found.counts))
    if found.unreadable:
        notes = (*notes, f"{counted(len(found.unreadable), 'photo')} cannot be read (first: {found.unreadable[0]})")
    made = [row._replace(names=names) for row, names in zip(rows, found.labels, strict=True) if names is not None]
    return _Found(made, len(rows) - len(made), found.counts, notes)


def _rows_of_masks(root: Path, track: Track) -> _Found:
    """The photos that have a mask, with the classes in it."""
    listed = read_classes(root)
    if listed is None:
        raise DataError(
            f"{root / 'classes.txt'}: expected the names of the mask values 1, 2, ..., one per line, found no such file"
        )
    names = listed.names
    rows, notes, _ = photos_without_labels(root)
    masks = [folder.mask_of(root, image_id) for image_id in folder.image_ids([row.image for row in rows])]
    white = white_of(root / "masks", masks, len(names))
    made = []
    for row, mask in zip(track(rows), masks, strict=True):
        if mask.is_file():
            values = values_of(read_mask(mask, len(names), white))
            made.append(row._replace(names=tuple(names[value - 1] for value in values)))
    if not made:
        raise DataError(
            f"{root / 'masks'}: expected masks at the photos' paths (images/a.jpg -> masks/a.png), "
            f"found none of {len(rows)}"
        )
    return _Found(made, len(rows) - len(made), notes=notes)


def _write_mask(path: Path, mask: np.ndarray) -> None:
    with _writing(path):
        write_mask(path, mask)


def _write_text(path: Path, text: str) -> None:
    with _writing(path), whole_file(path) as fresh:
        fresh.write_text(text, encoding="utf-8")


def _writing(path: Path) -> AbstractContextManager[None]:
    return writing(str(path), "give a --data folder that can", DataError)
