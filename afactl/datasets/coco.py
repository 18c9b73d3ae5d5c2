"""MS COCO 2014: photos and `instances_*.json`; masks are drawn from the polygons.

Classes are the 80 categories in the order of their ids. A photo without annotation is all
background. Crowd regions are ignored (255) and give no label. Where objects overlap, the
smaller one lies on top.

The annotations are half a gigabyte of JSON. They are read as a stream, so that memory holds the
outlines and nothing else; `preparing.py` draws all masks once, after which they are not read at all.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from afactl.datasets.masks import MaskFiles
from afactl.datasets.samples import DatasetFormat, Sample, Split
from afactl.errors import DataError, DependencyError, MissingDataError, first_line, nearest
from afactl.labels import IGNORE

SPLITS = ("train", "val")
YEAR = 2014


class Region(NamedTuple):
    """One object: category id, area in pixels, whether it is a crowd, and its outline as pycocotools takes it."""

    category: int
    area: float
    crowd: bool
    shape: Any


class Photo(NamedTuple):
    """A photo's file name, size and objects."""

    name: str
    height: int
    width: int
    regions: list[Region]


class Instances(NamedTuple):
    """An annotation file: class names in the order of their ids, category id -> class index, photos by name."""

    classes: tuple[str, ...]
    class_of: dict[int, int]
    photos: list[Photo]

    def labels(self, photo: Photo) -> tuple[int, ...]:
        """Class indices of a photo; crowds give none."""
        return tuple(sorted({self.class_of[region.category] for region in photo.regions if not region.crowd}))


@dataclass(frozen=True)
class DrawnMasks:
    """The `Masks` of a split that `prepare` has not drawn yet: each is drawn when it is asked for.

    Attributes:
        photos: by image id. class_of: category id -> class index in [0, C).
    """

    photos: Mapping[str, Photo]
    class_of: Mapping[int, int]

    def read(self, sample: Sample) -> np.ndarray:
        """As `draw_mask`."""
        return draw_mask(self.photos[sample.image_id], self.class_of)

    def path(self, sample: Sample) -> None:
        """There is no file."""


def load(root: Path, split: str) -> Split:
    """A split of COCO, out of what `prepare` has written where it is there and fits the annotations.

    Raises:
        DataError: no such split, or the annotations are missing or damaged.
    """
    if split not in SPLITS:
        raise MissingDataError(f'{root}: COCO has no split "{split}"{nearest(split, SPLITS)}')
    photos = root / f"{split}{YEAR}"
    table, masks = prepared_paths(root, split)
    if table.is_file():
        prepared = json.loads(table.read_text(encoding="utf-8"))
        classes = tuple(prepared["classes"])
        samples = tuple(Sample(Path(name).stem, photos / name, tuple(labels)) for name, labels in prepared["photos"])

        paths = {sample.image_id: masks / f"{sample.image_id}.png" for sample in samples}
        # Tables of earlier versions hold no ids.
        ids = tuple(prepared.get("ids") or read_category_ids(annotations_path(root, split)))
        return Split(split, classes, samples, MaskFiles(paths, len(classes)), category_ids=ids)

    instances = read_instances(annotations_path(root, split))
    by_id = {Path(photo.name).stem: photo for photo in instances.photos}
    samples = tuple(Sample(image_id, photos / photo.name, instances.labels(photo)) for image_id, photo in by_id.items())
    masks_of = DrawnMasks(by_id, instances.class_of)
    return Split(split, instances.classes, samples, masks_of, category_ids=tuple(instances.class_of))


def splits(root: Path) -> list[str]:
    """The splits whose annotations are there."""
    return [name for name in SPLITS if annotations_path(root, name).is_file()]


def annotations_path(root: Path, split: str) -> Path:
    """The annotation file of a split."""
    return root / "annotations" / f"instances_{split}{YEAR}.json"


def prepared_paths(root: Path, split: str) -> tuple[Path, Path]:
    """(table of labels, folder of masks) that `prepare` writes; their names change with the annotations.

    Raises:
        DataError: the annotations are missing.
    """
    path = annotations_path(root, split)
    if not path.is_file():
        raise MissingDataError(
            f"{path}: expected COCO annotations there; give --data with train{YEAR}/, val{YEAR}/ and annotations/"
        )
    digest = hashlib.sha256(str(path.stat().st_size).encode())
    with open(path, "rb") as file:
        digest.update(file.read(2**20))
        file.seek(-min(2**20, path.stat().st_size), 2)
        digest.update(file.read())
    name = f"{split}{YEAR}-{digest.hexdigest()[:12]}"
    return root / "prepared" / f"{name}.json", root / "prepared" / name


def read_instances(path: Path) -> Instances:
    """The annotation file; those of train and val are kept, since reading one takes up to a minute.

    Raises:
        DataError: damaged, or without the lists it should have. DependencyError: ijson is not installed.
    """
    return _read_instances(path, path.stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read_instances(path: Path, changed: int) -> Instances:
    return read_part(path, 0, 1)


def read_part(path: Path, part: int, parts: int) -> Instances:
    """Every `parts`-th photo of an annotation file, from number `part` on, with its objects.

    Raises as `read_instances`.
    """
    with open(path, "rb") as file:
        categories = sorted((category["id"], category["name"]) for category in _items(path, file, "categories"))
        regions: dict[int, list[Region]] = {}
        photos = []
        for entry in itertools.islice(_items(path, file, "images"), part, None, parts):
            regions[entry["id"]] = []
            photos.append(Photo(entry["file_name"], entry["height"], entry["width"], regions[entry["id"]]))
        for entry in _items(path, file, "annotations"):
            if entry["image_id"] not in regions:
                continue
            region = Region(
                entry["category_id"], float(entry["area"]), bool(entry.get("iscrowd")), _outline(path, entry)
            )
            regions[entry["image_id"]].append(region)
    if not categories or not photos:
        raise DataError(
            f"{path}: expected lists of images, annotations and categories, "
            f"found no {'images' if categories else 'categories'}"
        )
    index = {number: i for i, (number, _) in enumerate(categories)}
    unknown = {region.category for photo in photos for region in photo.regions} - index.keys()
    if unknown:
        raise DataError(f"{path}: category {min(unknown)} is annotated but not among the categories")
    for photo in photos:
        if Path(photo.name).name != photo.name:
            raise DataError(f"{path}: {photo.name} is no plain file name")
    return Instances(tuple(name for _, name in categories), index, sorted(photos, key=lambda photo: photo.name))


def read_category_ids(path: Path) -> list[int]:
    """The ids of the categories, in the order of the classes. Raises as `read_instances`."""
    with open(path, "rb") as file:
        return sorted(category["id"] for category in _items(path, file, "categories"))


def _items(path: Path, file: BinaryIO, name: str) -> Iterator[dict[str, Any]]:
    """The entries of one list of the file."""
    try:
        import ijson
    except ImportError as error:
        raise DependencyError("COCO annotations need ijson: pip install 'afactl[coco]'") from error
    file.seek(0)
    try:
        for entry in ijson.items(file, f"{name}.item", use_float=True):
            _check_entry(path, name, entry)
            yield entry
    except ijson.JSONError as error:
        raise DataError(f"{path}: cannot be read as COCO annotations ({error}); download it again") from error


_WHOLE: tuple[type, ...] = (int,)
_NAMED: tuple[type, ...] = (int, str)
_ENTRIES: dict[str, dict[str, tuple[type, ...]]] = {
    "categories": {"id": _WHOLE, "name": (str,)},
    "images": {"id": _NAMED, "file_name": (str,), "height": _WHOLE, "width": _WHOLE},
    "annotations": {"image_id": _NAMED, "category_id": _WHOLE, "segmentation": (list, dict), "area": (int, float)},
}


def _check_entry(path: Path, name: str, entry: Any) -> None:
    """See that an entry of a list has its keys, of the right types.

    Raises:
        DataError: what is missing or wrong, and in which entry.
    """
    for key, kinds in _ENTRIES[name].items():
        if not isinstance(entry, dict) or key not in entry:
            raise DataError(f"{path}: an entry of {name} has no {key}; download it again")
        value = entry[key]
        empty = key in ("height", "width") and isinstance(value, int) and value < 1
        if not isinstance(value, kinds) or isinstance(value, bool) or empty:
            raise DataError(
                f"{path}: {name}, id {entry.get('id')!r}: {key} cannot be {str(value)[:40]!r}; download it again"
            )


def _outline(path: Path, entry: dict[str, Any]) -> Any:
    """A segmentation as pycocotools takes it: polygons as arrays, which take a tenth of the memory, or run lengths.

    Raises:
        DataError: neither.
    """
    shape = entry["segmentation"]
    try:
        if isinstance(shape, dict):
            height, width = shape["size"]
            counts = shape["counts"]
            sound = isinstance(counts, str) or (min(counts) >= 0 and sum(counts) == height * width)
        else:
            shape = [np.array(polygon, np.float64) for polygon in shape]
            sound = all(
                part.ndim == 1 and len(part) >= 6 and len(part) % 2 == 0 and np.isfinite(part).all() for part in shape
            )
    except (KeyError, TypeError, ValueError):
        sound = False
    if not sound:
        raise DataError(
            f"{path}: annotations, id {entry.get('id')!r}: expected polygons of x, y pairs or run lengths; "
            "download it again"
        )
    return shape


def draw_mask(photo: Photo, class_of: Mapping[int, int]) -> np.ndarray:
    """The mask of one photo from its annotations.

    Args:
        class_of: category id -> class index in [0, C).

    Returns:
        height x width uint8: background 0, class c as c + 1, crowds 255.

    Raises:
        DependencyError: pycocotools is not installed. DataError: an annotation that cannot be drawn.
    """
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise DependencyError("COCO masks need pycocotools: pip install 'afactl[coco]'") from error
    out = np.zeros((photo.height, photo.width), np.uint8)
    # Crowds first, then large before small: what comes later lies on top.
    for region in sorted(photo.regions, key=lambda region: (not region.crowd, -region.area)):
        shape = region.shape
        try:
            if isinstance(shape, list):
                shape = coco_mask.merge(coco_mask.frPyObjects(shape, photo.height, photo.width))
            elif isinstance(shape["counts"], list):
                shape = coco_mask.frPyObjects(shape, photo.height, photo.width)
            out[coco_mask.decode(shape) > 0] = IGNORE if region.crowd else class_of[region.category] + 1
        except Exception as error:  # pycocotools raises many kinds
            raise DataError(
                f"{photo.name}: an annotation of category {region.category} cannot be drawn ({first_line(error)}); "
                "mend it, or take it out of the annotations"
            ) from error
    return out


def recognizes(root: Path) -> bool:
    """Whether the folder has annotations where COCO keeps them."""
    return any((root / "annotations").glob("instances_*.json"))


FORMAT = DatasetFormat(load, splits, recognizes)
