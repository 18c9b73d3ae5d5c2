"""Pixel-adaptive refinement, PAR (Eq. 8-10).

Every score becomes a weighted mean of the scores of 48 neighbours, 8 directions at each of 6
dilations; the weights come from the colours around the pixel and from the distance.

The image is padded once by the largest dilation and then read as one flat line: with a row
stride of w + 2 pad, each neighbour of the whole image is one contiguous shift. So an iteration
is 48 fused multiply-adds over the image, and no shifted copy is ever made.

Shapes: B batch, P planes of scores, h x w image, L = h * (w + 2 pad) flat positions, J neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.errors import ShapeError, check_shape

DILATIONS = (1, 2, 4, 8, 12, 24)
_DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


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

    kernel = softmax_J(kappa_rgb) + w3 softmax_J(kappa_pos), so a row sums to 1 + w3 and the
    scores grow by that factor at each iteration. Beyond the border the nearest pixel counts.

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
    """
    check_shape("image", image, "B 3 h w", **{"3": 3})
    check_shape("scores", scores, "B P h w", B=image.shape[0])
    if not dilations or min(dilations) < 1:
        raise ShapeError(f"dilations: expected positive distances, got {tuple(dilations)}")
    image = image.float()
    scores = F.interpolate(scores.float(), size=image.shape[2:], mode="bilinear", align_corners=True)
    refined = torch.empty_like(scores)
    # Image by image: the 48 weights of one image at a time stay in the cache of the processor.
    for one_image, one_scores, out in zip(image, scores, refined, strict=True):
        kernel = _kernel(one_image, dilations, w1, w2, w3)
        out.copy_(_iterate(one_scores, kernel, dilations, iterations))
    return refined


def _pad(planes: Tensor, pad: int) -> Tensor:
    """P x h x w -> flat P x (h + 2 pad)(w + 2 pad) + 2 pad, borders replicated.

    The tail of 2 pad lets the shift of the last row's padding columns stay inside the buffer.
    """
    flat = F.pad(planes[None], (pad, pad, pad, pad), mode="replicate")[0].flatten(1)
    return F.pad(flat, (0, 2 * pad))


def _offsets(dilations: Sequence[int], width: int) -> list[int]:
    """Start of each neighbour's run in the padded flat image; the centre's is `pad * stride + pad`."""
    pad = max(dilations)
    stride = width + 2 * pad
    return [(pad + d * dy) * stride + pad + d * dx for d in dilations for dy, dx in _DIRECTIONS]


def _kernel(image: Tensor, dilations: Sequence[int], w1: float, w2: float, w3: float) -> Tensor:
    """Eq. 8, 9 for one image: J x L weights. Columns that fall into the padding hold waste."""
    _, height, width = image.shape
    pad = max(dilations)
    stride = width + 2 * pad
    length = height * stride
    offsets = _offsets(dilations, width)
    padded = _pad(image, pad)
    center = padded[:, pad * stride + pad :][:, :length]

    # Statistics of the neighbours relative to the centre: on flat ground the squares of the
    # colours themselves would cancel to noise.
    total, squares, difference = torch.zeros_like(center), torch.zeros_like(center), torch.empty_like(center)
    for offset in offsets:
        torch.sub(padded[:, offset : offset + length], center, out=difference)
        total += difference
        squares.addcmul_(difference, difference)
    count = len(offsets)
    variance = (squares - total.square() / count).clamp_min_(0) / (count - 1)
    # kappa_rgb = -mean over RGB of (|dI| / (w1 std))^2
    inverse = (w1 * (variance.sqrt_() + 1e-8)).reciprocal_()
    kernel = image.new_empty(count, length)
    for offset, kappa in zip(offsets, kernel, strict=True):
        torch.sub(padded[:, offset : offset + length], center, out=difference)
        torch.mean(difference.mul_(inverse).square_(), dim=0, out=kappa)
    kernel.neg_()
    kernel -= kernel.amax(dim=0)
    kernel.exp_()
    kernel /= kernel.sum(dim=0)

    distance = image.new_tensor([d * (dy * dy + dx * dx) ** 0.5 for d in dilations for dy, dx in _DIRECTIONS])
    kappa_pos = -((distance / (w2 * (distance.std() + 1e-8))) ** 2)
    kernel += w3 * torch.softmax(kappa_pos, dim=0)[:, None]
    return kernel


def _iterate(scores: Tensor, kernel: Tensor, dilations: Sequence[int], iterations: int) -> Tensor:
    """Eq. 10: P x h x w scores through `iterations` steps of the kernel."""
    planes, height, width = scores.shape
    pad = max(dilations)
    stride = width + 2 * pad
    length = height * stride
    offsets = _offsets(dilations, width)
    for _ in range(iterations):
        padded = _pad(scores, pad)
        flat = scores.new_zeros(planes, length)
        for offset, weight in zip(offsets, kernel, strict=True):
            flat.addcmul_(padded[:, offset : offset + length], weight)
        scores = flat.view(planes, height, stride)[:, :, :width]
    return scores
