"""Image-level labels of own photos, in the forms in which people have them.

labels.csv          columns image, labels (names joined by |) and perhaps split; comma, semicolon or tab
labels.json         {"path/of/photo.jpg": ["dog", "person"], ...}
annotations.json    COCO style: images, annotations, categories
Annotations/*.xml   VOC style: a filename and objects with names
dog/a.jpg           one folder per class; `background` (or `Background`, `_background_`) holds photos without any

categories.json     beside any of them, the numbers of the classes as COCO lists them: [{"id": 17, "name": "cat"}, ...]

Where nothing names a split, photos below train/, val/ or test/ (also images/train/ ...) belong to it, and
all others to train.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, NamedTuple
from xml.etree import ElementTree

from afactl.datasets.photo_files import PHOTO_SUFFIXES, find_files, passed_over, unread_pictures
from afactl.errors import DataError, MissingDataError, counted
from afactl.files import is_utf8, whole_file

COLUMNS = ("image", "labels")
SPLITS = ("train", "val", "test")
# Folders that are no class.
PHOTOS = ("images", "JPEGImages")
RESERVED = (*PHOTOS, "masks", "Annotations", "annotations")
# The numbers of the classes, which a list of labels alone does not hold.
CATEGORIES = "categories.json"
# How tools name value 0 and what is ignored; none of them is a class. Compared without case.
BACKGROUND = ("background", "_background_")
IGNORED = "__ignore__"
# Between labels, if not by |.
JOINERS = (";", ",")
# What a name cannot hold without being taken for several in some table.
SEPARATORS = (*sorted(JOINERS), "|")
# A table beyond this is no list of photos but a mistake; it would fill the memory.
MAX_BYTES = 512 * 2**20


class Row(NamedTuple):
    """One photo: where its entry stands, its path below the folder, its split, its class names."""

    where: str
    image: str
    split: str
    names: tuple[str, ...]


class Tags(NamedTuple):
    """The photos of a folder with their labels, and what is to be said about how they were read.

    Attributes:
        numbers: the dataset's own number of each class name, where it has some (COCO's categories).
    """

    rows: list[Row]
    notes: tuple[str, ...] = ()
    numbers: Mapping[str, int] = MappingProxyType({})


def read_rows(root: Path) -> list[Row]:
    """The rows of `read_tags`."""
    return read_tags(root).rows


def read_tags(root: Path) -> Tags:
    """The photos of a folder and their labels; `background` is no label.

    Raises:
        DataError: nothing there says what is in the photos, or what does is wrong: the place, what was
            expected, what came.
    """
    for sign, read in _READERS.items():
        place = next((root / name for name in (sign, sign.lower()) if _holds_labels(root / name)), None)
        if place:
            rows, notes, numbers = read(place)
            break
    else:
        rows, notes, numbers = _class_folders(root)
    if (listed := root / CATEGORIES).is_file():
        numbers = _category_numbers(listed, _parse(listed))
    if not rows:
        why = f" ({'; '.join(notes)})" if notes else ""
        raise MissingDataError(
            f"{root}: expected {', '.join(_READERS)} or one folder of photos per class, found none{why}; see "
            f"docs/data-formats.md, and for keywords in the photos afactl data prepare folder --from-keywords"
        )
    for row in rows:
        path = PurePosixPath(row.image)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{row.where}: {row.image} leaves the data folder; list paths below it")
    named = sum(any(is_background(name) for name in row.names) for row in rows)
    if named:
        notes = (*notes, f"labels: background is no class and was left out of {counted(named, 'photo')}")
        rows = [row._replace(names=tuple(name for name in row.names if not is_background(name))) for row in rows]
    return Tags(rows, notes, numbers)


def _holds_labels(place: Path) -> bool:
    return place.is_file() or next(place.rglob("*.xml"), None) is not None


def is_background(name: str) -> bool:
    """Whether tools mean value 0, or what is ignored, by this name."""
    return name.casefold() in (*BACKGROUND, IGNORED)


class ClassList(NamedTuple):
    """The names in classes.txt that are classes, and those before them that are none."""

    names: list[str]
    left_out: tuple[str, ...]


def read_classes(root: Path) -> ClassList | None:
    """As `read_class_file` of classes.txt, or None where there is no such file."""
    listed = root / "classes.txt"
    return read_class_file(listed) if listed.is_file() else None


def read_class_file(listed: Path) -> ClassList:
    """The class names in a file, one per line.

    Other tools begin it with `background`, perhaps with `__ignore__` before that; these are left out.

    Raises:
        DataError: no file or names, one twice, or one of those two elsewhere, where it would shift the values of the
            masks.
    """
    if not listed.is_file():
        raise MissingDataError(f"{listed}: expected a file with one class name per line, found none")
    names = [line.strip() for line in _text(listed).splitlines() if line.strip()]
    first = 1 if names[:1] and names[0].casefold() == IGNORED else 0
    if first or (names and is_background(names[0])):
        if not names[first:] or names[first].casefold() not in BACKGROUND:
            raise DataError(
                f'{listed}: expected background after "{names[0]}"; list the classes alone, from value 1 on'
            )
        first += 1
    left_out, names = tuple(names[:first]), names[first:]
    if not names or len(set(names)) != len(names):
        raise DataError(f"{listed}: expected one class name per line, each once, got {len(names)} names")
    wrong = [name for name in names if is_background(name)]
    if wrong:
        raise DataError(f'{listed}: "{wrong[0]}" is no class; list the classes alone, in the order of their values')
    return ClassList(names, left_out)


def photos_without_labels(root: Path) -> Tags:
    """Every photo below images/ or JPEGImages/, or else below the folder itself but its masks; none has a label."""
    top = next((root / name for name in PHOTOS if (root / name).is_dir()), root)
    files = find_files(top, leave_out=("masks",))
    images = [path.relative_to(root).as_posix() for path in files.photos]
    return Tags(
        [Row(str(root / image), image, _place(image)[0], ()) for image in images], unread_pictures(files.others)
    )


def write_csv(table: Path, rows: Sequence[Row]) -> None:
    """Write labels.csv, whole or not at all.

    Raises:
        DataError: a name that the table cannot hold. OSError: as the system says it.
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
            if not is_utf8(row.image):
                raise DataError(
                    f"{row.where}: {row.image!r} is no UTF-8, which labels.csv is written in; rename the photo"
                )
            writer.writerow((row.image, row.split, "|".join(row.names)))


def _class_folders(root: Path) -> Tags:
    """DIR/[images/][SPLIT/]CLASS/.../photo, and what was passed over."""
    files = find_files(root, leave_out=[name for name in RESERVED if name not in PHOTOS])
    rows = []
    for path in files.photos:
        image = path.relative_to(root).as_posix()
        split, folders = _place(image)
        if folders and folders[0] not in RESERVED:
            rows.append(Row(str(path), image, split, () if is_background(folders[0]) else (folders[0],)))
    return Tags(rows, passed_over(files, len(files.photos) - len(rows)))


def _place(image: str) -> tuple[str, tuple[str, ...]]:
    """The split that a path names, or train; and the folders below it."""
    folders = PurePosixPath(image).parts[:-1]
    if folders and folders[0] in PHOTOS:
        folders = folders[1:]
    return (folders[0], folders[1:]) if folders and folders[0] in SPLITS else ("train", folders)


def _csv(table: Path) -> Tags:
    text = _text(table)
    header = text.partition("\n")[0]
    delimiter = max(",;\t", key=header.count)
    entries: list[tuple[str, str, str, str]] = []
    try:
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
        names = [name.strip() for name in next(reader, [])]
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            got = ", ".join(names) or "nothing"
            raise DataError(f"{table}: expected the columns {', '.join(COLUMNS)}, got {got}; add {', '.join(missing)}")
        for fields in filter(None, reader):
            where = f"{table}, line {reader.line_num}"
            if len(fields) != len(names):
                raise DataError(
                    f"{where}: {len(fields)} fields, the header has {len(names)}; join the labels of a photo by |, "
                    f'and put a name that holds "{delimiter}" into quotes'
                )
            entry = dict(zip(names, fields, strict=True))
            image = entry["image"].strip()
            split = entry["split"].strip() if "split" in entry else _place(image)[0]
            if not image or not split:
                raise DataError(f"{where}: expected an image and a split, got {image!r} and {split!r}")
            entries.append((where, image, split, entry["labels"].strip()))
    except csv.Error as error:
        raise DataError(f"{table}: cannot be read as a table ({error}); save it as CSV in UTF-8") from error
    if not entries:
        raise DataError(f"{table}: no rows below the header")
    listed = read_classes(table.parent)
    known = frozenset(listed.names if listed else ())
    joiner = _joiner([labels for *_, labels in entries], known)
    return Tags(
        [
            Row(where, image, split, _label_names(where, labels, joiner, known))
            for where, image, split, labels in entries
        ]
    )


def _joiner(fields: Sequence[str], known: frozenset[str]) -> str:
    """What joins the labels of a photo: | where it occurs; else ; or , if that makes names of the table of every part.

    Args:
        fields: of the column labels. known: the names in classes.txt, or none.
    """
    if any("|" in field for field in fields):
        return "|"
    alone = known or {field for field in fields if not any(sign in field for sign in JOINERS)}
    for sign in JOINERS:
        joined = [field for field in fields if sign in field and field not in known]
        if joined and all(part.strip() in alone for field in joined for part in field.split(sign)):
            return sign
    return "|"


def _label_names(where: str, field: str, joiner: str, known: frozenset[str]) -> tuple[str, ...]:
    parts = [field] if field in known else [part.strip() for part in field.split(joiner)]
    for name in parts:
        if name not in known and any(sign in name for sign in (*JOINERS, "\t", "\n")):
            raise DataError(
                f'{where}: "{name}" may be one class or several; join the labels of a photo by |, '
                "or list the class in classes.txt if that is its name"
            )
    return tuple(name for name in parts if name)


def _json(table: Path) -> Tags:
    entries = _parse(table)
    rows = []
    for image, names in entries.items() if isinstance(entries, dict) else ():
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise DataError(f'{table}: "{image}": expected a list of class names, got {json.dumps(names)[:60]}')
        rows.append(Row(f'{table}, "{image}"', image, _place(image)[0], tuple(names)))
    if not rows:
        raise DataError(f'{table}: expected {{"photo.jpg": ["class", ...], ...}}, got {json.dumps(entries)[:60]}')
    return Tags(rows)


def _coco(table: Path) -> Tags:
    entries = _parse(table)
    try:
        names = {category["id"]: category["name"] for category in entries["categories"]}
        numbers = _category_numbers(table, entries["categories"])
        tags: dict[Any, list[str]] = {}
        for annotation in entries["annotations"]:
            tags.setdefault(annotation["image_id"], []).append(names[annotation["category_id"]])
        photos = [(photo["file_name"], tags.get(photo["id"], [])) for photo in entries["images"]]
    except (KeyError, TypeError) as error:
        raise DataError(
            f"{table}: expected COCO's lists images, annotations and categories; missing or unknown: {error}"
        ) from error
    folder = "images/" if (table.parent / "images").is_dir() else ""
    below = [(image if image.startswith(folder) else folder + image, labels) for image, labels in photos]
    rows = [
        Row(f'{table}, "{image}"', image, _place(image)[0], tuple(dict.fromkeys(labels))) for image, labels in below
    ]
    return Tags(rows, numbers=numbers)


def _category_numbers(table: Path, categories: Any) -> dict[str, int]:
    """The number of each class; none where numbers or names are not fit to tell classes apart."""
    try:
        pairs = [(category["name"], category["id"]) for category in categories]
        numbers = dict(pairs)
    except (KeyError, TypeError) as error:
        raise DataError(
            f'{table}: expected COCO\'s categories, [{{"id": 17, "name": "cat"}}, ...]; missing or unknown: {error}'
        ) from error
    whole = all(type(number) is int for number in numbers.values())
    return numbers if whole and len(set(numbers.values())) == len(numbers) == len(pairs) else {}


def _xml(folder: Path) -> Tags:
    places = [place for place in PHOTOS if (folder.parent / place).is_dir()]
    rows = []
    for path in sorted(folder.rglob("*.xml")):
        image, objects = read_xml(path)
        image = _with_suffix(path, folder.parent, "/".join([*places[:1], image]))
        rows.append(Row(str(path), image, _place(image)[0], tuple(dict.fromkeys(name for name, _ in objects))))
    return Tags(rows)


def _with_suffix(xml: Path, root: Path, image: str) -> str:
    """The photo that a name without suffix means."""
    if PurePosixPath(image).suffix.lower() in PHOTO_SUFFIXES or ".." in PurePosixPath(image).parts:
        return image
    candidates = [
        image + suffix
        for suffix in sorted({*PHOTO_SUFFIXES, *(suffix.upper() for suffix in PHOTO_SUFFIXES)})
        if (root / (image + suffix)).is_file()
    ]
    if len(candidates) != 1:
        seen = ", ".join(candidates) or "none"
        raise DataError(f"{xml}: the filename {PurePosixPath(image).name} has no suffix; photos of that name: {seen}")
    return candidates[0]


def read_xml(path: Path) -> tuple[str, list[tuple[str, bool]]]:
    """A VOC annotation: the photo's file name, and (class name, difficult) of each object.

    Raises:
        DataError: no XML, or without a file name.
    """
    _require_size(path)
    try:
        tree = ElementTree.fromstring(path.read_bytes())  # as bytes, in the encoding that the file declares
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f"{path}: cannot be read as XML ({error})") from error
    image = (tree.findtext("filename") or "").strip()
    if not image:
        raise DataError(f"{path}: expected a VOC annotation with a filename, found none")
    objects = [
        ((element.findtext("name") or "").strip(), (element.findtext("difficult") or "0").strip() == "1")
        for element in tree.iter("object")
    ]
    return image, [name for name in objects if name[0]]


def _parse(table: Path) -> Any:
    try:
        return json.loads(_text(table))
    except (ValueError, RecursionError) as error:
        raise DataError(f"{table}: cannot be read as JSON ({error})") from error


def _require_size(path: Path) -> None:
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise DataError(
            f"{path}: {size / 2**20:.0f} MiB, more than the {MAX_BYTES // 2**20} that a table of labels may have; "
            "split the dataset"
        )


def _text(path: Path) -> str:
    _require_size(path)
    try:
        # utf-8-sig: spreadsheets write a byte order mark.
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text ({error}); save it again in UTF-8") from error


_READERS: dict[str, Callable[[Path], Tags]] = {
    "labels.csv": _csv,
    "labels.json": _json,
    "annotations.json": _coco,
    "Annotations": _xml,
}
