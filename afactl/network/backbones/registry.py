"""The backbones by name."""

from __future__ import annotations

from collections.abc import Callable

from afactl.errors import PresetError, nearest
from afactl.network.backbones.base import Backbone, require_sound

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
        PresetError: no such backbone, or one that breaks the contract of `Backbone`.
    """
    if name not in _BUILDERS:
        raise PresetError(f'model.backbone: "{name}" is unknown{nearest(name, backbone_names())}')
    return require_sound(_BUILDERS[name](drop_path), name)
