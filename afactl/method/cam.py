"""Class activation maps (Eq. 2, 4) and their fusion over scales and flips.

Shapes: B batch, C foreground classes, D feature channels, hs x ws token grid, h x w image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.errors import ShapeError, check_shape
from afactl.labels import IGNORE
from afactl.method.boxes import inside_boxes


@dataclass(frozen=True)
class Thresholds:
    """What of a CAM is background and what an object (Eq. 4).

    Attributes:
        low: beta_low, at most this is background. high: beta_high, above this is an object; between the two is
            ignored. Equal ones leave nothing ignored.

    Raises:
        ShapeError: low > high.
    """

    low: float = 0.35
    high: float = 0.55

    def __post_init__(self) -> None:
        if not self.low <= self.high:
            raise ShapeError(f"thresholds: expected beta_low <= beta_high, got {self.low} > {self.high}")


def class_activation_map(features: Tensor, weight: Tensor) -> Tensor:
    """W_c . F of Eq. 2, before the ReLU: fusion over flips takes the maximum first.

    Args:
        features: B x D x hs x ws, the last stage.
        weight: C x D, the classification layer.

    Returns:
        B x C x hs x ws, unbounded.

    Example:
        >>> features = torch.tensor([2.0, -1.0]).view(1, 2, 1, 1)  # B x D x hs x ws
        >>> class_activation_map(features, torch.tensor([[1.0, 1.0], [0.0, 3.0]])).flatten()
        tensor([ 1., -3.])
    """
    check_shape("features", features, "B D hs ws", D=weight.shape[1])
    return F.conv2d(features, weight[:, :, None, None])


def top_k_pooling(features: Tensor, percent: float) -> Tensor:
    """Mean of the top `percent` per cent of each channel's activations (Table 1).

    Args:
        features: B x D x hs x ws.
        percent: in [0, 100]; 0 takes the single largest (gmp), 100 all (gap).

    Returns:
        B x D.

    Example:
        >>> features = torch.tensor([[[[1.0, 2.0], [3.0, 6.0]]]])
        >>> [top_k_pooling(features, percent).item() for percent in (0, 50, 100)]  # gmp, top half, gap
        [6.0, 4.5, 3.0]
    """
    values = features.flatten(2)
    count = max(1, round(values.shape[2] * percent / 100))
    if count == 1:
        return values.amax(dim=2)
    if count == values.shape[2]:
        return values.mean(dim=2)
    return values.topk(count, dim=2).values.mean(dim=2)


def normalize_cam(cam: Tensor) -> Tensor:
    """Min-max normalisation per image and class: (M - min) / (max - min + 1e-5).

    Args:
        cam: B x C x h x w.

    Returns:
        B x C x h x w in [0, 1); a constant map becomes 0.

    Example:
        >>> normalize_cam(torch.tensor([[[[-1.0, 0.0, 1.0]]]]))
        tensor([[[[0.0000, 0.5000, 1.0000]]]])
    """
    cam = cam - cam.amin(dim=(2, 3), keepdim=True)
    return cam / (cam.amax(dim=(2, 3), keepdim=True) + 1e-5)


def fuse_cams(views: Sequence[tuple[Tensor, Tensor]], size: tuple[int, int]) -> Tensor:
    """Fuse raw maps over scales and flips (the multi-scale CAM for training and evaluation).

    Per scale: resize to the image, maximum of the map and the flipped-back map of the flipped
    image, ReLU. Then the sum over scales, normalised.

    Args:
        views: per scale (raw map of the image, raw map of the mirrored image), B x C x hs x ws.
        size: (h, w) of the image.

    Returns:
        B x C x h x w in [0, 1).

    Example:
        >>> plain, mirrored = torch.tensor([[[[0.0, 2.0]]]]), torch.tensor([[[[1.0, 4.0]]]])  # of both images
        >>> fuse_cams([(plain, mirrored)], size=(1, 2))  # max(0, 4) and max(2, 1), then 0..1
        tensor([[[[1.0000, 0.0000]]]])
    """
    total = views[0][0].new_zeros(())
    for plain, mirrored in views:
        # Mirroring commutes with the resize, so both maps are resized by one call.
        both = torch.stack([plain, mirrored.flip(-1)]).flatten(0, 1)
        both = F.interpolate(both, size=size, mode="bilinear", align_corners=False)
        total = total + torch.relu(both.view(2, -1, *both.shape[1:]).amax(dim=0))
    return normalize_cam(total)


def threshold_cam(cam: Tensor, label: Tensor, thresholds: Thresholds, box: Tensor | None = None) -> Tensor:
    """Pseudo label Y_p from thresholds (Eq. 4).

    Args:
        cam: B x C x h x w in [0, 1].
        label: B x C, image-level labels, 1 where the class is present.
        box: B x 4 as (y0, y1, x0, x1), the true image inside padding; outside is ignored.

    Returns:
        B x h x w uint8: class c as c + 1, background 0, ignored 255.

    Raises:
        ShapeError: axes do not fit.

    Example:
        >>> cam, label = torch.tensor([[[[0.2, 0.5, 0.9]], [[0.1, 0.9, 0.1]]]]), torch.tensor([[1, 0]])
        >>> threshold_cam(cam, label, Thresholds(0.35, 0.55))  # the second class is not there
        tensor([[[  0, 255,   1]]], dtype=torch.uint8)
    """
    check_shape("cam", cam, "B C h w")
    check_shape("label", label, "B C", B=cam.shape[0], C=cam.shape[1])
    value, index = (cam * label[:, :, None, None]).max(dim=1)
    pseudo = index + 1
    pseudo[value <= thresholds.high] = IGNORE
    pseudo[value <= thresholds.low] = 0
    return ignore_outside(pseudo.to(torch.uint8), box)


def ignore_outside(label: Tensor, box: Tensor | None) -> Tensor:
    """A copy of the B x h x w label that is 255 outside each image's (y0, y1, x0, x1) box.

    Example:
        >>> ignore_outside(torch.tensor([[[1, 2, 3]]]), torch.tensor([[0, 1, 0, 2]]))
        tensor([[[  1,   2, 255]]])
    """
    if box is None:
        return label
    inside = inside_boxes(box.to(label.device, non_blocking=True), (label.shape[1], label.shape[2]))
    return label.masked_fill(~inside, IGNORE)
