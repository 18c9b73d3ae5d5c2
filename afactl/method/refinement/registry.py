"""The refiners by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from afactl.method.refinement.stacks import Refinement
from afactl.registry import Registry

# (image 1 x 3 x h x w RGB in 0..255, stacks T x P x h' x w', each summing to 1 over P) -> T x P x h x w.
Refiner = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class ConfiguredRefiner:
    """A refiner with its settings: a `Refiner`, and the form for a batch on an accelerator where it has one.

    Attributes:
        alone, together: the functions of its `Refinement`.
    """

    alone: Refiner
    together: Callable[[Tensor, Tensor, Tensor], Tensor] | None = None

    def __call__(self, image: Tensor, stacks: Tensor) -> Tensor:
        """(image 1 x 3 x h x w RGB in 0..255, stacks T x P x h' x w') -> T x P x h x w."""
        return self.alone(image, stacks)


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
