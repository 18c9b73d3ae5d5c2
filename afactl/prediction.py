"""Masks for any photos: files, folders and globs, without label files."""

from __future__ import annotations

import glob
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from afactl.datasets.images import read_image, write_mask
from afactl.errors import DataError, UsageError
from afactl.inference import TrainedRun, segment
from afactl.refinement.crf import dense_crf
from afactl.visualization import save_overlay

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")


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
            here = [(p, p.relative_to(path)) for p in sorted(path.rglob("*")) if p.suffix.lower() in SUFFIXES]
        elif path.is_file():
            here = [(path, Path(path.name))]
        else:
            here = [(Path(p), Path(Path(p).name)) for p in sorted(glob.glob(text, recursive=True)) if Path(p).is_file()]
        if not here:
            raise UsageError(f"{text}: expected a photo, a folder with photos ({', '.join(SUFFIXES)}) or a glob, found none")
        stems = Counter(below.with_suffix("") for _, below in here)
        for one, below in here:
            # a.jpg and a.png side by side become a.jpg.png and a.png.png.
            mask = below.with_name(below.name + ".png") if stems[below.with_suffix("")] > 1 else below.with_suffix(".png")
            found.setdefault(one.resolve(), Photo(one, mask))
    photos = list(found.values())
    owners: dict[Path, Path] = {}
    for photo in photos:
        other = owners.setdefault(photo.mask, photo.path)
        if other != photo.path:
            raise UsageError(f"{other} and {photo.path}: both would write {photo.mask}; predict them into different --out folders")
    return photos


class Prediction(NamedTuple):
    """What `predict` did: masks written, and photos that could not be read, with the reason."""

    written: list[Path]
    failed: list[str]


def predict(
    run: TrainedRun,
    photos: Sequence[Photo],
    out: Path,
    crf: bool = False,
    overlay: bool = False,
    track: Callable[[Sequence[Photo]], Iterator[Photo]] = iter,
) -> Prediction:
    """Write one indexed mask per photo: multi-scale + flip, as `eval` scores it.

    A photo that cannot be read is named and the others are done all the same.

    Args:
        crf: refine with the dense CRF.
        overlay: also write the photo with its mask over it, as *_overlay.png.

    Raises:
        UsageError: the output folder cannot be written.
    """
    settings = run.preset.eval
    refine = partial(dense_crf, **run.preset.crf.model_dump()) if crf else None
    written, failed = [], []
    for photo in track(photos):
        try:
            image = read_image(photo.path)
        except DataError as error:
            failed.append(str(error))
            continue
        logits = segment(run.model, image, run.device, settings.scales, True, settings.long_side)
        if refine is None:
            mask = logits.argmax(0).cpu().numpy().astype(np.uint8)
        else:
            mask = refine(image, logits.softmax(0).cpu().numpy()).argmax(0).astype(np.uint8)
        target = out / photo.mask
        try:
            write_mask(target, mask)
            if overlay:
                save_overlay(image, mask, target.with_name(f"{target.stem}_overlay.png"))
        except OSError as error:
            raise UsageError(f"--out {out}: cannot be written ({error.strerror or error}); give another folder") from error
        written.append(target)
    return Prediction(written, failed)
