"""CAMs, affinity and attention of one photo, and their cache.

Shapes: C foreground classes, K = C + 1, P - 1 present classes, h x w image, N = hs * ws tokens.
"""

from __future__ import annotations

import dataclasses
import glob
import math
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.datasets.images import read_image
from afactl.datasets.registry import data_fingerprint
from afactl.datasets.samples import Sample, Split, Track
from afactl.datasets.transforms import normalize
from afactl.errors import CacheError, StaleCacheError
from afactl.files import whole_file
from afactl.inference.trained_run import TrainedRun, to_tensor
from afactl.machine import distributed
from afactl.method.affinity import mean_attention
from afactl.runs.cache import Cache, CacheHeader, cache_path

CAM_STAGE = "cams"


class CamRecord(NamedTuple):
    """What the network says about one image, as it is kept in the cache.

    Attributes:
        cam: P-1 x h x w float16 in [0, 1), multi-scale CAMs of the present classes.
        classes: P-1 class indices in [0, C), int64, sorted.
        affinity: N x N float16, learned, at the preset's `affinity.scale`.
        attention: N x N float16, mean softmaxed MHSA of the last blocks, at that scale.
        grid: (hs, ws).
    """

    cam: np.ndarray
    classes: np.ndarray
    affinity: np.ndarray
    attention: np.ndarray
    grid: tuple[int, int]


def cam_record(run: TrainedRun, image: np.ndarray, labels: Sequence[int]) -> CamRecord:
    """Pass one h x w x 3 uint8 photo with its image-level labels through the network."""
    pixels = normalize(to_tensor(image, run.device))
    passed = run.model.multi_scale_cam(pixels, run.preset.cam.scales, run.preset.affinity.scale)
    with torch.no_grad():
        affinity = run.model.affinity(passed)[0]
        attention = mean_attention(passed.queries, passed.keys)[0]
    classes = sorted(labels)

    def half(tensor: Tensor) -> np.ndarray:
        return tensor.to(torch.float16).cpu().numpy()

    return CamRecord(
        half(passed.cam[0, classes]), np.array(classes, np.int64), half(affinity), half(attention), passed.grid
    )


@torch.inference_mode()
def likely_labels(run: TrainedRun, image: np.ndarray) -> list[int]:
    """Classes that the classifier finds (probability over 1/2) in an h x w x 3 uint8 photo; at least the best one."""
    logits = run.model.classify(run.model.backbone(normalize(to_tensor(image, run.device))))[0]
    found = (logits > 0).nonzero()[:, 0].tolist()
    return found or [int(logits.argmax())]


def with_predicted_labels(run: TrainedRun, split: Split, overwrite: bool = False, track: Track = iter) -> Split:
    """The split with the labels that the classifier finds in place of the true ones, by way of the run's cache."""
    header = CacheHeader("predicted-labels", {}, run.weights_hash, data_fingerprint(split))
    samples = []
    with Cache.open(cache_path(run.folder, header.stage, split.name), header, overwrite) as cache:
        for sample in track(split.samples):
            if sample.image_id not in cache:
                found = likely_labels(run, read_image(sample.image_path))
                cache.append(sample.image_id, {"labels": np.array(found, np.int64)})
            samples.append(sample._replace(labels=tuple(cache.read(sample.image_id)["labels"].tolist())))
    return dataclasses.replace(split, name=f"{split.name}-predicted-labels", samples=tuple(samples))


def cam_cache_path(run: TrainedRun, split: str) -> Path:
    """Where a run keeps the CAMs of a split."""
    return cache_path(run.folder, CAM_STAGE, split)


def open_cam_cache(run: TrainedRun, split: Split, overwrite: bool = False) -> Cache:
    """The cache of a split's CAMs, made by these weights and settings.

    Raises:
        CacheError: the file there was made by others; names --overwrite.
    """
    return Cache.open(cam_cache_path(run, split.name), _cam_header(run, split), overwrite)


def _cam_header(run: TrainedRun, split: Split) -> CacheHeader:
    settings = {"cam.scales": list(run.preset.cam.scales), "affinity.scale": run.preset.affinity.scale}
    return CacheHeader(CAM_STAGE, settings, run.weights_hash, data_fingerprint(split))


def read_record(cache: Cache, image_id: str) -> CamRecord:
    """A record out of the cache.

    Raises:
        CacheError: the image is not in it.
    """
    arrays = cache.read(image_id)
    height, width = arrays["grid"].tolist()
    return CamRecord(arrays["cam"], arrays["keys"], arrays["affinity"], arrays["attention"], (height, width))


def record_of(run: TrainedRun, cache: Cache, sample: Sample, image: np.ndarray | None = None) -> tuple[CamRecord, bool]:
    """A sample's record: out of the cache, or through the network and into the cache.

    Args:
        image: the photo, if it has been read already.

    Returns:
        (record, whether a forward pass was needed).
    """
    if sample.image_id in cache:
        return read_record(cache, sample.image_id), False
    image = read_image(sample.image_path) if image is None else image
    record = cam_record(run, image, sample.labels)
    arrays = {
        "cam": record.cam,
        "keys": record.classes,
        "size": np.array(image.shape[:2], np.int64),
        "affinity": record.affinity,
        "attention": record.attention,
        "grid": np.array(record.grid, np.int64),
    }
    cache.append(sample.image_id, arrays)
    return record, True


def dump_cams(run: TrainedRun, split: Split, overwrite: bool = False, track: Track = iter) -> tuple[Path, int, int]:
    """Put the CAMs, affinity and attention of a split into the run's cache; finished images are skipped.

    Several processes share the images. Rank 0 has the cache, and nobody else gets it before all are done; each of
    the others writes a file of its own, which rank 0 takes into the cache in the end, or at the next call where one
    was killed.

    Args:
        overwrite: throw away what is there, where it was made by others.
        track: wraps the iteration over samples, for a progress bar.

    Returns:
        (file, images in the split, images passed through the network now, by all processes).

    Raises:
        CacheError: the cache was made by others (names --overwrite), or another process is writing it.
    """
    path, rank = cam_cache_path(run, split.name), distributed.rank()
    if rank == 0:
        with open_cam_cache(run, split, overwrite) as cache:
            _take_parts(run, split, cache)
            made = _fill(run, split, cache, distributed.broadcast(sorted(cache.ids())), track)
            computed = _of_all(made)  # when every other process has closed its file
            _take_parts(run, split, cache)
    else:
        known = distributed.broadcast([])
        with Cache.open(path.with_name(f"{path.stem}.part-{rank}.h5"), _cam_header(run, split)) as cache:
            made = _fill(run, split, cache, known, track)
        computed = _of_all(made)
    return path, len(split.samples), computed


def _fill(run: TrainedRun, split: Split, cache: Cache, known: Sequence[str], track: Track) -> int:
    """Put this process's share of the images that are not yet known into a cache; gives how many they were."""
    done = set(known)
    missing = [sample for sample in distributed.shard(split.samples) if sample.image_id not in done]
    for sample in track(missing):
        record_of(run, cache, sample)
    return len(missing)


def _of_all(count: int) -> int:
    return int(distributed.all_reduce(torch.tensor(count)))


def _take_parts(run: TrainedRun, split: Split, cache: Cache) -> None:
    """Move the images of the files that several processes wrote into the cache; each image goes in once.

    A file is removed when the cache has all of its images, or nothing of it can be used. None that a living process
    writes: those are locked.

    Raises:
        CacheError: a process that other ones left is still writing its file; or the disk is full.
    """
    for path in sorted(cache.path.parent.glob(f"{glob.escape(cache.path.stem)}.part-*.h5")):
        try:
            part = Cache.open(path, _cam_header(run, split))
        except StaleCacheError:
            pass
        else:
            with part:
                if not _taken(part, cache):
                    continue
        for name in (path.name, f"{path.name}.journal", f"{path.name}.lock"):
            path.with_name(name).unlink(missing_ok=True)


def _taken(part: Cache, cache: Cache) -> bool:
    """Copy what the cache lacks; False where an image could not be read, which is then made anew."""
    whole = True
    for image_id in part.ids():
        if image_id in cache:
            continue
        try:
            arrays = part.read(image_id)
        except CacheError:
            whole = False
        else:
            cache.append(image_id, arrays)
    return whole


def export_cams(run: TrainedRun, split: Split, track: Track = iter) -> Path:
    """Write the cached CAMs of a split as IRN's per-image dictionaries, `np.load(file, allow_pickle=True).item()`.

    "keys": class indices in [0, C); "high_res": P-1 x h x w float32 CAMs in [0, 1); "cam": the same at a quarter
    of the size. Files that are there and newer than the cache are left alone.

    Returns:
        Their folder, with one file per image id.

    Raises:
        CacheError: an image has not been dumped.
    """
    folder = cam_cache_path(run, split.name).with_suffix("")
    with open_cam_cache(run, split) as cache:
        made = cam_cache_path(run, split.name).stat().st_mtime_ns
        for sample in track(split.samples):
            target = folder / f"{sample.image_id}.npy"
            if target.exists() and target.stat().st_mtime_ns > made:
                continue
            record = read_record(cache, sample.image_id)
            cam = torch.from_numpy(record.cam).float()
            quarter = tuple(math.ceil(side / 4) for side in cam.shape[1:])
            small = (
                F.interpolate(cam[None], size=quarter, mode="bilinear", align_corners=False)[0]
                if len(cam)
                else cam.new_zeros(0, *quarter)
            )
            with whole_file(target) as fresh, open(fresh, "wb") as file:
                entry = {"keys": record.classes, "cam": small.numpy(), "high_res": cam.numpy()}
                np.save(file, np.array(entry, dtype=object), allow_pickle=True)
    return folder
