"""Loss terms of Eq. 5, 11, 12 as pure functions.

Shapes: B batch, C foreground classes, K = C + 1 classes, h x w label, N tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.errors import check_shape
from afactl.labels import IGNORE
from afactl.method.refinement.lattice import bilateral_features, build_lattice, lattice_filter

# The energy sums over all pairs of pixels; this brings it to the order of the other terms.
ENERGY_WEIGHT = 1e-7


def classification_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Multi-label soft margin loss (Eq. 11, with the sign that makes it a loss).

    Args:
        logits: B x C. label: B x C in {0, 1}.

    Example:
        >>> classification_loss(torch.zeros(1, 20), torch.ones(1, 20))  # log 2: nothing is known
        tensor(0.6931)
    """
    return F.multilabel_soft_margin_loss(logits, label)


def pixel_counts(label: Tensor) -> Tensor:
    """Background and foreground pixels of each photo.

    Args:
        label: B x h x w integer, 0..C or 255 (ignored).

    Returns:
        B x 2 integer.

    Example:
        >>> pixel_counts(torch.tensor([[[0, 0, 3, 255]], [[1, 2, 3, 4]]])).tolist()
        [[2, 1], [0, 4]]
    """
    return torch.stack([label == 0, (label != 0) & (label != IGNORE)], dim=1).flatten(2).sum(dim=2)


def pair_counts(label: Tensor) -> Tensor:
    """Positive and negative pairs of each photo.

    Args:
        label: B x N x N: 1 positive pair, 0 negative pair, 255 unused.

    Returns:
        B x 2 integer.

    Example:
        >>> pair_counts(torch.tensor([[[1, 0], [0, 255]]])).tolist()
        [[1, 2]]
    """
    return torch.stack([label == 1, label == 0], dim=1).flatten(2).sum(dim=2)


def mean_weights(counts: Tensor, part_photos: int | None = None, added: int = 0) -> Tensor:
    """What one pixel or pair of each photo weighs in a mean over the photos of a step.

    The mean is taken over all pixels, or part by part: each part of the photos is divided by its own count, and the
    parts are averaged. Then a pixel weighs the more the fewer its part has.

    Args:
        counts: P x k, pixels or pairs of k kinds of each of the P photos of the step, in order.
        part_photos: photos of a part, the last one may be smaller; None: all photos are one part.
        added: to the count of every part.

    Returns:
        P x k float32.

    Example:
        >>> pixels = torch.tensor([[6], [2], [1], [1]])  # of four photos
        >>> mean_weights(pixels).flatten().tolist()  # each pixel weighs a tenth
        [0.10000000149011612, 0.10000000149011612, 0.10000000149011612, 0.10000000149011612]
        >>> mean_weights(pixels, part_photos=2).flatten().tolist()  # half of an eighth, and half of a half
        [0.0625, 0.0625, 0.25, 0.25]
    """
    parts = torch.split(counts, part_photos or max(1, len(counts)))
    sums = [(part.sum(dim=0, keepdim=True) + added).clamp_min(1).expand_as(part) for part in parts]
    return 1.0 / (len(parts) * torch.cat(sums))


def segmentation_loss(logits: Tensor, label: Tensor, weights: Tensor | None = None) -> Tensor:
    """Mean of the cross-entropy over background pixels and that over foreground pixels.

    The halves weigh the same however few pixels one has. A half without any pixel counts as 0,
    so the loss is finite for a batch of background, of foreground, or of nothing but 255.

    Args:
        logits: B x K x h x w. label: B x h x w integer, 0..C or 255 (ignored).
        weights: B x 2, the `mean_weights` of the `pixel_counts` of these photos; None: this batch is all there is.
            Those of a step give this batch's share of its loss: the shares sum to the loss of the step.

    Example:
        >>> logits = torch.tensor([[[[99.0, 0.0]], [[0.0, 0.0]]]])  # sure of background, then undecided
        >>> segmentation_loss(logits, torch.tensor([[[0, 1]]]))  # half of log 2
        tensor(0.3466)
        >>> segmentation_loss(logits, torch.tensor([[[255, 255]]]))
        tensor(0.)
    """
    check_shape("logits", logits, "B K h w")
    check_shape("label", label, "B h w", B=logits.shape[0], h=logits.shape[2], w=logits.shape[3])
    label = label.long()
    entropy = F.cross_entropy(logits.float(), label, ignore_index=IGNORE, reduction="none")
    weights = mean_weights(pixel_counts(label)) if weights is None else weights
    # Multiplying is cheaper than indexing, and needs no synchronisation with a GPU. Ignored pixels have no entropy.
    return 0.5 * _weighted([entropy * (label == 0), entropy * (label != 0)], weights)


def full_segmentation_loss(logits: Tensor, label: Tensor, weights: Tensor | None = None) -> Tensor:
    """Plain cross-entropy over all pixels but the ignored ones, for full supervision.

    Args:
        logits, label: as in `segmentation_loss`.
        weights: B x 1, the `mean_weights` of the pixels of these photos that are not ignored.

    Example:
        >>> full_segmentation_loss(torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 1, 255]]]))  # log 2
        tensor(0.6931)
    """
    entropy = F.cross_entropy(logits.float(), label.long(), ignore_index=IGNORE, reduction="none")
    weights = mean_weights(pixel_counts(label).sum(dim=1, keepdim=True)) if weights is None else weights
    return _weighted([entropy], weights)


def affinity_loss(affinity: Tensor, label: Tensor, weights: Tensor | None = None) -> Tensor:
    """Eq. 5 with each mean halved and 1 added to each count, as in the authors' code.

    Args:
        affinity: B x N x N in [0, 1], after the sigmoid.
        label: B x N x N: 1 positive pair, 0 negative pair, 255 unused.
        weights: B x 2, the `mean_weights` of the `pair_counts` with 1 added; None: this batch is all there is.

    Example:
        >>> affinity = torch.tensor([[[1.0, 0.3], [0.3, 1.0]]])
        >>> affinity_loss(affinity, torch.tensor([[[1, 0], [0, 1]]]))  # half of (0.3 + 0.3) / (2 + 1)
        tensor(0.1000)
    """
    check_shape("affinity", affinity, "B N N")
    check_shape("label", label, "B N N", B=affinity.shape[0], N=affinity.shape[1])
    weights = mean_weights(pair_counts(label), added=1) if weights is None else weights
    return 0.5 * _weighted([(1 - affinity) * (label == 1), affinity * (label == 0)], weights)


def _weighted(maps: Sequence[Tensor], weights: Tensor) -> Tensor:
    """The sum of k maps, each B x ..., whose photos weigh what B x k says."""
    check_shape("weights", weights, "B k", B=len(maps[0]), k=len(maps))
    return (torch.stack([part.flatten(1).sum(dim=1) for part in maps], dim=1) * weights).sum()


def energy_loss(
    image: Tensor,
    logits: Tensor,
    label: Tensor,
    inside: Tensor | None = None,
    sigma_rgb: float = 15.0,
    sigma_xy: float = 100.0,
    scale: float = 0.5,
) -> Tensor:
    """Dense energy regularisation, L_reg of Eq. 12 (Tang et al., ECCV 2018), times ENERGY_WEIGHT.

    E = -(1/B) sum_k S_k^T (G * (W S_k)): pixels that look alike and lie near each other should share a
    class. S are the class probabilities, W is a Gaussian over position and colour on the permutohedral
    lattice (the pixel itself included, not normalised), and the gate G = 1 where the label is
    ignored, else 1 - max_k S: what the labels say surely is left to them. The gradient is exact,
    -(1/B) (G * W S + W^T (G * S)), with G held constant.

    Args:
        image: B x 3 x h x w RGB in 0..255.
        logits: B x K x h x w.
        label: B x h x w integer, 0..C or 255.
        inside: B x h x w bool, false in the padding of a crop, which takes no part.
        sigma_rgb: in grey levels. sigma_xy: in pixels of the image.
        scale: at which the energy is computed.

    Example:
        >>> image, label = torch.zeros(1, 3, 8, 8), torch.full((1, 8, 8), 255)
        >>> sure = torch.cat([torch.full((1, 1, 8, 8), 9.0), torch.zeros(1, 1, 8, 8)], dim=1)
        >>> bool(energy_loss(image, sure, label) < energy_loss(image, 0 * sure, label))  # one colour, one class
        True
    """
    check_shape("logits", logits, "B K h w")
    batch, classes, height, width = logits.shape
    check_shape("image", image, "B 3 h w", **{"3": 3}, B=batch, h=height, w=width)
    check_shape("label", label, "B h w", B=batch, h=height, w=width)
    size = (max(1, int(height * scale)), max(1, int(width * scale)))
    small = F.interpolate(image.float(), size=size, mode="bilinear", align_corners=False)
    probabilities = F.interpolate(logits.float().softmax(dim=1), size=size, mode="bilinear", align_corners=False)
    ignored = F.interpolate((label == IGNORE)[:, None].float(), size=size, mode="nearest")[:, 0] > 0
    gate = 1 - probabilities.detach().amax(dim=1)
    gate = gate.masked_fill(ignored, 1.0)
    if inside is not None:
        shown = F.interpolate(inside[:, None].float(), size=size, mode="nearest")
        probabilities, gate = probabilities * shown, gate * shown[:, 0]

    lattice = build_lattice(bilateral_features(small, sigma_xy * scale, sigma_rgb))
    rows = probabilities.permute(0, 2, 3, 1).reshape(-1, classes)
    pairs = rows * lattice_filter(rows, lattice)
    return -ENERGY_WEIGHT / batch * (pairs.sum(dim=1) * gate.flatten()).sum()
