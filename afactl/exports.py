"""Forms in which `predict` hands over masks.

png             one indexed PNG per photo: 0 background, class c as c + 1
overlay         the photo with its mask over it
probabilities   one .npy per photo: K x h x w float16, sums to 1 over K
coco-rle        results.json: COCO's result list, one entry per photo and class, masks as run lengths
voc-server      results.zip: the folders of the PASCAL VOC evaluation server (comp6)
cvat            masks.zip: "Segmentation mask 1.1", which CVAT imports

Files with many photos in them are written under another name and renamed when they are whole.
"""

from __future__ import annotations

import io
import json
import os
import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from PIL import Image
from torch import Tensor

from afactl.datasets.images import enlarge_mask, indexed_png, voc_palette, write_mask
from afactl.errors import DependencyError, UsageError
from afactl.visualization import overlay

VOC_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"


class Labelled(NamedTuple):
    """One photo with its mask.

    Attributes:
        path: of the mask below the output folder, with the suffix .png.
        size: (h, w) of the photo. image, mask: at the size that was labelled, which is smaller for large photos.
        logits: K x h x w of `mask`'s size.
    """

    path: Path
    size: tuple[int, int]
    image: np.ndarray
    mask: np.ndarray
    logits: Tensor

    @property
    def full(self) -> np.ndarray:
        """The mask at the photo's size."""
        return enlarge_mask(self.mask, self.size)


class Writer(Protocol):
    """Takes photos one after the other; `close` gives the file that holds all of them, if there is one."""

    def add(self, one: Labelled) -> Path | None: ...

    def close(self) -> Path | None: ...


class _PerPhoto:
    """A writer with one file per photo."""

    def __init__(self, out: Path, classes: Sequence[str]) -> None:
        self.out = out

    def close(self) -> None:
        """Nothing is left to write."""


class PngWriter(_PerPhoto):
    """Indexed masks with the VOC palette."""

    def add(self, one: Labelled) -> Path:
        write_mask(self.out / one.path, one.full)
        return self.out / one.path


class OverlayWriter(_PerPhoto):
    """Photos with their masks over them, at the size that was labelled."""

    def add(self, one: Labelled) -> Path:
        target = self.out / one.path.with_name(f"{one.path.stem}_overlay.png")
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(overlay(one.image, one.mask)).save(target)
        return target


class ProbabilityWriter(_PerPhoto):
    """softmax over the classes, before any CRF, at the size that was labelled."""

    def add(self, one: Labelled) -> Path:
        target = self.out / one.path.with_suffix(".npy")
        target.parent.mkdir(parents=True, exist_ok=True)
        fresh = target.with_name(target.name + ".part")
        with open(fresh, "wb") as file:
            np.save(file, one.logits.float().softmax(0).cpu().numpy().astype(np.float16))
        os.replace(fresh, target)
        return target


class CocoWriter:
    """COCO's result list: image_id, category_id (class c as c + 1), segmentation, score.

    image_id is the number at the end of the file's name where there is one, as in COCO, else the path. The
    score is the mean probability of the class over its pixels.
    """

    def __init__(self, out: Path, classes: Sequence[str]) -> None:
        try:
            from pycocotools import mask as coco_mask
        except ImportError as error:
            raise DependencyError("--format coco-rle needs pycocotools: pip install 'afactl[coco]'") from error
        self.encode = coco_mask.encode
        self.target = out / "results.json"
        self.entries: list[dict[str, Any]] = []

    def add(self, one: Labelled) -> None:
        number = re.search(r"(\d+)$", one.path.stem)
        image_id = int(number[1]) if number else one.path.with_suffix("").as_posix()
        full, probabilities = one.full, one.logits.float().softmax(0).cpu().numpy()
        for value in np.unique(one.mask[one.mask > 0]).tolist():
            shape = self.encode(np.asfortranarray(full == value, np.uint8))
            score = float(probabilities[value][one.mask == value].mean())
            shape = {"size": list(shape["size"]), "counts": shape["counts"].decode("ascii")}
            self.entries.append({"image_id": image_id, "category_id": value, "segmentation": shape, "score": round(score, 4)})

    def close(self) -> Path:
        self.target.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.target.with_name(self.target.name + ".part")
        fresh.write_text(json.dumps(self.entries), encoding="utf-8")
        os.replace(fresh, self.target)
        return self.target


class _Archive:
    """A zip file that takes its name when it is whole."""

    name = "masks.zip"

    def __init__(self, out: Path, classes: Sequence[str]) -> None:
        self.target, self.classes = out / self.name, classes
        out.mkdir(parents=True, exist_ok=True)
        self.fresh = self.target.with_name(self.name + ".part")
        self.zip = zipfile.ZipFile(self.fresh, "w", zipfile.ZIP_DEFLATED)
        self.members: set[str] = set()

    def put(self, member: str, content: bytes) -> None:
        if member in self.members:
            raise UsageError(f"{self.target}: two photos are named {Path(member).stem}; predict them into different --out folders")
        self.members.add(member)
        self.zip.writestr(member, content)

    def close(self) -> Path:
        self.zip.close()
        os.replace(self.fresh, self.target)
        return self.target


class VocServerWriter(_Archive):
    """What the PASCAL VOC evaluation server takes: every mask in one folder."""

    name = "results.zip"

    def add(self, one: Labelled) -> None:
        self.put(f"{VOC_FOLDER}/{one.path.name}", _png_bytes(indexed_png(one.full)))


class CvatWriter(_Archive):
    """CVAT's "Segmentation mask 1.1": coloured masks of classes, a list, and what the colours mean."""

    def add(self, one: Labelled) -> None:
        self.put(f"SegmentationClass/{one.path.as_posix()}", _png_bytes(Image.fromarray(voc_palette()[one.full])))

    def close(self) -> Path:
        names = [Path(member).relative_to("SegmentationClass").with_suffix("").as_posix() for member in self.members]
        self.zip.writestr("ImageSets/Segmentation/default.txt", "".join(f"{name}\n" for name in sorted(names)))
        colors = voc_palette().tolist()
        lines = [f"{name}:{','.join(map(str, colors[value]))}::" for value, name in enumerate(("background", *self.classes))]
        self.zip.writestr("labelmap.txt", "# label:color_rgb:parts:actions\n" + "".join(f"{line}\n" for line in lines))
        return super().close()


def _png_bytes(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format="PNG")
    return buffer.getvalue()


WRITERS: dict[str, type[Any]] = {
    "png": PngWriter, "overlay": OverlayWriter, "probabilities": ProbabilityWriter,
    "coco-rle": CocoWriter, "voc-server": VocServerWriter, "cvat": CvatWriter,
}  # fmt: skip
