"""One image at a time through a trained network: segmentation, CAMs, and the cache of CAMs.

Shapes: C foreground classes, K = C + 1, P - 1 present classes, h x w image, N = hs * ws tokens.
"""

from __future__ import annotations

import dataclasses
import glob
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.datasets.images import read_image
from afactl.datasets.registry import check_files, data_fingerprint, load_split
from afactl.datasets.samples import Sample, Split
from afactl.datasets.transforms import normalize, resize_long_side
from afactl.errors import CacheError, CheckpointError, UsageError
from afactl.files import whole_file
from afactl.machine import distributed
from afactl.method.affinity import mean_attention
from afactl.network.model import AFA
from afactl.presets import Preset
from afactl.runs.cache import Cache, CacheHeader
from afactl.runs.checkpoints import WEIGHTS, Architecture, find_checkpoint, load_model, weights_hash
from afactl.runs.folder import run_preset

CAM_STAGE = "cams"


class TrainedRun(NamedTuple):
    """A run ready for inference.

    Attributes:
        weights: hash of the weights, which caches are tied to.
        iteration: of the checkpoint.
        note: what is to be said about the checkpoint, if anything.
    """

    folder: Path
    preset: Preset
    model: AFA
    architecture: Architecture
    device: torch.device
    weights: str
    iteration: int
    note: str = ""


def open_run(folder: Path, device: torch.device, which: str = "last") -> TrainedRun:
    """Load a run's network.

    Args:
        which: "best" or "last" checkpoint.

    Raises:
        CheckpointError: there is none, or it does not fit.
    """
    checkpoint, note = find_checkpoint(folder, which, needed=(WEIGHTS,))
    model, architecture, iteration = load_model(checkpoint)
    return TrainedRun(
        folder, run_preset(folder), model.to(device), architecture, device, weights_hash(checkpoint), iteration, note
    )


def open_split(run: TrainedRun, split: str, data: Path | None, masks: bool) -> Split:
    """A split of the run's dataset, with its files checked.

    Args:
        data: where the dataset lies, if not where the run was trained from.
        masks: the true masks are needed.

    Raises:
        DataError: no such split, missing files. UsageError: masks are needed and the dataset has none.
        CheckpointError: the dataset's classes are not those of the network.
    """
    root = data or (Path(run.preset.data.root) if run.preset.data.root else None)
    found = load_split(run.preset.data.name, root, split)
    if found.classes != run.architecture.classes:
        raise CheckpointError(
            f"{run.folder}: trained on the classes {', '.join(run.architecture.classes)}, "
            f"but the dataset has {', '.join(found.classes)}; give the dataset of the run with --data"
        )
    if masks and found.read_mask is None:
        raise UsageError(f"split {split}: scoring needs true masks and this dataset has none; see masks/ in docs/own-data.md")
    check_files(found, masks)
    return found


def to_tensor(image: np.ndarray, device: torch.device) -> Tensor:
    """h x w x 3 uint8 -> 1 x 3 x h x w float in 0..255."""
    return torch.tensor(image, device=device).permute(2, 0, 1)[None].float()


def multi_hot(labels: Iterable[int], classes: int) -> Tensor:
    """Class indices as a C vector of 0 and 1."""
    label = torch.zeros(classes)
    label[list(labels)] = 1
    return label


@torch.inference_mode()
def segment(
    model: AFA,
    image: np.ndarray,
    device: torch.device,
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    long_side: int | None = None,
) -> Tensor:
    """Segmentation logits of one photo, fused by maximum over scales and flips.

    Args:
        image: h x w x 3 uint8.
        scales: factors on top of `long_side`.
        flip: also pass the mirrored image.
        long_side: resize the photo so first; None keeps its size.

    Returns:
        K x h x w float32 at the photo's size.
    """
    pixels = normalize(to_tensor(image, device))
    size = image.shape[:2]
    base = resize_long_side(*size, long_side) if long_side else size
    fused: Tensor | None = None
    for scale in scales:
        target = (max(1, math.floor(scale * base[0])), max(1, math.floor(scale * base[1])))
        scaled = pixels
        if target != size:
            scaled = F.interpolate(pixels, size=target, mode="bilinear", align_corners=False)
        views = torch.cat([scaled, scaled.flip(-1)]) if flip else scaled
        logits = model.decoder(model.backbone(views).features).float()
        logits = F.interpolate(logits, size=size, mode="bilinear", align_corners=False)
        logits = torch.maximum(logits[0], logits[1].flip(-1)) if flip else logits[0]
        fused = logits if fused is None else torch.maximum(fused, logits)
    return fused


def segment_windows(
    model: AFA,
    image: np.ndarray,
    device: torch.device,
    scales: Sequence[float],
    flip: bool,
    window: int,
    size: tuple[int, int],
) -> Tensor:
    """Segmentation logits of a large photo, passed at its own size in windows that overlap by a third.

    Each window is a photo of its own for `segment`. Where windows overlap, the mean of their logits is taken,
    weighted by the distance from the window's edge, near which the network sees the least around a pixel.

    Args:
        image: h x w x 3 uint8.
        window: side of the windows in pixels of the photo; a photo that is smaller fills one.
        size: (h', w') of the logits, at most the photo's: those of a whole large photo would take GiB.

    Returns:
        K x h' x w' float32.
    """
    total: Tensor | None = None
    weights = torch.zeros(size, device=device)
    rows, columns = (_windows(side, small, window) for side, small in zip(image.shape[:2], size, strict=True))
    for row, small_row in rows:
        for column, small_column in columns:
            logits = segment(model, image[row, column], device, scales, flip)
            target = (small_row.stop - small_row.start, small_column.stop - small_column.start)
            if logits.shape[1:] != target:
                logits = F.interpolate(logits[None], size=target, mode="area")[0]
            weight = torch.outer(*(_tent(side, device) for side in target))
            if total is None:
                total = logits.new_zeros(len(logits), *size)
            total[:, small_row, small_column] += weight * logits
            weights[small_row, small_column] += weight
    return total / weights


def _windows(side: int, small: int, window: int) -> list[tuple[slice, slice]]:
    """Evenly spread windows over a side, each as (slice of the photo, slice of a grid of `small` cells)."""
    count = max(1, -((window - 3 * side) // (2 * window)))
    starts = [round(i * (side - window) / max(1, count - 1)) for i in range(count)]
    ends = [min(start + window, side) for start in starts]
    return [
        (slice(start, end), slice(round(start * small / side), round(end * small / side)))
        for start, end in zip(starts, ends, strict=True)
    ]


def _tent(side: int, device: torch.device) -> Tensor:
    """Distance of each of `side` cells from the nearer end, above 0."""
    ramp = torch.arange(side, device=device) + 0.5
    return torch.minimum(ramp, side - ramp)


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


def with_predicted_labels(
    run: TrainedRun, split: Split, overwrite: bool = False, track: Callable[[Sequence[Sample]], Iterator[Sample]] = iter
) -> Split:
    """The split with the labels that the classifier finds in place of the true ones, by way of the run's cache."""
    header = CacheHeader("predicted-labels", {}, run.weights, data_fingerprint(split))
    samples = []
    with Cache.open(run.folder / "cache" / f"predicted-labels-{split.name}.h5", header, overwrite) as cache:
        for sample in track(split.samples):
            if sample.image_id not in cache:
                found = likely_labels(run, read_image(sample.image))
                cache.append(sample.image_id, {"labels": np.array(found, np.int64)})
            samples.append(sample._replace(labels=tuple(cache.read(sample.image_id)["labels"].tolist())))
    return dataclasses.replace(split, name=f"{split.name}-predicted-labels", samples=tuple(samples))


def cam_cache_path(run: TrainedRun, split: str) -> Path:
    """Where a run keeps the CAMs of a split."""
    return run.folder / "cache" / f"cams-{split}.h5"


def open_cam_cache(run: TrainedRun, split: Split, overwrite: bool = False) -> Cache:
    """The cache of a split's CAMs, made by these weights and settings.

    Raises:
        CacheError: the file there was made by others; names --overwrite.
    """
    return Cache.open(cam_cache_path(run, split.name), _cam_header(run, split), overwrite)


def _cam_header(run: TrainedRun, split: Split) -> CacheHeader:
    settings = {"cam.scales": list(run.preset.cam.scales), "affinity.scale": run.preset.affinity.scale}
    return CacheHeader(CAM_STAGE, settings, run.weights, data_fingerprint(split))


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
    image = read_image(sample.image) if image is None else image
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


def dump_cams(
    run: TrainedRun, split: Split, overwrite: bool = False, track: Callable[[Sequence[Sample]], Iterator[Sample]] = iter
) -> tuple[Path, int, int]:
    """Put the CAMs, affinity and attention of a split into the run's cache; finished images are skipped.

    Several processes share the images: each writes a file of its own, which rank 0 takes into the cache when
    all are done, or at the next call where one was killed.

    Args:
        track: wraps the iteration over samples, for a progress bar.

    Returns:
        (file, images in the split, images passed through the network now, by all processes).
    """
    path = cam_cache_path(run, split.name)
    if distributed.rank() == 0:
        with open_cam_cache(run, split, overwrite) as cache:
            _take_parts(run, split, cache)
            known = set(cache.ids())
    else:
        known = set()
    known = set(distributed.from_first(sorted(known)))
    missing = [sample for sample in distributed.share(split.samples) if sample.image_id not in known]
    part = path if distributed.size() == 1 else path.with_name(f"{path.stem}.part-{distributed.rank()}.h5")
    with Cache.open(part, _cam_header(run, split)) as cache:
        for sample in track(missing):
            record_of(run, cache, sample)
    computed = int(distributed.total(torch.tensor(len(missing))))
    if distributed.rank() == 0 and distributed.size() > 1:
        with open_cam_cache(run, split) as cache:
            _take_parts(run, split, cache)
    return path, len(split.samples), computed


def _take_parts(run: TrainedRun, split: Split, cache: Cache) -> None:
    """Move the images of the files that several processes wrote into the cache; each image goes in once."""
    for path in sorted(cache.path.parent.glob(f"{glob.escape(cache.path.stem)}.part-*.h5")):
        try:
            part = Cache.open(path, _cam_header(run, split))
        except CacheError:  # of other weights, or damaged: made anew
            path.unlink()
            continue
        with part:
            for image_id in part.ids():
                if image_id not in cache:
                    cache.append(image_id, part.read(image_id))
        path.unlink()
        path.with_name(f"{path.name}.lock").unlink(missing_ok=True)


def export_cams(run: TrainedRun, split: Split, track: Callable[[Sequence[Sample]], Iterator[Sample]] = iter) -> Path:
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
            small = F.interpolate(cam[None], size=quarter, mode="bilinear", align_corners=False)[0] if len(cam) else cam.new_zeros(0, *quarter)
            with whole_file(target) as fresh, open(fresh, "wb") as file:
                np.save(file, {"keys": record.classes, "cam": small.numpy(), "high_res": cam.numpy()}, allow_pickle=True)
    return folder
