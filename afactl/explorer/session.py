"""What the page of `afactl explore` asks for, without HTTP: photos, maps, labels, verdicts.

One request at a time uses the network; photos that were looked at last are kept.
"""

from __future__ import annotations

import io
import threading
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, cast

import matplotlib
import numpy as np
from PIL import Image

from afactl.datasets.images import decode_image, read_image, reduce_image
from afactl.datasets.masks import enlarge_mask
from afactl.errors import UsageError
from afactl.explorer.photo import LABEL_KEYS, MASKS, ExploredPhoto, WalkWith, label_preset
from afactl.explorer.photo_list import PhotoList, require_folder
from afactl.explorer.verdicts import Verdicts
from afactl.inference.cams import likely_labels
from afactl.inference.refiners import REFINERS, refiner_title
from afactl.inference.trained_run import TrainedRun
from afactl.pictures.drawing import MAP_COLORS, Content, panel, resize_map
from afactl.pictures.figures import choose_heads, save_figure
from afactl.pictures.palettes import safe_palette
from afactl.presets import values_by_key
from afactl.runs.review import VERDICTS

OWN = "own"  # in place of a split: photos that were dropped on the page
KEPT_PHOTOS = 8
THUMBNAIL_PIXELS = 96 * 96


class Place(NamedTuple):
    """A photo, by the split it is in (or OWN) and its id there."""

    split: str
    photo: str


class Session:
    """A run that is being explored.

    Args:
        run: trained. data: where its dataset lies, if not where it was trained from.

    Attributes:
        list: of the photos. verdicts: about them.

    Raises:
        DataError: the run's review list cannot be read.
    """

    def __init__(self, run: TrainedRun, data: Path | None = None) -> None:
        self.run = run
        self._network = threading.RLock()
        self.list = PhotoList(run, data, self._network)
        self.verdicts = Verdicts(run, self.list.root)
        self._own: dict[str, tuple[str, np.ndarray]] = {}
        self._opened: OrderedDict[Place, ExploredPhoto] = OrderedDict()

    def about(self) -> dict[str, Any]:
        """What the page has to know of the run."""
        preset, backbone = self.run.preset, self.run.model.backbone
        values = values_by_key(preset)
        return {
            "run": str(self.run.folder),
            "step": self.run.iteration,
            "classes": list(self.run.architecture.classes),
            "palette": safe_palette().tolist(),
            "colors": (255 * matplotlib.colormaps[MAP_COLORS](np.arange(256))[:, :3]).round().astype(int).tolist(),
            "splits": self.list.split_names,
            "first_split": preset.data.val_split,
            "no_photos": self.list.missing,
            "layers": backbone.attention_layers,
            "heads": backbone.attention_heads // backbone.attention_layers,
            "affinity": preset.affinity.enabled,
            "values": {key: values[key] for key in LABEL_KEYS},
            "refiners": {name: refiner_title(name) for name in REFINERS.names()},
            "masks": MASKS,
            "verdicts": VERDICTS,
        }

    def photos(self, split: str, search: str = "", order: str = "list", start: int = 0) -> dict[str, Any]:
        """A page of the photos of a split.

        Args:
            search: part of an id or of the name of a class, in any case. order: one of photo_list.ORDERS.
            start: how many are left out.

        Returns:
            "photos": photo_list.PAGE of them at most; "total"; "note": what is to be said of the order; "known", "all":
            how many doubts there are already, and will be.

        Raises:
            UsageError: no such order, or the split has no scores to be ordered by. DataError: no such split.
        """
        return self.list.page(split, search, order, start, self.verdicts.of)

    def judge(self, place: Place, verdict: str) -> dict[str, int]:
        """Keep a verdict about a photo: `Verdicts.give`.

        Raises:
            UsageError: also for a photo of no split.
        """
        if place.split == OWN:
            raise UsageError("a photo that was dropped on the page is in no list; put it into the dataset to review it")
        return self.verdicts.give(place.split, self.list.sample(*place), verdict)

    def add_own(self, name: str, content: bytes) -> Place:
        """Take a photo that is no file of a split; it is kept as long as the page is served.

        Raises:
            DataError: it is no photo.
        """
        image = decode_image(name, content)
        place = Place(OWN, str(len(self._own) + 1))
        self._own[place.photo] = (name, reduce_image(image, self.run.preset.cam.max_pixels))
        return place

    def opened(self, place: Place) -> ExploredPhoto:
        """A photo, passed through the network at its first call.

        Raises:
            UsageError: no such photo. DataError: it cannot be read.
        """
        with self._network:
            if place not in self._opened:
                self._opened[place] = self._open(place)
                while len(self._opened) > KEPT_PHOTOS:
                    self._opened.popitem(last=False)
            self._opened.move_to_end(place)
            return self._opened[place]

    def _open(self, place: Place) -> ExploredPhoto:
        if place.split == OWN:
            if place.photo not in self._own:
                raise UsageError(f"own photo {place.photo}: is not here any more; drop it on the page again")
            name, image = self._own[place.photo]
            return ExploredPhoto(self.run, name, image, tuple(sorted(likely_labels(self.run, image))), found=True)
        split, sample = self.list.split(place.split), self.list.sample(*place)
        image = reduce_image(read_image(sample.image_path), self.run.preset.cam.max_pixels)
        truth = None
        if split.masks is not None and ((path := split.masks.path(sample)) is None or path.is_file()):
            truth = enlarge_mask(split.masks.read(sample), image.shape[:2])
        return ExploredPhoto(self.run, sample.image_id, image, tuple(sample.labels), truth)

    def photo(self, place: Place) -> dict[str, Any]:
        """Name, size and tags of a photo; after this it answers at once."""
        photo = self.opened(place)
        with self._network:
            height, width = photo.passed.grid
        names = self.run.architecture.classes
        own = place.split == OWN
        return {
            "name": photo.name,
            "height": photo.size[0],
            "width": photo.size[1],
            "grid": [height, width],
            "labels": [names[label] for label in photo.labels],
            "found": photo.found,
            "truth": photo.truth is not None,
            "verdict": "" if own else self.verdicts.of(place.split, self.list.sample(*place)),
        }

    def picture(self, place: Place) -> bytes:
        """The photo as a JPEG, as large as its maps."""
        return _jpeg(self.opened(place).image)

    def thumbnail(self, place: Place) -> bytes:
        """A small JPEG, without a pass through the network."""
        image = self._own[place.photo][1] if place.split == OWN else read_image(self.list.sample(*place).image_path)
        return _jpeg(reduce_image(image, THUMBNAIL_PIXELS))

    def maps(self, place: Place, point: tuple[int, int], heads: tuple[int, int | None] | None = None) -> dict[str, Any]:
        """Attention and affinity of the token under a pixel, as integers of 0..255 between "low" and "high".

        Args:
            heads: as in `choose_heads`.

        Raises:
            UsageError: the pixel lies outside, or no such layer or head.
        """
        title, chosen = choose_heads(self.run, heads)
        photo = self.opened(place)
        with self._network:
            maps = photo.maps(point, chosen)
        return {"title": title, "attention": _scaled(maps.attention[0]), "affinity": _scaled(maps.affinity[0])}

    def label(self, place: Place, values: Mapping[str, str], walk: str) -> tuple[bytes, dict[str, Any]]:
        """The pseudo label by other values of LABEL_KEYS, as `encoded_mask`, and what is to be said about it.

        Raises:
            UsageError, PresetError: a value that cannot be.
        """
        preset = label_preset(self.run.preset, values)
        photo = self.opened(place)
        with self._network:
            made = photo.label(preset, cast(WalkWith, walk))
        return encoded_mask(made.label, None), {"miou": made.miou, "ignored": made.ignored}

    def mask(self, place: Place, name: str) -> tuple[bytes, dict[str, Any]]:
        """One of MASKS, as `encoded_mask`, and its score.

        Raises:
            UsageError: no such mask, or no truth.
        """
        photo = self.opened(place)
        with self._network:
            mask = photo.mask(name)
        return encoded_mask(mask.label, mask.probability), {"miou": mask.miou}

    def save_figure(
        self,
        place: Place,
        point: tuple[int, int],
        values: Mapping[str, str],
        walk: str,
        heads: tuple[int, int | None] | None = None,
    ) -> Path:
        """Save what is seen of a photo into the run's figures.

        Returns:
            The file; an earlier one is not replaced.
        """
        require_folder(self.run)
        title, chosen = choose_heads(self.run, heads)
        preset = label_preset(self.run.preset, values)
        photo = self.opened(place)
        with self._network:
            maps = photo.maps(point, chosen)
            label = photo.label(preset, cast(WalkWith, walk)).label
            masks = {name: photo.mask(name).label for name in MASKS if name != "truth" or photo.truth is not None}
        columns: list[tuple[str, Content]] = [("photo and query", photo.image)]
        columns.append((title, resize_map(maps.attention[0], photo.size)))
        if self.run.preset.affinity.enabled:
            columns.append(("learned affinity", resize_map(maps.affinity[0], photo.size)))
        changed = ", ".join(f"{key.rpartition('.')[2]} {value}" for key, value in values.items())
        columns.append((f"pseudo label, walk: {walk}\n{changed}".strip(), label))
        columns += masks.items()
        figure = panel([(photo.image, point, columns)], self.run.architecture.classes, safe_palette())
        stem = "".join(c if c.isalnum() or c in "-_" else "-" for c in Path(photo.name).stem)[:80] or "photo"
        folder = self.run.folder / "figures"
        number = 1
        while (target := folder / f"explored-{stem}-{number}.png").exists():
            number += 1
        return save_figure(figure, target)


def encoded_mask(label: np.ndarray, probability: np.ndarray | None) -> bytes:
    """A mask as a PNG for the page: red is the value of the label, green the probability in 1/255, blue nothing."""
    planes = np.zeros((*label.shape, 3), np.uint8)
    planes[..., 0] = label
    if probability is not None:
        planes[..., 1] = (255 * probability.clip(0, 1)).round()
    buffer = io.BytesIO()
    Image.fromarray(planes).save(buffer, format="PNG", compress_level=1)
    return buffer.getvalue()


def _scaled(values: np.ndarray) -> dict[str, Any]:
    low, high = float(values.min()), float(values.max())
    share = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return {"low": low, "high": high, "values": (255 * share).round().astype(int).ravel().tolist()}


def _jpeg(image: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, format="JPEG", quality=90)
    return buffer.getvalue()
