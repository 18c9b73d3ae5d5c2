"""Forms in which `predict` hands over masks.

png             one indexed PNG per photo: 0 background, class c as c + 1
overlay         the photo with its mask over it
probabilities   one .npy per photo: K x h x w float16, sums to 1 over K
coco-rle        results.json: COCO's result list, one entry per photo and class, masks as run lengths
voc-server      results.zip: the folders of the PASCAL VOC evaluation server (comp6)
cvat            masks.zip: "Segmentation mask 1.1", which CVAT imports
label-studio    tasks.json with the masks as predictions, and labeling.xml with the interface for them

Every photo's file is written first, so that a killed job goes on; the last four are gathered at the end.
"""

from __future__ import annotations

import abc
import functools
import json
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image
from torch import Tensor

from afactl.datasets.masks import enlarge_mask, indexed_png, voc_palette, write_mask
from afactl.errors import DependencyError
from afactl.files import whole_file
from afactl.pictures.drawing import overlay
from afactl.pictures.palettes import PALETTES
from afactl.prediction.label_studio import brush_rle, labeling_config
from afactl.prediction.registry import WRITERS
from afactl.prediction.unfinished import FOLDER as UNFINISHED

# Where forms that gather all photos in one file keep those of single photos until then.
PARTS = f"{UNFINISHED}/parts"
VOC_FOLDER = "results/VOC2012/Segmentation/comp6_test_cls"


class Labelled(NamedTuple):
    """One photo with its mask.

    Attributes:
        path: of the mask below the output folder, with the suffix .png.
        photo: name of the photo, with its folders below the one that was given.
        size: (h, w) of the photo. image, mask: at the size that was labelled, which is smaller for large photos.
        logits: K x h x w of `mask`'s size.
    """

    path: Path
    photo: Path
    size: tuple[int, int]
    image: np.ndarray
    mask: np.ndarray
    logits: Tensor

    @property
    def full(self) -> np.ndarray:
        """The mask at the photo's size."""
        return enlarge_mask(self.mask, self.size)


class Writer(abc.ABC):
    """Takes photos one after the other. Every photo becomes a file of its own, whole or not at all.

    Args:
        out: the output folder. classes: C names.
        palette: colours of pictures that are drawn, one of PALETTES; masks have those of VOC.
    """

    def __init__(self, out: Path, classes: Sequence[str], palette: str = "safe") -> None:
        self.out, self.classes, self.palette = out, classes, palette

    @classmethod
    def objection(cls, paths: Sequence[Path], crf: bool) -> str | None:
        """Why this form cannot hold these masks, and what to do; None where it can. Asked before any work.

        Args:
            paths: of the masks, below the output folder. crf: whether the masks are refined by the CRF.
        """
        return None

    @abc.abstractmethod
    def target(self, path: Path) -> Path:
        """The file of the photo with this mask path."""

    @abc.abstractmethod
    def add(self, labelled: Labelled) -> None:
        """Write the file of a photo."""

    def close(self, paths: Sequence[Path]) -> Path | None:
        """Gather the files of these photos into one and give its name; None where they stay files of their own."""
        return None


def writer_class(form: str) -> type[Writer]:
    """The writer of a form.

    Raises:
        PresetError: no such form. DependencyError: the package that brings it cannot be imported.
    """
    found = WRITERS.get(form)
    if not (isinstance(found, type) and issubclass(found, Writer)):
        raise WRITERS.strange(form, found, "a subclass of afactl.prediction.writers.Writer")
    return found


class PngWriter(Writer):
    """Indexed masks with the VOC palette."""

    def target(self, path: Path) -> Path:
        return self.out / path

    def add(self, labelled: Labelled) -> None:
        write_mask(self.target(labelled.path), labelled.full)


class OverlayWriter(Writer):
    """Photos with their masks over them, with contours and class names, at the size that was labelled."""

    @functools.cached_property
    def colors(self) -> np.ndarray:
        """RGB of the background, then of each class."""
        return PALETTES[self.palette]()

    def target(self, path: Path) -> Path:
        return self.out / path.with_name(f"{path.stem}_overlay.png")

    def add(self, labelled: Labelled) -> None:
        with whole_file(self.target(labelled.path)) as fresh:
            picture = overlay(labelled.image, labelled.mask, self.colors, classes=self.classes)
            Image.fromarray(picture).save(fresh, format="PNG")


class ProbabilityWriter(Writer):
    """softmax over the classes, before any CRF, at the size that was labelled."""

    @classmethod
    def objection(cls, paths: Sequence[Path], crf: bool) -> str | None:
        """The CRF gives masks, no probabilities."""
        return "they are those of the network; leave --crf out" if crf else None

    def target(self, path: Path) -> Path:
        return self.out / path.with_suffix(".npy")

    def add(self, labelled: Labelled) -> None:
        with whole_file(self.target(labelled.path)) as fresh, open(fresh, "wb") as file:
            np.save(file, labelled.logits.float().softmax(0).cpu().numpy().astype(np.float16))


class CocoWriter(Writer):
    """COCO's result list: image_id, category_id (class c as c + 1), segmentation, score.

    image_id is the number at the end of the file's name where there is one, as in COCO, else the path. The
    score is the mean probability of the class over its pixels.
    """

    def __init__(self, out: Path, classes: Sequence[str], palette: str = "safe") -> None:
        super().__init__(out, classes, palette)
        try:
            from pycocotools import mask as coco_mask
        except ImportError as error:
            raise DependencyError("--format coco-rle needs pycocotools: pip install 'afactl[coco]'") from error
        self.encode = coco_mask.encode

    def target(self, path: Path) -> Path:
        return self.out / PARTS / "coco-rle" / path.with_suffix(".json")

    def add(self, labelled: Labelled) -> None:
        number = re.search(r"(\d+)$", labelled.path.stem)
        image_id = int(number[1]) if number else labelled.path.with_suffix("").as_posix()
        full, probabilities = labelled.full, labelled.logits.float().softmax(0).cpu().numpy()
        entries = []
        for value in np.unique(labelled.mask[labelled.mask > 0]).tolist():
            shape = self.encode(np.asfortranarray(full == value, np.uint8))
            counts = shape["counts"]  # ASCII, as bytes
            score = float(probabilities[value][labelled.mask == value].mean())
            entries.append(
                {
                    "image_id": image_id,
                    "category_id": value,
                    "segmentation": {
                        "size": list(shape["size"]),
                        "counts": counts if isinstance(counts, str) else counts.decode("ascii"),
                    },
                    "score": round(score, 4),
                }
            )
        with whole_file(self.target(labelled.path)) as fresh:
            fresh.write_text(",\n".join(map(json.dumps, entries)), encoding="utf-8")

    def close(self, paths: Sequence[Path]) -> Path:
        target = self.out / "results.json"
        _gather_json(target, (self.target(path).read_text(encoding="utf-8") for path in paths))
        return target


class VocServerWriter(Writer):
    """What the PASCAL VOC evaluation server takes: every mask in one folder."""

    @classmethod
    def objection(cls, paths: Sequence[Path], crf: bool) -> str | None:
        """The server knows masks by their name alone."""
        (name, times), *_ = Counter(path.name for path in paths).most_common(1)
        if times == 1:
            return None
        return f"{times} photos are named {Path(name).stem}; predict them into different --out folders"

    def target(self, path: Path) -> Path:
        return self.out / PARTS / "voc-server" / path

    def add(self, labelled: Labelled) -> None:
        with whole_file(self.target(labelled.path)) as fresh:
            indexed_png(labelled.full).save(fresh, format="PNG")

    def close(self, paths: Sequence[Path]) -> Path:
        target = self.out / "results.zip"
        with whole_file(target) as fresh, zipfile.ZipFile(fresh, "w") as archive:
            for path in paths:
                archive.write(self.target(path), f"{VOC_FOLDER}/{path.name}")
        return target


class CvatWriter(Writer):
    """CVAT's "Segmentation mask 1.1": coloured masks of classes, a list, and what the colours mean."""

    def target(self, path: Path) -> Path:
        return self.out / PARTS / "cvat" / path

    def add(self, labelled: Labelled) -> None:
        with whole_file(self.target(labelled.path)) as fresh:
            Image.fromarray(voc_palette()[labelled.full]).save(fresh, format="PNG")

    def close(self, paths: Sequence[Path]) -> Path:
        target = self.out / "masks.zip"
        colors = voc_palette().tolist()
        lines = [
            f"{name}:{','.join(map(str, colors[value]))}::" for value, name in enumerate(("background", *self.classes))
        ]
        with whole_file(target) as fresh, zipfile.ZipFile(fresh, "w") as archive:
            for path in paths:
                archive.write(self.target(path), f"SegmentationClass/{path.as_posix()}")
            archive.writestr(
                "ImageSets/Segmentation/default.txt", "".join(f"{path.with_suffix('').as_posix()}\n" for path in paths)
            )
            archive.writestr(
                "labelmap.txt", "# label:color_rgb:parts:actions\n" + "".join(f"{line}\n" for line in lines)
            )
        return target


class LabelStudioWriter(Writer):
    """Tasks for Label Studio with the masks as predictions; the photos are looked for in its local storage."""

    def target(self, path: Path) -> Path:
        return self.out / PARTS / "label-studio" / path.with_suffix(".json")

    def add(self, labelled: Labelled) -> None:
        full, probabilities = labelled.full, labelled.logits.float().softmax(0).cpu().numpy()
        brushes = []
        for value in np.unique(labelled.mask[labelled.mask > 0]).tolist():
            name = self.classes[value - 1]
            brushes.append(
                {
                    "type": "brushlabels",
                    "from_name": "tag",
                    "to_name": "image",
                    "image_rotation": 0,
                    "original_width": labelled.size[1],
                    "original_height": labelled.size[0],
                    "value": {"format": "rle", "rle": brush_rle(full == value), "brushlabels": [name]},
                    "score": round(float(probabilities[value][labelled.mask == value].mean()), 4),
                }
            )
        task = {
            "data": {"image": f"/data/local-files/?d={quote(labelled.photo.as_posix())}"},
            "predictions": [{"model_version": "afactl", "result": brushes}],
        }
        with whole_file(self.target(labelled.path)) as fresh:
            fresh.write_text(json.dumps(task), encoding="utf-8")

    def close(self, paths: Sequence[Path]) -> Path:
        with whole_file(self.out / "labeling.xml") as fresh:
            fresh.write_text(labeling_config(self.classes, voc_palette().tolist()), encoding="utf-8")
        target = self.out / "tasks.json"
        _gather_json(target, (self.target(path).read_text(encoding="utf-8") for path in paths))
        return target


def _gather_json(target: Path, texts: Iterable[str]) -> None:
    """Write one JSON list of the entries in `texts`, without holding all of them."""
    with whole_file(target) as fresh, open(fresh, "w", encoding="utf-8") as file:
        lead = "[\n"
        for text in filter(None, texts):
            file.write(lead + text)
            lead = ",\n"
        file.write("\n]\n" if lead != "[\n" else "[]\n")
