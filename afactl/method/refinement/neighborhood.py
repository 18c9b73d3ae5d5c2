"""Weighted means over dilated 3 x 3 neighbourhoods, as PAR and PAMR take them.

The image is padded once by the largest dilation and then read as one flat line: with a row
stride of w + 2 pad, each neighbour of the whole image is one contiguous shift. So an iteration
is 48 fused multiply-adds over the image, and no shifted copy is ever made.

On an accelerator the images of a batch go through it side by side, since there every call costs, and not every pixel.

Shapes: B images, P planes of scores, h x w image, L = h * (w + 2 pad) flat positions, J neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.errors import ShapeError, check_shape

DILATIONS = (1, 2, 4, 8, 12, 24)
# Columns of a kernel that are normalised at a time: 48 x 2048 floats are 0.4 MB.
_COLUMNS = 2048
_DIRECTIONS = ((-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1))


@torch.no_grad()
def refine_by_neighbors(
    image: Tensor, scores: Tensor, dilations: Sequence[int], iterations: int, kernel: Callable[..., Tensor]
) -> Tensor:
    """Replace every score by the kernel's weighted sum over its neighbours, `iterations` times.

    Beyond the border the nearest pixel counts. No gradient flows: what is refined becomes a label.

    Args:
        image: B x 3 x h x w RGB in 0..255.
        scores: B x P x h' x w'; resized to the image (bilinear, align_corners True).
        dilations: distances of the neighbours, in pixels; 8 directions at each.
        kernel: one image 3 x h x w -> J x L weights, such as `color_kernel`; on an accelerator as `refine_together`
            calls it.

    Returns:
        B x P x h x w float32.

    Raises:
        ShapeError: image and scores do not belong together, or no dilation is given.

    Example:
        >>> even = lambda image: torch.full((8, 1 * (3 + 2)), 1 / 8)  # J x L: every neighbour counts alike
        >>> refine_by_neighbors(torch.zeros(1, 3, 1, 3), torch.tensor([[[[8.0, 0.0, 0.0]]]]), (1,), 1, even)
        tensor([[[[5., 3., 0.]]]])
    """
    check_shape("image", image, "B 3 h w", **{"3": 3})
    check_shape("scores", scores, "B P h w", B=image.shape[0])
    if not dilations or min(dilations) < 1:
        raise ShapeError(f"dilations: expected positive distances, got {tuple(dilations)}")
    size = image.shape[2:]
    if scores.shape[2:] == size:
        refined = scores.to(torch.float32, copy=True)
    else:
        refined = F.interpolate(scores.float(), size=size, mode="bilinear", align_corners=True)
    if image.device.type != "cpu":
        sizes = image_sizes(image)
        return refine_together(image.float(), refined, sizes, dilations, iterations, kernel)
    # Image by image: only one kernel exists at a time.
    for one_image, planes in zip(image.float(), refined, strict=True):
        planes.copy_(_iterate(planes, kernel(one_image), dilations, iterations))
    return refined


def image_sizes(image: Tensor) -> Tensor:
    """B x 2 (h, w): the sizes of images that fill B x ... x h x w.

    Example:
        >>> image_sizes(torch.zeros(2, 3, 4, 6)).tolist()
        [[4, 6], [4, 6]]
    """
    height, width = image.shape[-2:]
    sides = [torch.full((len(image),), side, dtype=torch.int64, device=image.device) for side in (height, width)]
    return torch.stack(sides, dim=1)


@torch.no_grad()
def refine_together(
    image: Tensor,
    planes: Tensor,
    sizes: Tensor,
    dilations: Sequence[int],
    iterations: int,
    kernel: Callable[..., Tensor],
) -> Tensor:
    """`refine_by_neighbors` of all images at once: few large operations in place of many small ones.

    Args:
        image: B x 3 x h x w float, each image at the top left. planes: B x P x h x w float32.
        sizes: B x 2 (h, w) of each image; what lies beyond takes no part, and its scores are waste.
        kernel: (images B x 3 x h x w, sizes=sizes) -> B x J x L weights.

    Returns:
        B x P x h x w float32.

    Example:
        >>> from afactl.method.refinement.par import par_kernel
        >>> image, planes = torch.rand(2, 3, 4, 6), torch.ones(2, 1, 4, 6)
        >>> same = refine_together(image, planes, image_sizes(image), (1,), 2, par_kernel((1,), w3=0.0))
        >>> torch.allclose(same, planes)  # weights sum to 1
        True
    """
    batch, count, height, width = planes.shape
    pad = max(dilations)
    weights = kernel(image, sizes=sizes)[:, :, None].unbind(1)
    lines, source = _lines(planes, pad), _source(sizes, (height, width), pad)
    source = source[:, None].expand(-1, count, -1)
    padded = lines.new_empty(source.shape)
    neighbors = [padded[..., offset : offset + lines.shape[-1]] for offset in _offsets(dilations, width)]
    for _ in range(iterations):
        torch.gather(lines, 2, source, out=padded)
        lines.zero_()
        for values, weight in zip(neighbors, weights, strict=True):
            lines.addcmul_(values, weight)
    return lines.view(batch, count, height, -1)[..., :width]


def _lines(planes: Tensor, pad: int) -> Tensor:
    """... x h x w as flat lines ... x L."""
    return F.pad(planes, (0, 2 * pad)).flatten(-2)


def _source(sizes: Tensor, canvas: tuple[int, int], pad: int) -> Tensor:
    """Where each place of the padded flat image has its value from: B x L' positions in flat lines of L."""
    (height, width), stride = canvas, canvas[1] + 2 * pad
    # Beyond the border of its own image the nearest pixel counts.
    rows, columns = (
        torch.arange(-pad, side + pad, device=sizes.device).clamp_min(0).minimum(sizes[:, axis, None] - 1)
        for axis, side in enumerate((height, width))
    )
    return F.pad((rows[:, :, None] * stride + columns[:, None, :]).flatten(1), (0, 2 * pad))


def distances(dilations: Sequence[int]) -> list[float]:
    """Distance of each of the J neighbours in pixels.

    Example:
        >>> [round(distance, 2) for distance in distances((1,))]
        [1.41, 1.0, 1.41, 1.0, 1.0, 1.41, 1.0, 1.41]
    """
    return [d * (dy * dy + dx * dx) ** 0.5 for d in dilations for dy, dx in _DIRECTIONS]


def color_kernel(
    image: Tensor,
    dilations: Sequence[int],
    smoothness: float,
    power: int,
    sizes: Tensor | None = None,
    offset: Tensor | None = None,
) -> Tensor:
    """softmax over the neighbours of -mean over RGB of (|dI| / (smoothness * std))^power, plus an offset.

    std is the unbiased standard deviation of the J neighbour values, per pixel and channel.

    Args:
        image: 3 x h x w float; or B x 3 x h x w with `sizes` B x 2, each image at the top left.
        power: 1 or 2.
        offset: J, the same for every pixel.

    Returns:
        J x L, or B x J x L. Columns that fall into the padding hold waste.

    Example:
        >>> color_kernel(torch.zeros(3, 2, 2), (1,), smoothness=0.3, power=2)[:, 0]  # one colour: all alike
        tensor([0.1250, 0.1250, 0.1250, 0.1250, 0.1250, 0.1250, 0.1250, 0.1250])
    """
    height, width = image.shape[-2:]
    pad = max(dilations)
    stride = width + 2 * pad
    length = height * stride
    if sizes is None:
        canvas, padded = _canvas(image, pad)
        _place(canvas, image, pad)
    else:
        source = _source(sizes, (height, width), pad)[:, None].expand(-1, 3, -1)
        padded = _lines(image, pad).gather(2, source)
    center = padded[..., pad * stride + pad :][..., :length]
    neighbors = [padded[..., offset : offset + length] for offset in _offsets(dilations, width)]

    # Statistics of the neighbours relative to the centre: on flat ground the squares of the
    # colours themselves would cancel to noise.
    total, squares, difference = torch.zeros_like(center), torch.zeros_like(center), torch.empty_like(center)
    for values in neighbors:
        torch.sub(values, center, out=difference)
        total += difference
        squares.addcmul_(difference, difference)
    # In place from here on: beside the kernel these maps are most of the memory.
    count = len(neighbors)
    deviation = squares.sub_(total.square_().div_(count)).clamp_min_(0).div_(count - 1).sqrt_()
    inverse = deviation.add_(1e-8).mul_(smoothness).pow_(-power).div_(3)
    del total
    kernel = image.new_empty(*image.shape[:-3], count, length)
    scales = inverse.unbind(-2)
    for values, distance in zip(neighbors, kernel.unbind(-2), strict=True):
        torch.sub(values, center, out=difference)
        channels = (difference.square_() if power == 2 else difference.abs_()).unbind(-2)
        torch.mul(channels[0], scales[0], out=distance)
        for channel, scale in zip(channels[1:], scales[1:], strict=True):
            distance.addcmul_(channel, scale)
    # On a CPU so many columns at a time that they stay in its cache through all steps.
    for part in torch.split(kernel, _COLUMNS if kernel.device.type == "cpu" else length, dim=-1):
        torch.sub(part.amin(dim=-2, keepdim=True), part, out=part)
        # e^-60 is nothing beside the largest weight, and the arithmetic of still smaller numbers is slow.
        part.clamp_min_(-60.0).exp_()
        part /= part.sum(dim=-2, keepdim=True)
        if offset is not None:
            part += offset[:, None]
    return kernel


def _canvas(planes: Tensor, pad: int) -> tuple[Tensor, Tensor]:
    """Room for P x h x w planes with a border: P x (h + 2 pad) x (w + 2 pad), and the same memory as flat lines.

    The lines have a tail of 2 pad, so that the shift of the last row's padding columns stays inside.
    """
    count, height, width = planes.shape
    stride = width + 2 * pad
    flat = planes.new_zeros(count, (height + 2 * pad) * stride + 2 * pad)
    return flat[:, : (height + 2 * pad) * stride].view(count, height + 2 * pad, stride), flat


def _place(canvas: Tensor, planes: Tensor, pad: int) -> None:
    """Copy P x h x w planes onto the canvas and repeat their borders outwards."""
    rows = canvas[:, pad:-pad]
    rows[:, :, pad:-pad] = planes
    rows[:, :, :pad] = rows[:, :, pad : pad + 1]
    rows[:, :, -pad:] = rows[:, :, -pad - 1 : -pad]
    canvas[:, :pad] = canvas[:, pad : pad + 1]
    canvas[:, -pad:] = canvas[:, -pad - 1 : -pad]


def _offsets(dilations: Sequence[int], width: int) -> list[int]:
    """Start of each neighbour's run in the padded flat image; the centre's is `pad * stride + pad`."""
    pad = max(dilations)
    stride = width + 2 * pad
    return [(pad + d * dy) * stride + pad + d * dx for d in dilations for dy, dx in _DIRECTIONS]


def _iterate(scores: Tensor, kernel: Tensor, dilations: Sequence[int], iterations: int) -> Tensor:
    """P x h x w scores through `iterations` weighted sums with a J x L kernel."""
    planes, height, width = scores.shape
    pad = max(dilations)
    stride = width + 2 * pad
    length = height * stride
    offsets = _offsets(dilations, width)
    canvas, padded = _canvas(scores, pad)
    flat = scores.new_empty(planes, length)
    refined = flat.view(planes, height, stride)[:, :, :width]
    refined.copy_(scores)
    (first, weight), *others = [
        (padded[:, offset : offset + length], weight) for offset, weight in zip(offsets, kernel, strict=True)
    ]
    for _ in range(iterations):
        _place(canvas, refined, pad)
        torch.mul(first, weight, out=flat)
        for values, other in others:
            flat.addcmul_(values, other)
    return refined
