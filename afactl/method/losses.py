"""Loss terms of Eq. 5, 11, 12 as pure functions.

Shapes: B batch, C foreground classes, K = C + 1 classes, h x w label, N tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.errors import check_shape
from afactl.labels import IGNORE
from afactl.method.refinement.lattice import bilateral_features, build_lattice, lattice_filter

# A count in the batch at hand -> the count that a mean is taken over.
Total = Callable[[Tensor], Tensor]
# The energy sums over all pairs of pixels; this brings it to the order of the other terms.
ENERGY_WEIGHT = 1e-7


def here(count: Tensor) -> Tensor:
    """The batch at hand is all there is.

    Example:
        >>> here(torch.tensor([3, 5])).tolist()
        [3, 5]
    """
    return count


def classification_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Multi-label soft margin loss (Eq. 11, with the sign that makes it a loss).

    Args:
        logits: B x C. label: B x C in {0, 1}.

    Example:
        >>> classification_loss(torch.zeros(1, 20), torch.ones(1, 20))  # log 2: nothing is known
        tensor(0.6931)
    """
    return F.multilabel_soft_margin_loss(logits, label)


def segmentation_loss(logits: Tensor, label: Tensor, total: Total = here) -> Tensor:
    """Mean of the cross-entropy over background pixels and that over foreground pixels.

    The halves weigh the same however few pixels one has. A half without any pixel counts as 0,
    so the loss is finite for a batch of background, of foreground, or of nothing but 255.

    Args:
        logits: B x K x h x w. label: B x h x w integer, 0..C or 255 (ignored).
        total: gives counts over parts of a batch that lie elsewhere too; the loss is then this part's
            share, and the shares sum to the loss of the whole.

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
    background = label == 0
    foreground = ~background & (label != IGNORE)
    counts = total(torch.stack([background.sum(), foreground.sum()])).clamp_min(1)
    # Multiplying is cheaper than indexing, and needs no synchronisation with a GPU.
    return 0.5 * ((entropy * background).sum() / counts[0] + (entropy * foreground).sum() / counts[1])


def full_segmentation_loss(logits: Tensor, label: Tensor, total: Total = here) -> Tensor:
    """Plain cross-entropy over all pixels but the ignored ones, for full supervision.

    Arguments as `segmentation_loss`.

    Example:
        >>> full_segmentation_loss(torch.zeros(1, 2, 1, 3), torch.tensor([[[0, 1, 255]]]))  # log 2
        tensor(0.6931)
    """
    entropy = F.cross_entropy(logits.float(), label.long(), ignore_index=IGNORE, reduction="sum")
    return entropy / total((label != IGNORE).sum()).clamp_min(1)


def affinity_loss(affinity: Tensor, label: Tensor, total: Total = here) -> Tensor:
    """Eq. 5 with each mean halved and 1 added to each count, as in the authors' code.

    Args:
        affinity: B x N x N in [0, 1], after the sigmoid.
        label: B x N x N: 1 positive pair, 0 negative pair, 255 unused.
        total: as in `segmentation_loss`.

    Example:
        >>> affinity = torch.tensor([[[1.0, 0.3], [0.3, 1.0]]])
        >>> affinity_loss(affinity, torch.tensor([[[1, 0], [0, 1]]]))  # half of (0.3 + 0.3) / (2 + 1)
        tensor(0.1000)
    """
    check_shape("affinity", affinity, "B N N")
    check_shape("label", label, "B N N", B=affinity.shape[0], N=affinity.shape[1])
    positive, negative = label == 1, label == 0
    counts = total(torch.stack([positive.sum(), negative.sum()])) + 1
    pull = ((1 - affinity) * positive).sum() / counts[0]
    push = (affinity * negative).sum() / counts[1]
    return 0.5 * (pull + push)


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
