"""Backbones: images to stage features, and the queries and keys of the last blocks.

A new backbone is one module with a subclass of `Backbone`, registered here or by an entry point of the group
`afactl.backbones`.
"""

from afactl.network.backbones.base import Backbone, BackboneOutput, require_whole_tokens, smaller_crop
from afactl.network.backbones.registry import BACKBONES, build_backbone, register

__all__ = [
    "BACKBONES",
    "Backbone",
    "BackboneOutput",
    "build_backbone",
    "register",
    "require_whole_tokens",
    "smaller_crop",
]
