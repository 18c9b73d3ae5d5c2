"""Which parts of a pretrained backbone keep their values while the rest learns."""

from __future__ import annotations

from typing import Literal

from torch import nn

from afactl.errors import PresetError
from afactl.network.backbones.base import Backbone

Freeze = Literal["nothing", "norms", "backbone"] | int

NORMS = (nn.LayerNorm, nn.GroupNorm, nn.modules.batchnorm._BatchNorm)


def freeze(backbone: Backbone, what: Freeze) -> None:
    """Take the gradient from parts of a backbone; frozen parts pass as in evaluation from now on.

    So batch norms of frozen parts use and keep the statistics they came with, and a frozen block has no stochastic
    depth. Parts without published weights (`Backbone.fresh`) are never frozen. A second call undoes the first.

    Args:
        what: "nothing"; "norms", the norm layers; "backbone", all of it; or N, all but its last N blocks
            (`Backbone.block_names`), with the embeddings before them.

    Raises:
        PresetError: the backbone has no more than N blocks, or does not name its blocks.
    """
    norms = tuple(name for name, module in backbone.named_modules() if isinstance(module, NORMS))
    learning = _last_blocks(backbone, what)
    for name, parameter in backbone.named_parameters():
        if not _is_of(name, backbone.fresh):
            kept = _is_of(name, norms) if what == "norms" else what != "nothing" and not _is_of(name, learning)
            parameter.requires_grad_(not kept)
    backbone.frozen = tuple(module for name, module in backbone.named_modules() if name and _is_still(module))
    backbone.train(backbone.training)


def _last_blocks(backbone: Backbone, what: Freeze) -> tuple[str, ...]:
    """Names below which the last `what` blocks lie."""
    if not isinstance(what, int):
        return ()
    blocks = backbone.block_names()
    if what >= len(blocks):
        known = f"its {len(blocks)} blocks" if blocks else "0: this backbone does not name its blocks"
        raise PresetError(f"optim.freeze: expected fewer than {known}, or nothing, norms or backbone, got {what}")
    return tuple(name for names in blocks[-what:] for name in names)


def _is_of(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a module or parameter is one of the parts, or lies inside of one."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _is_still(module: nn.Module) -> bool:
    """Whether a module has parameters, none of which learns."""
    learns = [parameter.requires_grad for parameter in module.parameters()]
    return bool(learns) and not any(learns)
