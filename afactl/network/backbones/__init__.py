"""Backbones: images to stage features, and the queries and keys of the last blocks.

A new backbone is one module that satisfies `Backbone` and registers a builder by name.
"""

from afactl.network.backbones.registry import Backbone, BackboneOutput, backbone_names, build_backbone, register

__all__ = ["Backbone", "BackboneOutput", "backbone_names", "build_backbone", "register"]

# Importing a module registers its backbones.
from afactl.network.backbones import mit  # noqa: F401
