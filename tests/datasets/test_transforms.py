import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from afactl.datasets.transforms import image_view, mask_view, normalize, random_window, resize_long_side


def random_view(image, rng, *arguments, **options):
    window = random_window(image.shape[:2], rng, *arguments, **options)
    return image_view(image, window).permute(1, 2, 0).numpy(), window.box


def test_normalisation_by_hand():
    image = torch.tensor([255, 0, 100], dtype=torch.uint8).view(1, 3, 1, 1)
    expected = torch.tensor([(255 - 123.675) / 58.395, -116.28 / 57.12, (100 - 103.53) / 57.375])
    torch.testing.assert_close(normalize(image).flatten(), expected)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.integers(0, 10**6), st.sampled_from([16, 32]))
def test_the_box_is_the_photo_and_the_rest_is_black(height, width, seed, crop):
    image = np.full((height, width, 3), 200, np.uint8)
    view, (y0, y1, x0, x1) = random_view(image, np.random.default_rng(seed), crop, (0.5, 2.0))
    assert view.shape == (crop, crop, 3) and view.dtype == np.uint8
    assert 0 <= y0 < y1 <= crop and 0 <= x0 < x1 <= crop
    assert (view[y0:y1, x0:x1] == 200).all()
    assert int((view == 200).all(axis=2).sum()) == (y1 - y0) * (x1 - x0)


def test_a_view_without_rescaling_is_a_plain_crop():
    rng = np.random.default_rng(0)
    image = rng.integers(0, 256, (40, 50, 3)).astype(np.uint8)
    seen = set()
    for seed in range(40):
        view, box = random_view(image, np.random.default_rng(seed), 16, (1.0, 1.0), flip=False)
        places = [(y, x) for y in range(25) for x in range(35) if np.array_equal(image[y : y + 16, x : x + 16], view)]
        assert len(places) == 1 and box == (0, 16, 0, 16)
        seen.add(places[0])
    assert len(seen) > 30


@settings(max_examples=40, deadline=None)
@given(st.integers(5, 80), st.integers(5, 80), st.integers(0, 10**6))
def test_a_view_is_its_part_of_the_photo_resized_by_pillow(height, width, seed):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3)).astype(np.uint8)
    window = random_window((height, width), rng, 32, (0.5, 2.0))
    top, bottom, left, right = window.part
    part = Image.fromarray(image[top:bottom, left:right]).resize(
        (window.columns, window.rows), Image.Resampling.BILINEAR
    )
    y0, y1, x0, x1 = window.box
    view = image_view(image, window).permute(1, 2, 0).numpy()[y0:y1, x0:x1]
    expected = np.asarray(part)[:, ::-1] if window.mirrored else np.asarray(part)
    # Both round to 8 bit after each of two passes.
    assert np.abs(view.astype(int) - expected).max() <= 2


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 300), st.integers(20, 300), st.floats(0.5, 2.0), st.integers(0, 10**6))
def test_the_scale_is_the_drawn_one(height, width, scale, seed):
    window = random_window((height, width), np.random.default_rng(seed), 64, (scale, scale))
    top, bottom, left, right = window.part
    assert 0 <= top < bottom <= height and 0 <= left < right <= width
    for shown, length in ((bottom - top, window.rows), (right - left, window.columns)):
        # To the nearest pixel of the photo, and of the whole photo rescaled.
        assert abs(shown - length / scale) <= 0.5 + 0.5 / scale * shown / 20 + 1e-9


@settings(max_examples=60, deadline=None)
@given(st.integers(20, 300), st.integers(20, 300), st.integers(16, 400), st.integers(0, 10**6))
def test_a_long_side_reduces_what_is_longer_and_enlarges_nothing(height, width, long_side, seed):
    """The view is that of the scale which brings the photo to this length; shorter photos are as without a limit."""
    limited = random_window((height, width), np.random.default_rng(seed), 64, (1.0, 1.0), long_side=long_side)
    scale = min(1.0, long_side / max(height, width))
    assert limited == random_window((height, width), np.random.default_rng(seed), 64, (scale, scale))
    if long_side >= max(height, width):
        assert limited == random_window((height, width), np.random.default_rng(seed), 64, (1.0, 1.0))
    top, bottom, left, right = limited.part
    if max(height, width) > long_side and long_side <= 64:
        assert (bottom - top, right - left) == (height, width), "all of the photo is seen"


def test_half_of_the_views_are_mirrored():
    image = np.zeros((8, 8, 3), np.uint8)
    image[:, :4] = 255
    sides = [random_view(image, np.random.default_rng(seed), 16, (1.0, 1.0)) for seed in range(400)]
    bright_left = [view[box[0], box[2]].max() > 0 for view, box in sides]
    assert 150 < sum(bright_left) < 250


def test_the_long_side_is_met_and_the_shape_kept():
    assert resize_long_side(375, 500, 512) == (384, 512)
    assert resize_long_side(500, 375, 512) == (512, 384)
    assert resize_long_side(1, 5000, 512) == (1, 512)


@settings(max_examples=60, deadline=None)
@given(st.integers(4, 60), st.integers(4, 60), st.integers(0, 10**6))
def test_a_mask_is_shown_as_its_photo_is(height, width, seed):
    """Where photo and mask are the same two fields, so are their views, but for the photo's smoothed border."""
    mask = np.zeros((height, width), np.uint8)
    mask[:, width // 2 :] = 1
    window = random_window((height, width), np.random.default_rng(seed), 32, (0.5, 2.0))
    image, shown = (
        image_view(np.repeat(mask[..., None] * 200, 3, axis=2), window)[0].numpy(),
        mask_view(mask, window).numpy(),
    )
    y0, y1, x0, x1 = window.box
    inside = np.zeros((32, 32), bool)
    inside[y0:y1, x0:x1] = True
    assert (shown[~inside] == 255).all() and (shown[inside] <= 1).all()
    sure = inside & ((image == 0) | (image == 200))
    assert (shown[sure] * 200 == image[sure]).all()
