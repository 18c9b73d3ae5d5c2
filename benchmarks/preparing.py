"""Memory of `afactl data prepare coco` as the annotations grow: python benchmarks/preparing.py

Made annotations with as many objects per photo and bytes per object as those of COCO train2014 have; the
photos are small, so that drawing does not take the day.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from ratio import machine

from afactl.datasets import coco

# The second one is COCO train2014.
PHOTOS = (20_000, 82_783, 250_000)
OBJECTS, POINTS, SIDE = 7.3, 22, 64


def write_annotations(path: Path, photos: int) -> None:
    """A file like instances_train2014.json, written as a stream."""
    rng = np.random.default_rng(0)
    polygons = [(SIDE * rng.random(2 * POINTS)).round(2).tolist() for _ in range(1000)]
    path.parent.mkdir(parents=True)
    with open(path, "w", encoding="utf-8") as file:
        file.write(
            '{"categories": ' + json.dumps([{"id": i, "name": f"class {i}"} for i in range(1, 81)]) + ', "images": ['
        )
        for i in range(photos):
            file.write(
                ("," if i else "")
                + json.dumps(
                    {"id": i, "file_name": f"COCO_train2014_{i:012}.jpg", "height": SIDE, "width": SIDE, "license": 3}
                )
            )
        file.write('], "annotations": [')
        for i in range(round(OBJECTS * photos)):
            one = {
                "id": i,
                "image_id": int(rng.integers(photos)),
                "category_id": i % 80 + 1,
                "iscrowd": 0,
                "area": 500.0 + i % 99,
                "bbox": [1.0, 2.0, 30.5, 40.5],
                "segmentation": [polygons[i % 1000]],
            }
            file.write(("," if i else "") + json.dumps(one))
        file.write("]}")


if __name__ == "__main__":
    machine()
    for photos in PHOTOS:
        with tempfile.TemporaryDirectory() as folder:
            path = coco.annotations_path(Path(folder), "train")
            write_annotations(path, photos)
            start = time.perf_counter()
            job = subprocess.Popen(
                [sys.executable, "-m", "afactl", "data", "prepare", "coco", "--data", folder],
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            _, status, used = os.wait4(job.pid, 0)
            size = path.stat().st_size / 2**20
            print(
                f"{photos} photos, {size:.0f} MiB of annotations: peak {used.ru_maxrss / 1024:.0f} MiB, "
                f"{time.perf_counter() - start:.0f} s, status {status}",
                flush=True,
            )
