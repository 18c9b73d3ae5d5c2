"""Scores of the segmentation: validation during training, and the rows of `eval`."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch

from afactl.datasets.images import reduce_image
from afactl.datasets.masks import enlarge_mask, read_pair
from afactl.datasets.samples import Split, Track
from afactl.datasets.transforms import normalize
from afactl.errors import DataError, counted
from afactl.evaluation.metrics import confusion_matrix, mean_iou
from afactl.evaluation.scores import Counting, Score, current_rows, keep_scores, to_uint8
from afactl.inference.segmentation import Passes, input_of_crf, multi_scale, segment, single_scale
from afactl.inference.trained_run import TrainedRun, multi_hot, to_tensor
from afactl.machine import distributed
from afactl.machine.parallel import ordered_map, processes_for
from afactl.method.cam import Thresholds, threshold_cam
from afactl.method.refinement.crf import DenseCrf, crf_label
from afactl.network.model import AFA, evaluation_mode
from afactl.presets import PROTOCOLS, Preset, protocol_name

# Rows of `eval`; the last one only where the dense CRF is asked for.
SEGMENTATION_ROWS = ("single scale", "multi-scale + flip", "multi-scale + flip + CRF")


class Validation(NamedTuple):
    """What `validate` found.

    Attributes:
        scores: in per cent; empty where there is no pixel to score, or where the network gave non-finite values.
            "val_seg_miou": segmentation, single scale at `train.validation_size`, without image-level truth.
            "val_cam_miou": multi-scale CAM at the scoring threshold, with image-level truth.
        left_out: why, by name, for each photo that could not be scored.
        non_finite: ids of the photos that the network gave NaN or infinity for.
    """

    scores: dict[str, float]
    left_out: list[str]
    non_finite: list[str]

    @property
    def no_score(self) -> str:
        """Why there are no scores; empty where there are."""
        if self.scores:
            return ""
        if self.non_finite:
            shown = ", ".join(self.non_finite[:3])
            photos = counted(len(self.non_finite), "photo")
            return f"the network gives non-finite values (NaN) for {photos} (first: {shown})"
        return "no photo has a mask to be compared with"


@torch.no_grad()
def validate(model: AFA, split: Split, preset: Preset, device: torch.device, track: Track = iter) -> Validation:
    """The validation during training: one pass per photo for the segmentation, and the raw CAM.

    A photo that cannot be read, or whose mask cannot be compared with it, is left out and named. Several processes
    share the photos; each gets what all found.
    """
    classes, masks = len(split.classes), split.require_masks()
    left_out: list[str] = []
    non_finite: list[str] = []
    passes = single_scale(preset.eval) if preset.train.validation_size == "test" else Passes()
    seg_counts = cam_counts = np.zeros((classes + 1, classes + 1), np.int64)
    with evaluation_mode(model):
        for sample in track(distributed.shard(split.samples)):
            try:
                image, truth = read_pair(sample, masks)
            except DataError as error:
                left_out.append(str(error))
                continue
            logits = segment(model, reduce_image(image, preset.eval.max_pixels), device, passes)
            small = reduce_image(image, preset.cam.max_pixels)
            passed = model.multi_scale_cam(normalize(to_tensor(small, device)), preset.cam.scales, 1.0)
            if not (torch.isfinite(logits).all() and torch.isfinite(passed.cam).all()):
                non_finite.append(sample.image_id)
                continue
            mask = enlarge_mask(to_uint8(logits.argmax(0)), truth.shape)
            seg_counts = seg_counts + confusion_matrix(truth, mask, classes + 1)
            label = multi_hot(sample.labels, classes).to(device)[None]
            pseudo = threshold_cam(passed.cam, label, Thresholds(preset.cam.background, preset.cam.background))[0]
            cam_counts = cam_counts + confusion_matrix(truth, enlarge_mask(to_uint8(pseudo), truth.shape), classes + 1)
    seg_counts, cam_counts = distributed.all_reduce_array(seg_counts), distributed.all_reduce_array(cam_counts)
    left_out, non_finite = distributed.all_gather(left_out), distributed.all_gather(non_finite)
    scores = {}
    if seg_counts.any() and not non_finite:
        scores = {"val_seg_miou": 100 * mean_iou(seg_counts), "val_cam_miou": 100 * mean_iou(cam_counts)}
    return Validation(scores, left_out, non_finite)


def with_protocol(run: TrainedRun, protocol: str | None) -> TrainedRun:
    """The run, tested by a protocol of PROTOCOLS in place of its own; None leaves it its own."""
    if protocol is None:
        return run
    return run._replace(preset=run.preset.model_copy(update={"eval": PROTOCOLS[protocol]}))


def kept_photo_scores(run: TrainedRun, split: Split, files: Mapping[str, Mapping[str, Any]]) -> np.ndarray | None:
    """mIoU in per cent of each photo of a split by multi-scale + flip, as `evaluate_segmentation` left it in the run.

    Args:
        files: what `read_scores` gives.

    Returns:
        In the order of the split, NaN where all of a photo is ignored; empty where an earlier version kept no photos
        apart. None where these weights were not scored on this data.
    """
    rows = current_rows(run, split, f"segmentation-{split.name}", files)
    return rows[min(1, len(rows) - 1)].images if rows else None


def evaluate_segmentation(
    run: TrainedRun, split: Split, crf: str | None = None, track: Track = iter, protocol: str | None = None
) -> list[Score]:
    """The rows of `eval`: single scale; multi-scale + flip; and with `crf`, one of CRF_BACKENDS, also + CRF.

    No image-level truth is used. Several processes share the photos; each gets the scores of all. The run keeps
    them in scores/segmentation-SPLIT.json, those of a named protocol in segmentation-SPLIT-PROTOCOL.json.

    Args:
        protocol: one of PROTOCOLS in place of the run's own section `eval`.

    Raises:
        DataError: a photo or mask cannot be read, they differ in size, or the network gives non-finite values.
    """
    run = with_protocol(run, protocol)
    preset, masks = run.preset, split.require_masks()
    counting = Counting(SEGMENTATION_ROWS[: 3 if crf else 2], len(split.samples), len(split.classes) + 1)
    samples, places = distributed.shard(split.samples), distributed.shard(range(len(split.samples)))
    waiting: deque[tuple[int, np.ndarray]] = deque()  # for the CRF: place and truth

    def scored() -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for place, sample in zip(places, track(samples), strict=True):
            image, truth = read_pair(sample, masks)
            image = reduce_image(image, preset.eval.max_pixels)
            single = segment(run.model, image, run.device, single_scale(preset.eval))
            fused = segment(run.model, image, run.device, multi_scale(preset.eval))
            if not torch.isfinite(fused).all():
                raise DataError(
                    f"{sample.image_path}: the network gives non-finite values (NaN); "
                    "its weights are broken, train again"
                )
            for name, logits in zip(SEGMENTATION_ROWS, (single, fused), strict=False):
                counting.add(name, place, truth, enlarge_mask(to_uint8(logits.max(dim=0).indices), truth.shape))
            if crf:
                waiting.append((place, truth))
                image, fused = input_of_crf(image, fused, preset.crf.drop_below)
            yield to_tensor(image, run.device)[0], fused

    if crf is None:
        deque(scored(), maxlen=0)
    else:
        refine = partial(crf_label, backend=crf, settings=DenseCrf(**preset.crf.model_dump()))
        for label in ordered_map(refine, scored(), processes_for(len(samples), run.device)):
            place, truth = waiting.popleft()
            counting.add(SEGMENTATION_ROWS[2], place, truth, enlarge_mask(to_uint8(label), truth.shape))
    scores = counting.scores()
    name = f"segmentation-{split.name}" + (f"-{protocol}" if protocol else "")
    keep_scores(run, name, split, scores, protocol=protocol_name(preset.eval))
    return scores
