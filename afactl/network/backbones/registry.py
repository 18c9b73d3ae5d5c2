"""What the rest of the project asks of a backbone, and the backbones by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

from torch import Tensor, nn

from afactl.errors import PresetError, nearest


class BackboneOutput(NamedTuple):
    """What one pass of a backbone gives.

    Attributes:
        features: one B x D_i x h_i x w_i map per stage, finest first. The last one is on the
            hs x ws token grid, N = hs * ws.
        queries: B x n x N x d, the queries of all n heads of the last blocks, the last block's
            heads last. S of Eq. 1 (before scaling) is queries @ keys^T.
        keys: B x n x N x d, the keys of the same heads.
    """

    features: tuple[Tensor, ...]
    queries: Tensor
    keys: Tensor


class Backbone(nn.Module):
    """A module that turns normalised images into a `BackboneOutput`.

    Attributes:
        out_channels: D_i per stage.
        strides: pixels per feature cell, per stage.
        attention_layers: L, the last blocks whose queries and keys come out.
        attention_heads: n, the heads of these blocks together, as many in each.
    """

    out_channels: tuple[int, ...]
    strides: tuple[int, ...]
    attention_layers: int
    attention_heads: int

    if TYPE_CHECKING:  # nn.Module calls `forward`, and says nothing of its types

        def __call__(self, image: Tensor) -> BackboneOutput: ...


Builder = Callable[[float], Backbone]
_BUILDERS: dict[str, Builder] = {}


def register(name: str, builder: Builder) -> None:
    """Make `builder(drop_path)` available as `model.backbone: name`."""
    _BUILDERS[name] = builder


def backbone_names() -> list[str]:
    """Names that `build_backbone` knows."""
    return sorted(_BUILDERS)


def build_backbone(name: str, drop_path: float) -> Backbone:
    """A backbone with random weights.

    Args:
        name: one of `backbone_names()`.
        drop_path: stochastic depth of the last block, in [0, 1); rises linearly from 0.

    Raises:
        PresetError: no such backbone.
    """
    if name not in _BUILDERS:
        raise PresetError(f'model.backbone: "{name}" is unknown{nearest(name, backbone_names())}')
    return _BUILDERS[name](drop_path)
