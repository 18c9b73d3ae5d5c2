"""The forms of `predict` by name. This module imports nothing heavy: the command line offers the names."""

from __future__ import annotations

from afactl.registry import Registry

WRITERS = Registry(
    "--format",
    "afactl.writers",
    {
        name: f"afactl.prediction.writers:{writer}"
        for name, writer in {
            "png": "PngWriter",
            "grey": "GreyWriter",
            "overlay": "OverlayWriter",
            "probabilities": "ProbabilityWriter",
            "coco-rle": "CocoWriter",
            "voc-server": "VocServerWriter",
            "cvat": "CvatWriter",
            "label-studio": "LabelStudioWriter",
        }.items()
    },
)
