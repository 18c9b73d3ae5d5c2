"""The forms that everybody writes first, for comparison."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

DIRECTIONS = [(-1, -1), (-1, 0), (-1, 1), (0, -1), (0, 1), (1, -1), (1, 0), (1, 1)]


def shifted_copies(planes: Tensor, dilations: Sequence[int]) -> Tensor:
    """B x P x h x w -> B x P x J x h x w by fixed one-hot dilated convolutions."""
    weight = torch.zeros(8, 1, 3, 3)
    for number, (dy, dx) in enumerate(DIRECTIONS):
        weight[number, 0, dy + 1, dx + 1] = 1
    batch, count, height, width = planes.shape
    flat = planes.reshape(batch * count, 1, height, width)
    copies = [F.conv2d(F.pad(flat, (d, d, d, d), mode="replicate"), weight, dilation=d) for d in dilations]
    return torch.cat(copies, dim=1).view(batch, count, -1, height, width)


def par(
    image: Tensor, scores: Tensor, dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
    iterations: int = 10, w1: float = 0.3, w2: float = 0.3, w3: float = 0.01,
) -> Tensor:  # fmt: skip
    """PAR with all 48 shifted copies of every plane at every iteration."""
    scores = F.interpolate(scores, size=image.shape[2:], mode="bilinear", align_corners=True)
    near = shifted_copies(image, dilations)
    kappa = -(((near - image[:, :, None]).abs() / (w1 * (near.std(dim=2, keepdim=True) + 1e-8))) ** 2).mean(dim=1)
    distance = torch.tensor([d * (dy * dy + dx * dx) ** 0.5 for d in dilations for dy, dx in DIRECTIONS])
    position = -((distance / (w2 * (distance.std() + 1e-8))) ** 2)
    kernel = torch.softmax(kappa, dim=1) + w3 * torch.softmax(position, dim=0).view(1, -1, 1, 1)
    for _ in range(iterations):
        scores = (shifted_copies(scores, dilations) * kernel[:, None]).sum(dim=2)
    return scores


def window_mask(height: int, width: int, radius: int) -> np.ndarray:
    """N x N bool, pairs within the Chebyshev radius, by a double loop."""
    mask = np.zeros((height * width, height * width), bool)
    for i in range(height * width):
        for j in range(height * width):
            mask[i, j] = max(abs(i // width - j // width), abs(i % width - j % width)) <= radius
    return mask


def propagate(planes: Tensor, affinity: Tensor, mask: Tensor, alpha: float) -> Tensor:
    """B x P x N through the random walk with whole N x N matrices, for one threshold."""
    weights = (affinity * mask) ** alpha
    transition = weights / weights.sum(dim=2, keepdim=True)
    return planes @ transition.transpose(1, 2)


def confusion_matrix(truth: np.ndarray, prediction: np.ndarray, classes: int) -> np.ndarray:
    """Class by class with boolean masks."""
    rows = [np.bincount(prediction[truth == t], minlength=classes)[:classes] for t in range(classes)]
    return np.stack(rows)
