"""Segmentation of one photo: by the keys of `eval`, and in windows."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from afactl.datasets.images import read_image
from afactl.datasets.transforms import normalize
from afactl.inference.segmentation import (
    Passes,
    _scaled,
    _windows,
    multi_scale,
    photo_mask,
    segment,
    segment_windows,
    single_scale,
)
from afactl.inference.trained_run import to_tensor
from afactl.presets import PROTOCOLS, Eval

CPU = torch.device("cpu")


def test_the_mask_of_a_photo_is_by_all_passes_of_its_preset(run, val):
    image = read_image(val.samples[0].image_path)
    logits = segment(run.model, image, CPU, multi_scale(run.preset.eval))
    mask = photo_mask(run, image)
    assert mask.dtype == np.uint8 and np.array_equal(mask, logits.argmax(0).numpy())


def test_segmentation_of_one_scale_is_the_network_on_the_photo(run, val):
    image = read_image(val.samples[0].image_path)
    with torch.no_grad():
        logits = run.model.segment(run.model(normalize(to_tensor(image, CPU))))
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
                logits = run.model.segment(run.model(pixels))
                logits = logits.flip(-1) if photo is mirrored else logits
                views.append(interpolate(logits, size=(64, 64), mode="bilinear", align_corners=False)[0])
    expected = torch.stack(views).amax(dim=0)
    found = segment(run.model, image, CPU, Passes((1.0, 0.5), flip=True))
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", [(50, 90), (90, 50), (33, 35)])
def test_any_size_is_segmented_at_its_own_size(run, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    assert segment(run.model, image, CPU, Passes((1.0, 0.75), True, long_side=64)).shape == (7, *size)


def test_windows_are_weighted_by_the_distance_from_their_edge(run):
    """Side 40 takes windows of 24 at 0 and 16, side 56 at 0, 16 and 32."""
    image = np.random.default_rng(0).integers(0, 256, (40, 56, 3)).astype(np.uint8)
    sums, weights = torch.zeros(7, 40, 56), torch.zeros(40, 56)
    for top in (0, 16):
        for left in (0, 16, 32):
            logits = segment(run.model, image[top : top + 24, left : left + 24], CPU, Passes((1.0, 0.75), True))
            for y in range(24):
                for x in range(24):
                    weight = (min(y, 23 - y) + 0.5) * (min(x, 23 - x) + 0.5)
                    sums[:, top + y, left + x] += weight * logits[:, y, x]
                    weights[top + y, left + x] += weight
    found = segment_windows(run.model, image, CPU, Passes((1.0, 0.75), True), 24, (40, 56))
    torch.testing.assert_close(found, sums / weights, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [(64, 64), (50, 64), (17, 33)])
def test_a_photo_that_fits_in_a_window_is_passed_whole(run, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    whole = segment(run.model, image, CPU, Passes((1.0, 0.75), True))
    torch.testing.assert_close(
        segment_windows(run.model, image, CPU, Passes((1.0, 0.75), True), 64, size), whole, atol=1e-5, rtol=1e-5
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
    found = segment_windows(run.model, image, CPU, Passes(), 40, (96, 150))
    torch.testing.assert_close(found[0], torch.from_numpy(image[..., 0]).float())
    third = segment_windows(run.model, image, CPU, Passes(), 40, (32, 50))
    expected = torch.from_numpy(image[..., 0].astype(np.float32).reshape(32, 3, 50, 3).mean(axis=(1, 3)))
    assert (third[0] - expected).abs().max() <= 3, "within a cell's width of where it belongs"


@pytest.fixture(scope="module")
def image():
    """Soft colours, 75 x 110 pixels: no side of it is a multiple of anything here."""
    torch.manual_seed(0)
    soft = interpolate(torch.rand(1, 3, 6, 8), size=(75, 110), mode="bicubic").clamp(0, 1)[0]
    return (255 * soft).to(torch.uint8).permute(1, 2, 0).numpy()


def logits_of(run, pixels):
    with torch.no_grad():
        return run.model.segment(run.model(pixels))[0]


def bilinear(maps, size):
    return interpolate(maps[None], size=size, mode="bilinear", align_corners=False)[0]


def test_the_authors_protocol_step_by_step(run, image):
    """Long side first, sides cut off; mean with the mirror image; maximum on the grid of scale 1; then the photo."""
    settings = Eval(long_side=64, scales=(0.75, 1.0, 0.5), mirror="mean", fuse_at="logits", sizes="floor")
    photo = interpolate(normalize(to_tensor(image, CPU)), scale_factor=64 / 110, mode="bilinear", align_corners=False)
    assert photo.shape[2:] == (43, 64)
    means = {}
    for scale in settings.scales:
        scaled = interpolate(photo, scale_factor=scale, mode="bilinear", align_corners=False)
        assert scaled.shape[2:] == (int(43 * scale), int(64 * scale))
        means[scale] = (logits_of(run, scaled) + logits_of(run, scaled.flip(-1)).flip(-1)) / 2
    assert means[1.0].shape[1:] == (11, 16)
    fused = torch.stack([bilinear(means[scale], (11, 16)) for scale in settings.scales]).amax(dim=0)
    found = segment(run.model, image, CPU, multi_scale(settings))
    torch.testing.assert_close(found, bilinear(fused, (75, 110)), atol=1e-5, rtol=0)


def test_the_other_side_of_each_choice_step_by_step(run, image):
    """Nearest sides, straight from the photo; maximum with the mirror image; maximum at the photo's size."""
    settings = Eval(long_side=64, scales=(1.0, 0.5), mirror="maximum", fuse_at="photo", sizes="nearest")
    pixels, views = normalize(to_tensor(image, CPU)), []
    for size in ((44, 64), (22, 32)):
        scaled = interpolate(pixels, size=size, mode="bilinear", align_corners=False)
        views += [
            bilinear(logits_of(run, scaled), (75, 110)),
            bilinear(logits_of(run, scaled.flip(-1)), (75, 110)).flip(-1),
        ]
    found = segment(run.model, image, CPU, multi_scale(settings))
    torch.testing.assert_close(found, torch.stack(views).amax(dim=0), atol=1e-5, rtol=0)


@pytest.mark.parametrize("change", [{"mirror": "maximum"}, {"fuse_at": "photo"}, {"sizes": "nearest"}])
def test_each_choice_of_the_authors_shows(run, image, change):
    authors = PROTOCOLS["authors"].model_copy(update={"long_side": 64})
    base, other = (
        segment(run.model, image, CPU, multi_scale(one)) for one in (authors, authors.model_copy(update=change))
    )
    assert (base - other).abs().max() > 1e-3
    if change == {"mirror": "maximum"}:
        assert (other >= base - 1e-6).all(), "a maximum is nowhere below the mean"


@pytest.mark.parametrize("factor", [64 / 110, 0.75, 1.5])
def test_the_exact_factor_is_given_to_the_resize(factor):
    """Output pixel i lies at (i + 1/2) / factor - 1/2 of the photo, though the sides are cut off."""
    torch.manual_seed(0)
    row = torch.rand(111)
    found = _scaled(row.expand(1, 1, 4, 111), factor)
    assert found.shape[3] == math.floor(111 * factor)
    for i, value in enumerate(found[0, 0, 0].tolist()):
        place = min(max((i + 0.5) / factor - 0.5, 0.0), 110.0)
        left = min(int(place), 109)
        assert value == pytest.approx((row[left] + (place - left) * (row[left + 1] - row[left])).item(), abs=1e-4)


@pytest.mark.parametrize("sizes", ["nearest", "floor"])
@pytest.mark.parametrize("fuse_at", ["logits", "photo"])
@pytest.mark.parametrize("size", [(1, 1), (2, 300), (33, 35)])
def test_any_photo_gets_logits_of_its_own_size(run, sizes, fuse_at, size):
    photo = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    passes = Passes((1.0, 0.5), True, 64, "mean", fuse_at, sizes)
    logits = segment(run.model, photo, CPU, passes)
    assert logits.shape == (7, *size) and torch.isfinite(logits).all()


def test_the_passes_follow_from_the_section_eval():
    settings = Eval(long_side=64, scales=(1.0, 2.0), mirror="mean", fuse_at="logits", sizes="floor")
    assert multi_scale(settings) == Passes((1.0, 2.0), True, 64, "mean", "logits", "floor")
    assert single_scale(settings) == Passes((1.0,), False, 64, sizes="floor")
