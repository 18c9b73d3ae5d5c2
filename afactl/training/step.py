"""One step of training: the loss terms of a batch, and the optimizer that follows them.

Where several processes share a batch, each gives its part times their number: the mean over the
processes is the loss of the whole batch, and so are the gradients that torch averages.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from afactl.datasets.transforms import normalize
from afactl.inference.refiners import preset_refiner
from afactl.machine import distributed
from afactl.method.affinity import Walk, affinity_label
from afactl.method.cam import Thresholds, ignore_outside
from afactl.method.losses import (
    affinity_loss,
    classification_loss,
    energy_loss,
    full_segmentation_loss,
    segmentation_loss,
)
from afactl.method.pseudo_labels import Photos, propagated_label, refined_label
from afactl.method.schedule import Phase, learning_rate
from afactl.network.model import AFA
from afactl.presets import Preset


def training_losses(
    model: AFA, image: Tensor, label: Tensor, box: Tensor, phase: Phase, preset: Preset
) -> dict[str, Tensor]:
    """The unweighted loss terms of one step; which ones there are depends on the phase.

    Args:
        image: B x 3 x h x w RGB uint8. label: B x C. box: B x 4, the true image inside padding.

    Returns:
        "cls" always; after the classification warm-up also "seg", "aff" with the affinity branch,
        and "reg" where it has a weight.
    """
    pixels = normalize(image)
    network = precision(preset, image.device)
    if phase is Phase.CLASSIFICATION:
        with network:
            logits = model.classify(model(pixels))
        return {"cls": classification_loss(logits.float(), label)}

    # Labels first: this way the memory of these passes and of the one that keeps its maps for the
    # gradient are never held together.
    cam, affinity = preset.cam, preset.affinity
    refine = preset_refiner(preset)
    with network:
        passed = model.multi_scale_cam(pixels, cam.scales, affinity_scale=max(cam.scales))
    photos, thresholds = Photos(image, label, box), Thresholds(cam.beta_low, cam.beta_high)
    refined = target = refined_label(photos, passed.cam, refine, thresholds)
    if phase is Phase.PROPAGATED:
        with torch.no_grad():
            logits = model.affinity_head.windows(passed.queries, passed.keys, passed.grid, affinity.radius)
            walk = Walk(**preset.walk_settings())
            target = propagated_label(photos, passed.cam, F.logsigmoid(logits), walk, refine, thresholds)
    del passed

    with network:
        encoded = model(pixels)
        classes, logits = model.classify(encoded), model.segment(encoded)
        learned = model.affinity(encoded) if affinity.enabled else None
    losses = {"cls": classification_loss(classes.float(), label)}
    if learned is not None:
        pairs = affinity_label(refined, encoded.grid, affinity.radius)
        losses["aff"] = distributed.world_size() * affinity_loss(learned.float(), pairs, distributed.all_reduce)
    logits = F.interpolate(logits.float(), size=target.shape[1:], mode="bilinear", align_corners=False)
    losses["seg"] = distributed.world_size() * segmentation_loss(logits, target, distributed.all_reduce)
    if preset.loss.reg > 0:
        inside = ignore_outside(torch.zeros_like(target), box) == 0
        losses["reg"] = energy_loss(image, logits, target, inside)
    return losses


def precision(preset: Preset, device: torch.device) -> torch.autocast:
    """The context of the network's products, `train.precision`; labels and losses are made outside, in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=preset.train.precision == "bfloat16")


def supervised_losses(model: AFA, image: Tensor, mask: Tensor, preset: Preset) -> dict[str, Tensor]:
    """Full supervision (the upper bound of Table 5): plain cross-entropy with the true masks.

    Args:
        image: B x 3 x h x w RGB uint8. mask: B x h x w uint8, 0..C or 255.

    Returns:
        "seg".
    """
    with precision(preset, image.device):
        logits = model.segment(model(normalize(image)))
    logits = F.interpolate(logits.float(), size=mask.shape[1:], mode="bilinear", align_corners=False)
    return {"seg": distributed.world_size() * full_segmentation_loss(logits, mask, distributed.all_reduce)}


class StepLosses(nn.Module):
    """The loss terms of a batch as a module: what DistributedDataParallel wraps, and whose gradients it averages."""

    def __init__(self, model: AFA, preset: Preset) -> None:
        super().__init__()
        self.model, self.preset = model, preset

    def forward(self, batch: Mapping[str, Tensor], phase: Phase) -> dict[str, Tensor]:
        """The terms of the preset's supervision for a batch of `TrainingStream`."""
        if self.preset.train.supervision == "masks":
            return supervised_losses(self.model, batch["image"], batch["mask"], self.preset)
        return training_losses(self.model, batch["image"], batch["label"], batch["box"], phase, self.preset)


def build_optimizer(model: AFA, preset: Preset) -> torch.optim.AdamW:
    """AdamW with two groups: the backbone, and the heads at `head_lr_factor` times its rate.

    With `freeze_norms` the backbone's norm layers keep their values (the authors give them rate 0).
    """
    optim = preset.optim
    if optim.freeze_norms:
        for module in model.backbone.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(False)
    backbone = [p for p in model.backbone.parameters() if p.requires_grad]
    own = {id(p) for p in model.backbone.parameters()}
    heads = [p for p in model.parameters() if id(p) not in own]
    return torch.optim.AdamW(
        [{"params": backbone, "factor": 1.0}, {"params": heads, "factor": optim.head_lr_factor}],
        lr=optim.lr,
        betas=optim.betas,
        weight_decay=optim.weight_decay,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, preset: Preset) -> float:
    """Set the rate of every group for a step; gives the backbone's."""
    optim = preset.optim
    rate = learning_rate(step, optim.lr, preset.train.max_iters, optim.warmup_iters, optim.warmup_ratio, optim.power)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    return rate
