"""Segmentation of one photo: over scales and flips, and in windows."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from afactl.datasets.images import read_image
from afactl.datasets.transforms import normalize
from afactl.inference.segmentation import _windows, segment, segment_windows
from afactl.inference.trained_run import to_tensor

CPU = torch.device("cpu")


def test_segmentation_of_one_scale_is_the_network_on_the_photo(run, val):
    image = read_image(val.samples[0].image_path)
    with torch.no_grad():
        logits = run.model(normalize(to_tensor(image, CPU))).seg_logits
    expected = interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(segment(run.model, image, CPU), expected, atol=1e-5, rtol=0)


def test_fusion_takes_the_maximum_over_scales_and_flips(run, val):
    image = read_image(val.samples[0].image_path)
    mirrored = np.ascontiguousarray(image[:, ::-1])
    views = []
    with torch.no_grad():
        for scale in (1.0, 0.5):
            for photo in (image, mirrored):
                pixels = normalize(to_tensor(photo, CPU))
                if scale != 1.0:
                    pixels = interpolate(pixels, size=(32, 32), mode="bilinear", align_corners=False)
                logits = run.model(pixels).seg_logits
                logits = logits.flip(-1) if photo is mirrored else logits
                views.append(interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)[0])
    expected = torch.stack(views).amax(dim=0)
    found = segment(run.model, image, CPU, (1.0, 0.5), flip=True)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(50, 90), (90, 50), (33, 35)])
def test_any_size_is_segmented_at_its_own_size(run, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    assert segment(run.model, image, CPU, (1.0, 0.75), True, long_side=64).shape == (7, *size)


def test_windows_are_weighted_by_the_distance_from_their_edge(run):
    """Side 40 takes windows of 24 at 0 and 16, side 56 at 0, 16 and 32."""
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
    sums, weights = torch.zeros(7, 40, 56), torch.zeros(40, 56)
    for top in (0, 16):
        for left in (0, 16, 32):
            logits = segment(run.model, image[top : top + 24, left : left + 24], CPU, (1.0, 0.75), True)
            for y in range(24):
                for x in range(24):
                    weight = (min(y, 23 - y) + 0.5) * (min(x, 23 - x) + 0.5)
                    sums[:, top + y, left + x] += weight * logits[:, y, x]
                    weights[top + y, left + x] += weight
    found = segment_windows(run.model, image, CPU, (1.0, 0.75), True, 24, (40, 56))
    torch.testing.assert_close(found, sums / weights, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (50, 64), (17, 33)])
def test_a_photo_that_fits_in_a_window_is_passed_whole(run, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    whole = segment(run.model, image, CPU, (1.0, 0.75), True)
    torch.testing.assert_close(
        segment_windows(run.model, image, CPU, (1.0, 0.75), True, 64, size), whole, atol=1e-5, rtol=1e-5
    )


@given(st.integers(1, 400), st.integers(8, 120), st.integers(1, 6))
def test_windows_cover_a_photo_and_its_grid(side, window, factor):
    small = max(1, side // factor)
    windows = _windows(side, small, window)
    ends = (0, 0)
    for (start, end), (first, last) in (((w.start, w.stop), (s.start, s.stop)) for w, s in windows):
        assert start <= ends[0] and first <= ends[1], "no gap"
        assert end - start == min(side, window)
        assert abs(first * side / small - start) <= side / small and abs(last * side / small - end) <= side / small
        ends = (end, last)
    assert ends == (side, small)
    overlaps = [a[0].stop - b[0].start for a, b in itertools.pairwise(windows)]
    assert all(overlap >= window // 3 - 1 for overlap in overlaps)


def test_logits_of_windows_lie_where_their_pixels_are(run, monkeypatch):
    """A network that gives each pixel its own brightness: the picture comes back, at a third of its size too."""
    image = np.repeat(
        np.minimum(np.add.outer(np.arange(96), np.arange(150)), 255).astype(np.uint8)[..., None], 3, axis=2
    )
    monkeypatch.setattr(
        "afactl.inference.segmentation.segment",
        lambda model, tile, *rest: torch.from_numpy(tile[..., 0].astype(np.float32))[None],
    )
    found = segment_windows(run.model, image, CPU, (1.0,), False, 40, (96, 150))
    torch.testing.assert_close(found[0], torch.from_numpy(image[..., 0]).float())
    third = segment_windows(run.model, image, CPU, (1.0,), False, 40, (32, 50))
    expected = torch.from_numpy(image[..., 0].astype(np.float32).reshape(32, 3, 50, 3).mean(axis=(1, 3)))
    assert (third[0] - expected).abs().max() <= 3, "within a cell's width of where it belongs"
