"""Image-level labels of own photos, in the forms in which people have them.

labels.csv          columns image, labels (names joined by |) and perhaps split; comma, semicolon or tab
labels.json         {"path/of/photo.jpg": ["dog", "person"], ...}
annotations.json    COCO style: images, annotations, categories
Annotations/*.xml   VOC style: a filename and objects with names
dog/a.jpg           one folder per class; `background` holds photos without any

Where nothing names a split, photos below train/, val/ or test/ (also images/train/ ...) belong to it, and
all others to train.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple
from xml.etree import ElementTree

from afactl.datasets.images import PHOTO_SUFFIXES
from afactl.errors import DataError
from afactl.files import whole_file

COLUMNS = ("image", "labels")
SPLITS = ("train", "val", "test")
# Folders that are no class.
PHOTOS = ("images", "JPEGImages")
RESERVED = (*PHOTOS, "masks", "Annotations")
BACKGROUND = "background"
# A table beyond this is no list of photos but a mistake; it would fill the memory.
MAX_BYTES = 512 * 2**20


class Row(NamedTuple):
    """One photo: where its entry stands, its path below the folder, its split, its class names."""

    where: str
    image: str
    split: str
    names: tuple[str, ...]


def read_rows(root: Path) -> list[Row]:
    """The photos of a folder and their labels.

    Raises:
        DataError: nothing there says what is in the photos, or what does is wrong: the place, what was
            expected, what came.
    """
    for sign, read in _READERS.items():
        if (root / sign).exists():
            rows = read(root / sign)
            break
    else:
        rows = _class_folders(root)
    if not rows:
        raise DataError(
            f"{root}: expected {', '.join(_READERS)} or one folder of photos per class, found none; "
            "see docs/own-data.md"
        )
    for row in rows:
        path = PurePosixPath(row.image)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{row.where}: {row.image} leaves the data folder; list paths below it")
    return rows


def photos_without_labels(root: Path) -> list[Row]:
    """Every photo below images/ or JPEGImages/, or else below the folder itself but its masks."""
    top = next((root / name for name in PHOTOS if (root / name).is_dir()), root)
    found = sorted(path for path in top.rglob("*") if path.suffix.lower() in PHOTO_SUFFIXES)
    images = [(path, path.relative_to(root).as_posix()) for path in found if path.relative_to(root).parts[0] != "masks"]
    return [Row(str(path), image, _place(image)[0], ()) for path, image in images]


def write_csv(table: Path, rows: Sequence[Row]) -> None:
    """Write labels.csv, whole or not at all.

    Raises:
        DataError: a class name that the table cannot hold. OSError: as the system says it.
    """
    with whole_file(table) as fresh, open(fresh, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(("image", "split", "labels"))
        for row in rows:
            if any("|" in name or name != name.strip() for name in row.names):
                raise DataError(
                    f"{row.where}: class names in labels.csv hold no | and no blanks at their ends, "
                    f"got {', '.join(row.names)}"
                )
            writer.writerow((row.image, row.split, "|".join(row.names)))


def _class_folders(root: Path) -> list[Row]:
    """DIR/[images/][SPLIT/]CLASS/.../photo."""
    rows = []
    for path in sorted(root.rglob("*")):
        if path.suffix.lower() in PHOTO_SUFFIXES:
            image = path.relative_to(root).as_posix()
            split, folders = _place(image)
            if folders and folders[0] not in RESERVED:
                rows.append(Row(str(path), image, split, () if folders[0] == BACKGROUND else (folders[0],)))
    return rows


def _place(image: str) -> tuple[str, tuple[str, ...]]:
    """The split that a path names, or train; and the folders below it."""
    folders = PurePosixPath(image).parts[:-1]
    if folders and folders[0] in PHOTOS:
        folders = folders[1:]
    return (folders[0], folders[1:]) if folders and folders[0] in SPLITS else ("train", folders)


def _csv(table: Path) -> list[Row]:
    text = _text(table)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter)
        names = [name.strip() for name in reader.fieldnames or []]
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            got = ", ".join(names) or "nothing"
            raise DataError(f"{table}: expected the columns {', '.join(COLUMNS)}, got {got}; add {', '.join(missing)}")
        reader.fieldnames = names
        rows = []
        for entry in reader:
            where = f"{table}, line {reader.line_num}"
            image = (entry["image"] or "").strip()
            split = (entry["split"] or "").strip() if "split" in names else _place(image)[0]
            if not image or not split:
                raise DataError(f"{where}: expected an image and a split, got {image!r} and {split!r}")
            labels = (name.strip() for name in (entry["labels"] or "").split("|"))
            rows.append(Row(where, image, split, tuple(name for name in labels if name)))
    except csv.Error as error:
        raise DataError(f"{table}: cannot be read as a table ({error}); save it as CSV in UTF-8") from error
    if not rows:
        raise DataError(f"{table}: no rows below the header")
    return rows


def _json(table: Path) -> list[Row]:
    entries = _parse(table)
    rows = []
    for image, names in entries.items() if isinstance(entries, dict) else ():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f'{table}: "{image}": expected a list of class names, got {json.dumps(names)[:60]}')
        rows.append(Row(f'{table}, "{image}"', image, _place(image)[0], tuple(names)))
    if not rows:
        raise DataError(f'{table}: expected {{"photo.jpg": ["class", ...], ...}}, got {json.dumps(entries)[:60]}')
    return rows


def _coco(table: Path) -> list[Row]:
    entries = _parse(table)
    try:
        names = {one["id"]: one["name"] for one in entries["categories"]}
        found: dict[Any, list[str]] = {}
        for one in entries["annotations"]:
            found.setdefault(one["image_id"], []).append(names[one["category_id"]])
        photos = [(one["file_name"], found.get(one["id"], [])) for one in entries["images"]]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{table}: expected COCO's lists images, annotations and categories; missing or unknown: {error}"
        ) from error
    folder = "images/" if (table.parent / "images").is_dir() else ""
    below = [(image if image.startswith(folder) else folder + image, labels) for image, labels in photos]
    return [
        Row(f'{table}, "{image}"', image, _place(image)[0], tuple(dict.fromkeys(labels))) for image, labels in below
    ]


def _xml(folder: Path) -> list[Row]:
    places = [place for place in PHOTOS if (folder.parent / place).is_dir()]
    rows = []
    for path in sorted(folder.rglob("*.xml")):
        image, objects = read_xml(path)
        image = "/".join([*places[:1], image])
        rows.append(Row(str(path), image, _place(image)[0], tuple(dict.fromkeys(name for name, _ in objects))))
    return rows


def read_xml(path: Path) -> tuple[str, list[tuple[str, bool]]]:
    """A VOC annotation: the photo's file name, and (class name, difficult) of each object.

    Raises:
        DataError: no XML, or without a file name.
    """
    try:
        tree = ElementTree.fromstring(_text(path))
    except ElementTree.ParseError as error:
        raise DataError(f"{path}: cannot be read as XML ({error})") from error
    image = (tree.findtext("filename") or "").strip()
    if not image:
        raise DataError(f"{path}: expected a VOC annotation with a filename, found none")
    objects = [
        ((one.findtext("name") or "").strip(), (one.findtext("difficult") or "0").strip() == "1")
        for one in tree.iter("object")
    ]
    return image, [found for found in objects if found[0]]


def _parse(table: Path) -> Any:
    try:
        return json.loads(_text(table))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{table}: cannot be read as JSON ({error})") from error


def _text(path: Path) -> str:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(
            f"{path}: {size / 2**20:.0f} MiB, more than the {MAX_BYTES // 2**20} that a table of labels may have; "
            "split the dataset"
        )
    try:
        # utf-8-sig: spreadsheets write a byte order mark.
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text ({error}); save it again in UTF-8") from error


_READERS: dict[str, Callable[[Path], list[Row]]] = {
    "labels.csv": _csv,
    "labels.json": _json,
    "annotations.json": _coco,
    "Annotations": _xml,
}
