"""Dataset formats by name, and the checks that every split goes through before a job starts.

A new format is one module with a function (root, split) -> Split that registers itself here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from afactl.datasets import coco, demo, folder, voc
from afactl.datasets.samples import Split
from afactl.errors import DataError, PresetError, UsageError, nearest

Loader = Callable[[Path, str], Split]
_LOADERS: dict[str, Loader] = {}


def register(name: str, loader: Loader) -> None:
    """Make `loader(root, split)` available as `data.name: name`."""
    _LOADERS[name] = loader


def load_split(name: str, root: Path | None, split: str) -> Split:
    """A split of a dataset.

    Args:
        name: a registered format: voc, coco, folder, demo.
        root: its folder; None makes the generated demo where it belongs.

    Raises:
        PresetError: no such format. UsageError: no folder given. DataError: the folder or split
            is not what the format expects.
    """
    if name not in _LOADERS:
        raise PresetError(f'data.name: "{name}" is no dataset format{nearest(name, sorted(_LOADERS))}')
    if root is None:
        if name != "demo":
            raise UsageError(f"data: the folder of the {name} dataset is needed; give --data DIR")
        root = demo.generate(demo.default_folder())
    if not root.is_dir():
        raise DataError(f"--data {root}: expected a folder, found {'a file' if root.exists() else 'nothing'}")
    found = _LOADERS[name](root, split)
    if not found.samples:
        raise DataError(f"--data {root}: split {split} is empty")
    return found


def check_files(split: Split, masks: bool) -> None:
    """See that every listed photo is there before a long job starts.

    Args:
        masks: also see that the masks of the split can be located.

    Raises:
        DataError: how many are missing or empty, and the first three.
    """
    listed = [sample.image for sample in split.samples]
    if masks and split.mask_path is not None:
        listed += [split.mask_path(sample) for sample in split.samples]
    missing = [path for path in listed if not (path.is_file() and path.stat().st_size)]
    if missing:
        shown = ", ".join(str(path) for path in missing[:3])
        raise DataError(
            f"split {split.name}: {len(missing)} of {len(listed)} listed files are missing or empty "
            f"(first: {shown}); restore them or take them off the list"
        )


def data_fingerprint(split: Split) -> str:
    """16 hex digits that change when the list, a label or the size of a photo changes."""
    digest = hashlib.sha256(repr(split.classes).encode())
    for sample in split.samples:
        digest.update(repr((sample.image_id, sample.labels, sample.image.stat().st_size)).encode())
    return digest.hexdigest()[:16]


register("voc", voc.load)
register("coco", coco.load)
register("folder", folder.load)
register("demo", folder.load)
