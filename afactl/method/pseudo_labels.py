"""The paper's chain from CAM to labels, in order; training, scoring and pictures all use it.

CAM -> PAR -> refined label -> affinity label           (supervises the affinity)
CAM -> random walk -> PAR -> segmentation label         (supervises the segmentation)

Both put a constant background plane before the CAMs of the present classes, once at beta_high
and once at beta_low, and take the softmax over those planes. The two thresholds travel as
planes of one array, so every filter runs once for both.

Shapes: B batch, C foreground classes, P planes of one threshold (background first), h x w image,
hs x ws token grid, N = hs * ws.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.errors import check_shape
from afactl.labels import IGNORE
from afactl.method.affinity import random_walk
from afactl.method.cam import ignore_outside

# Refines stacks of planes of one image, see `refinement.registry`:
# (1 x 3 x h x w RGB in 0..255, T x P x h' x w') -> T x P x h x w.
Refiner = Callable[[Tensor, Tensor], Tensor]


def background_planes(cam: Tensor, thresholds: Sequence[float]) -> Tensor:
    """softmax over (background plane, CAMs), once per threshold.

    Args:
        cam: P-1 x h x w, the CAMs of one image's present classes in [0, 1].
        thresholds: the constant values of the background plane.

    Returns:
        T x P x h x w, each of the T stacks sums to 1 over P.
    """
    stacks = [torch.cat([torch.full_like(cam[:1], t), cam]) for t in thresholds]
    return torch.stack(stacks).softmax(dim=1)


def refined_label(
    image: Tensor,
    cam: Tensor,
    label: Tensor,
    refine: Refiner,
    beta_low: float,
    beta_high: float,
    box: Tensor | None = None,
) -> Tensor:
    """Refined pseudo label (3.4): CAM -> softmax with background -> PAR -> argmax, both thresholds.

    Args:
        image: B x 3 x h x w RGB in 0..255.
        cam: B x C x h x w in [0, 1].
        label: B x C image-level labels.
        refine: runs at half resolution.
        beta_low, beta_high: background planes.
        box: B x 4 (y0, y1, x0, x1) of the true image inside padding; outside is 255.

    Returns:
        B x h x w uint8: classes 0..C, or 255 where the two thresholds disagree on background.
    """
    check_shape("image", image, "B 3 h w")
    check_shape("cam", cam, "B C h w", B=image.shape[0])
    labels = []
    for i in range(len(image)):
        classes = label[i].nonzero()[:, 0]
        high, low = refine_cam(image[i], cam[i, classes], classes, (beta_high, beta_low), refine)
        labels.append(combine_labels(high, low))
    return ignore_outside(torch.stack(labels), box)


def cut_cam(cam: Tensor, classes: Tensor, threshold: float) -> Tensor:
    """One image's CAM cut at one threshold, without refinement.

    Args:
        cam: P-1 x h x w in [0, 1], the CAMs of the present classes.
        classes: P-1 class indices in [0, C).

    Returns:
        h x w uint8, classes 0..C.
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
    """
    if len(classes) == 0:  # nothing is said to be there: all is background
        return image.new_zeros((len(thresholds), *image.shape[1:]), dtype=torch.uint8)
    half = _half(image.shape[1:])
    maps = F.interpolate(cam[None], size=half, mode="bilinear", align_corners=False)[0]
    return refine_planes(image, background_planes(maps, thresholds), classes, refine)


def propagate(
    cam: Tensor,
    affinity: Tensor,
    grid: tuple[int, int],
    thresholds: Sequence[float],
    radius: int,
    alpha: float = 2.0,
    eps: float = 0.0,
) -> Tensor:
    """Random walk (Eq. 7) of one image's planes on the token grid.

    Args:
        cam: P-1 x h x w, the CAMs of the present classes in [0, 1].
        affinity: N x N with N = hs * ws of `grid`.
        thresholds: background values; see `background_planes`.
        radius, alpha, eps: see `affinity.random_walk`.

    Returns:
        T x P x hs x ws.
    """
    tokens = F.interpolate(cam[None], size=grid, mode="bilinear", align_corners=False)[0]
    planes = background_planes(tokens, thresholds)
    return random_walk(planes.flatten(0, 1)[None], affinity[None], radius, alpha, eps)[0].view_as(planes)


def propagated_label(
    image: Tensor,
    cam: Tensor,
    label: Tensor,
    affinity: Tensor,
    grid: tuple[int, int],
    refine: Refiner,
    beta_low: float,
    beta_high: float,
    radius: int,
    alpha: float = 2.0,
    eps: float = 0.0,
    box: Tensor | None = None,
) -> Tensor:
    """Segmentation label: CAM -> random walk -> PAR -> argmax, both thresholds, combined.

    Args:
        affinity: B x N x N on `grid` = (hs, ws).
        others: as in `refined_label` and `affinity.random_walk`. PAR sees the true image only.

    Returns:
        B x h x w uint8: classes 0..C, 255 ignored.
    """
    check_shape("image", image, "B 3 h w")
    check_shape("cam", cam, "B C h w", B=image.shape[0])
    size = image.shape[2:]
    out = torch.full((len(image), *size), IGNORE, dtype=torch.uint8, device=image.device)
    boxes = [(0, size[0], 0, size[1])] * len(image) if box is None else box.tolist()
    for i, (y0, y1, x0, x1) in enumerate(boxes):
        classes = label[i].nonzero()[:, 0]
        if len(classes) == 0:
            out[i, y0:y1, x0:x1] = 0
            continue
        walked = propagate(cam[i, classes], affinity[i], grid, (beta_high, beta_low), radius, alpha, eps)
        inside = F.interpolate(walked, size=size, mode="bilinear", align_corners=False)[..., y0:y1, x0:x1]
        high, low = refine_planes(image[i, :, y0:y1, x0:x1], inside, classes, refine)
        out[i, y0:y1, x0:x1] = combine_labels(high, low)
    return out


def refine_planes(image: Tensor, planes: Tensor, classes: Tensor, refine: Refiner) -> Tensor:
    """Refine stacks of planes at half resolution and take each pixel's best class.

    Args:
        image: 3 x h x w RGB in 0..255.
        planes: T x P x h' x w', background first; the refiner brings them to the half image.
        classes: P-1 class indices in [0, C).

    Returns:
        T x h x w uint8, classes 0..C.
    """
    small = F.interpolate(image[None].float(), size=_half(image.shape[1:]), mode="bilinear", align_corners=False)
    return best_class(refine(small, planes), classes, image.shape[1:])


def _half(size: Sequence[int]) -> tuple[int, int]:
    return max(1, size[0] // 2), max(1, size[1] // 2)


def best_class(planes: Tensor, classes: Tensor, size: Sequence[int]) -> Tensor:
    """Resize planes to `size` = (h, w) and take the largest.

    Args:
        planes: T x P x h' x w', background first. classes: P-1 class indices in [0, C).

    Returns:
        T x h x w uint8, classes 0..C.
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
    """
    combined = high.clone()
    combined[high == 0] = IGNORE
    combined[(high == 0) & (low == 0)] = 0
    return combined
