"""Pixel-adaptive refinement, PAR (Eq. 8-10).

Every score becomes a weighted mean of the scores of 48 neighbours, 8 directions at each of 6
dilations; the weights come from the colours around the pixel and from the distance.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

import torch
from torch import Tensor

from afactl.method.refinement.neighborhood import DILATIONS, color_kernel, distances, refine_by_neighbors


def pixel_adaptive_refinement(
    image: Tensor,
    scores: Tensor,
    dilations: Sequence[int] = DILATIONS,
    iterations: int = 10,
    w1: float = 0.3,
    w2: float = 0.3,
    w3: float = 0.01,
) -> Tensor:
    """Refine score maps along the image's edges.

    kernel = softmax_J(kappa_rgb) + w3 softmax_J(kappa_pos), with
    kappa_rgb = -mean_RGB (|dI| / (w1 std_I))^2 and kappa_pos = -(distance / (w2 std_distance))^2.
    A row sums to 1 + w3, so the scores grow by that factor at each iteration.

    Args:
        image: B x 3 x h x w RGB in 0..255, not normalised.
        scores: B x P x h' x w'; resized to the image (bilinear, align_corners True).
        dilations: distances of the neighbours, in pixels.
        iterations: t of Eq. 10.
        w1, w2: smoothness of the colour and the position term. w3: weight of the position term.

    Returns:
        B x P x h x w float32.

    Raises:
        ShapeError: image and scores do not belong together, or no dilation is given.

    Example:
        >>> image = torch.tensor([0.0, 0.0, 255.0, 255.0]).expand(1, 3, 4, 4)  # dark on the left, light on the right
        >>> scores = torch.tensor([[[[0.6, 0.4, 0.6, 0.4]] * 4]])
        >>> pixel_adaptive_refinement(image, scores, dilations=(1,), iterations=1, w3=0.0)[0, 0, 0]
        tensor([0.5250, 0.5200, 0.4800, 0.4750])
    """

    return refine_by_neighbors(image, scores, dilations, iterations, par_kernel(dilations, w1, w2, w3))


def par_kernel(
    dilations: Sequence[int] = DILATIONS, w1: float = 0.3, w2: float = 0.3, w3: float = 0.01
) -> Callable[..., Tensor]:
    """The weights of Eq. 9 as a function of the image, as `color_kernel` takes one or many; arguments as in PAR.

    Example:
        >>> torch.allclose(par_kernel((1, 2))(torch.rand(3, 4, 6)).sum(0), torch.tensor(1.01))  # 1 + w3
        True
    """

    def kernel(image: Tensor, sizes: Tensor | None = None) -> Tensor:
        position = w3 * _position_weights(tuple(dilations), w2, image.device)
        return color_kernel(image, dilations, w1, power=2, sizes=sizes, offset=position)

    return kernel


@lru_cache(maxsize=8)
def _position_weights(dilations: tuple[int, ...], w2: float, device: torch.device) -> Tensor:
    # Kept on the device: every copy onto it makes the host wait.
    distance = torch.tensor(distances(dilations))
    kappa_pos = -((distance / (w2 * (distance.std() + 1e-8))) ** 2)
    return torch.softmax(kappa_pos, dim=0).to(device)
