"""The refiners by name, behind one protocol.

Shapes: T stacks of P planes that share an image (the two thresholds of the label chain).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.errors import UsageError, nearest
from afactl.method.refinement.crf import dense_crf
from afactl.method.refinement.pamr import pixel_adaptive_mask_refinement
from afactl.method.refinement.par import pixel_adaptive_refinement

# (image 1 x 3 x h x w RGB in 0..255, stacks T x P x h' x w', each summing to 1 over P) -> T x P x h x w.
Refiner = Callable[[Tensor, Tensor], Tensor]


def build_refiner(name: str, **settings: Any) -> Refiner:
    """A refiner with its settings, which are the keyword arguments of its function.

    Args:
        name: "par", "pamr", "crf", "none" (only brings the planes to the image's size), or one that was registered.

    Raises:
        UsageError: no such refiner.
    """
    if name not in REFINERS:
        raise UsageError(f'refiner "{name}": expected one of {", ".join(REFINERS)}{nearest(name, REFINERS)}')
    return partial(REFINERS[name], **settings)


def register(name: str, refiner: Callable[..., Tensor]) -> None:
    """Make `refiner(image, stacks)` available as `cam.refiner: name`; shapes as in `Refiner`."""
    REFINERS[name] = refiner


def _par(image: Tensor, stacks: Tensor, **settings: Any) -> Tensor:
    # The filter treats planes alike, so all stacks go through it together.
    refined = pixel_adaptive_refinement(image, stacks.flatten(0, 1)[None], **settings)[0]
    return torch.unflatten(refined, 0, stacks.shape[:2])


def _pamr(image: Tensor, stacks: Tensor, **settings: Any) -> Tensor:
    refined = pixel_adaptive_mask_refinement(image, stacks.flatten(0, 1)[None], **settings)[0]
    return torch.unflatten(refined, 0, stacks.shape[:2])


def _crf(image: Tensor, stacks: Tensor, **settings: Any) -> Tensor:
    # Mean-field inference couples the planes of a stack, so every stack goes alone.
    return torch.stack([dense_crf(image[0], stack, **settings) for stack in _resize(image, stacks)])


def _resize(image: Tensor, stacks: Tensor) -> Tensor:
    return F.interpolate(stacks.float(), size=image.shape[2:], mode="bilinear", align_corners=True)


REFINERS: dict[str, Callable[..., Tensor]] = {"par": _par, "pamr": _pamr, "crf": _crf, "none": _resize}
