"""The paper's chain from CAM to labels, in order; training, scoring and pictures all use it.

CAM -> PAR -> refined label -> affinity label           (supervises the affinity)
CAM -> random walk -> PAR -> segmentation label         (supervises the segmentation)

Both put a constant background plane before the CAMs of the present classes, once at beta_high
and once at beta_low, and take the softmax over those planes. The two thresholds travel as
planes of one array, so every filter runs once for both.

Shapes: B batch, C foreground classes, P planes of one threshold (background first), h x w image,
hs x ws token grid, W neighbours of a token in window form (see `affinity`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.errors import check_shape
from afactl.labels import IGNORE
from afactl.method.affinity import Walk, random_walk
from afactl.method.boxes import half_size
from afactl.method.cam import Thresholds, ignore_outside
from afactl.method.refinement.neighborhood import image_sizes
from afactl.method.refinement.stacks import ConfiguredRefiner, Refiner
from afactl.method.side_by_side import BatchRefiner, Propagation, present_classes, propagated, refined


class Photos(NamedTuple):
    """A batch of photos and what is known of them.

    Attributes:
        image: B x 3 x h x w RGB in 0..255.
        label: B x C image-level labels, 1 where the class is present.
        box: B x 4 as (y0, y1, x0, x1), the true image inside padding; None where nothing is padded.
    """

    image: Tensor
    label: Tensor
    box: Tensor | None = None


def background_planes(cam: Tensor, thresholds: Sequence[float]) -> Tensor:
    """softmax over (background plane, CAMs), once per threshold.

    Args:
        cam: P-1 x h x w, the CAMs of one image's present classes in [0, 1].
        thresholds: the constant values of the background plane.

    Returns:
        T x P x h x w, each of the T stacks sums to 1 over P.

    Example:
        >>> background_planes(torch.tensor([[[0.55]]]), thresholds=(0.55, 0.35)).flatten(1)
        tensor([[0.5000, 0.5000],
                [0.4502, 0.5498]])
    """
    stacks = [torch.cat([torch.full_like(cam[:1], t), cam]) for t in thresholds]
    return torch.stack(stacks).softmax(dim=1)


def refined_label(photos: Photos, cam: Tensor, refine: Refiner, thresholds: Thresholds) -> Tensor:
    """Refined pseudo label (3.4): CAM -> softmax with background -> PAR -> argmax, both thresholds.

    Args:
        cam: B x C x h x w in [0, 1].
        refine: runs at half resolution.
        thresholds: the background planes.

    Returns:
        B x h x w uint8: classes 0..C, or 255 in the padding and where the two thresholds disagree on background.

    Raises:
        ShapeError: axes do not fit.

    Example:
        >>> photos = Photos(torch.zeros(1, 3, 2, 8), torch.tensor([[0, 1]]))
        >>> cam = torch.tensor([0.1, 0.1, 0.1, 0.45, 0.45, 0.9, 0.9, 0.9]).expand(1, 2, 2, 8)
        >>> refined_label(photos, cam, lambda image, stacks: stacks, Thresholds(0.35, 0.55))[0, 0]  # without PAR
        tensor([  0,   0,   0, 255,   2,   2,   2,   2], dtype=torch.uint8)
    """
    _check(photos, cam)
    together = _together(refine, cam)
    if together is not None:
        present = present_classes(photos.label, cam.device)
        high, low = refined(photos.image, cam, present, together, (thresholds.high, thresholds.low)).unbind(1)
        return ignore_outside(combine_labels(high, low), photos.box)
    labels = []
    for image, present, values in zip(photos.image, photos.label, cam, strict=True):
        classes = present.nonzero()[:, 0]
        high, low = refine_cam(image, values[classes], classes, (thresholds.high, thresholds.low), refine)
        labels.append(combine_labels(high, low))
    return ignore_outside(torch.stack(labels), photos.box)


def cut_cam(cam: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """One image's CAM cut at one threshold, without refinement.

    Args:
        cam: P-1 x h x w in [0, 1], the CAMs of the present classes.
        classes: P-1 class indices in [0, C).

    Returns:
        h x w uint8, classes 0..C.

    Example:
        >>> cut_cam(torch.tensor([[[0.2, 0.7]], [[0.3, 0.9]]]), torch.tensor([4, 7]), threshold=0.45)
        tensor([[0, 8]], dtype=torch.uint8)
    """
    if len(classes) == 0:
        return cam.new_zeros(cam.shape[1:], dtype=torch.uint8)
    value, index = cam.max(dim=0)
    return ((classes[index] + 1) * (value > threshold)).to(torch.uint8)


def refine_cam(image: Tensor, cam: Tensor, classes: Tensor, thresholds: Sequence[float], refine: Refiner) -> Tensor:
    """One image's CAM -> softmax with background -> PAR -> argmax, once per threshold.

    Args:
        image: 3 x h x w RGB in 0..255.
        cam: P-1 x h x w in [0, 1], the CAMs of the present classes.
        classes: P-1 class indices in [0, C).
        thresholds: T background values.

    Returns:
        T x h x w uint8, classes 0..C.

    Example:
        >>> cam = torch.tensor([0.1, 0.1, 0.9, 0.9]).expand(1, 2, 4)
        >>> refine_cam(torch.zeros(3, 2, 4), cam, torch.tensor([4]), (0.45,), lambda image, stacks: stacks)[0, 0]
        tensor([0, 0, 5, 5], dtype=torch.uint8)
    """
    if len(classes) == 0:  # nothing is said to be there: all is background
        return image.new_zeros((len(thresholds), *image.shape[1:]), dtype=torch.uint8)
    half = half_size(image.shape[1:])
    maps = F.interpolate(cam[None], size=half, mode="bilinear", align_corners=False)[0]
    return refine_planes(image, background_planes(maps, thresholds), classes, refine)


def propagate(cam: Tensor, log_affinity: Tensor, thresholds: Sequence[float], walk: Walk) -> Tensor:
    """Random walk (Eq. 7) of one image's planes on the token grid.

    Args:
        cam: P-1 x h x w, the CAMs of the present classes in [0, 1].
        log_affinity: hs x ws x W in window form.
        thresholds: T background values; see `background_planes`.

    Returns:
        T x P x hs x ws.

    Raises:
        ShapeError: as `affinity.random_walk`.

    Example:
        >>> alone = torch.zeros(2, 3, 1)  # window form of radius 0: every token stays with itself
        >>> propagate(torch.rand(1, 32, 48), alone, (0.35,), Walk(radius=0)).shape
        torch.Size([1, 2, 2, 3])
    """
    tokens = F.interpolate(cam[None], size=log_affinity.shape[:2], mode="bilinear", align_corners=False)[0]
    planes = background_planes(tokens, thresholds)
    return random_walk(planes.flatten(0, 1)[None], log_affinity[None], walk)[0].view_as(planes)


def propagated_planes(
    cam: Tensor, log_affinity: Tensor, thresholds: Sequence[float], walk: Walk, size: Sequence[int]
) -> Tensor:
    """`propagate`, at a size (h, w) again: T x P x h x w.

    Example:
        >>> alone = torch.zeros(2, 3, 1)  # window form of radius 0: every token stays with itself
        >>> propagated_planes(torch.rand(1, 32, 48), alone, (0.35,), Walk(radius=0), (32, 48)).shape
        torch.Size([1, 2, 32, 48])
    """
    planes = propagate(cam, log_affinity, thresholds, walk)
    return F.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)


def propagated_label(
    photos: Photos, cam: Tensor, log_affinity: Tensor, walk: Walk, refine: Refiner, thresholds: Thresholds
) -> Tensor:
    """Segmentation label: CAM -> random walk -> PAR -> argmax, both thresholds, combined.

    Args:
        log_affinity: B x hs x ws x W in window form.
        others: as in `refined_label`. PAR sees the true image only.

    Returns:
        B x h x w uint8: classes 0..C, 255 ignored.

    Raises:
        ShapeError: axes do not fit.

    Example:
        >>> photos, alone = Photos(torch.zeros(1, 3, 2, 4), torch.tensor([[0, 1]])), torch.zeros(1, 2, 4, 1)
        >>> cam, keep = torch.tensor([0.1, 0.1, 0.9, 0.9]).expand(1, 2, 2, 4), lambda image, stacks: stacks
        >>> propagated_label(photos, cam, alone, Walk(radius=0), keep, Thresholds(0.35, 0.55))[0, 0]
        tensor([0, 0, 2, 2], dtype=torch.uint8)
    """
    _check(photos, cam)
    image, size = photos.image, photos.image.shape[2:]
    together = _together(refine, cam)
    if together is not None:
        box = _whole(image) if photos.box is None else photos.box.to(image.device, non_blocking=True)
        present, propagation = present_classes(photos.label, cam.device), Propagation(log_affinity, walk)
        betas = (thresholds.high, thresholds.low)
        high, low = propagated(image, box, cam, present, propagation, together, betas).unbind(1)
        return ignore_outside(combine_labels(high, low), box)
    out = torch.full((len(image), *size), IGNORE, dtype=torch.uint8, device=image.device)
    boxes = [(0, size[0], 0, size[1])] * len(image) if photos.box is None else photos.box.tolist()
    for i, (y0, y1, x0, x1) in enumerate(boxes):
        classes = photos.label[i].nonzero()[:, 0]
        if len(classes) == 0:
            out[i, y0:y1, x0:x1] = 0
            continue
        betas = (thresholds.high, thresholds.low)
        inside = propagated_planes(cam[i, classes], log_affinity[i], betas, walk, size)[..., y0:y1, x0:x1]
        high, low = refine_planes(image[i, :, y0:y1, x0:x1], inside, classes, refine)
        out[i, y0:y1, x0:x1] = combine_labels(high, low)
    return out


def _together(refine: Refiner, cam: Tensor) -> BatchRefiner | None:
    """The refiner's form for a batch, on an accelerator; on the CPU photo by photo is quicker."""
    return refine.together if cam.device.type != "cpu" and isinstance(refine, ConfiguredRefiner) else None


def _whole(image: Tensor) -> Tensor:
    """B x 4: the boxes of photos without padding."""
    height, width = image_sizes(image).unbind(1)
    nothing = torch.zeros_like(height)
    return torch.stack([nothing, height, nothing, width], dim=1)


def _check(photos: Photos, cam: Tensor) -> None:
    check_shape("image", photos.image, "B 3 h w")
    check_shape("cam", cam, "B C h w", B=photos.image.shape[0], C=photos.label.shape[1])


def refine_planes(image: Tensor, planes: Tensor, classes: Tensor, refine: Refiner) -> Tensor:
    """Refine stacks of planes at half resolution and take each pixel's best class.

    Args:
        image: 3 x h x w RGB in 0..255.
        planes: T x P x h' x w', background first; the refiner brings them to the half image.
        classes: P-1 class indices in [0, C).

    Returns:
        T x h x w uint8, classes 0..C.

    Example:
        >>> planes = torch.tensor([[[[0.9, 0.2]], [[0.1, 0.8]]]])  # T x P x h' x w', background first
        >>> refine_planes(torch.zeros(3, 2, 4), planes, torch.tensor([4]), lambda image, stacks: stacks)[0, 0]
        tensor([0, 0, 5, 5], dtype=torch.uint8)
    """
    small = F.interpolate(image[None].float(), size=half_size(image.shape[1:]), mode="bilinear", align_corners=False)
    return best_class(refine(small, planes), classes, image.shape[1:])


def best_class(planes: Tensor, classes: Tensor, size: Sequence[int]) -> Tensor:
    """Resize planes to `size` = (h, w) and take the largest.

    Args:
        planes: T x P x h' x w', background first. classes: P-1 class indices in [0, C).

    Returns:
        T x h x w uint8, classes 0..C.

    Example:
        >>> best_class(torch.tensor([[[[0.9, 0.2]], [[0.1, 0.8]]]]), torch.tensor([4]), size=(1, 2))
        tensor([[[0, 5]]], dtype=torch.uint8)
    """
    values = torch.cat([classes.new_zeros(1), classes + 1]).to(torch.uint8)
    planes = F.interpolate(planes, size=tuple(size), mode="bilinear", align_corners=False)
    # argmax over an axis that is not the last is many times slower than max on the CPU.
    return values[planes.max(dim=1).indices]


def combine_labels(high: Tensor, low: Tensor) -> Tensor:
    """One label of two: reliable where both agree on background, or the high one finds a class.

    Args:
        high: uint8 labels found with beta_high. low: with beta_low.

    Returns:
        `high`, but 255 where it says background and `low` does not.

    Example:
        >>> combine_labels(torch.tensor([0, 0, 3]), torch.tensor([0, 3, 3]))
        tensor([  0, 255,   3])
    """
    return high.masked_fill((high == 0) & (low != 0), IGNORE)
