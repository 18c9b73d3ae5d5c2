"""PASCAL VOC 2012 in its official layout.

JPEGImages/  SegmentationClass/  SegmentationClassAug/ (SBD, optional)  ImageSets/Segmentation/

Lists `train`, `val` and `trainval` come from ImageSets; `train_aug` is the list that
`afactl data prepare voc` wrote, or else every mask of SegmentationClassAug that is not in val.

Image-level labels have two sources (`data.labels`): the masks, and the XML of Annotations/, whose classes
`afactl data prepare voc` keeps in a file. Both differ for some photos: XML also names small and difficult objects.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath

from afactl.datasets.mask_labels import labels_from_masks
from afactl.datasets.masks import MaskFiles
from afactl.datasets.photo_files import PHOTO_SUFFIXES
from afactl.datasets.samples import DatasetFormat, Sample, Split
from afactl.errors import DataError, MissingDataError, nearest

CLASSES = (
    "aeroplane",
    "bicycle",
    "bird",
    "boat",
    "bottle",
    "bus",
    "car",
    "cat",
    "chair",
    "cow",
    "diningtable",
    "dog",
    "horse",
    "motorbike",
    "person",
    "pottedplant",
    "sheep",
    "sofa",
    "train",
    "tvmonitor",
)
LISTS = ("train", "val", "trainval")
AUGMENTED = "train_aug"
AUGMENTED_FOLDER = "SegmentationClassAug"
# Image id -> class names, out of Annotations/.
XML_LABELS = "xml_labels.json"
# The same where an earlier version was called with `prepare --labels-from xml`: it stands for the folder's own choice.
CHOSEN_LABELS = "image_labels.json"


def load(root: Path, split: str) -> Split:
    """A split of VOC, with the labels that an earlier version chose for the folder, or else those of the masks.

    Raises:
        DataError: another layout (says which folder to give), no such split, or a list or mask
            is missing.
    """
    return _load(root, split, CHOSEN_LABELS if (root / CHOSEN_LABELS).is_file() else None)


def load_with_mask_labels(root: Path, split: str) -> Split:
    """A split of VOC with image-level labels out of the masks; raises as `load`."""
    return _load(root, split, None)


def load_with_xml_labels(root: Path, split: str) -> Split:
    """A split of VOC with image-level labels out of Annotations/; a photo without XML has those of its mask.

    Raises:
        DataError: as `load`, and where `afactl data prepare voc` has not kept them.
    """
    _check_layout(root)
    if not (root / XML_LABELS).is_file():
        raise DataError(
            f"{root / XML_LABELS}: data.labels=xml needs what afactl data prepare voc keeps of Annotations/; "
            f"call it with --data {root}, or set data.labels=masks"
        )
    return _load(root, split, XML_LABELS)


def _load(root: Path, split: str, table: str | None) -> Split:
    """A split whose labels stand in a table of the folder, as far as it goes, or else in the masks."""
    _check_layout(root)
    if split not in (*LISTS, AUGMENTED):
        raise MissingDataError(f'{root}: VOC has no split "{split}"{nearest(split, (*LISTS, AUGMENTED))}')
    masks = mask_files(root)
    ids = _augmented(root) if split == AUGMENTED else read_list(root, split)
    missing = [image_id for image_id in ids if image_id not in masks]
    if missing:
        raise DataError(
            f"{root}: {len(missing)} of {len(ids)} masks of split {split} are missing (first: {missing[0]})"
        )
    paths = [masks[image_id] for image_id in ids]
    labels = labels_from_masks(paths, len(CLASSES))
    if not any(labels):
        raise DataError(
            f"{root}: no mask of split {split} holds a class, all values are 0 or 255; "
            "save class numbers as an indexed PNG"
        )
    chosen = _read_labels(root / table) if table else {}
    samples = tuple(
        Sample(image_id, root / "JPEGImages" / f"{image_id}.jpg", chosen.get(image_id, present))
        for image_id, present in zip(ids, labels, strict=True)
    )

    return Split(split, CLASSES, samples, MaskFiles(dict(zip(ids, paths, strict=True)), len(CLASSES)))


def splits(root: Path) -> list[str]:
    """The splits that are there; `train_aug` where the SBD masks are.

    Raises:
        DataError: another layout.
    """
    _check_layout(root)
    listed = [name for name in ("train", "val") if (root / "ImageSets" / "Segmentation" / f"{name}.txt").is_file()]
    return [AUGMENTED, *listed] if (root / AUGMENTED_FOLDER).is_dir() else listed


def _check_layout(root: Path) -> None:
    if (root / "JPEGImages").is_dir() and (root / "ImageSets" / "Segmentation").is_dir():
        return
    below = [
        p.parent for p in (root / "VOC2012", root / "VOCdevkit" / "VOC2012") for p in [p / "JPEGImages"] if p.is_dir()
    ]
    hint = f"; give --data {below[0]}" if below else "; give the VOC2012 folder of VOCdevkit"
    raise MissingDataError(f"--data {root}: expected JPEGImages/ and ImageSets/Segmentation/ in it{hint}")


def mask_files(root: Path) -> dict[str, Path]:
    """The mask of each image id that has one."""
    # SBD corrects nothing in the official masks, so the official one comes first where both exist.
    return {
        mask.stem: mask for folder in (AUGMENTED_FOLDER, "SegmentationClass") for mask in (root / folder).glob("*.png")
    }


def _read_labels(path: Path) -> dict[str, tuple[int, ...]]:
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        return {image_id: tuple(sorted(CLASSES.index(name) for name in names)) for image_id, names in table.items()}
    except (ValueError, AttributeError, TypeError) as error:
        raise DataError(
            f"{path}: expected image ids with class names ({error}); write it again with afactl data prepare voc"
        ) from error


def read_list(root: Path, split: str) -> list[str]:
    """The ids of a list of ImageSets/Segmentation.

    Raises:
        DataError: another layout, no such list, or an id twice.
    """
    _check_layout(root)
    path = root / "ImageSets" / "Segmentation" / f"{split}.txt"
    if not path.is_file():
        raise DataError(f"{path}: the list of split {split} is missing")
    ids = _ids(path)
    if len(set(ids)) != len(ids):
        raise DataError(f"{path}: {len(ids) - len(set(ids))} ids are listed twice")
    return ids


def _ids(path: Path) -> list[str]:
    """One id a line, or the path of a photo; beside it perhaps the path of its mask, or VOC's 1 for "is there"."""
    ids = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), 1):
        words = line.split()
        if len(words) > 2 or (len(words) == 2 and words[1] != "1" and not words[1].endswith(".png")):
            raise DataError(f'{path}, line {number}: expected the id of a photo, got "{line.strip()[:60]}"')
        if words:
            name = PurePosixPath(words[0])
            listed = name.suffix.lower() in PHOTO_SUFFIXES and name.parent.name == "JPEGImages"
            ids.append(name.stem if listed else words[0])
    return ids


def _augmented(root: Path) -> list[str]:
    if (root / "ImageSets" / "Segmentation" / f"{AUGMENTED}.txt").is_file():
        return read_list(root, AUGMENTED)
    folder = root / AUGMENTED_FOLDER
    if not folder.is_dir():
        raise DataError(
            f"{folder}: split {AUGMENTED} needs the SBD masks there; without them train on the plain list: "
            "--set data.train_split=train, or add them: afactl data prepare voc --sbd DIR"
        )
    held_out = set(read_list(root, "val"))
    return sorted(mask.stem for mask in folder.glob("*.png") if mask.stem not in held_out)


def recognizes(root: Path) -> bool:
    """Whether the folder has the lists of VOC."""
    return (root / "ImageSets" / "Segmentation").is_dir()


FORMAT = DatasetFormat(
    load,
    splits,
    recognizes,
    sources={"masks": load_with_mask_labels, "xml": load_with_xml_labels},
    classes=CLASSES,
)
