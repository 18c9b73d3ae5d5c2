"""Forms in which `predict` hands over masks.

png             one indexed PNG per photo: 0 background, class c as c + 1
grey            the same numbers as grey values, for programs that would show the colours of an indexed PNG
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
import csv
import functools
import io
import json
import os
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import ClassVar, NamedTuple
from urllib.parse import quote

import numpy as np
from PIL import Image
from torch import Tensor

from afactl.datasets.mask_encodings import voc_palette
from afactl.datasets.masks import enlarge_mask, indexed_png, write_mask
from afactl.errors import DependencyError
from afactl.files import is_utf8, whole_file
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

    Attributes:
        gathered: names of the files in the output folder that hold all photos together, where there are any; those
            of single photos then lie below PARTS, which goes when the job ends.
        numbered: whether its files hold numbers of classes that only CLASS_TABLE beside them names.
        category_ids: the dataset's own numbers of the classes, which `predict` sets; () where class c is c + 1.
    """

    gathered: ClassVar[tuple[str, ...]] = ()
    numbered: ClassVar[bool] = False
    category_ids: Sequence[int] = ()

    def __init__(self, out: Path, classes: Sequence[str], palette: str = "safe") -> None:
        self.out, self.classes, self.palette = out, classes, palette

    def objection(self, paths: Sequence[Path], crf: bool) -> str | None:
        """Why this form cannot hold these masks or classes, and what to do; None where it can. Asked before any work.

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

    def files(self, paths: Sequence[Path]) -> list[Path]:
        """The files that stay when the masks with these paths are written."""
        return [self.out / name for name in self.gathered] or [self.target(path) for path in paths]

    def close(self, paths: Sequence[Path]) -> None:  # noqa: B027  (most forms have nothing to gather)
        """Gather the files of these photos into `gathered`, where the form has such."""


def writer_class(form: str) -> type[Writer]:
    """The writer of a form.

    Raises:
        PresetError: no such form. DependencyError: the package that brings it cannot be imported.
    """
    entry = WRITERS.get(form)
    if not (isinstance(entry, type) and issubclass(entry, Writer)):
        raise WRITERS.strange(form, entry, "a subclass of afactl.prediction.writers.Writer")
    return entry


def class_table(classes: Sequence[str]) -> str:
    """What stands in CLASS_TABLE: value, name and colour in VOC's palette.

    Example:
        >>> print(class_table(["dog", "cat, wild"]), end="")
        value,name,colour
        0,background,#000000
        1,dog,#800000
        2,"cat, wild",#008000
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("value", "name", "colour"))
    for value, name in enumerate(("background", *classes)):
        writer.writerow((value, name, "#" + bytes(voc_palette()[value].tolist()).hex()))
    return text.getvalue()


class PngWriter(Writer):
    """Indexed masks with the VOC palette."""

    numbered = True

    def target(self, path: Path) -> Path:
        return self.out / path

    def add(self, labelled: Labelled) -> None:
        write_mask(self.target(labelled.path), labelled.full)


class GreyWriter(Writer):
    """Masks whose grey values are the numbers of the classes; OpenCV and FiftyOne read indexed ones as colours."""

    numbered = True

    def target(self, path: Path) -> Path:
        return self.out / path

    def add(self, labelled: Labelled) -> None:
        with whole_file(self.target(labelled.path)) as fresh:
            Image.fromarray(labelled.full).save(fresh, format="PNG")


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

    numbered = True

    def objection(self, paths: Sequence[Path], crf: bool) -> str | None:
        """The CRF gives masks, no probabilities."""
        return "they are those of the network; leave --crf out" if crf else None

    def target(self, path: Path) -> Path:
        return self.out / path.with_suffix(".npy")

    def add(self, labelled: Labelled) -> None:
        with whole_file(self.target(labelled.path)) as fresh, open(fresh, "wb") as file:
            np.save(file, labelled.logits.float().softmax(0).cpu().numpy().astype(np.float16))


class CocoWriter(Writer):
    """COCO's result list: image_id, category_id, segmentation, score; and file_name, the photo.

    category_id is the dataset's own number of the class where it has such, as COCO, else class c is c + 1.

    image_id is the number where the photo is named like those of COCO, else its path. The score is the mean
    probability of the class over its pixels.
    """

    gathered = ("results.json",)

    def __init__(self, out: Path, classes: Sequence[str], palette: str = "safe") -> None:
        super().__init__(out, classes, palette)
        try:
            from pycocotools import mask as coco_mask
        except ImportError as error:
            raise DependencyError("--format coco-rle needs pycocotools: pip install 'afactl[coco]'") from error
        self.encode = coco_mask.encode

    def objection(self, paths: Sequence[Path], crf: bool) -> str | None:
        """Two photos must not have one image_id."""
        owners: dict[int | str, Path] = {}
        for path in paths:
            other = owners.setdefault(coco_image_id(path), path)
            if other != path:
                both = " and ".join(clashing.with_suffix("").as_posix() for clashing in (other, path))
                return f"{both} would both be image_id {coco_image_id(path)}; predict them into different --out folders"
        return None

    def target(self, path: Path) -> Path:
        return self.out / PARTS / "coco-rle" / path.with_suffix(".json")

    def add(self, labelled: Labelled) -> None:
        full, probabilities = labelled.full, labelled.logits.float().softmax(0).cpu().numpy()
        entries = []
        for value in np.unique(labelled.mask[labelled.mask > 0]).tolist():
            shape = self.encode(np.asfortranarray(full == value, np.uint8))
            counts = shape["counts"]  # ASCII, as bytes
            score = float(probabilities[value][labelled.mask == value].mean())
            entries.append(
                {
                    "image_id": coco_image_id(labelled.path),
                    "file_name": labelled.photo.as_posix(),
                    "category_id": self.category_ids[value - 1] if self.category_ids else value,
                    "segmentation": {
                        "size": list(shape["size"]),
                        "counts": counts if isinstance(counts, str) else counts.decode("ascii"),
                    },
                    "score": round(score, 4),
                }
            )
        with whole_file(self.target(labelled.path)) as fresh:
            fresh.write_text(",\n".join(map(json.dumps, entries)), encoding="utf-8")

    def close(self, paths: Sequence[Path]) -> None:
        texts = (self.target(path).read_text(encoding="utf-8") for path in paths)
        _gather_json(self.out / "results.json", texts)


def coco_image_id(path: Path) -> int | str:
    """The id of a photo in COCO's list, by the path of its mask: 42 of `000000000042.png` or of
    `COCO_val2014_000000000042.png`; of any other name the path without its suffix."""
    number = re.fullmatch(r"(?:COCO_[a-z]+\d+_)?(\d+)", path.stem, re.ASCII)
    return int(number[1]) if number else path.with_suffix("").as_posix()


class VocServerWriter(Writer):
    """What the PASCAL VOC evaluation server takes: every mask in one folder."""

    gathered = ("results.zip",)

    def objection(self, paths: Sequence[Path], crf: bool) -> str | None:
        """The server knows masks by their name alone."""
        (name, times), *_ = Counter(path.name for path in paths).most_common(1)
        if times == 1:
            return _objection_to_names(paths)
        return f"{times} photos are named {Path(name).stem}; predict them into different --out folders"

    def target(self, path: Path) -> Path:
        return self.out / PARTS / "voc-server" / path

    def add(self, labelled: Labelled) -> None:
        with whole_file(self.target(labelled.path)) as fresh:
            indexed_png(labelled.full).save(fresh, format="PNG")

    def close(self, paths: Sequence[Path]) -> None:
        with whole_file(self.out / "results.zip") as fresh, zipfile.ZipFile(fresh, "w") as archive:
            for path in paths:
                archive.write(self.target(path), f"{VOC_FOLDER}/{path.name}")


class CvatWriter(Writer):
    """CVAT's "Segmentation mask 1.1": coloured masks of classes, a list, and what the colours mean.

    A line of `labelmap.txt` is name:color:parts:actions, and one that begins with # is none; there are no escapes.
    """

    gathered = ("masks.zip",)

    def objection(self, paths: Sequence[Path], crf: bool) -> str | None:
        """The list of colours and the list of photos hold one name per line."""
        for name in self.classes:
            if name != name.strip() or not name or name[0] == "#" or name == "background" or not _is_plain(name, ":"):
                return (
                    f"CVAT's list of classes cannot hold {name!r}: no colon, no line break, no # in front and no "
                    "blanks around a name, and none called background; rename the class"
                )
        return _objection_to_names(paths)

    def target(self, path: Path) -> Path:
        return self.out / PARTS / "cvat" / path

    def add(self, labelled: Labelled) -> None:
        with whole_file(self.target(labelled.path)) as fresh:
            Image.fromarray(voc_palette()[labelled.full]).save(fresh, format="PNG")

    def close(self, paths: Sequence[Path]) -> None:
        colors = voc_palette().tolist()
        lines = [
            f"{name}:{','.join(map(str, colors[value]))}::" for value, name in enumerate(("background", *self.classes))
        ]
        with whole_file(self.out / "masks.zip") as fresh, zipfile.ZipFile(fresh, "w") as archive:
            for path in paths:
                archive.write(self.target(path), f"SegmentationClass/{path.as_posix()}")
            archive.writestr(
                "ImageSets/Segmentation/default.txt", "".join(f"{path.with_suffix('').as_posix()}\n" for path in paths)
            )
            archive.writestr(
                "labelmap.txt", "# label:color_rgb:parts:actions\n" + "".join(f"{line}\n" for line in lines)
            )


class LabelStudioWriter(Writer):
    """Tasks for Label Studio with the masks as predictions; the photos are looked for in its local storage."""

    gathered = ("tasks.json", "labeling.xml")

    def objection(self, paths: Sequence[Path], crf: bool) -> str | None:
        """XML has no control characters, not even by escapes."""
        for name in self.classes:
            if re.search("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]", name):
                return f"labeling.xml cannot hold the characters of the class {name!r}; rename the class"
        return None

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
            "data": {"image": f"/data/local-files/?d={quote(os.fsencode(labelled.photo.as_posix()))}"},
            "predictions": [{"model_version": "afactl", "result": brushes}],
        }
        with whole_file(self.target(labelled.path)) as fresh:
            fresh.write_text(json.dumps(task), encoding="utf-8")

    def close(self, paths: Sequence[Path]) -> None:
        with whole_file(self.out / "labeling.xml") as fresh:
            fresh.write_text(labeling_config(self.classes, voc_palette().tolist()), encoding="utf-8")
        _gather_json(self.out / "tasks.json", (self.target(path).read_text(encoding="utf-8") for path in paths))


def _is_plain(name: str, separators: str = "") -> bool:
    """Whether a name can stand on a line of UTF-8 text, between these separators."""
    return is_utf8(name) and not set(name) & set("\n\r" + separators)


def _objection_to_names(paths: Sequence[Path]) -> str | None:
    """Archives hold names in UTF-8, and the lists in them one per line."""
    strange = next((path for path in paths if not _is_plain(str(path))), None)
    return (
        f"the name {str(strange.with_suffix(''))!r} is no UTF-8, or of two lines; rename the photo" if strange else None
    )


def _gather_json(target: Path, texts: Iterable[str]) -> None:
    """Write one JSON list of the entries in `texts`, without holding all of them."""
    with whole_file(target) as fresh, open(fresh, "w", encoding="utf-8") as file:
        lead = "[\n"
        for text in filter(None, texts):
            file.write(lead + text)
            lead = ",\n"
        file.write("\n]\n" if lead != "[\n" else "[]\n")
