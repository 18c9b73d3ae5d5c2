"""The forms that everybody writes first, for comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.datasets.transforms import normalize
from afactl.method.affinity import attention_logits
from afactl.network.model import AFA
from afactl.presets import Preset

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
    image: Tensor,
    scores: Tensor,
    dilations: Sequence[int] = (1, 2, 4, 8, 12, 24),
    iterations: int = 10,
    w1: float = 0.3,
    w2: float = 0.3,
    w3: float = 0.01,
) -> Tensor:
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


def training_step(
    model: AFA, image: Tensor, label: Tensor, box: Tensor, preset: Preset
) -> tuple[dict[str, Tensor], Tensor, Tensor]:
    """One step with propagated labels, without the energy loss: every pass through the whole network.

    All maps of all heads exist, flipped images pass one by one, and each threshold is refined and propagated for
    itself.

    Returns:
        (loss terms, refined label, segmentation label).
    """
    cam, settings = preset.cam, preset.affinity
    pixels, size = normalize(image), image.shape[2:]
    out = whole_network(model, pixels)
    with torch.no_grad():
        model.eval()
        total: Tensor | float = 0.0
        for scale in cam.scales:
            scaled = pixels if scale == 1 else resize(pixels, [int(scale * side) for side in size])
            plain, mirrored = whole_network(model, scaled), whole_network(model, scaled.flip(-1))
            maps = [resize(plain.cam, size), resize(mirrored.cam, size).flip(-1)]
            total = total + torch.relu(torch.maximum(*maps))
            if scale == max(cam.scales):
                affinity, grid = affinity_of(model, plain.attn), plain.cam.shape[2:]
        model.train()
        total = total - total.amin(dim=(2, 3), keepdim=True)
        total = total / (total.amax(dim=(2, 3), keepdim=True) + 1e-5)
        window = torch.from_numpy(window_mask(*grid, settings.radius))

        refined, target = torch.full((2, len(image), *size), 255, dtype=torch.uint8)
        for i, (y0, y1, x0, x1) in enumerate(box.tolist()):
            present = label[i].nonzero()[:, 0]
            plain_labels, walked_labels = [], []
            for threshold in (cam.beta_high, cam.beta_low):
                half = resize(total[i : i + 1, present], [side // 2 for side in size])
                planes = torch.cat([torch.full_like(half[:, :1], threshold), half], dim=1).softmax(dim=1)
                plain_labels.append(decide(image[i], planes, present, preset)[y0:y1, x0:x1])
                tokens = resize(total[i : i + 1, present], grid)
                planes = torch.cat([torch.full_like(tokens[:, :1], threshold), tokens], dim=1).softmax(dim=1)
                walked = propagate(planes.flatten(2), affinity[i : i + 1], window, settings.alpha).unflatten(2, grid)
                walked = resize(walked, size)[..., y0:y1, x0:x1]
                walked_labels.append(decide(image[i, :, y0:y1, x0:x1], walked, present, preset))
            refined[i, y0:y1, x0:x1] = agree(*plain_labels)
            target[i, y0:y1, x0:x1] = agree(*walked_labels)

    tokens = F.interpolate(refined[:, None].float(), size=out.cam.shape[2:], mode="nearest").flatten(1)
    same, sure = tokens[:, :, None] == tokens[:, None], tokens != 255
    used = sure[:, :, None] & sure[:, None] & torch.from_numpy(window_mask(*out.cam.shape[2:], settings.radius))
    learned = affinity_of(model, out.attn)
    pull, push = 1 - learned[used & same], learned[used & ~same]
    entropy = F.cross_entropy(resize(out.seg_logits, size), target.long(), ignore_index=255, reduction="none")
    sides = [entropy[target == 0], entropy[(target != 0) & (target != 255)]]
    losses = {
        "cls": F.multilabel_soft_margin_loss(out.cls_logits, label),
        "aff": 0.5 * (pull.sum() / (pull.numel() + 1) + push.sum() / (push.numel() + 1)),
        "seg": 0.5 * sum(side.mean() if side.numel() else 0.0 for side in sides),
    }
    return losses, refined, target


def multi_scale_cam(model: AFA, pixels: Tensor, scales: Sequence[float]) -> Tensor:
    """B x C x h x w: the whole network on one view at a time, every map at full size."""
    size, total = pixels.shape[2:], torch.zeros(())
    for scale in scales:
        view = resize(pixels, [int(scale * side) for side in size])
        maps = [resize(whole_network(model, seen).cam, size) for seen in (view, view.flip(-1))]
        total = total + torch.relu(torch.maximum(maps[0], maps[1].flip(-1)))
    total = total - total.amin(dim=(2, 3), keepdim=True)
    return total / (total.amax(dim=(2, 3), keepdim=True) + 1e-5)


class Whole(NamedTuple):
    """Every output of the network, in the letters of the paper's shapes."""

    cls_logits: Tensor
    seg_logits: Tensor
    cam: Tensor
    attn: Tensor


def whole_network(model: AFA, image: Tensor) -> Whole:
    """One pass through everything, whatever is needed of it."""
    encoded = model(image)
    attention = attention_logits(encoded.queries, encoded.keys)
    return Whole(model.classify(encoded), model.segment(encoded), model.activate(encoded), attention)


def affinity_of(model: AFA, attention: Tensor) -> Tensor:
    """B x n x N x N maps of all heads -> B x N x N."""
    symmetric = attention + attention.transpose(2, 3)
    return torch.sigmoid(
        (symmetric * model.affinity_head.weight.view(1, -1, 1, 1)).sum(dim=1) + model.affinity_head.bias
    )


def decide(image: Tensor, planes: Tensor, present: Tensor, preset: Preset) -> Tensor:
    """PAR at half resolution, then the best class of every pixel of a 3 x h x w image."""
    settings, size = preset.par, image.shape[1:]
    small = resize(image[None].float(), [side // 2 for side in size])
    planes = par(small, planes, settings.dilations, settings.iterations, settings.w1, settings.w2, settings.w3)
    return torch.cat([present.new_zeros(1), present + 1])[resize(planes, size)[0].argmax(dim=0)]


def agree(high: Tensor, low: Tensor) -> Tensor:
    """The label of the higher threshold, 255 where only that one says background."""
    return torch.where((high == 0) & (low != 0), 255, high).to(torch.uint8)


def resize(maps: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)
