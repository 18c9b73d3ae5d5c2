"""Own photos: a folder with labels in one of several forms (`tables.py`), and perhaps masks for scoring.

classes.txt     one class name per line, in the order of the mask values 1..C; without it the
                names in the labels in alphabetical order
masks/          one indexed PNG per photo, at the photo's path with masks/ for images/ and .png for its suffix;
                a.jpg beside a.png have a.jpg.png and a.png.png, as `predict` names them
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from afactl.datasets.mask_labels import white_of
from afactl.datasets.masks import MaskFiles
from afactl.datasets.samples import DatasetFormat, Sample, Split
from afactl.datasets.tables import PHOTOS, Row, read_classes, read_rows, read_tags
from afactl.errors import DataError, MissingDataError, nearest
from afactl.labels import IGNORE


def load(root: Path, split: str) -> Split:
    """One split of the folder.

    Raises:
        DataError: the labels are missing or wrong: the place and what was expected; or no such split; or the masks
            hold no class.
    """
    rows, notes, numbers = read_tags(root)
    classes = _classes(root, rows)
    if (listed := read_classes(root)) and listed.left_out:
        notes = (*notes, f"classes.txt: {', '.join(listed.left_out)} is no class and was left out")
    index = {name: i for i, name in enumerate(classes)}
    samples: list[Sample] = []
    seen: dict[str, Row] = {}
    ids = image_ids([row.image for row in rows])
    for row, image_id in zip(rows, ids, strict=True):
        # Masks are named by the ids, and some file systems do not tell a.png from A.png.
        first = seen.setdefault(image_id.casefold(), row)
        if first is not row:
            raise DataError(
                f"{row.where}: {row.image} is listed twice (first: {first.where}); names must differ in more than case"
            )
        unknown = [name for name in row.names if name not in index]
        if unknown:
            raise DataError(f'{row.where}: class "{unknown[0]}" is not in classes.txt{nearest(unknown[0], classes)}')
        if row.split == split:
            samples.append(Sample(image_id, root / row.image, tuple(sorted({index[name] for name in row.names}))))
    if not samples:
        raise MissingDataError(
            f'{root}: split "{split}" is empty; splits there: {", ".join(sorted({row.split for row in rows}))}'
        )

    own = tuple(numbers[name] for name in classes) if numbers.keys() >= set(classes) else ()
    # Masks are optional for a split as a whole; where it has one, a missing file is an error.
    paths = {sample.image_id: mask_of(root, sample.image_id) for sample in samples}
    if not any(path.is_file() for path in paths.values()):
        return Split(split, classes, tuple(samples), notes=notes, category_ids=own)
    white = white_of(root / "masks", [mask_of(root, image_id) for image_id in ids], len(classes))
    if white != IGNORE:
        notes = (*notes, f"masks: white (255) is {classes[0]}, since none of them holds the value 1")
    return Split(split, classes, tuple(samples), MaskFiles(paths, len(classes), white), notes, own)


def splits(root: Path) -> list[str]:
    """The splits that the labels name: train first, the others in their order there.

    Raises:
        DataError: the labels are missing or wrong.
    """
    return sorted(dict.fromkeys(row.split for row in read_rows(root)), key=lambda name: name != "train")


def image_ids(images: Sequence[str]) -> list[str]:
    """Ids of photos by their paths: `images/train/a.b.jpg` -> `train/a.b`.

    Those that would be the same keep their suffix.
    """
    stems = []
    for image in images:
        path = PurePosixPath(image)
        stem = path.with_name(path.stem)
        stems.append(
            str(stem.relative_to(stem.parts[0])) if stem.parts[0] in PHOTOS and len(stem.parts) > 1 else str(stem)
        )
    times = Counter(stem.casefold() for stem in stems)
    return [
        stem + PurePosixPath(image).suffix if times[stem.casefold()] > 1 else stem
        for stem, image in zip(stems, images, strict=True)
    ]


def mask_of(root: Path, image_id: str) -> Path:
    """Where the mask of a photo belongs."""
    return root / "masks" / f"{image_id}.png"


def _classes(root: Path, rows: list[Row]) -> tuple[str, ...]:
    listed = read_classes(root)
    names = listed.names if listed else sorted({name for row in rows for name in row.names})
    if not names:
        raise DataError(f"{root}: no photo has a label; there is nothing to learn")
    if len(names) > 254:
        raise DataError(f"{root}: {len(names)} classes; masks hold 254 at most")
    return tuple(names)


FORMAT = DatasetFormat(load, splits, val_may_be_missing=True)
