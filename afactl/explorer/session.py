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
from afactl.datasets.registry import dataset_folder, split_names
from afactl.datasets.samples import Sample, Split
from afactl.errors import AfactlError, DataError, UsageError, first_line
from afactl.evaluation.doubt import Doubt, doubts
from afactl.evaluation.segmentation import kept_photo_scores
from afactl.explorer.photo import LABEL_KEYS, MASKS, ExploredPhoto, WalkWith, label_preset
from afactl.inference.cams import likely_labels
from afactl.inference.refiners import REFINERS, refiner_title
from afactl.inference.trained_run import TrainedRun, open_split
from afactl.pictures.drawing import MAP_COLORS, Content, panel, resize_map
from afactl.pictures.figures import choose_heads, save_figure
from afactl.pictures.palettes import safe_palette
from afactl.presets import values_by_key
from afactl.runs.folder import read_scores
from afactl.runs.review import REVIEW, VERDICTS, Reviewed, photo_key, read_review, review_text, write_review

OWN = "own"  # in place of a split: photos that were dropped on the page
ORDERS = ("list", "worst", "doubt")
KEPT_PHOTOS = 8
THUMBNAIL_PIXELS = 96 * 96
# Where a page of the list ends, and the next one has to be asked for.
PAGE = 60


class Place(NamedTuple):
    """A photo, by the split it is in (or OWN) and its id there."""

    split: str
    photo: str


class _Doubting:
    """The doubts of a split, as far as they are known; a thread of its own passes the photos."""

    def __init__(self) -> None:
        self.known: dict[str, Doubt] = {}
        self.error = ""


class Session:
    """A run that is being explored.

    Args:
        run: trained. data: where its dataset lies, if not where it was trained from.

    Raises:
        DataError: the run's review list cannot be read.
    """

    def __init__(self, run: TrainedRun, data: Path | None = None) -> None:
        self.run = run
        self._data, self._root, self.no_photos = data, Path(), ""
        self._split_names: list[str] = []
        settings = run.preset.data
        try:
            self._root = dataset_folder(settings.name, settings.folder(data))
            self._split_names = split_names(settings.name, self._root)
        except AfactlError as error:  # own photos can be dropped all the same
            self.no_photos = str(error)
        self._splits: dict[str, Split] = {}
        self._own: dict[str, tuple[str, np.ndarray]] = {}
        self._opened: OrderedDict[Place, ExploredPhoto] = OrderedDict()
        self._network, self._list = threading.RLock(), threading.RLock()
        self._verdicts = read_review(self._review_file)
        self._doubting: dict[str, _Doubting] = {}

    @property
    def _review_file(self) -> Path:
        return self.run.folder / REVIEW

    def _require_run(self) -> None:
        """The run may be removed while somebody looks at it."""
        if not self.run.folder.is_dir():
            raise DataError(
                f"{self.run.folder}: the run is gone; bring it back, or stop this page and explore another one"
            )

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
            "splits": self._split_names,
            "first_split": preset.data.val_split,
            "no_photos": self.no_photos,
            "layers": backbone.attention_layers,
            "heads": backbone.attention_heads // backbone.attention_layers,
            "affinity": preset.affinity.enabled,
            "values": {key: values[key] for key in LABEL_KEYS},
            "refiners": {name: refiner_title(name) for name in REFINERS.names()},
            "masks": MASKS,
            "verdicts": VERDICTS,
        }

    # The list of photos

    def photos(self, split: str, search: str = "", order: str = "list", start: int = 0) -> dict[str, Any]:
        """A page of the photos of a split.

        Args:
            search: part of an id or of the name of a class, in any case. order: one of ORDERS.
            start: how many are left out.

        Returns:
            "photos": PAGE of them at most; "total"; "note": what is to be said of the order; "known", "all": how many
            doubts there are already, and will be.

        Raises:
            UsageError: no such order, or the split has no scores to be ordered by. DataError: no such split.
        """
        if order not in ORDERS:
            raise UsageError(f"order: expected one of {', '.join(ORDERS)}, got {order}")
        opened, note = self._split(split), ""
        scores = self._scores(opened) if order == "worst" else {}
        doubting = self._doubts(opened) if order == "doubt" else _Doubting()
        word = search.strip().casefold()
        samples = [sample for sample in opened.samples if not word or word in self._words(opened, sample)]
        if order == "worst":
            samples = sorted((s for s in samples if s.image_id in scores), key=lambda s: scores[s.image_id])
        if order == "doubt":
            known = doubting.known
            samples = sorted((s for s in samples if s.image_id in known), key=lambda s: -known[s.image_id].value)
            note = doubting.error
        shown = [self._entry(opened, sample, scores, doubting.known) for sample in samples[start : start + PAGE]]
        counts = {"known": len(doubting.known), "all": len(opened.samples)} if order == "doubt" else {}
        return {"photos": shown, "total": len(samples), "note": note, **counts}

    def _words(self, split: Split, sample: Sample) -> str:
        return "\n".join([sample.image_id, *(split.classes[label] for label in sample.labels)]).casefold()

    def _entry(
        self, split: Split, sample: Sample, scores: Mapping[str, float], known: Mapping[str, Doubt]
    ) -> dict[str, Any]:
        entry: dict[str, Any] = {"id": sample.image_id, "labels": [split.classes[label] for label in sample.labels]}
        entry["verdict"] = self._verdicts.get(self._reviewed(split, sample), "")
        if sample.image_id in scores:
            entry["miou"] = scores[sample.image_id]
        if sample.image_id in known:
            doubt = known[sample.image_id]
            entry["entropy"] = doubt.entropy
            entry["denied"] = [split.classes[label] for label in doubt.denied]
            entry["missed"] = [split.classes[label] for label in doubt.missed]
        return entry

    def _scores(self, split: Split) -> dict[str, float]:
        """mIoU in per cent of the photos of a split, as `afactl eval` left it."""
        self._require_run()
        split.require_masks("the order by score")
        values = kept_photo_scores(self.run, split, read_scores(self.run.folder))
        if values is None:
            raise UsageError(
                f"split {split.name}: not scored with these weights; "
                f"run `afactl eval --split {split.name} --run {self.run.folder}` first"
            )
        return {s.image_id: float(v) for s, v in zip(split.samples, values, strict=False) if np.isfinite(v)}

    def _doubts(self, split: Split) -> _Doubting:
        """The doubts as far as they are known; the first call begins to work them out."""
        with self._list:
            if split.name not in self._doubting or self._doubting[split.name].error:
                self._require_run()
                self._doubting[split.name] = _Doubting()
                threading.Thread(target=self._doubt, args=(split,), daemon=True).start()
            return self._doubting[split.name]

    def _doubt(self, split: Split) -> None:
        doubting = self._doubting[split.name]
        try:
            walk = doubts(self.run, split)
            while True:
                with self._network:
                    found = next(walk, None)
                if found is None:
                    return
                doubting.known = {**doubting.known, found[0]: found[1]}
        except AfactlError as error:
            doubting.error = str(error)
        except OSError as error:  # the run was removed
            doubting.error = first_line(error)

    def _split(self, name: str) -> Split:
        if self.no_photos:
            raise DataError(self.no_photos)
        with self._list:
            if name not in self._splits:
                self._splits[name] = open_split(self.run, name, self._data, masks=False)
            return self._splits[name]

    def _sample(self, place: Place) -> tuple[Split, Sample]:
        split = self._split(place.split)
        for sample in split.samples:
            if sample.image_id == place.photo:
                return split, sample
        raise UsageError(f"split {place.split}: has no photo {place.photo}")

    # One photo

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
        split, sample = self._sample(place)
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
            "verdict": "" if own else self._verdicts.get(self._reviewed(*self._sample(place)), ""),
        }

    def picture(self, place: Place) -> bytes:
        """The photo as a JPEG, as large as its maps."""
        return _jpeg(self.opened(place).image)

    def thumbnail(self, place: Place) -> bytes:
        """A small JPEG, without a pass through the network."""
        image = self._own[place.photo][1] if place.split == OWN else read_image(self._sample(place)[1].image_path)
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
        self._require_run()
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

    # The review list

    def _reviewed(self, split: Split, sample: Sample) -> Reviewed:
        return Reviewed(photo_key(sample.image_path, self._root), split.name)

    def judge(self, place: Place, verdict: str) -> dict[str, int]:
        """Keep a verdict about a photo, in the run's review list as well; "" takes it back.

        Returns:
            How many photos have each verdict.

        Raises:
            UsageError: no such verdict, or a photo of no split. DataError: the run is gone; the verdict is kept here,
                and in `review`.
        """
        if verdict not in ("", *VERDICTS):
            raise UsageError(f"verdict: expected one of {', '.join(VERDICTS)}, got {verdict}")
        if place.split == OWN:
            raise UsageError("a photo that was dropped on the page is in no list; put it into the dataset to review it")
        key = self._reviewed(*self._sample(place))
        with self._list:
            if verdict:
                self._verdicts[key] = verdict
            else:
                self._verdicts.pop(key, None)
            self._require_run()
            write_review(self._review_file, self._verdicts)
            return self.counts()

    def counts(self) -> dict[str, int]:
        """How many photos have each verdict."""
        return {verdict: list(self._verdicts.values()).count(verdict) for verdict in VERDICTS}

    def review(self) -> str:
        """The review list as it is here, whatever became of the run."""
        return review_text(self._verdicts)


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
