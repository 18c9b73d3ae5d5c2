"""The backbones by name."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from afactl.errors import PresetError
from afactl.network.backbones.base import Backbone, require_sound
from afactl.registry import Registry

Builder = Callable[[float], Backbone]

_MIT = ("mit_b0", "mit_b1", "mit_b2", "mit_b3", "mit_b4", "mit_b5", "mit_demo")
BACKBONES = Registry(
    "model.backbone", "afactl.backbones", {name: f"afactl.network.backbones.mit:{name}" for name in _MIT}
)

# "hybrid:NAME" puts MiT's last stage on a convolutional network of timm.
HYBRID = "hybrid:"


def register(name: str, builder: Builder) -> None:
    """Make `builder(drop_path)` available as `model.backbone: name`; a subclass of `Backbone` is such a builder.

    Raises:
        UsageError: the name is taken.
    """
    BACKBONES.register(name, builder)


def build_backbone(name: str, drop_path: float) -> Backbone:
    """A backbone with random weights.

    Args:
        name: one of `BACKBONES.names()`; a PVTv2 or plain ViT by timm's own name; or `hybrid:` and the name of a
            convolutional network of timm.
        drop_path: stochastic depth of the last block, in [0, 1); rises linearly from 0.

    Raises:
        PresetError: no such backbone, or one that breaks the contract of `Backbone`.
        DependencyError: the package that brings it cannot be imported.
    """
    builder = BACKBONES.get(name) if name in BACKBONES.names() else _timm_builder(name)
    if not callable(builder):
        raise BACKBONES.strange(name, builder, "a subclass of afactl.network.backbones.Backbone")
    return require_sound(builder(drop_path), name)


def _timm_builder(name: str) -> Builder:
    """What builds a backbone out of timm: one file per family."""
    if name.startswith(HYBRID):
        from afactl.network.backbones.hybrid import Hybrid

        return partial(Hybrid, name.removeprefix(HYBRID))
    from afactl.network.backbones import pvt, vit
    from afactl.network.backbones.timm_models import timm_family

    family = timm_family(name, BACKBONES.names())
    if family in pvt.FAMILIES:
        return partial(pvt.PyramidVisionTransformer, name)
    if family in vit.FAMILIES:
        return partial(vit.VisionTransformer, name)
    raise PresetError(
        f"model.backbone: timm's \"{name}\" is no plain ViT and no PVTv2; put MiT's attention on it where it is a "
        f"convolutional network: {HYBRID}{name}"
    )
