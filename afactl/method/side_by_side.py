"""The chain of `pseudo_labels` for all photos of a batch side by side: its form on an accelerator.

There a call costs and not a pixel. So the planes of all photos lie in one array, padded to the most classes that one
photo has, and boxes are handled by masks and by places to read from: no photo is looked at alone, and the host
does not ask where its box lies.

Shapes: B batch, C foreground classes, T thresholds, Q the most classes of one photo, P = Q + 1 planes of one
threshold (background first), h x w image, hs x ws token grid.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.method.affinity import Walk, random_walk
from afactl.method.boxes import cut_boxes, half_size, half_sizes, paste_boxes
from afactl.method.refinement.neighborhood import image_sizes

# (images B x 3 x h x w RGB in 0..255, each at the top left; stacks B x T x P x h x w; sizes B x 2) -> as the stacks.
BatchRefiner = Callable[[Tensor, Tensor, Tensor], Tensor]


class Present(NamedTuple):
    """The classes of each photo, B x Q: class indices in [0, C), and which of the places are taken."""

    classes: Tensor
    taken: Tensor


def present_classes(label: Tensor, device: torch.device) -> Present:
    """Which classes each photo has, on a device; asks the device for their number where the label lies there.

    Args:
        label: B x C image-level labels, not 0 where the class is present.

    Example:
        >>> present_classes(torch.tensor([[0, 1, 1], [1, 0, 0]]), torch.device("cpu")).taken.tolist()
        [[True, True], [True, False]]
    """
    there = label != 0
    most = max(1, int(there.sum(1).max()))
    classes = there.to(torch.uint8).sort(dim=1, descending=True, stable=True).indices[:, :most]
    taken = there.gather(1, classes)
    return Present(classes.to(device, non_blocking=True), taken.to(device, non_blocking=True))


def refined(image: Tensor, cam: Tensor, present: Present, refine: BatchRefiner, thresholds: Sequence[float]) -> Tensor:
    """CAM -> softmax with background -> refiner at half the size -> argmax.

    Args:
        image: B x 3 x h x w RGB in 0..255. cam: B x C x h x w in [0, 1].

    Returns:
        B x T x h x w uint8, classes 0..C.

    Example:
        >>> present = present_classes(torch.tensor([[0, 1]]), torch.device("cpu"))
        >>> image, cam = torch.zeros(1, 3, 4, 4), torch.ones(1, 2, 4, 4)
        >>> refined(image, cam, present, lambda image, stacks, sizes: stacks, (0.5,)).unique().tolist()
        [2]
    """
    half = half_size(image.shape[2:])
    maps = F.interpolate(_chosen(cam, present), size=half, mode="bilinear", align_corners=False)
    small = F.interpolate(image.float(), size=half, mode="bilinear", align_corners=False)
    stacks = refine(small, _stacks(maps, present, thresholds), image_sizes(small))
    planes = F.interpolate(stacks.flatten(1, 2), size=image.shape[2:], mode="bilinear", align_corners=False)
    return _best(planes, present, len(thresholds))


class Propagation(NamedTuple):
    """What a propagation walks by: the log-affinity B x hs x ws x W in window form, and how."""

    log_affinity: Tensor
    walk: Walk


def propagated(
    image: Tensor,
    box: Tensor,
    cam: Tensor,
    present: Present,
    propagation: Propagation,
    refine: BatchRefiner,
    thresholds: Sequence[float],
) -> Tensor:
    """CAM -> random walk -> refiner at half the size of the box, which it sees alone -> argmax.

    Args:
        image: B x 3 x h x w RGB in 0..255. box: B x 4 (y0, y1, x0, x1). cam: B x C x h x w in [0, 1].

    Returns:
        B x T x h x w uint8, classes 0..C; waste outside the boxes.

    Example:
        >>> present = present_classes(torch.tensor([[0, 1]]), torch.device("cpu"))
        >>> image, box, cam = torch.zeros(1, 3, 4, 4), torch.tensor([[0, 4, 0, 4]]), torch.ones(1, 2, 4, 4)
        >>> alone = Propagation(torch.zeros(1, 2, 2, 1), Walk(radius=0))
        >>> same = lambda image, stacks, sizes: stacks
        >>> propagated(image, box, cam, present, alone, same, (0.5,)).unique().tolist()
        [2]
    """
    log_affinity, walk = propagation
    grid = (log_affinity.shape[1], log_affinity.shape[2])
    tokens = F.interpolate(_chosen(cam, present), size=grid, mode="bilinear", align_corners=False)
    walked = random_walk(_stacks(tokens, present, thresholds).flatten(1, 2), log_affinity, walk)
    walked = F.interpolate(walked, size=image.shape[2:], mode="bilinear", align_corners=False)
    sizes, half = half_sizes(box), half_size(image.shape[2:])
    small = cut_boxes(image.float(), box, sizes, half, align_corners=False)
    inside = cut_boxes(walked, box, sizes, half, align_corners=True)
    planes = refine(small, torch.unflatten(inside, 1, (len(thresholds), -1)), sizes).flatten(1, 2)
    return _best(paste_boxes(planes, sizes, box, (image.shape[2], image.shape[3])), present, len(thresholds))


def _chosen(cam: Tensor, present: Present) -> Tensor:
    """B x Q x h x w: the maps of each photo's classes; waste where a place is not taken."""
    places = present.classes[:, :, None, None].expand(-1, -1, *cam.shape[2:])
    return cam.gather(1, places).float()


def _stacks(maps: Tensor, present: Present, thresholds: Sequence[float]) -> Tensor:
    """softmax over the background plane and the maps, once per threshold: B x T x P x h x w, 0 where none is taken."""
    maps = maps.masked_fill(~present.taken[:, :, None, None], -torch.inf)
    stacks = [torch.cat([torch.full_like(maps[:, :1], value), maps], dim=1) for value in thresholds]
    return torch.stack(stacks, dim=1).softmax(dim=2)


def _best(planes: Tensor, present: Present, stacks: int) -> Tensor:
    """The class of the largest plane: B x (T P) x h x w -> B x T x h x w uint8."""
    values = F.pad(present.classes + 1, (1, 0)).to(torch.uint8)
    index = torch.unflatten(planes, 1, (stacks, -1)).max(dim=2).indices
    return values.gather(1, index.flatten(1)).view(index.shape)
