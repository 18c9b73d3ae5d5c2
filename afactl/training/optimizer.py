"""The optimizer of a training, as the preset has it: AdamW, its groups, and their rates step by step."""

from __future__ import annotations

import torch

from afactl.method.schedule import learning_rate
from afactl.network.freezing import freeze
from afactl.network.model import AFA
from afactl.presets import Preset


def rest_or_count(optimizer: torch.optim.Optimizer, preset: Preset) -> None:
    """With `optim.idle_heads` = count, parameters that no loss has reached get a gradient of 0 (called before a step).

    AdamW leaves out parameters without a gradient; with one of 0 their weights decay, and their steps are counted, so
    that their first updates are those of a late step.
    """
    if preset.optim.idle_heads == "count":
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)


def build_optimizer(model: AFA, preset: Preset) -> torch.optim.AdamW:
    """AdamW with two groups: the backbone, and the heads at `head_lr_factor` times its rate.

    What of a backbone has no published weights (`Backbone.fresh`) learns at the rate of the heads.
    What `freeze` names keeps its values (the authors give the norm layers rate 0).

    Raises:
        PresetError: the backbone has no such parts to freeze.
    """
    optim = preset.optim
    fresh = {id(p) for part in model.backbone.fresh for p in model.backbone.get_submodule(part).parameters()}
    freeze(model.backbone, optim.freeze)
    own = {id(p) for p in model.backbone.parameters()} - fresh
    heads = [p for p in model.parameters() if id(p) not in own and p.requires_grad]
    backbone = [p for p in model.backbone.parameters() if id(p) in own and p.requires_grad]
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
