"""What the masks of a dataset say as a whole, remembered between jobs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from afactl.datasets.images import open_upright
from afactl.datasets.mask_encodings import decode, values_of
from afactl.datasets.masks import read_mask
from afactl.errors import DataError
from afactl.files import whole_file
from afactl.labels import IGNORE

# Part of the name of what is remembered: changes when masks are read in another way.
READER = 2


def labels_from_masks(paths: Sequence[Path], classes: int) -> list[tuple[int, ...]]:
    """Foreground classes of each mask, as sorted indices in [0, C).

    Reading thousands of masks takes a minute, so the answer is kept in the cache folder
    (`$AFACTL_CACHE`, or ~/.cache/afactl), tied to paths, sizes and times of the files.

    Raises:
        DataError: a mask is missing, damaged, or has a value that is no class.
    """

    def present(path: Path) -> tuple[int, ...]:
        return tuple(value - 1 for value in values_of(read_mask(path, classes)))

    def derive() -> list[tuple[int, ...]]:
        with ThreadPoolExecutor() as pool:
            return list(pool.map(present, paths))

    return [tuple(row) for row in _remembered(f"labels {classes}", paths, derive, len(paths), list)]


def white_of(folder: Path, paths: Sequence[Path], classes: int) -> int:
    """What 255 stands for in the masks of a whole dataset, as `read_mask` takes it.

    IGNORE, as in VOC; but in a dataset of one class whose masks hold no 1 at all it is that class: black and white
    is how most masks are drawn by hand. Masks that are missing or damaged are left out.

    Args:
        folder: where they lie, for the message. paths: all masks, of every split. classes: C.

    Raises:
        DataError: none of the masks holds a class.
    """

    def derive() -> list[bool]:
        """Whether any mask can be read, whether one holds a class, and whether one holds white."""
        readable = white = False
        for path in paths:
            try:
                mask, two_tones = decode(path, open_upright(path), classes)
            except DataError:
                continue
            if not two_tones and values_of(mask):
                return [True, True, white]  # of sound masks, the first one or two tell
            readable, white = True, white or bool((mask == IGNORE).any())
        return [readable, False, white]

    readable, numbers, white = _remembered(f"white {classes}", paths, derive, 3, bool)
    if numbers or not readable:
        return IGNORE
    if classes == 1 and white:
        return 1
    seen = "0 or 255" if white else "0"
    more = f", and black and white does not say which of {classes} classes is meant" if white else ""
    raise DataError(
        f"{folder}: none of {len(paths)} masks holds a class, all values are {seen}{more}; "
        "save class numbers as a grey PNG"
    )


def _remembered(
    what: str, paths: Sequence[Path], derive: Callable[[], list[Any]], length: int, kind: type
) -> list[Any]:
    """What `derive` gives for these files, or gave for them as they are now: a list of this length, of one kind."""
    digest = hashlib.sha256(f"{READER} {what}".encode())
    for path in paths:
        if path.is_file():
            status = path.stat()
            digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode(errors="surrogateescape"))
    folder = Path(os.environ.get("AFACTL_CACHE") or Path.home() / ".cache" / "afactl") / "labels"
    known = folder / f"{digest.hexdigest()[:32]}.json"
    try:
        labels = json.loads(known.read_text(encoding="utf-8"))
        if isinstance(labels, list) and len(labels) == length and all(isinstance(label, kind) for label in labels):
            return labels
    except (OSError, ValueError):
        pass  # not there yet, or damaged: derive it again
    labels = derive()
    try:
        with whole_file(known) as fresh:
            fresh.write_text(json.dumps(labels), encoding="utf-8")
    except OSError:
        pass  # a cache folder that cannot be written costs time, nothing else
    return labels
