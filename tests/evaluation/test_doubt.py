import math

import numpy as np
import pytest
import torch

from afactl.datasets.images import read_image
from afactl.datasets.transforms import normalize
from afactl.evaluation.doubt import Doubt, doubt_of, doubts, mean_entropy
from afactl.inference.trained_run import open_split, to_tensor


def test_entropy_equals_a_loop_over_pixels():
    logits = torch.randn(4, 3, 5, generator=torch.Generator().manual_seed(0)) * 3
    total = 0.0
    for y in range(3):
        for x in range(5):
            weights = [math.exp(float(value)) for value in logits[:, y, x]]
            for weight in weights:
                share = weight / sum(weights)
                total -= share * math.log(share) / math.log(4)
    assert mean_entropy(logits) == pytest.approx(total / 15, abs=2e-6)
    assert mean_entropy(torch.full((1, 2, 2), 5.0)) == 0.0  # a single class leaves nothing to doubt


def test_a_class_on_which_tags_and_network_differ_weighs_more_than_any_entropy():
    order = sorted(
        [Doubt(0.9, (), ()), Doubt(0.1, (2,), ()), Doubt(0.1, (), (3,)), Doubt(0.0, (1,), (2,))], key=lambda d: -d.value
    )
    assert [len(doubt.denied) + len(doubt.missed) for doubt in order] == [2, 1, 1, 0]


def test_denied_and_missed_are_what_classifier_and_tags_differ_in(run):
    split = open_split(run, "val", None, masks=False)
    with torch.no_grad():
        for sample in split.samples:
            encoded = run.model(normalize(to_tensor(read_image(sample.image_path), run.device)))
            probable = run.model.classify(encoded)[0].sigmoid()
            for label in range(len(split.classes)):
                tags = (label,)
                doubt = doubt_of(run, sample._replace(labels=tags))
                found = {c for c in range(len(split.classes)) if probable[c] > 0.5}
                assert set(doubt.denied) == found - {label}
                assert doubt.missed == (() if label in found else tags)


def test_doubts_are_kept_and_the_network_is_asked_once(run, monkeypatch):
    split = open_split(run, "val", None, masks=False)
    first = dict(doubts(run, split))
    assert list(first) == [sample.image_id for sample in split.samples]
    assert len({doubt.entropy for doubt in first.values()}) > 1
    assert all(np.isfinite(doubt.value) and 0 <= doubt.entropy <= 1 for doubt in first.values())
    monkeypatch.setattr("afactl.evaluation.doubt.doubt_of", None)
    assert dict(doubts(run, split)) == first
