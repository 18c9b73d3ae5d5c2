"""Scores of pseudo labels: the rows of the paper's Table 3, and refined CAMs."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from afactl.datasets.images import read_image, reduce_image
from afactl.datasets.masks import enlarge_mask
from afactl.datasets.registry import data_fingerprint
from afactl.datasets.samples import Split, Track
from afactl.evaluation.metrics import confusion_matrix, mean_iou
from afactl.evaluation.scores import Counting, Score, keep_scores, to_uint8
from afactl.inference.cams import CamRecord, open_cam_cache, record_of
from afactl.inference.refiners import build_refiner, preset_refiner, refiner_settings, refiner_title
from afactl.inference.trained_run import TrainedRun, to_tensor
from afactl.method.affinity import Walk
from afactl.method.pseudo_labels import best_class, cut_cam, propagated_planes, refine_cam, refine_planes
from afactl.presets import Preset
from afactl.runs.cache import Cache, CacheHeader, cache_path

# Rows of Table 3 that come from one run, in the paper's order.
WITHOUT_PROPAGATION = "AFA (w/o prop.)"
WITH_MHSA = "AFA (prop. with MHSA)"
WITH_AFFINITY = "AFA"
TABLE3_ROWS = (WITHOUT_PROPAGATION, WITH_MHSA, WITH_AFFINITY)
# Those of a run without the affinity branch; the second one is none of the paper's.
WITHOUT_AFA = "w/o AFA"
WITHOUT_AFA_ROWS = (WITHOUT_AFA, "w/o AFA (prop. with MHSA)")
PSEUDO_STAGE = "pseudo-labels"


def table3_rows(preset: Preset) -> tuple[str, ...]:
    """The rows of Table 3 that a run gives: where the branch is left out, its weights have learned nothing."""
    return TABLE3_ROWS if preset.affinity.enabled else WITHOUT_AFA_ROWS


def scored_refiner(preset: Preset) -> str:
    """What refines the second column of Table 3: the run's own `cam.refiner`; the paper's PAR where it has none."""
    return "par" if preset.cam.refiner == "none" else preset.cam.refiner


def row_ends(preset: Preset, refiner: str | None = None) -> tuple[str, str]:
    """How the names of a row end, as it is and refined: "" and such as " + PAR".

    Args:
        refiner: None: `scored_refiner`.
    """
    return "", f" + {refiner_title(refiner or scored_refiner(preset))}"


def score_refined_cams(
    run: TrainedRun, split: Split, refiner: tuple[str, dict[str, Any]] | None = None, track: Track = iter
) -> float:
    """mIoU in per cent of CAMs, which come out of the run's cache or go into it; image-level truth is used.

    Args:
        refiner: (name, settings) of a refiner: CAM, background plane of `cam.background`, softmax,
            refiner, argmax. None: the CAM cut at `cam.background`.
    """
    classes, threshold, masks = len(split.classes) + 1, run.preset.cam.background, split.require_masks()
    refine = build_refiner(refiner[0], **refiner[1]) if refiner else None
    counts = np.zeros((classes, classes), np.int64)
    with open_cam_cache(run, split) as cams, torch.inference_mode():
        for sample in track(split.samples):
            photo = read_image(sample.image_path)
            record, _ = record_of(run, cams, sample, photo)
            image = reduce_image(photo, run.preset.cam.max_pixels)
            cam, present = (torch.from_numpy(array).to(run.device) for array in (record.cam, record.classes))
            if refine is None:
                label = cut_cam(cam.float(), present, threshold)
            else:
                label = refine_cam(to_tensor(image, run.device)[0], cam.float(), present, (threshold,), refine)[0]
            counts += confusion_matrix(masks.read(sample), enlarge_mask(to_uint8(label), photo.shape[:2]), classes)
    return 100 * mean_iou(counts)


def preset_threshold(preset: Preset, row: str) -> float:
    """Where a row of Table 3 is cut: `cam.background` without propagation, `affinity.background` with it."""
    return preset.cam.background if row in (WITHOUT_PROPAGATION, WITHOUT_AFA) else preset.affinity.background


def pseudo_labels_of(
    image: np.ndarray, record: CamRecord, preset: Preset, device: torch.device, refiner: str | None = None
) -> np.ndarray:
    """The pseudo labels of Table 3 for one photo: each row as it is and refined, at the preset's thresholds.

    Args:
        image: h x w x 3 uint8; reduced to the size of the record's CAM where that is smaller.
        refiner: its name; None: `scored_refiner`.

    Returns:
        R x 2 x h x w uint8 at the size of the record's CAM, rows as `table3_rows`, then (as it is, refined).
    """
    thresholds = [(preset_threshold(preset, row),) for row in table3_rows(preset)]
    labels: np.ndarray = labels_over(image, record, preset, device, thresholds, refiner)[:, :, 0]
    return labels


def labels_over(
    image: np.ndarray,
    record: CamRecord,
    preset: Preset,
    device: torch.device,
    thresholds: Sequence[Sequence[float]],
    refiner: str | None = None,
) -> np.ndarray:
    """The pseudo labels of Table 3 for one photo at several thresholds.

    Without propagation the CAM is cut at the threshold (refined: background plane of that value, softmax, refiner,
    argmax). With propagation the background plane has that value.

    Args:
        image, refiner: as in `pseudo_labels_of`. thresholds: R rows of T values.

    Returns:
        R x 2 x T x h x w uint8, rows and size as in `pseudo_labels_of`.
    """
    refine = preset_refiner(preset, refiner or scored_refiner(preset))
    image = reduce_image(image, preset.cam.max_pixels)
    pixels = to_tensor(image, device)[0]
    cam = torch.from_numpy(record.cam).to(device).float()
    classes = torch.from_numpy(record.classes).to(device)
    size = image.shape[:2]
    if len(classes) == 0:  # nothing is said to be there: all is background
        return np.zeros((len(thresholds), 2, len(thresholds[0]), *size), np.uint8)
    own, *spread_over = thresholds
    cuts = torch.stack([cut_cam(cam, classes, threshold) for threshold in own])
    rows = [torch.stack([cuts, refine_cam(pixels, cam, classes, own, refine)])]
    walk = Walk(**preset.walk_settings())
    spread = [record.log_attention(device), *([record.log_affinity(device)] if preset.affinity.enabled else [])]
    for logarithm, values in zip(spread, spread_over, strict=True):
        planes = propagated_planes(cam, logarithm, values, walk, size)
        rows.append(torch.stack([best_class(planes, classes, size), refine_planes(pixels, planes, classes, refine)]))
    return to_uint8(torch.stack(rows))


def pseudo_label_of(image: np.ndarray, record: CamRecord, preset: Preset, device: torch.device) -> np.ndarray:
    """The label that the run's method ends with, h x w uint8: propagated, if it has learned to, and refined."""
    label: np.ndarray = pseudo_labels_of(image, record, preset, device)[-1 if preset.affinity.enabled else 0, 1]
    return label


class Table3(NamedTuple):
    """Scores of pseudo labels.

    Attributes:
        scores: per row name (as it is, refined).
        ends: how the names of both end, see `row_ends`.
        images: scored. passes: images that needed the network now. labelled: images whose
            pseudo labels had to be made now.
    """

    scores: dict[str, tuple[Score, Score]]
    ends: tuple[str, str]
    images: int
    passes: int
    labelled: int


def score_pseudo_labels(
    run: TrainedRun, split: Split, overwrite: bool = False, track: Track = iter, refiner: str | None = None
) -> Table3:
    """Rows of Table 3 that a run gives by itself; every intermediate goes through the caches.

    Args:
        refiner: another one than `scored_refiner`, for comparison: it has a cache of its own, and the run does not
            keep its scores. So it is with values of `scored_with`, and with the first photos of a split the scores
            are not kept either.

    Raises:
        PresetError: no such refiner.
        CacheError: a cache there was made by other weights, data or settings.
    """
    preset, classes, masks = run.preset, len(split.classes) + 1, split.require_masks()
    rows = table3_rows(preset)
    own = scored_refiner(preset)
    chosen = refiner or own
    ends = row_ends(preset, chosen)
    names = [(row, column, f"{name}{end}") for row, name in enumerate(rows) for column, end in enumerate(ends)]
    counting = Counting([name for *_, name in names], len(split.samples), classes)
    passes = labelled = 0
    settings = {name: getattr(preset, name).model_dump(mode="json") for name in ("cam", "par", "affinity")}
    # Those of PAR are among them. Another refiner may call its own the same, as the CRF does its iterations: they are
    # left out only where they are as PAR's.
    taken, known = refiner_settings(preset, chosen), preset.par.model_dump()
    settings |= {key: value for key, value in taken.items() if key not in known or known[key] != value}
    stage = PSEUDO_STAGE if chosen == own and not run.changes else f"{PSEUDO_STAGE}-{chosen}"
    if run.changes:  # a file of their own: the labels of the run's own settings stay
        stage += f"-{hashlib.sha256(repr(settings).encode()).hexdigest()[:8]}"
    header = CacheHeader(stage, settings, run.weights_hash, data_fingerprint(split))
    path = cache_path(run.folder, stage, split.name)
    with open_cam_cache(run, split, overwrite) as cams, Cache.open(path, header, overwrite) as labels:
        for place, sample in enumerate(track(split.samples)):
            if sample.image_id not in labels:
                image = read_image(sample.image_path)
                record, passed = record_of(run, cams, sample, image)
                made = pseudo_labels_of(image, record, preset, run.device, chosen)
                labels.append(sample.image_id, {"labels": made, "size": np.array(image.shape[:2], np.int64)})
                passes, labelled = passes + passed, labelled + 1
            kept, truth = labels.read(sample.image_id), masks.read(sample)
            size = tuple(kept["size"].tolist())
            for row, column, name in names:
                counting.add(name, place, truth, enlarge_mask(kept["labels"][row, column], size))
    scores = counting.scores()
    if chosen == own:
        keep_scores(run, f"pseudo-{split.name}", split, scores)
    pairs = dict(zip(rows, zip(scores[::2], scores[1::2], strict=True), strict=True))
    return Table3(pairs, ends, len(split.samples), passes, labelled)
