"""One step of training: the loss terms of its batches.

The photos of a step may be shared out over processes and batches. What a pixel or pair weighs is said by the whole
step, so the mean of the batches' losses over all of them is the step's loss, and so are the gradients that torch
averages.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afactl.datasets.transforms import denormalize, normalize
from afactl.inference.refiners import preset_refiner
from afactl.machine import distributed
from afactl.method.affinity import Walk, affinity_label, log_sigmoid
from afactl.method.cam import Thresholds, ignore_outside
from afactl.method.losses import (
    affinity_loss,
    classification_loss,
    energy_loss,
    full_segmentation_loss,
    mean_weights,
    pair_counts,
    pixel_counts,
    segmentation_loss,
)
from afactl.method.pseudo_labels import Photos, propagated_label, refined_label
from afactl.method.schedule import Phase
from afactl.network.model import AFA, CamPass
from afactl.presets import Preset


class Targets(NamedTuple):
    """What the photos of a batch learn from.

    Attributes:
        segmentation: B x h x w uint8, 0..C or 255 (ignored).
        pairs: B x N x N uint8 as `affinity_label` gives them; None where no affinity is learned.
        weights: of each photo's pixels and pairs in the losses, out of `share_weights`; None: not weighed yet.
    """

    segmentation: Tensor
    pairs: Tensor | None = None
    weights: Tensor | None = None

    def counts(self) -> Tensor:
        """B x 2 or B x 4: background and foreground pixels, positive and negative pairs of each photo."""
        pixels = pixel_counts(self.segmentation)
        return pixels if self.pairs is None else torch.cat([pixels, pair_counts(self.pairs)], dim=1)


def make_targets(model: AFA, image: Tensor, label: Tensor, box: Tensor, phase: Phase, preset: Preset) -> Targets:
    """The labels that the network's own CAMs become, without gradient; arguments as in `training_losses`."""
    pixels = normalize(image)
    cam, affinity, train = preset.cam, preset.affinity, preset.train
    if train.refiner_picture == "truncated":
        image = denormalize(pixels).to(torch.uint8)
    refine = preset_refiner(preset)
    passed = _pass_for_cams(model, pixels, preset)
    photos, thresholds = Photos(image, label, box), Thresholds(cam.beta_low, cam.beta_high)
    refined = target = refined_label(photos, passed.cam, refine, thresholds)
    if phase is Phase.PROPAGATED:
        with torch.no_grad():
            logits = model.affinity_head.windows(passed.queries, passed.keys, passed.grid, affinity.radius)
            walk = Walk(**preset.walk_settings())
            target = propagated_label(photos, passed.cam, log_sigmoid(logits), walk, refine, thresholds)
    if not affinity.enabled:
        return Targets(target)
    taught = target if train.affinity_label == "propagated" else refined
    height, width = image.shape[2:]
    grid = (height // model.backbone.stride, width // model.backbone.stride)
    return Targets(target, affinity_label(taught, grid, affinity.radius))


def _pass_for_cams(model: AFA, pixels: Tensor, preset: Preset) -> CamPass:
    """The passes of a step for its CAMs, in the mode that the preset asks for."""
    scales = preset.cam.scales
    with precision(preset, pixels.device):
        return model.multi_scale_cam(pixels, scales, max(scales), as_trained=preset.train.cam_passes == "training")


def share_weights(targets: Sequence[Targets], preset: Preset) -> list[Tensor]:
    """What the pixels and pairs of each photo weigh, so that the means are taken over the photos of the whole step.

    Every process calls this with its batches, which are of one size. Photos are counted in the order of the stream,
    whatever process and batch they fall to: with P processes, every P-th photo is this one's. The mean of the batches'
    losses over all batches and processes is then the loss of the step.

    Returns:
        Per batch B x 4, as `Targets.counts`; B x 2 without pairs, and B x 1 with true masks.
    """
    processes, rank = distributed.world_size(), distributed.rank()
    counts = torch.cat([batch.counts() for batch in targets])
    table = counts.new_zeros(processes * len(counts), counts.shape[1])
    table[rank::processes] = counts
    table = distributed.all_reduce(table)
    part = preset.loss.part_photos
    if preset.train.supervision == "masks":
        weights = mean_weights(table.sum(dim=1, keepdim=True), part)
    else:
        weights = torch.cat([mean_weights(table[:, :2], part), mean_weights(table[:, 2:], part, added=1)], dim=1)
    own = weights[rank::processes].chunk(len(targets))
    return [processes * len(targets) * weight for weight in own]


def training_losses(
    model: AFA,
    image: Tensor,
    label: Tensor,
    box: Tensor,
    phase: Phase,
    preset: Preset,
    targets: Targets | None = None,
) -> dict[str, Tensor]:
    """The unweighted loss terms of a batch; which ones there are depends on the phase.

    Args:
        image: B x 3 x h x w RGB uint8. label: B x C. box: B x 4, the true image inside padding. Label and box may lie
            on the CPU wherever the image is: then nobody has to ask an accelerator how many classes there are.
        targets: of `make_targets`; None: they are made here, for a batch that is all of the step in this process.

    Returns:
        "cls" always; after the classification warm-up also "seg", "aff" with the affinity branch,
        and "reg" where it has a weight.
    """
    pixels = normalize(image)
    network, as_trained = precision(preset, image.device), preset.train.cam_passes == "training"
    if targets is None and phase is not Phase.CLASSIFICATION and not as_trained:
        # Labels first: this way the memory of these passes and of the one that keeps its maps for the
        # gradient are never held together.
        targets = make_targets(model, image, label, box, phase, preset)
    with network:
        encoded = model(pixels)
        classes = model.classify(encoded)
    losses = {"cls": classification_loss(classes.float(), label.to(image.device, non_blocking=True))}
    if phase is Phase.CLASSIFICATION:
        if as_trained:  # the decoder's batch norm counts these passes
            with network, torch.no_grad():
                model.segment(encoded)
            _pass_for_cams(model, pixels, preset)
        return losses

    with network:
        logits = model.segment(encoded)
    if targets is None:  # batch norm counts this pass first
        targets = make_targets(model, image, label, box, phase, preset)
    weights = share_weights([targets], preset)[0] if targets.weights is None else targets.weights
    if targets.pairs is not None:
        with network:
            learned = model.affinity(encoded)
        losses["aff"] = affinity_loss(learned.float(), targets.pairs, weights[:, 2:])
    target = targets.segmentation
    logits = F.interpolate(logits.float(), size=target.shape[1:], mode="bilinear", align_corners=False)
    losses["seg"] = segmentation_loss(logits, target, weights[:, :2])
    if preset.loss.reg > 0:
        inside = ignore_outside(torch.zeros_like(target), box) == 0
        losses["reg"] = energy_loss(image, logits, target, inside)
    return losses


def precision(preset: Preset, device: torch.device) -> torch.autocast:
    """The context of the network's products, `train.precision`; labels and losses are made outside, in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=lower_precision(preset, device))


def lower_precision(preset: Preset, device: torch.device) -> bool:
    """Whether the products are in bfloat16: "auto" takes it where it was found quicker and to give the same labels."""
    if preset.train.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return preset.train.precision == "bfloat16"


def supervised_losses(
    model: AFA, image: Tensor, mask: Tensor, preset: Preset, weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Full supervision (the upper bound of Table 5): plain cross-entropy with the true masks.

    Args:
        image: B x 3 x h x w RGB uint8. mask: B x h x w uint8, 0..C or 255.
        weights: as `share_weights` gives them; None: this batch is all there is.

    Returns:
        "seg".
    """
    with precision(preset, image.device):
        logits = model.segment(model(normalize(image)))
    logits = F.interpolate(logits.float(), size=mask.shape[1:], mode="bilinear", align_corners=False)
    return {"seg": full_segmentation_loss(logits, mask, weights)}


class StepLosses(nn.Module):
    """The loss terms of a batch as a module: what DistributedDataParallel wraps, and whose gradients it averages."""

    def __init__(self, model: AFA, preset: Preset) -> None:
        super().__init__()
        self.model, self.preset = model, preset

    def targets(self, batches: Sequence[Mapping[str, Tensor]], phase: Phase) -> list[Targets | None]:
        """What the batches of a step learn from, made before any of them is passed, since each needs the counts of all.

        Returns:
            One per batch; None where `forward` sees to it: with a single batch, and in the phase of classification.
        """
        masks = self.preset.train.supervision == "masks"
        if len(batches) == 1 or (phase is Phase.CLASSIFICATION and not masks):
            return [None] * len(batches)
        made = [self._targets(batch, phase) for batch in batches]
        weights = share_weights(made, self.preset)
        return [batch._replace(weights=weight) for batch, weight in zip(made, weights, strict=True)]

    def _targets(self, batch: Mapping[str, Tensor], phase: Phase) -> Targets:
        if self.preset.train.supervision == "masks":
            return Targets(batch["mask"])
        return make_targets(self.model, batch["image"], batch["label"], batch["box"], phase, self.preset)

    def forward(self, batch: Mapping[str, Tensor], phase: Phase, targets: Targets | None = None) -> dict[str, Tensor]:
        """The terms of the preset's supervision for a batch of `TrainingStream`.

        Args:
            targets: as the method of that name gives them.
        """
        if self.preset.train.supervision == "masks":
            targets = targets or self._targets(batch, phase)
            weights = share_weights([targets], self.preset)[0] if targets.weights is None else targets.weights
            return supervised_losses(self.model, batch["image"], targets.segmentation, self.preset, weights)
        image, label, box = batch["image"], batch["label"], batch["box"]
        return training_losses(self.model, image, label, box, phase, self.preset, targets)
