"""What an optimizer remembers of each parameter, by the parameter's name; its settings are not part of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from afactl.network.model import AFA


def optimizer_state(model: AFA, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """What a checkpoint keeps: torch's state of the optimizer, and the names of the parameters it numbers."""
    return {"optimizer": optimizer.state_dict(), "parameters": _names(model, optimizer)}


def restore_optimizer(model: AFA, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Give each parameter that the optimizer learns the moments that were kept under its name.

    A parameter without any starts again. Rates, betas and weight decay stay those that the optimizer was built with.

    Args:
        state: of `optimizer_state`, by this version or an earlier one.
    """
    names = state.get("parameters") or _names_before(model, state["optimizer"])
    kept = {names[number]: moments for number, moments in state["optimizer"]["state"].items()}
    moments = {number: kept[name] for number, name in enumerate(_names(model, optimizer)) if name in kept}
    optimizer.load_state_dict({**optimizer.state_dict(), "state": moments})


def _names(model: AFA, optimizer: torch.optim.Optimizer) -> list[str]:
    """Names of the parameters that an optimizer learns, in the order of its state."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def _names_before(model: AFA, saved: Mapping[str, Any]) -> list[str]:
    """The same for a checkpoint of an earlier version, which did not note them.

    The backbone came first, with its norm layers or without them, then the heads.
    """
    names = [name for name, _ in model.named_parameters()]
    backbone = [name for name in names if name.startswith("backbone.")]
    norms = {f"backbone.{name}" for name, part in model.backbone.named_modules() if isinstance(part, nn.LayerNorm)}
    if len(saved["param_groups"][0]["params"]) < len(backbone):
        backbone = [name for name in backbone if name.rpartition(".")[0] not in norms]
    return [*backbone, *(name for name in names if not name.startswith("backbone."))]
