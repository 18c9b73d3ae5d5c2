"""CAMs, affinity and attention of one photo, and their cache.

Shapes: C foreground classes, K = C + 1, P - 1 present classes, h x w image, hs x ws token grid, W neighbours of a
token in window form (see `affinity`).
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

from afactl.datasets.images import read_image, reduce_image
from afactl.datasets.registry import data_fingerprint
from afactl.datasets.samples import Sample, Split, Track
from afactl.datasets.transforms import normalize
from afactl.errors import CacheError, StaleCacheError, UsageError
from afactl.files import whole_file
from afactl.inference.trained_run import TrainedRun, to_tensor
from afactl.machine import distributed
from afactl.method.affinity import attention_windows, half_windows, log_sigmoid, mean_attention, whole_windows
from afactl.method.cam import fuse_cams
from afactl.network.model import CamPass
from afactl.runs.cache import Cache, CacheHeader, cache_path

CAM_STAGE = "cams"
# Names of the raw maps in the cache begin so, and end with their scale.
VIEW = "cam_at_"


class CamRecord(NamedTuple):
    """What the network says about one image, as it is kept in the cache.

    Attributes:
        cam: P-1 x h x w float32 in [0, 1), multi-scale CAMs of the present classes, at the photo's size or, where that
            is more than `cam.max_pixels`, at the reduced one.
        classes: P-1 class indices in [0, C), int64, sorted.
        affinity: hs x ws x (W + 1) / 2 float16, logits of the learned affinity at the preset's `affinity.scale`,
            in window form; of each pair once, as it is symmetric. Logits, since their sigmoids would be zeros.
        attention: hs x ws x W float16, log of the mean softmaxed MHSA of the last blocks, at that scale.
        views: per scale 2 x P-1 x hs' x ws' float32, the raw maps of the photo and of its mirror image, which `cam` was
            fused from. They are what the cache keeps: on their own grids they take a hundredth of it.
    """

    cam: np.ndarray
    classes: np.ndarray
    affinity: np.ndarray
    attention: np.ndarray
    views: tuple[np.ndarray, ...] = ()

    @property
    def grid(self) -> tuple[int, int]:
        """(hs, ws), the token grid of affinity and attention."""
        return self.affinity.shape[0], self.affinity.shape[1]

    def log_affinity(self, device: torch.device) -> Tensor:
        """hs x ws x W float32: the logarithm of the learned affinity, as `propagate` takes it."""
        return log_sigmoid(whole_windows(torch.from_numpy(self.affinity)[None].to(device).float()))[0]

    def log_attention(self, device: torch.device) -> Tensor:
        """hs x ws x W float32: the logarithm of the mean attention, as `propagate` takes it."""
        return torch.from_numpy(self.attention).to(device).float()


def cam_record(run: TrainedRun, image: np.ndarray, labels: Sequence[int]) -> CamRecord:
    """Pass one h x w x 3 uint8 photo with its image-level labels through the network, reduced where it is large."""
    image = reduce_image(image, run.preset.cam.max_pixels)
    pixels = normalize(to_tensor(image, run.device))
    passed = run.model.multi_scale_cam(pixels, run.preset.cam.scales, run.preset.affinity.scale)
    radius, classes = run.preset.affinity.radius, sorted(labels)
    with torch.no_grad():
        affinity = run.model.affinity_head.windows(passed.queries, passed.keys, passed.grid, radius)
        attention = attention_windows(passed.queries, passed.keys, passed.grid, radius)
    views = tuple(torch.stack(both)[:, 0, classes].float().cpu().numpy() for both in passed.views)
    return CamRecord(
        _fused(views, (image.shape[0], image.shape[1])),
        np.array(classes, np.int64),
        _to_half(half_windows(affinity)[0]),
        _to_half(attention[0]),
        views,
    )


def _fused(views: Sequence[np.ndarray], size: tuple[int, int]) -> np.ndarray:
    """The CAMs of raw maps as a record has them."""
    if views[0].shape[1] == 0:
        return np.zeros((0, *size), np.float32)
    maps = [(torch.from_numpy(plain)[None], torch.from_numpy(mirrored)[None]) for plain, mirrored in views]
    cam: np.ndarray = fuse_cams(maps, size)[0].numpy()
    return cam


def _to_half(values: Tensor) -> np.ndarray:
    """float16; what is finite stays so (its largest value is 65504)."""
    limit = torch.finfo(torch.float16).max
    kept = torch.where(values.isinf(), values, values.clamp(-limit, limit))
    return kept.to(torch.float16).cpu().numpy()


class QueryMaps(NamedTuple):
    """What some pixels of a photo look at, over the whole of it: Q x hs x ws float32 each.

    Attributes:
        attention: mean softmaxed attention of the query's token to every other.
        affinity: learned, in (0, 1).
    """

    attention: np.ndarray
    affinity: np.ndarray


@torch.inference_mode()
def query_maps(
    run: TrainedRun, image: np.ndarray, queries: Sequence[tuple[int, int]], heads: slice | None = None
) -> QueryMaps:
    """The rows of attention and affinity of some pixels, by a pass at the scale of the cached maps.

    The cache holds neighbours alone: whole rows of all tokens would take twenty times as much for a large photo.

    Args:
        image: h x w x 3 uint8. queries: pixels (x, y) of it. heads: as in `token_maps`.

    Raises:
        UsageError: a query outside the photo.
    """
    scale = run.preset.affinity.scale
    small = reduce_image(image, run.preset.cam.max_pixels)
    passed = run.model.multi_scale_cam(normalize(to_tensor(small, run.device)), [scale], scale)
    size = (image.shape[0], image.shape[1])
    return token_maps(run, passed, [query_token(query, size, passed.grid) for query in queries], heads)


@torch.inference_mode()
def token_maps(run: TrainedRun, passed: CamPass, tokens: Sequence[int], heads: slice | None = None) -> QueryMaps:
    """The rows of attention and affinity of some tokens of a photo that has been passed through the network.

    Args:
        passed: of one photo. tokens: Q indices in [0, hs * ws).
        heads: of the backbone's n heads those whose attention is averaged; None: all.
    """
    chosen = slice(None) if heads is None else heads
    attention = mean_attention(passed.queries[:, chosen, list(tokens)], passed.keys[:, chosen])[0]
    affinity = run.model.affinity_head.rows(passed.queries, passed.keys, tokens)[0].sigmoid()
    shape = (len(tokens), *passed.grid)
    return QueryMaps(attention.view(shape).float().cpu().numpy(), affinity.view(shape).float().cpu().numpy())


def query_token(query: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]) -> int:
    """Index of the token that covers a pixel.

    Args:
        query: (x, y) in pixels of the upright photo. size: (h, w) of it. grid: (hs, ws).

    Raises:
        UsageError: the pixel lies outside; names the size.
    """
    (x, y), (height, width) = query, size
    if not (0 <= x < width and 0 <= y < height):
        raise UsageError(
            f"--query {x},{y}: outside the photo, which is {width} x {height} pixels (x < {width}, y < {height})"
        )
    return (y * grid[0] // height) * grid[1] + x * grid[1] // width


@torch.inference_mode()
def likely_labels(run: TrainedRun, image: np.ndarray) -> list[int]:
    """Classes that the classifier finds (probability over 1/2) in an h x w x 3 uint8 photo; at least the best one."""
    small = reduce_image(image, run.preset.cam.max_pixels)
    logits = run.model.classify(run.model(normalize(to_tensor(small, run.device))))[0]
    labels = (logits > 0).nonzero()[:, 0].tolist()
    return labels or [int(logits.argmax())]


def with_predicted_labels(run: TrainedRun, split: Split, overwrite: bool = False, track: Track = iter) -> Split:
    """The split with the labels that the classifier finds in place of the true ones, by way of the run's cache."""
    settings = {"cam.max_pixels": run.preset.cam.max_pixels}
    header = CacheHeader("predicted-labels", settings, run.weights_hash, data_fingerprint(split))
    samples = []
    with Cache.open(cache_path(run.folder, header.stage, split.name), header, overwrite) as cache:
        for sample in track(split.samples):
            if sample.image_id not in cache:
                predicted = likely_labels(run, read_image(sample.image_path))
                cache.append(sample.image_id, {"labels": np.array(predicted, np.int64)})
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
    settings = {
        "cam.scales": list(run.preset.cam.scales),
        "affinity.scale": run.preset.affinity.scale,
        "affinity.radius": run.preset.affinity.radius,
        "cam.max_pixels": run.preset.cam.max_pixels,
    }
    return CacheHeader(CAM_STAGE, settings, run.weights_hash, data_fingerprint(split))


def read_record(cache: Cache, image_id: str) -> CamRecord:
    """A record out of the cache.

    Raises:
        CacheError: the image is not in it.
    """
    arrays = cache.read(image_id)
    views = tuple(array for name, array in arrays.items() if name.startswith(VIEW))
    height, width = arrays["cam_size"].tolist()
    return CamRecord(_fused(views, (height, width)), arrays["keys"], arrays["affinity"], arrays["attention"], views)


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
        **{f"{VIEW}{scale:g}": view for scale, view in zip(run.preset.cam.scales, record.views, strict=True)},
        "keys": record.classes,
        "size": np.array(image.shape[:2], np.int64),
        "cam_size": np.array(record.cam.shape[1:], np.int64),
        "affinity": record.affinity,
        "attention": record.attention,
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
    """Copy what the cache lacks; False where an image could not be read, which is then made again."""
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
            cam = torch.from_numpy(record.cam)
            size = tuple(cache.read(sample.image_id)["size"].tolist())
            if len(cam) and tuple(cam.shape[1:]) != size:
                cam = F.interpolate(cam[None], size=size, mode="bilinear", align_corners=False)[0]
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
