"""How much a network doubts its own segmentation of a photo, by which photos are reviewed.

Shapes: C foreground classes, K = C + 1, h x w image.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from afactl.datasets.images import read_image, reduce_image
from afactl.datasets.registry import data_fingerprint
from afactl.datasets.samples import Sample, Split
from afactl.datasets.transforms import normalize
from afactl.inference.trained_run import TrainedRun, to_tensor
from afactl.runs.cache import Cache, CacheHeader, cache_path

DOUBT_STAGE = "doubt"


class Doubt(NamedTuple):
    """Why a photo should be looked at.

    Attributes:
        entropy: mean over the pixels of the entropy of the class probabilities, in [0, 1]: 1 where all K classes are
            alike everywhere.
        denied: classes that the network finds and the tags do not name, indices in [0, C).
        missed: classes that the tags name and the network does not find.
    """

    entropy: float
    denied: tuple[int, ...]
    missed: tuple[int, ...]

    @property
    def value(self) -> float:
        """What photos are ordered by: the entropy, and 1 more for every class on which tags and network differ."""
        return self.entropy + len(self.denied) + len(self.missed)


def mean_entropy(logits: Tensor) -> float:
    """Mean over the pixels of the entropy of softmax(logits), in units of log K.

    Args:
        logits: K x h x w.

    Example:
        >>> mean_entropy(torch.zeros(3, 2, 2))
        1.0
        >>> mean_entropy(torch.tensor([0.0, 100.0]).view(2, 1, 1))
        0.0
    """
    if len(logits) == 1:
        return 0.0
    logarithms = logits.float().log_softmax(0)
    entropy = -(logarithms.exp() * logarithms).sum(0).mean() / math.log(len(logits))
    return round(float(entropy), 6)


@torch.inference_mode()
def doubt_of(run: TrainedRun, sample: Sample) -> Doubt:
    """What one pass at one scale says of a photo and its tags.

    A class is found where the classifier gives it more than 1/2.

    Raises:
        DataError: the photo cannot be read.
    """
    image = reduce_image(read_image(sample.image_path), run.preset.cam.max_pixels)
    encoded = run.model(normalize(to_tensor(image, run.device)))
    found = set((run.model.classify(encoded)[0] > 0).nonzero()[:, 0].tolist())
    tags = set(sample.labels)
    entropy = mean_entropy(run.model.segment(encoded)[0])
    return Doubt(entropy, tuple(sorted(found - tags)), tuple(sorted(tags - found)))


def doubts(run: TrainedRun, split: Split) -> Iterator[tuple[str, Doubt]]:
    """Image id and doubt of every photo of a split, by way of the run's cache.

    Raises:
        CacheError: the cache there was made by other weights, data or settings, or another process is writing it.
        DataError: a photo cannot be read.
    """
    settings = {"cam.max_pixels": run.preset.cam.max_pixels}
    header = CacheHeader(DOUBT_STAGE, settings, run.weights_hash, data_fingerprint(split))
    # What is to be made again takes seconds, so an older file is in nobody's way.
    with Cache.open(cache_path(run.folder, DOUBT_STAGE, split.name), header, overwrite=True) as cache:
        for sample in split.samples:
            if sample.image_id not in cache:
                doubt = doubt_of(run, sample)
                arrays = {
                    name: np.array(classes, np.int64) for name, classes in doubt._asdict().items() if name != "entropy"
                }
                cache.append(sample.image_id, {"entropy": np.array([doubt.entropy]), **arrays})
            kept = cache.read(sample.image_id)
            yield (
                sample.image_id,
                Doubt(float(kept["entropy"][0]), tuple(kept["denied"].tolist()), tuple(kept["missed"].tolist())),
            )
