"""Parts of the images of a batch, each its own box: which pixels they hold, and their bilinear resizing all at once.

What `F.interpolate` does for one image cut out, this does for a batch of different boxes without asking where they lie.

Shapes: B images, P planes, h x w canvas; a box is (y0, y1, x0, x1), a size (h, w), both in pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor


def inside_boxes(box: Tensor, size: tuple[int, int]) -> Tensor:
    """Which pixels lie in each image's box: B x 4 -> B x h x w bool.

    Example:
        >>> inside_boxes(torch.tensor([[0, 1, 0, 2]]), (2, 2)).int().tolist()
        [[[1, 1], [0, 0]]]
    """
    rows, columns = (torch.arange(side, device=box.device) for side in size)
    y0, y1, x0, x1 = (edge[:, None] for edge in box.unbind(1))
    return ((rows >= y0) & (rows < y1))[:, :, None] & ((columns >= x0) & (columns < x1))[:, None, :]


def half_size(size: Sequence[int]) -> tuple[int, int]:
    """Half of (h, w), each at least a pixel.

    Example:
        >>> half_size((5, 1))
        (2, 1)
    """
    return max(1, size[0] // 2), max(1, size[1] // 2)


def half_sizes(box: Tensor) -> Tensor:
    """B x 2: half the size of each box, at least a pixel.

    Example:
        >>> half_sizes(torch.tensor([[0, 5, 2, 3]])).tolist()
        [[2, 1]]
    """
    return torch.stack([box[:, 1] - box[:, 0], box[:, 3] - box[:, 2]], dim=1).div(2, rounding_mode="floor").clamp_min(1)


def cut_boxes(planes: Tensor, box: Tensor, sizes: Tensor, canvas: tuple[int, int], align_corners: bool) -> Tensor:
    """The part of each image inside its box, resized to its size and laid at the top left of a canvas.

    Args:
        planes: B x P x H x W float. box: B x 4. sizes: B x 2. canvas: at least as large as every size.

    Returns:
        B x P x h x w; beyond its size an image holds waste.

    Example:
        >>> planes, box = torch.arange(6.0).view(1, 1, 2, 3), torch.tensor([[0, 2, 1, 3]])
        >>> cut_boxes(planes, box, torch.tensor([[2, 2]]), (2, 2), align_corners=False).tolist()
        [[[[1.0, 2.0], [4.0, 5.0]]]]
    """
    heights, widths = box[:, 1] - box[:, 0], box[:, 3] - box[:, 2]
    rows = _samples(_Axis(box[:, 0], heights), _Axis(torch.zeros_like(heights), sizes[:, 0]), canvas[0], align_corners)
    columns = _samples(_Axis(box[:, 2], widths), _Axis(torch.zeros_like(widths), sizes[:, 1]), canvas[1], align_corners)
    return _sample(planes, rows, columns)


def paste_boxes(planes: Tensor, sizes: Tensor, box: Tensor, canvas: tuple[int, int]) -> Tensor:
    """Images that lie at the top left with their sizes, resized into their boxes on a canvas (align_corners False).

    Args:
        planes: B x P x H x W float. sizes: B x 2. box: B x 4, inside the canvas.

    Returns:
        B x P x h x w; outside its box an image holds waste.

    Example:
        >>> planes = torch.tensor([[[[1.0, 2.0]]]])
        >>> paste_boxes(planes, torch.tensor([[1, 2]]), torch.tensor([[1, 2, 1, 3]]), (2, 3))[0, 0, 1, 1:].tolist()
        [1.0, 2.0]
    """
    heights, widths = box[:, 1] - box[:, 0], box[:, 3] - box[:, 2]
    rows = _samples(_Axis(torch.zeros_like(heights), sizes[:, 0]), _Axis(box[:, 0], heights), canvas[0], False)
    columns = _samples(_Axis(torch.zeros_like(widths), sizes[:, 1]), _Axis(box[:, 2], widths), canvas[1], False)
    return _sample(planes, rows, columns)


class _Axis(NamedTuple):
    """Along one axis, where each image starts, and how many pixels it has there: B each."""

    start: Tensor
    length: Tensor


class _Samples(NamedTuple):
    """Two places of the source per place of the canvas, and the weight of the second: B x n each."""

    lower: Tensor
    upper: Tensor
    weight: Tensor


def _samples(source: _Axis, target: _Axis, length: int, align_corners: bool) -> _Samples:
    """Where the places of a canvas have their values from, as `F.interpolate` takes them."""
    place = torch.arange(length, device=source.start.device) - target.start[:, None]
    last = (source.length - 1)[:, None]
    if align_corners:
        exact = place * (last / (target.length - 1).clamp_min(1)[:, None])
    else:
        exact = (place + 0.5) * (source.length / target.length)[:, None] - 0.5
    # Beyond the target lies waste, which yet has to come from somewhere.
    exact = exact.clamp_min(0).minimum(last.to(exact.dtype))
    lower = exact.long()
    upper = torch.minimum(lower + 1, last)
    start = source.start[:, None]
    return _Samples(lower + start, upper + start, exact - lower)


def _sample(planes: Tensor, rows: _Samples, columns: _Samples) -> Tensor:
    batch, count, _, width = planes.shape
    height = rows.lower.shape[1]

    def take(values: Tensor, places: Tensor, axis: int) -> Tensor:
        shape = [batch, 1, 1, 1]
        shape[axis] = -1
        sizes = [batch, count, height, width if axis == 2 else places.shape[1]]
        return values.gather(axis, places.view(shape).expand(sizes))

    tall = torch.lerp(take(planes, rows.lower, 2), take(planes, rows.upper, 2), rows.weight[:, None, :, None])
    return torch.lerp(take(tall, columns.lower, 3), take(tall, columns.upper, 3), columns.weight[:, None, None, :])
