"""One photo as it is explored: passed through the network once, and asked as often as somebody points at it.

Shapes: C foreground classes, K = C + 1, P - 1 present classes, h x w image, hs x ws token grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, NamedTuple, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from afactl.datasets.images import reduce_image
from afactl.datasets.masks import enlarge_mask
from afactl.datasets.transforms import normalize
from afactl.errors import UsageError
from afactl.evaluation.metrics import confusion_matrix, mean_iou
from afactl.evaluation.scores import to_uint8
from afactl.inference.cams import QueryMaps, query_token, token_maps
from afactl.inference.refiners import preset_refiner, refinement
from afactl.inference.segmentation import input_of_crf, multi_scale, segment
from afactl.inference.trained_run import TrainedRun, to_tensor
from afactl.labels import IGNORE
from afactl.method.affinity import Walk, attention_windows, log_sigmoid
from afactl.method.pseudo_labels import combine_labels, cut_cam, propagated_planes, refine_cam, refine_planes
from afactl.method.refinement.crf import DenseCrf, dense_crf
from afactl.network.model import CamPass
from afactl.presets import Preset, changed_preset

# What a pseudo label is spread by.
WalkWith = Literal["affinity", "mhsa", "off"]
# The keys of a preset that an explored label depends on, and that its sliders move.
LABEL_KEYS = ("cam.beta_low", "cam.beta_high", "affinity.radius", "affinity.alpha", "par.iterations", "cam.refiner")
# Masks of a photo that need no slider.
MASKS = ("CAM", "segmentation", "segmentation + CRF", "truth")


class Label(NamedTuple):
    """A pseudo label of a photo, as a training with these values would make it.

    Attributes:
        label: h x w uint8, 255 where beta_low and beta_high disagree about the background.
        miou: in per cent of the label at beta_low, over the classes in the photo's truth; None without truth.
        ignored: share of the pixels that are 255.
    """

    label: np.ndarray
    miou: float | None
    ignored: float


class Mask(NamedTuple):
    """A mask with its confidence.

    Attributes:
        label: h x w uint8. probability: h x w float32 in [0, 1] of the label's class; of the CAM its largest value,
            None of the truth. miou: as in `Label`.
    """

    label: np.ndarray
    probability: np.ndarray | None
    miou: float | None


@dataclass
class ExploredPhoto:
    """A photo with what one pass through the network says of it.

    Attributes:
        image: h x w x 3 uint8, reduced to `cam.max_pixels` where it has more.
        labels: its tags, indices in [0, C); found: whether the network found them, since nobody gave any.
        truth: h x w uint8 at the size of `image`, or None.
    """

    run: TrainedRun
    name: str
    image: np.ndarray
    labels: tuple[int, ...]
    truth: np.ndarray | None = None
    found: bool = False
    _masks: dict[str, Mask] = field(default_factory=dict)
    _logarithms: dict[tuple[str, int], Tensor] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """(h, w) of the image."""
        return self.image.shape[0], self.image.shape[1]

    @cached_property
    def passed(self) -> CamPass:
        """The pass over all scales of the preset, which everything else follows from."""
        preset = self.run.preset
        pixels = normalize(to_tensor(self.image, self.run.device))
        return self.run.model.multi_scale_cam(pixels, preset.cam.scales, preset.affinity.scale)

    @property
    def cam(self) -> Tensor:
        """P-1 x h x w in [0, 1), of the photo's classes."""
        return self.passed.cam[0, list(self.labels)]

    @property
    def classes(self) -> Tensor:
        """P-1 class indices in [0, C)."""
        return torch.tensor(self.labels, dtype=torch.int64, device=self.run.device)

    def maps(self, point: tuple[int, int], heads: slice | None = None) -> QueryMaps:
        """Attention and affinity of the token under a pixel (x, y), 1 x hs x ws each.

        Args:
            heads: as in `token_maps`.

        Raises:
            UsageError: the pixel lies outside.
        """
        return token_maps(self.run, self.passed, [query_token(point, self.size, self.passed.grid)], heads)

    @torch.inference_mode()
    def label(self, preset: Preset, walk: WalkWith) -> Label:
        """The pseudo label that a training with this preset makes of the photo, by the weights of this run.

        Args:
            preset: its values of LABEL_KEYS count. walk: what spreads the CAM; "off" leaves the walk out, as for the
                refined label of the affinity branch.
        """
        if walk not in get_args(WalkWith):
            raise UsageError(f"walk: expected {', '.join(get_args(WalkWith))}, got {walk}")
        image = to_tensor(self.image, self.run.device)[0]
        betas = (preset.cam.beta_high, preset.cam.beta_low)
        refine = preset_refiner(preset)
        if not self.labels:
            high = low = torch.zeros(self.size, dtype=torch.uint8)
        elif walk == "off":
            high, low = refine_cam(image, self.cam, self.classes, betas, refine)
        else:
            logarithm, how = self._logarithm(walk, preset.affinity.radius), Walk(**preset.walk_settings())
            planes = propagated_planes(self.cam, logarithm, betas, how, self.size)
            high, low = refine_planes(image, planes, self.classes, refine)
        label = to_uint8(combine_labels(high, low))
        return Label(label, self._miou(to_uint8(low)), float((label == IGNORE).mean()))

    def _logarithm(self, walk: WalkWith, radius: int) -> Tensor:
        """hs x ws x W: the logarithm of the attention or the affinity in window form; kept per radius."""
        if (walk, radius) not in self._logarithms:
            passed, head = self.passed, self.run.model.affinity_head
            self._logarithms[walk, radius] = (
                attention_windows(passed.queries, passed.keys, passed.grid, radius)[0]
                if walk == "mhsa"
                else log_sigmoid(head.windows(passed.queries, passed.keys, passed.grid, radius))[0]
            )
        return self._logarithms[walk, radius]

    def mask(self, name: str) -> Mask:
        """One of MASKS; made at the first call, and kept.

        Raises:
            UsageError: no such mask, or the photo has no truth.
        """
        makers = dict(zip(MASKS, (self._cut, self._segmented, self._with_crf, self._true), strict=True))
        if name not in makers:
            raise UsageError(f"mask: expected one of {', '.join(MASKS)}, got {name}")
        if name not in self._masks:
            self._masks[name] = makers[name]()
        return self._masks[name]

    def _cut(self) -> Mask:
        label = to_uint8(cut_cam(self.cam, self.classes, self.run.preset.cam.background))
        return self._scored(label, self.cam.cpu().numpy().max(axis=0, initial=0.0))

    @cached_property
    def _logits(self) -> Tensor:
        """K x h' x w': those of the segmentation, at `eval.max_pixels` where the photo has more."""
        small = reduce_image(self.image, self.run.preset.eval.max_pixels)
        return segment(self.run.model, small, self.run.device, multi_scale(self.run.preset.eval))

    def _segmented(self) -> Mask:
        return self._of_probabilities(self._logits.softmax(0))

    def _with_crf(self) -> Mask:
        preset = self.run.preset
        small = reduce_image(self.image, preset.eval.max_pixels)
        small, logits = input_of_crf(small, self._logits, preset.crf.drop_below)
        settings = DenseCrf(**preset.crf.model_dump())
        return self._of_probabilities(dense_crf(to_tensor(small, self.run.device)[0], logits.softmax(0), settings))

    def _true(self) -> Mask:
        if self.truth is None:
            raise UsageError(f"{self.name}: has no true mask")
        return Mask(self.truth, None, None)

    def _of_probabilities(self, probabilities: Tensor) -> Mask:
        best = probabilities.max(dim=0)
        confidence = F.interpolate(best.values[None, None].float(), size=self.size, mode="nearest")[0, 0]
        return self._scored(enlarge_mask(to_uint8(best.indices), self.size), confidence.cpu().numpy())

    def _scored(self, label: np.ndarray, probability: np.ndarray) -> Mask:
        return Mask(label, probability, self._miou(label))

    def _miou(self, label: np.ndarray) -> float | None:
        """In per cent, over the classes in the truth; None without truth or where all of it is ignored."""
        if self.truth is None or (self.truth == IGNORE).all():
            return None
        return 100 * mean_iou(confusion_matrix(self.truth, label, len(self.run.architecture.classes) + 1))


def label_preset(preset: Preset, values: Mapping[str, str]) -> Preset:
    """The preset with other values of LABEL_KEYS, as text.

    Raises:
        UsageError: a key is none of them. PresetError: a value out of its range, or a refiner that is not known.
    """
    if strange := [key for key in values if key not in LABEL_KEYS]:
        raise UsageError(f"{strange[0]}: expected one of {', '.join(LABEL_KEYS)}")
    changed = changed_preset(preset, [f"{key}={value}" for key, value in values.items()], "these values")
    refinement(changed.cam.refiner)
    return changed
