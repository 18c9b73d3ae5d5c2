"""Own photos: a folder with `labels.csv`, photos, and perhaps masks for scoring.

labels.csv      columns image (path below the folder), split, labels (class names joined by |)
classes.txt     one class name per line, in the order of the mask values 1..C; without it the
                names in labels.csv in alphabetical order
masks/          one indexed PNG per photo, at the photo's path with masks/ for images/
"""

from __future__ import annotations

import csv
from pathlib import Path, PurePosixPath

import numpy as np

from afactl.datasets.images import read_mask
from afactl.datasets.samples import Sample, Split
from afactl.errors import DataError, nearest

COLUMNS = ("image", "split", "labels")


def load(root: Path, split: str) -> Split:
    """One split of the folder.

    Raises:
        DataError: labels.csv is missing or wrong: the row and what was expected; or no such split.
    """
    table = root / "labels.csv"
    rows = read_table(table)
    classes = _classes(root, rows)
    index = {name: i for i, name in enumerate(classes)}
    samples, seen = [], {}
    for line, image, row_split, names in rows:
        image_id = _image_id(image)
        if image_id in seen:
            raise DataError(f'{table}, line {line}: "{image_id}" is listed twice (first in line {seen[image_id]}); ids must differ')
        seen[image_id] = line
        unknown = [name for name in names if name not in index]
        if unknown:
            raise DataError(f'{table}, line {line}: class "{unknown[0]}" is not in classes.txt{nearest(unknown[0], classes)}')
        if row_split == split:
            samples.append(Sample(image_id, root / image, tuple(sorted({index[name] for name in names}))))
    if not samples:
        known = ", ".join(sorted({row[2] for row in rows}))
        raise DataError(f'{table}: split "{split}" is empty; splits there: {known}')

    def mask_path(sample: Sample) -> Path:
        return root / "masks" / f"{sample.image_id}.png"

    def mask(sample: Sample) -> np.ndarray:
        return read_mask(mask_path(sample), len(classes))

    # Masks are optional as a whole; where the folder is there, a missing file is an error.
    has_masks = (root / "masks").is_dir()
    return Split(split, classes, tuple(samples), mask if has_masks else None, mask_path if has_masks else None)


def splits(root: Path) -> list[str]:
    """The splits that labels.csv names, in their order there.

    Raises:
        DataError: labels.csv is missing or wrong.
    """
    return list(dict.fromkeys(row[2] for row in read_table(root / "labels.csv")))


def read_table(table: Path) -> list[tuple[int, str, str, list[str]]]:
    """Rows of labels.csv as (line number, image, split, class names).

    Raises:
        DataError: missing, not UTF-8, a column missing, an empty field, a path that leaves the folder.
    """
    if not table.is_file():
        raise DataError(f"{table}: expected a table with the columns {', '.join(COLUMNS)}, found none; see docs/data.md")
    try:
        # utf-8-sig: spreadsheets write a byte order mark.
        with open(table, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            missing = [name for name in COLUMNS if name not in (reader.fieldnames or [])]
            if missing:
                got = ", ".join(reader.fieldnames or ["nothing"])
                raise DataError(f"{table}: expected the columns {', '.join(COLUMNS)}, got {got}; save it comma-separated")
            rows = []
            for row in reader:
                line = reader.line_num
                image, split = (row["image"] or "").strip(), (row["split"] or "").strip()
                if not image or not split:
                    raise DataError(f"{table}, line {line}: expected an image and a split, got {image!r} and {split!r}")
                path = PurePosixPath(image)
                if path.is_absolute() or ".." in path.parts:
                    raise DataError(f"{table}, line {line}: {image} leaves the data folder; list paths below it")
                names = [name.strip() for name in (row["labels"] or "").split("|") if name.strip()]
                rows.append((line, image, split, names))
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{table}: cannot be read as a UTF-8 table ({error}); save it as CSV in UTF-8") from error
    if not rows:
        raise DataError(f"{table}: no rows below the header")
    return rows


def _image_id(image: str) -> str:
    """`images/train/a.b.jpg` -> `train/a.b`."""
    path = PurePosixPath(image)
    stem = path.with_name(path.stem)
    return str(stem.relative_to("images")) if stem.parts[0] == "images" and len(stem.parts) > 1 else str(stem)


def _classes(root: Path, rows: list[tuple[int, str, str, list[str]]]) -> tuple[str, ...]:
    listed = root / "classes.txt"
    if not listed.is_file():
        return tuple(sorted({name for row in rows for name in row[3]}))
    names = [line.strip() for line in listed.read_text(encoding="utf-8-sig").splitlines() if line.strip()]
    if not names or len(set(names)) != len(names):
        raise DataError(f"{listed}: expected one class name per line, each once, got {len(names)} names")
    if len(names) > 254:
        raise DataError(f"{listed}: {len(names)} classes; masks hold 254 at most")
    return tuple(names)
