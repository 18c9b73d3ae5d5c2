"""Masks for any photos: files, folders and globs, without label files."""

from __future__ import annotations

import glob
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.datasets.images import PHOTO_SUFFIXES, read_image, reduce_image
from afactl.datasets.samples import Track
from afactl.errors import DataError, UsageError
from afactl.files import writing
from afactl.inference.segmentation import multi_scale, segment, segment_windows
from afactl.inference.trained_run import TrainedRun, to_tensor
from afactl.machine import distributed
from afactl.machine.parallel import ordered_map, processes_for
from afactl.method.refinement.crf import crf_label
from afactl.prediction.unfinished import Unfinished
from afactl.prediction.writers import Labelled, writer_class

# Photos with more pixels get a mask of that many, which is enlarged: the maps of 21 classes and the
# CRF's lattice of a larger one would take several GiB.
MAX_PIXELS = 2**21
# With the CRF, pixels times classes that are anywhere probable.
MAX_CRF_VALUES = 2**24


class Photo(NamedTuple):
    """A photo, and the mask's path below the output folder."""

    path: Path
    mask: Path


def find_photos(inputs: Sequence[str]) -> list[Photo]:
    """Photos of files, folders (searched through) and globs, each once, in the order given.

    A photo of a folder keeps its path below that folder; any other keeps its name.

    Raises:
        UsageError: an input matches nothing, or two photos would write the same mask.
    """
    found: dict[Path, Photo] = {}
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            here = [(p, p.relative_to(path)) for p in sorted(path.rglob("*")) if p.suffix.lower() in PHOTO_SUFFIXES]
        elif path.is_file():
            here = [(path, Path(path.name))]
        else:
            here = [(Path(p), Path(Path(p).name)) for p in sorted(glob.glob(text, recursive=True)) if Path(p).is_file()]
        if not here:
            raise UsageError(
                f"{text}: expected a photo, a folder with photos ({', '.join(PHOTO_SUFFIXES)}) or a glob, found none"
            )
        stems = Counter(below.with_suffix("") for _, below in here)
        for one, below in here:
            # a.jpg and a.png side by side become a.jpg.png and a.png.png.
            mask = (
                below.with_name(below.name + ".png") if stems[below.with_suffix("")] > 1 else below.with_suffix(".png")
            )
            found.setdefault(one.resolve(), Photo(one, mask))
    photos = list(found.values())
    owners: dict[Path, Path] = {}
    for photo in photos:
        other = owners.setdefault(photo.mask, photo.path)
        if other != photo.path:
            raise UsageError(
                f"{other} and {photo.path}: both would write {photo.mask}; predict them into different --out folders"
            )
    return photos


class Prediction(NamedTuple):
    """What `predict` did.

    Attributes:
        photos: done, of all processes; 0 where another process tells.
        written: files. kept: photos that a stopped call had done before.
        reduced: photos labelled at a reduced size. failed: the reason of each that was not done.
    """

    photos: int
    written: list[Path]
    kept: int
    reduced: int
    failed: list[str]


def predict(
    run: TrainedRun,
    photos: Sequence[Photo],
    out: Path,
    crf: str | None = None,
    forms: Sequence[str] = ("png",),
    palette: str = "safe",
    window: int | None = None,
    track: Track = iter,
) -> Prediction:
    """Write masks of photos: multi-scale + flip, as `eval` scores it.

    A photo that cannot be read is named and the others are done all the same. What a killed call with
    the same weights and settings has done is kept. Several processes share the photos.

    Args:
        crf: refine with the dense CRF, one of CRF_BACKENDS.
        forms: what to write, of `WRITERS.names()`.
        palette: of pictures that are drawn, one of PALETTES; masks have the colours of VOC.
        window: photos with a longer side are passed at their own size, in windows of this side.

    Raises:
        UsageError: the output folder cannot be written or another job writes into it, or the forms do not go
            with the CRF or the names.
        DependencyError: a form needs a package that is not installed.
    """
    kinds = {form: writer_class(form) for form in forms}
    for form, kind in kinds.items():
        objection = kind.objection([photo.mask for photo in photos], crf is not None)
        if objection:
            raise UsageError(f"--format {form}: {objection}")
    writers = [kind(out, run.architecture.classes, palette) for kind in kinds.values()]
    settings = {
        "weights": run.weights_hash,
        "crf": run.preset.crf.model_dump() if crf else None,
        "backend": crf,
        "forms": list(forms),
        "palette": palette,
        "window": window,
        "eval": run.preset.eval.model_dump(),
    }
    with writing(f"--out {out}", "give another folder"):
        record = Unfinished(out, settings, distributed.rank())
    kept = 0
    missing = []
    for photo in distributed.shard(photos):
        values = record.done(str(photo.mask), photo.path)
        if values and values["failed"] is None and all(writer.target(photo.mask).is_file() for writer in writers):
            kept += 1
        else:
            missing.append(photo)
    for photo, values, one in _labelled(run, missing, crf, window, track):
        with writing(f"--out {out}", "give another folder"):
            if one is not None:
                for writer in writers:
                    writer.add(one)
            record.note(str(photo.mask), photo.path, **values)
    distributed.wait()
    if distributed.rank() > 0:
        record.close()
        return Prediction(0, [], kept, 0, [])
    lines = record.lines()
    noted = {photo.mask: lines[str(photo.mask)]["values"] for photo in photos}
    done = [path for path, values in noted.items() if values["failed"] is None]
    with writing(f"--out {out}", "give another folder"):
        gathered = [(writer, writer.close(done)) for writer in writers]
    record.finish()
    written = [file for writer, one in gathered for file in ([one] if one else [writer.target(path) for path in done])]
    failed = [values["failed"] for values in noted.values() if values["failed"]]
    return Prediction(len(done), written, kept, sum(noted[path]["reduced"] for path in done), failed)


def _labelled(
    run: TrainedRun, photos: Sequence[Photo], crf: str | None, window: int | None, track: Track
) -> Iterator[tuple[Photo, dict[str, Any], Labelled | None]]:
    """Every photo, what is to be noted about it ("failed": why, or None; "reduced"), and its mask if it has one."""
    passes = multi_scale(run.preset.eval)
    waiting: deque[tuple[Photo, tuple[int, int], np.ndarray, Tensor]] = deque()
    failed: deque[tuple[Photo, dict[str, Any], None]] = deque()

    def scored() -> Iterator[tuple[Tensor, Tensor]]:
        for photo in track(photos):
            try:
                image = read_image(photo.path)
            except DataError as error:
                failed.append((photo, {"failed": str(error), "reduced": False}, None))
                continue
            size = image.shape[:2]
            small = reduce_image(image, MAX_PIXELS)
            if window and max(size) > window:
                logits = segment_windows(run.model, image, run.device, passes, window, small.shape[:2])
            else:
                logits = segment(run.model, small, run.device, passes)
            image = small
            if not torch.isfinite(logits).all():
                text = f"{photo.path}: the network gives non-finite values (NaN); its weights are broken, train again"
                failed.append((photo, {"failed": text, "reduced": False}, None))
                continue
            if crf:
                image, logits = _for_crf(image, logits, run.preset.crf.drop_below)
            waiting.append((photo, size, image, logits))
            yield to_tensor(image, run.device)[0], logits

    label_of = partial(crf_label, backend=crf, settings=run.preset.crf.model_dump()) if crf else _most_probable
    for label in ordered_map(label_of, scored(), processes_for(len(photos), run.device) if crf else 1):
        photo, size, image, logits = waiting.popleft()
        mask = label.cpu().numpy()
        yield (
            photo,
            {"failed": None, "reduced": mask.shape != size},
            Labelled(photo.mask, photo.mask.with_name(photo.path.name), size, image, mask, logits),
        )
    yield from failed


def _for_crf(image: np.ndarray, logits: Tensor, drop_below: float) -> tuple[np.ndarray, Tensor]:
    """The photo and its logits, smaller where the CRF would take too much memory for them."""
    classes, height, width = logits.shape
    if classes * height * width <= MAX_CRF_VALUES:
        return image, logits
    alive = max(1, int((logits.softmax(0).flatten(1).amax(1) >= drop_below).sum()))
    image = reduce_image(image, MAX_CRF_VALUES // alive)
    return image, F.interpolate(logits[None], size=image.shape[:2], mode="bilinear", align_corners=False)[0]


def _most_probable(photo: tuple[Tensor, Tensor]) -> Tensor:
    return photo[1].max(dim=0).indices.to(torch.uint8)
