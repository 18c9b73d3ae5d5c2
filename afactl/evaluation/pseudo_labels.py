"""Scores of a split: validation during training, the rows of `eval`, and the paper's Table 3."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from afactl.datasets.images import read_image
from afactl.datasets.registry import data_fingerprint
from afactl.datasets.samples import Sample, Split
from afactl.datasets.transforms import normalize
from afactl.errors import DataError
from afactl.evaluation.metrics import confusion_matrix, mean_iou
from afactl.inference.cams import CamRecord, TrainedRun, multi_hot, open_cam_cache, record_of, segment, to_tensor
from afactl.machine import distributed
from afactl.machine.parallel import ordered_map, processes_for
from afactl.method.cam import threshold_cam
from afactl.method.pseudo_labels import best_class, cut_cam, propagate, refine_cam, refine_planes
from afactl.method.refinement.crf import crf_label
from afactl.method.refinement.registry import build_refiner
from afactl.network.model import AFA, evaluation_mode
from afactl.presets import Preset
from afactl.runs.cache import Cache, CacheHeader
from afactl.runs.folder import write_scores

Track = Callable[[Sequence[Sample]], Iterator[Sample]]

# Rows of Table 3 that come from one run, in the paper's order.
WITHOUT_PROPAGATION = "AFA (w/o prop.)"
WITH_MHSA = "AFA (prop. with MHSA)"
WITH_AFFINITY = "AFA"
WITHOUT_AFA = "w/o AFA"
TABLE3_ROWS = (WITHOUT_PROPAGATION, WITH_MHSA, WITH_AFFINITY)
PSEUDO_STAGE = "pseudo-labels"
# Rows of `eval`; the last one only where the dense CRF is asked for.
SEGMENTATION_ROWS = ("single scale", "multi-scale + flip", "multi-scale + flip + CRF")


@torch.no_grad()
def validate(
    model: AFA, split: Split, preset: Preset, device: torch.device, track: Track = iter
) -> dict[str, float]:
    """The validation during training: one pass per photo for the segmentation, and the raw CAM.

    Several processes share the photos; each gets the scores of all.

    Returns:
        "val_seg_miou": segmentation, single scale, without image-level truth.
        "val_cam_miou": multi-scale CAM at the scoring threshold, with image-level truth.
    """
    classes = len(split.classes)
    seg_counts = cam_counts = np.zeros((classes + 1, classes + 1), np.int64)
    with evaluation_mode(model):
        for sample in track(distributed.share(split.samples)):
            image, truth = read_image(sample.image), split.read_mask(sample)
            logits = segment(model, image, device, long_side=preset.eval.long_side)
            seg_counts = seg_counts + confusion_matrix(truth, _to_uint8(logits.argmax(0)), classes + 1)
            passed = model.multi_scale_cam(normalize(to_tensor(image, device)), preset.cam.scales, 1.0)
            label = multi_hot(sample.labels, classes).to(device)[None]
            pseudo = threshold_cam(passed.cam, label, preset.cam.background, preset.cam.background)[0]
            cam_counts = cam_counts + confusion_matrix(truth, _to_uint8(pseudo), classes + 1)
    seg_counts, cam_counts = distributed.total_counts(seg_counts), distributed.total_counts(cam_counts)
    return {"val_seg_miou": 100 * mean_iou(seg_counts), "val_cam_miou": 100 * mean_iou(cam_counts)}


def _to_uint8(label: torch.Tensor) -> np.ndarray:
    return label.to(torch.uint8).cpu().numpy()


class Score(NamedTuple):
    """One confusion matrix by name; `confusion` is K x K, rows the truth."""

    name: str
    confusion: np.ndarray

    @property
    def miou(self) -> float:
        """Mean IoU in per cent over the classes that occur in the truth."""
        return 100 * mean_iou(self.confusion)


class Segmented(NamedTuple):
    """What `evaluate_segmentation` found.

    Attributes:
        scores: the rows of `eval`. images: mIoU in per cent of each image by multi-scale + flip, in
            the order of the split; NaN where an image has nothing but ignored pixels.
    """

    scores: list[Score]
    images: np.ndarray


def evaluate_segmentation(run: TrainedRun, split: Split, crf: str | None = None, track: Track = iter) -> Segmented:
    """The rows of `eval`: single scale; multi-scale + flip; and with `crf`, one of CRF_BACKENDS, also + CRF.

    No image-level truth is used. Several processes share the photos; each gets the scores of all.

    Raises:
        DataError: the network gives non-finite values for a photo.
    """
    preset = run.preset
    classes = len(split.classes) + 1
    counts = {name: np.zeros((classes, classes), np.int64) for name in SEGMENTATION_ROWS[: 3 if crf else 2]}
    truths: deque[np.ndarray] = deque()
    samples = distributed.share(split.samples)
    images = np.zeros(len(split.samples))
    places = iter(distributed.share(range(len(split.samples))))

    def scored() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for sample in track(samples):
            image, truth = read_image(sample.image), split.read_mask(sample)
            single = segment(run.model, image, run.device, long_side=preset.eval.long_side)
            fused = segment(run.model, image, run.device, preset.eval.scales, True, preset.eval.long_side)
            if not torch.isfinite(fused).all():
                raise DataError(f"{sample.image}: the network gives non-finite values (NaN); its weights are broken, train again")
            for name, logits in zip(SEGMENTATION_ROWS, (single, fused), strict=False):
                found = confusion_matrix(truth, _to_uint8(logits.max(dim=0).indices), classes)
                counts[name] += found
            images[next(places)] = 100 * mean_iou(found)
            truths.append(truth)
            yield to_tensor(image, run.device)[0], fused

    if crf is None:
        deque(scored(), maxlen=0)
    else:
        refine = partial(crf_label, backend=crf, settings=preset.crf.model_dump())
        for label in ordered_map(refine, scored(), processes_for(len(samples), run.device)):
            counts[SEGMENTATION_ROWS[2]] += confusion_matrix(truths.popleft(), _to_uint8(label), classes)
    scores = [Score(name, distributed.total_counts(found)) for name, found in counts.items()]
    _keep_scores(run, f"segmentation-{split.name}", split, {score.name: score.confusion for score in scores})
    return Segmented(scores, distributed.total_counts(images))


def _keep_scores(run: TrainedRun, name: str, split: Split, confusions: dict[str, np.ndarray]) -> None:
    """Leave the confusion matrices in the run, for its report."""
    if distributed.rank() == 0:
        rows = {row: confusion.tolist() for row, confusion in confusions.items()}
        facts = {"split": split.name, "images": len(split.samples), "classes": list(split.classes)}
        write_scores(run.folder, name, {**facts, "weights": run.weights, "step": run.iteration, "rows": rows})


def score_refined_cams(
    run: TrainedRun, split: Split, refiner: tuple[str, dict[str, Any]] | None = None, track: Track = iter
) -> float:
    """mIoU in per cent of CAMs, which come out of the run's cache or go into it; image-level truth is used.

    Args:
        refiner: (name, settings) of a refiner: CAM, background plane of `cam.background`, softmax,
            refiner, argmax. None: the CAM cut at `cam.background`.
    """
    classes, threshold = len(split.classes) + 1, run.preset.cam.background
    refine = build_refiner(refiner[0], **refiner[1]) if refiner else None
    counts = np.zeros((classes, classes), np.int64)
    with open_cam_cache(run, split) as cams, torch.inference_mode():
        for sample in track(split.samples):
            image = read_image(sample.image)
            record, _ = record_of(run, cams, sample, image)
            cam, present = (torch.from_numpy(array).to(run.device) for array in (record.cam, record.classes))
            if refine is None:
                label = cut_cam(cam.float(), present, threshold)
            else:
                label = refine_cam(to_tensor(image, run.device)[0], cam.float(), present, (threshold,), refine)[0]
            counts += confusion_matrix(split.read_mask(sample), _to_uint8(label), classes)
    return 100 * mean_iou(counts)


def pseudo_labels_of(image: np.ndarray, record: CamRecord, preset: Preset, device: torch.device) -> np.ndarray:
    """The pseudo labels of Table 3 for one photo: each row without and with PAR.

    Without propagation the CAM is cut at `cam.background` (with PAR: background plane of that
    value, softmax, PAR, argmax). With propagation the background plane is `affinity.background`.

    Args:
        image: h x w x 3 uint8.

    Returns:
        3 x 2 x h x w uint8, rows as TABLE3_ROWS, then (without PAR, with PAR).
    """
    refine = build_refiner("par", **preset.refiner_settings("par"))
    pixels = to_tensor(image, device)[0]
    cam = torch.from_numpy(record.cam).to(device).float()
    classes = torch.from_numpy(record.classes).to(device)
    size = image.shape[:2]
    if len(classes) == 0:  # nothing is said to be there: all is background
        return np.zeros((len(TABLE3_ROWS), 2, *size), np.uint8)
    settings, threshold = preset.affinity, preset.cam.background
    rows = [torch.stack([cut_cam(cam, classes, threshold), refine_cam(pixels, cam, classes, (threshold,), refine)[0]])]
    for matrix in (record.attention, record.affinity):
        weights = torch.from_numpy(matrix).to(device).float()
        planes = propagate(
            cam, weights, record.grid, (settings.background,), settings.radius, settings.alpha, settings.eps
        )
        planes = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
        rows.append(torch.cat([best_class(planes, classes, size), refine_planes(pixels, planes, classes, refine)]))
    return _to_uint8(torch.stack(rows))


class Table3(NamedTuple):
    """Scores of pseudo labels.

    Attributes:
        scores: per row name (without PAR, with PAR).
        images: scored. passes: images that needed the network now. labelled: images whose
            pseudo labels had to be made now.
    """

    scores: dict[str, tuple[Score, Score]]
    images: int
    passes: int
    labelled: int


def score_pseudo_labels(run: TrainedRun, split: Split, overwrite: bool = False, track: Track = iter) -> Table3:
    """Rows of Table 3 that a run gives by itself; every intermediate goes through the caches.

    Raises:
        CacheError: a cache there was made by other weights, data or settings.
    """
    preset, classes = run.preset, len(split.classes) + 1
    names = [(row, par) for row in range(len(TABLE3_ROWS)) for par in range(2)]
    counts = {name: np.zeros((classes, classes), np.int64) for name in names}
    passes = labelled = 0
    settings = {name: getattr(preset, name).model_dump(mode="json") for name in ("cam", "par", "affinity")}
    header = CacheHeader(PSEUDO_STAGE, settings, run.weights, data_fingerprint(split))
    path = run.folder / "cache" / f"{PSEUDO_STAGE}-{split.name}.h5"
    with open_cam_cache(run, split, overwrite) as cams, Cache.open(path, header, overwrite) as labels:
        for sample in track(split.samples):
            if sample.image_id not in labels:
                image = read_image(sample.image)
                record, passed = record_of(run, cams, sample, image)
                labels.append(sample.image_id, {"labels": pseudo_labels_of(image, record, preset, run.device)})
                passes, labelled = passes + passed, labelled + 1
            pseudo, truth = labels.read(sample.image_id)["labels"], split.read_mask(sample)
            for row, par in names:
                counts[row, par] += confusion_matrix(truth, pseudo[row, par], classes)
    scores = {
        name: (Score(name, counts[row, 0]), Score(name, counts[row, 1])) for row, name in enumerate(TABLE3_ROWS)
    }
    rows = {f"{name}{with_par}": score.confusion for name, pair in scores.items() for with_par, score in zip(("", " + PAR"), pair, strict=True)}
    _keep_scores(run, f"pseudo-{split.name}", split, rows)
    return Table3(scores, len(split.samples), passes, labelled)
