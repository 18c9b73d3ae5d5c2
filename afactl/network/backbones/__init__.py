"""Backbones: images to stage features, and the queries and keys of the last blocks.

A new backbone is one module with a subclass of `Backbone` that registers a builder by name.
"""

from afactl.network.backbones.base import Backbone, BackboneOutput, require_whole_tokens
from afactl.network.backbones.registry import backbone_names, build_backbone, register

__all__ = ["Backbone", "BackboneOutput", "backbone_names", "build_backbone", "register", "require_whole_tokens"]

# Importing a module registers its backbones.
from afactl.network.backbones import mit  # noqa: F401
