"""The refiners as the chain of labels calls them: on stacks of planes that share an image.

Shapes: T stacks (the two thresholds of the chain) of P planes, h x w image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.method.refinement.crf import DenseCrf, dense_crf, dense_crfs
from afactl.method.refinement.neighborhood import DILATIONS, refine_together
from afactl.method.refinement.pamr import pamr_kernel, pixel_adaptive_mask_refinement
from afactl.method.refinement.par import par_kernel, pixel_adaptive_refinement

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


class Refinement(NamedTuple):
    """A refiner as it is registered.

    Attributes:
        function: (image 1 x 3 x h x w RGB in 0..255, stacks T x P x h' x w' that each sum to 1 over P, **settings)
            -> T x P x h x w.
        together: the same for the photos of a batch at once, on an accelerator: (images B x 3 x h x w, each at the top
            left, stacks B x T x P x h x w of that size, 0 on planes that a photo lacks, sizes B x 2 of the images,
            **settings) -> B x T x P x h x w. None: photo by photo there too.
        settings: the values of a preset that it takes, such as `par.iterations`, each as the keyword argument that
            the last part of its name says.
        title: what tables and pictures call it; None: the name under which it is registered.
    """

    function: Callable[..., Tensor]
    settings: tuple[str, ...] = ()
    together: Callable[..., Tensor] | None = None
    title: str | None = None


def refine_par(image: Tensor, stacks: Tensor, **settings: Any) -> Tensor:
    """PAR (Eq. 8-10); settings as in `pixel_adaptive_refinement`.

    Example:
        >>> stacks = torch.full((2, 3, 2, 2), 1 / 3)
        >>> refine_par(torch.zeros(1, 3, 4, 6), stacks, iterations=1).shape
        torch.Size([2, 3, 4, 6])
    """
    # The filter treats planes alike, so all stacks go through it together.
    refined = pixel_adaptive_refinement(image, stacks.flatten(0, 1)[None], **settings)[0]
    return torch.unflatten(refined, 0, stacks.shape[:2])


def refine_pamr(image: Tensor, stacks: Tensor, **settings: Any) -> Tensor:
    """PAMR; settings as in `pixel_adaptive_mask_refinement`.

    Example:
        >>> stacks = torch.full((2, 3, 2, 2), 1 / 3)
        >>> refine_pamr(torch.zeros(1, 3, 4, 6), stacks, iterations=1).shape
        torch.Size([2, 3, 4, 6])
    """
    refined = pixel_adaptive_mask_refinement(image, stacks.flatten(0, 1)[None], **settings)[0]
    return torch.unflatten(refined, 0, stacks.shape[:2])


def refine_crf(image: Tensor, stacks: Tensor, **settings: Any) -> Tensor:
    """The dense CRF; settings as in `DenseCrf`.

    Example:
        >>> stacks = torch.tensor([0.6, 0.4]).view(1, 2, 1, 1)
        >>> bool((refine_crf(torch.zeros(1, 3, 4, 6), stacks)[0, 0] > 0.99).all())  # one colour becomes one class
        True
    """
    # Mean-field inference couples the planes of a stack, so every stack goes alone.
    return torch.stack([dense_crf(image[0], stack, DenseCrf(**settings)) for stack in resize_stacks(image, stacks)])


def resize_stacks(image: Tensor, stacks: Tensor) -> Tensor:
    """The stacks at the image's size, otherwise as they are.

    Example:
        >>> resize_stacks(torch.zeros(1, 3, 1, 3), torch.tensor([[[[0.0, 1.0]]]]))
        tensor([[[[0.0000, 0.5000, 1.0000]]]])
    """
    return F.interpolate(stacks.float(), size=image.shape[2:], mode="bilinear", align_corners=True)


def par_together(image: Tensor, stacks: Tensor, sizes: Tensor, *, iterations: int = 10, **settings: Any) -> Tensor:
    """PAR of the images of a batch at once.

    Example:
        >>> image, stacks = torch.rand(2, 3, 4, 6), torch.ones(2, 1, 1, 4, 6)
        >>> par_together(image, stacks, torch.tensor([[4, 6], [3, 5]]), iterations=1).shape
        torch.Size([2, 1, 1, 4, 6])
    """
    return _by_neighbors(image, stacks, sizes, (iterations, par_kernel(**settings)), settings)


def pamr_together(image: Tensor, stacks: Tensor, sizes: Tensor, *, iterations: int = 10, **settings: Any) -> Tensor:
    """PAMR of the images of a batch at once.

    Example:
        >>> image, stacks = torch.rand(2, 3, 4, 6), torch.ones(2, 1, 1, 4, 6)
        >>> pamr_together(image, stacks, torch.tensor([[4, 6], [3, 5]]), iterations=1).shape
        torch.Size([2, 1, 1, 4, 6])
    """
    return _by_neighbors(image, stacks, sizes, (iterations, pamr_kernel(**settings)), settings)


def _by_neighbors(
    image: Tensor,
    stacks: Tensor,
    sizes: Tensor,
    how: tuple[int, Callable[..., Tensor]],
    settings: Mapping[str, Any],
) -> Tensor:
    """`refine_together`, which treats planes alike, of all stacks."""
    dilations = settings.get("dilations", DILATIONS)
    return refine_together(image, stacks.flatten(1, 2), sizes, dilations, *how).view_as(stacks)


def crf_together(image: Tensor, stacks: Tensor, sizes: Tensor, **settings: Any) -> Tensor:
    """The dense CRF of the images of a batch at once; settings as in `DenseCrf`.

    Example:
        >>> stacks = torch.tensor([0.6, 0.4]).view(1, 1, 2, 1, 1).repeat(2, 1, 1, 4, 6)
        >>> refined = crf_together(torch.zeros(2, 3, 4, 6), stacks, torch.tensor([[4, 6], [3, 5]]))
        >>> bool((refined[0, 0, 0] > 0.99).all())
        True
    """
    return dense_crfs(image, stacks, sizes, DenseCrf(**settings))


def as_they_are(image: Tensor, stacks: Tensor, sizes: Tensor) -> Tensor:
    """The stacks, which have the images' size already.

    Example:
        >>> stacks = torch.ones(1, 1, 2, 4, 6)
        >>> as_they_are(torch.zeros(1, 3, 4, 6), stacks, torch.tensor([[4, 6]])) is stacks
        True
    """
    return stacks


PAR = Refinement(refine_par, ("par.dilations", "par.iterations", "par.w1", "par.w2", "par.w3"), par_together, "PAR")
PAMR = Refinement(refine_pamr, ("par.dilations", "par.iterations"), pamr_together, "PAMR")
CRF = Refinement(
    refine_crf,
    (
        "crf.iterations",
        "crf.gaussian_sxy",
        "crf.gaussian_weight",
        "crf.bilateral_sxy",
        "crf.bilateral_srgb",
        "crf.bilateral_weight",
        "crf.drop_below",
    ),
    crf_together,
    "CRF",
)
NONE = Refinement(resize_stacks, (), as_they_are, "no refiner")
