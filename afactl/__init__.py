"""afactl: from image-level labels to segmentation masks with AFA (Ru et al., CVPR 2022).

`afactl.load("runs/x").predict("photo.jpg").mask` is the shortest way; `afactl.api` has all of it. Nothing heavy is
imported until one of these names is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from afactl.api import (
        Affinity,
        Attention,
        Cams,
        Model,
        PseudoLabels,
        Segmentation,
        adopt,
        evaluate,
        load,
        pseudo_eval,
        train,
    )
    from afactl.errors import AfactlError
    from afactl.evaluation.scores import Score
    from afactl.network.model import AFA
    from afactl.presets import Preset, load_preset

__version__ = "0.1.0"
_HOMES = {
    "afactl.api": (
        "Affinity",
        "Attention",
        "Cams",
        "Model",
        "PseudoLabels",
        "Segmentation",
        "adopt",
        "evaluate",
        "load",
        "pseudo_eval",
        "train",
    ),
    "afactl.errors": ("AfactlError",),
    "afactl.evaluation.scores": ("Score",),
    "afactl.network.model": ("AFA",),
    "afactl.presets": ("Preset", "load_preset"),
}
__all__ = [
    "AFA",
    "AfactlError",
    "Affinity",
    "Attention",
    "Cams",
    "Model",
    "Preset",
    "PseudoLabels",
    "Score",
    "Segmentation",
    "adopt",
    "evaluate",
    "load",
    "load_preset",
    "pseudo_eval",
    "train",
]


def __getattr__(name: str) -> Any:
    for home, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(home), name)
    raise AttributeError(f"module 'afactl' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
