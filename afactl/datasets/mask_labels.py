"""Image-level labels derived from masks, remembered between jobs."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from afactl.datasets.masks import read_mask, values_of
from afactl.files import whole_file


def labels_from_masks(paths: Sequence[Path], classes: int) -> list[tuple[int, ...]]:
    """Foreground classes of each mask, as sorted indices in [0, C).

    Reading thousands of masks takes a minute, so the answer is kept in the cache folder
    (`$AFACTL_CACHE`, or ~/.cache/afactl), tied to paths, sizes and times of the files.

    Raises:
        DataError: a mask is missing, damaged, or has a value that is no class.
    """
    digest = hashlib.sha256(str(classes).encode())
    for path in paths:
        status = path.stat()
        digest.update(f"{path.resolve()} {status.st_size} {status.st_mtime_ns}\n".encode())
    folder = Path(os.environ.get("AFACTL_CACHE") or Path.home() / ".cache" / "afactl") / "labels"
    known = folder / f"{digest.hexdigest()[:32]}.json"
    try:
        labels = [tuple(row) for row in json.loads(known.read_text(encoding="utf-8"))]
        if len(labels) == len(paths):
            return labels
    except (OSError, ValueError, TypeError):
        pass  # not there yet, or damaged: derive it again

    def present(path: Path) -> tuple[int, ...]:
        return tuple(value - 1 for value in values_of(read_mask(path, classes)))

    with ThreadPoolExecutor() as pool:
        labels = list(pool.map(present, paths))
    try:
        with whole_file(known) as fresh:
            fresh.write_text(json.dumps(labels), encoding="utf-8")
    except OSError:
        pass  # a cache folder that cannot be written costs time, nothing else
    return labels
