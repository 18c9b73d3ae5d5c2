"""Dataset formats by name, and the checks that every split goes through before a job starts.

A new format is one module with a `DatasetFormat`, registered here or by an entry point of the group `afactl.datasets`.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections import Counter
from collections.abc import Callable
from pathlib import Path, PurePosixPath

from afactl.datasets import folder
from afactl.datasets.photo_files import HEIC_SUFFIXES, unread_pictures
from afactl.datasets.samples import DatasetFormat, Split
from afactl.errors import (
    AfactlError,
    DataError,
    DependencyError,
    MissingDataError,
    PresetError,
    UsageError,
    counted,
    nearest,
)
from afactl.files import is_utf8
from afactl.registry import Registry

FORMATS = Registry(
    "data.name",
    "afactl.datasets",
    {name: f"afactl.datasets.{name}:FORMAT" for name in ("voc", "coco", "folder", "demo")},
)


def register(name: str, dataset_format: DatasetFormat) -> None:
    """Make a format available as `data.name: name`.

    Raises:
        UsageError: the name is taken.
    """
    FORMATS.register(name, dataset_format)


def dataset_format(name: str) -> DatasetFormat:
    """A format by its name.

    Raises:
        PresetError: no such format. DependencyError: the package that brings it cannot be imported.
    """
    entry = FORMATS.get(name)
    if not isinstance(entry, DatasetFormat):
        raise FORMATS.strange(name, entry, "a DatasetFormat of afactl.datasets.samples")
    return entry


def dataset_folder(name: str, root: Path | None) -> Path:
    """The folder of a dataset; None makes generated data where they belong.

    Raises:
        PresetError: no such format. UsageError: no folder given. DataError: it is not there.
    """
    generate = dataset_format(name).generate
    if root is None:
        if generate is None:
            raise UsageError(f"data: the folder of the {name} dataset is needed; give --data DIR")
        return generate()
    if not root.is_dir():
        raise MissingDataError(f"--data {root}: expected a folder, found {'a file' if root.exists() else 'nothing'}")
    return root


def load_split(name: str, root: Path | None, split: str, labels: str | None = None) -> Split:
    """A split of a dataset.

    Args:
        name: one of `FORMATS.names()`.
        root: its folder; None makes generated data where they belong.
        labels: the source of the image-level labels, where the format has several; None: its own choice.

    Raises:
        PresetError: no such format or source of labels. UsageError: no folder given. DataError: the folder or
            split is not what the format expects.
    """
    loader = _loader(name, labels)
    root = dataset_folder(name, root)
    chosen = loader(root, split)
    if not chosen.samples:
        raise MissingDataError(f"--data {root}: split {split} is empty")
    for name in chosen.classes:
        # Names of photos may be any; those of classes go into checkpoints, tables and pages, which are UTF-8.
        if not is_utf8(name):
            raise DataError(f"--data {root}: the class {name!r} is no UTF-8; rename it")
    for sample in chosen.samples:
        # Masks and arrays are written under their ids.
        path = PurePosixPath(sample.image_id)
        if path.is_absolute() or ".." in path.parts or "\0" in sample.image_id:
            raise DataError(
                f"--data {root}: the image id {sample.image_id!r} leaves the folder that results go to; rename it"
            )
    return chosen


def _loader(name: str, labels: str | None) -> Callable[[Path, str], Split]:
    known = dataset_format(name)
    if labels is None:
        return known.load
    if labels not in known.sources:
        choices = f"one of {', '.join(known.sources)}, or null{nearest(labels, known.sources)}"
        raise PresetError(
            f'data.labels: "{labels}" is no source of labels of the format {name}; '
            f"expected {choices if known.sources else 'null'}"
        )
    return known.sources[labels]


def check_files(split: Split, masks: bool) -> None:
    """See that every listed photo is there before a long job starts.

    Args:
        masks: also see that the masks of the split can be located.

    Raises:
        DataError: how many are missing or empty, and the first three; or some are camera RAW, which is not read.
        DependencyError: some are HEIC, and pillow-heif is not installed.
    """
    unread = unread_pictures(Counter(sample.image_path.suffix.lower() for sample in split.samples))
    if unread:
        raise DataError(f"split {split.name}: {'; '.join(unread)}")
    heic = sum(sample.image_path.suffix.lower() in HEIC_SUFFIXES for sample in split.samples)
    if heic and importlib.util.find_spec("pillow_heif") is None:
        raise DependencyError(
            f"split {split.name}: {counted(heic, 'photo is', 'photos are')} HEIC, which needs pillow-heif: "
            f"pip install 'afactl[heic]', or convert {'it' if heic == 1 else 'them'} to JPEG"
        )
    listed = [sample.image_path for sample in split.samples]
    if masks and split.masks is not None:
        paths = [split.masks.path(sample) for sample in split.samples]
        listed += [path for path in paths if path is not None]
    missing = [path for path in listed if not (path.is_file() and path.stat().st_size)]
    if missing:
        shown = ", ".join(str(path) for path in missing[:3])
        raise DataError(
            f"split {split.name}: {len(missing)} of {len(listed)} listed files are missing or empty "
            f"(first: {shown}); restore them or take them off the list"
        )


def data_fingerprint(split: Split) -> str:
    """16 hex digits that change when the list, a label or the size of a photo changes; of the whole split."""
    split = split.whole or split
    digest = hashlib.sha256(repr(split.classes).encode())
    for sample in split.samples:
        digest.update(repr((sample.image_id, sample.labels, sample.image_path.stat().st_size)).encode())
    return digest.hexdigest()[:16]


def split_names(name: str, root: Path | None) -> list[str]:
    """The splits of a dataset that are there, the first one for training. Raises as `load_split`."""
    return dataset_format(name).splits(dataset_folder(name, root))


def is_missing(name: str, root: Path | None, split: str) -> bool:
    """Whether a dataset goes without this split of validation, where its format allows that."""
    return dataset_format(name).val_may_be_missing and split not in split_names(name, root)


def load_all(name: str, root: Path | None, labels: str | None = None) -> list[Split]:
    """Every split of a dataset; arguments as in `load_split`.

    Raises:
        DataError: there is none. Others: as in `load_split`.
    """
    return [load_split(name, root, split, labels) for split in require_dataset(name, root)]


def require_dataset(name: str, root: Path | None) -> list[str]:
    """The splits of a dataset, of which there is one at least.

    Raises:
        MissingDataError: there is none. Others: as in `load_split`.
    """
    names = split_names(name, root)
    if not names:
        raise MissingDataError(f"--data {root}: expected a dataset in the {name} format, found no split of it")
    return names


def format_of(root: Path) -> str:
    """Which format a folder has, by what lies in it.

    Raises:
        DataError: none that is known, or the labels of own photos are wrong.
    """
    for name in FORMATS.names():
        try:
            recognizes = dataset_format(name).recognizes
        except AfactlError:
            continue  # of a package that is broken: whoever asks for that format is told so, and so is `doctor`
        if recognizes(root):
            return name
    folder.splits(root)  # says what a folder of own photos may hold
    return "folder"
