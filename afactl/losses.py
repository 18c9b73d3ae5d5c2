"""Loss terms of Eq. 5, 11, 12 as pure functions.

Shapes: B batch, C foreground classes, K = C + 1 classes, h x w label, N tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.errors import check_shape

IGNORE = 255


def classification_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Multi-label soft margin loss (Eq. 11, with the sign that makes it a loss).

    Args:
        logits: B x C. label: B x C in {0, 1}.
    """
    return F.multilabel_soft_margin_loss(logits, label)


def segmentation_loss(logits: Tensor, label: Tensor) -> Tensor:
    """Mean of the cross-entropy over background pixels and that over foreground pixels.

    The halves weigh the same however few pixels one has. A half without any pixel counts as 0,
    so the loss is finite for a batch of background, of foreground, or of nothing but 255.

    Args:
        logits: B x K x h x w. label: B x h x w integer, 0..C or 255 (ignored).
    """
    check_shape("logits", logits, "B K h w")
    check_shape("label", label, "B h w", B=logits.shape[0], h=logits.shape[2], w=logits.shape[3])
    label = label.long()
    entropy = F.cross_entropy(logits.float(), label, ignore_index=IGNORE, reduction="none")
    background = label == 0
    foreground = ~background & (label != IGNORE)
    return 0.5 * (_masked_mean(entropy, background) + _masked_mean(entropy, foreground))


def _masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    # Multiplying is cheaper than indexing, and needs no synchronisation with a GPU.
    return (values * mask).sum() / mask.sum().clamp_min(1)


def affinity_loss(affinity: Tensor, label: Tensor) -> Tensor:
    """Eq. 5 with each mean halved and 1 added to each count, as in the authors' code.

    Args:
        affinity: B x N x N in [0, 1], after the sigmoid.
        label: B x N x N: 1 positive pair, 0 negative pair, 255 unused.
    """
    check_shape("affinity", affinity, "B N N")
    check_shape("label", label, "B N N", B=affinity.shape[0], N=affinity.shape[1])
    positive, negative = label == 1, label == 0
    pull = ((1 - affinity) * positive).sum() / (positive.sum() + 1)
    push = (affinity * negative).sum() / (negative.sum() + 1)
    return 0.5 * (pull + push)
