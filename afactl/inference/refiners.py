"""The refiners by name, and with the settings that a preset has for them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor

from afactl.method.refinement.stacks import ConfiguredRefiner, Refinement, Refiner
from afactl.presets import Preset
from afactl.registry import Registry

REFINERS = Registry(
    "cam.refiner",
    "afactl.refiners",
    {name: f"afactl.method.refinement.stacks:{name.upper()}" for name in ("par", "pamr", "crf", "none")},
)


def register(name: str, refiner: Callable[..., Tensor] | Refinement) -> None:
    """Make a refiner available as `cam.refiner: name`.

    Args:
        refiner: a `Refiner`, or a `Refinement` that also says which values of the preset it takes.

    Raises:
        UsageError: the name is taken.

    Example:
        >>> register("par", lambda image, stacks: stacks)
        Traceback (most recent call last):
        afactl.errors.UsageError: cam.refiner: "par" is taken by afactl itself; register it under another name
    """
    REFINERS.register(name, refiner)


def refinement(name: str) -> Refinement:
    """What is registered under a name.

    Raises:
        PresetError: nothing. DependencyError: the package that brings it cannot be imported.

    Example:
        >>> refinement("pamr").settings
        ('par.dilations', 'par.iterations')
    """
    entry = REFINERS.get(name)
    if isinstance(entry, Refinement):
        return entry
    if not callable(entry):
        raise REFINERS.strange(name, entry, "a function (image, stacks) or a Refinement")
    return Refinement(entry)


def refiner_title(name: str) -> str:
    """What tables and pictures call a refiner.

    Raises:
        PresetError: no such refiner. DependencyError: the package that brings it cannot be imported.

    Example:
        >>> refiner_title("pamr")
        'PAMR'
    """
    return refinement(name).title or name


def build_refiner(name: str, **settings: Any) -> Refiner:
    """A refiner with its settings.

    Args:
        name: one of `REFINERS.names()`.
        settings: keyword arguments of its function.

    Raises:
        PresetError: no such refiner. DependencyError: the package that brings it cannot be imported.

    Example:
        >>> import torch
        >>> refine = build_refiner("par", iterations=2)  # (image, stacks) -> stacks
        >>> refine(torch.zeros(1, 3, 4, 6), torch.full((2, 3, 2, 2), 1 / 3)).shape
        torch.Size([2, 3, 4, 6])
    """
    builder = refinement(name)
    together = None if builder.together is None else partial(builder.together, **settings)
    return ConfiguredRefiner(partial(builder.function, **settings), together)


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
