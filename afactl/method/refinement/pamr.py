"""Pixel-adaptive mask refinement, PAMR (Araslanov and Roth, CVPR 2020, arXiv:2005.08104).

What PAR was made from, kept for the comparison of Table 4: no position term, and the absolute
instead of the squared difference of colours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from torch import Tensor

from afactl.method.refinement.neighborhood import DILATIONS, color_kernel, refine_by_neighbors


def pixel_adaptive_mask_refinement(
    image: Tensor,
    scores: Tensor,
    dilations: Sequence[int] = DILATIONS,
    iterations: int = 10,
    smoothness: float = 0.1,
) -> Tensor:
    """Refine score maps along the image's edges.

    kernel = softmax_J(-mean_RGB |dI| / (smoothness * std_I)); a row sums to 1.

    The paper divides by the local variance; a share of the standard deviation is the reading that does
    not depend on the unit of the colours.

    Args:
        image: B x 3 x h x w RGB in 0..255, not normalised.
        scores: B x P x h' x w'; resized to the image (bilinear, align_corners True).
        dilations: distances of the neighbours, in pixels.
        iterations: how often.

    Returns:
        B x P x h x w float32.

    Raises:
        ShapeError: image and scores do not belong together, or no dilation is given.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[[[8.0, 0.0], [0.0, 0.0]]]])
        >>> pixel_adaptive_mask_refinement(torch.zeros(1, 3, 2, 2), scores, (1,), 1)  # one colour: the neighbours' mean
        tensor([[[[3., 2.],
                  [2., 1.]]]])
    """
    return refine_by_neighbors(image, scores, dilations, iterations, pamr_kernel(dilations, smoothness))


def pamr_kernel(dilations: Sequence[int] = DILATIONS, smoothness: float = 0.1) -> Callable[..., Tensor]:
    """PAMR's weights as a function of the image, as `color_kernel` takes one or many; arguments as in PAMR.

    Example:
        >>> import torch
        >>> torch.allclose(pamr_kernel((1, 2))(torch.rand(3, 4, 6)).sum(0), torch.ones(()))  # over 2 x 8 neighbours
        True
    """
    return partial(color_kernel, dilations=dilations, smoothness=smoothness, power=1)
