"""Refiners with the settings that a preset has for them."""

from __future__ import annotations

from typing import Any

from afactl.method.refinement.registry import Refiner, build_refiner, refinement
from afactl.presets import Preset


def refiner_settings(preset: Preset, name: str) -> dict[str, Any]:
    """The values of the preset that a refiner takes, as its keyword arguments.

    Raises:
        PresetError: no such refiner, or one that asks for a value that no preset has.
    """
    return preset.values(refinement(name).settings)


def preset_refiner(preset: Preset, name: str | None = None, **changes: Any) -> Refiner:
    """A refiner as the preset sets it up.

    Args:
        name: None: that of `cam.refiner`.
        changes: settings that differ from the preset's.

    Raises:
        PresetError: as in `refiner_settings`.
    """
    name = preset.cam.refiner if name is None else name
    return build_refiner(name, **{**refiner_settings(preset, name), **changes})
