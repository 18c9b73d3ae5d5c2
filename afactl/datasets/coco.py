"""MS COCO 2014: photos and `instances_*.json`; masks are drawn from the polygons when asked for.

Classes are the 80 categories in the order of their ids. A photo without annotation is all
background. Crowd regions are ignored (255) and give no label. Where objects overlap, the
smaller one lies on top.
"""

from __future__ import annotations

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from afactl.datasets.samples import Sample, Split
from afactl.errors import DataError, DependencyError, nearest

SPLITS = ("train", "val")
YEAR = 2014
IGNORE = 255


def load(root: Path, split: str) -> Split:
    """A split of COCO.

    Raises:
        DataError: no such split, or the annotations are missing or damaged.
    """
    if split not in SPLITS:
        raise DataError(f'{root}: COCO has no split "{split}"{nearest(split, SPLITS)}')
    table = read_instances(root / "annotations" / f"instances_{split}{YEAR}.json")
    categories = sorted(table["categories"], key=lambda category: category["id"])
    index = {category["id"]: i for i, category in enumerate(categories)}
    objects: dict[int, list[dict[str, Any]]] = {}
    for annotation in table["annotations"]:
        objects.setdefault(annotation["image_id"], []).append(annotation)
    samples, records = [], {}
    for record in sorted(table["images"], key=lambda record: record["file_name"]):
        there = objects.get(record["id"], [])
        labels = {index[one["category_id"]] for one in there if not one.get("iscrowd")}
        image_id = Path(record["file_name"]).stem
        samples.append(Sample(image_id, root / f"{split}{YEAR}" / record["file_name"], tuple(sorted(labels))))
        records[image_id] = (record["height"], record["width"], there)

    def mask(sample: Sample) -> np.ndarray:
        return draw_mask(*records[sample.image_id], index)

    return Split(split, tuple(category["name"] for category in categories), tuple(samples), mask)


def splits(root: Path) -> list[str]:
    """The splits whose annotations are there."""
    return [name for name in SPLITS if (root / "annotations" / f"instances_{name}{YEAR}.json").is_file()]


@lru_cache(maxsize=2)
def read_instances(path: Path) -> dict[str, Any]:
    """The annotation file; train and val are kept, since reading one takes up to a minute.

    Raises:
        DataError: missing, damaged, or without the lists it should have.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected COCO annotations there; give --data with train{YEAR}/, val{YEAR}/ and annotations/")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        missing = [name for name in ("images", "annotations", "categories") if not isinstance(table.get(name), list)]
    except (ValueError, AttributeError) as error:
        raise DataError(f"{path}: cannot be read as COCO annotations ({error}); download it again") from error
    if missing:
        raise DataError(f"{path}: expected lists of images, annotations and categories, found no {missing[0]}")
    return table


def draw_mask(height: int, width: int, annotations: list[dict[str, Any]], index: dict[int, int]) -> np.ndarray:
    """The mask of one photo from its annotations.

    Args:
        index: category id -> class index in [0, C).

    Returns:
        height x width uint8: background 0, class c as c + 1, crowds 255.

    Raises:
        DependencyError: pycocotools is not installed.
    """
    try:
        from pycocotools import mask as coco_mask
    except ImportError as error:
        raise DependencyError("COCO masks need pycocotools: pip install 'afactl[coco]'") from error
    out = np.zeros((height, width), np.uint8)
    # Crowds first, then large before small: what comes later lies on top.
    for one in sorted(annotations, key=lambda one: (not one.get("iscrowd"), -one["area"])):
        shape = one["segmentation"]
        if isinstance(shape, list):
            shape = coco_mask.merge(coco_mask.frPyObjects(shape, height, width))
        elif isinstance(shape["counts"], list):
            shape = coco_mask.frPyObjects(shape, height, width)
        out[coco_mask.decode(shape) > 0] = IGNORE if one.get("iscrowd") else index[one["category_id"]] + 1
    return out
