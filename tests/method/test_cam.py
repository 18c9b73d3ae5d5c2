import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from afactl.errors import ShapeError
from afactl.method.cam import (
    Thresholds,
    class_activation_map,
    fuse_cams,
    ignore_outside,
    normalize_cam,
    threshold_cam,
    top_k_pooling,
)
from tests import golden


def slow_threshold(cam, label, low, high):
    """Eq. 4 pixel by pixel for one image."""
    classes, height, width = cam.shape
    out = torch.zeros(height, width, dtype=torch.uint8)
    for y in range(height):
        for x in range(width):
            best, index = 0.0, 0
            for c in range(classes):
                if label[c] and cam[c, y, x] > best:
                    best, index = cam[c, y, x].item(), c + 1
            out[y, x] = 0 if best <= low else (255 if best <= high else index)
    return out


def test_class_activation_map_is_the_weighted_sum_of_features():
    features, weight = torch.randn(2, 5, 3, 4), torch.randn(6, 5)
    expected = torch.einsum("bdhw,cd->bchw", features, weight)
    torch.testing.assert_close(class_activation_map(features, weight), expected, atol=1e-5, rtol=0)
    with pytest.raises(ShapeError, match="D = 5"):
        class_activation_map(torch.randn(2, 4, 3, 4), weight)


@pytest.mark.parametrize(("percent", "count"), [(0, 1), (10, 2), (25, 5), (50, 10), (100, 20)])
def test_top_k_pooling_is_the_mean_of_the_sorted_head(percent, count):
    features = torch.randn(2, 3, 4, 5)
    expected = features.flatten(2).sort(dim=2, descending=True).values[..., :count].mean(dim=2)
    torch.testing.assert_close(top_k_pooling(features, percent), expected, atol=1e-6, rtol=0)


def test_normalized_cam_lies_in_the_unit_interval_and_a_constant_map_is_zero():
    cam = torch.randn(2, 3, 5, 6) * 7
    cam[0, 1] = 4.0
    found = normalize_cam(cam)
    assert found.min() == 0 and found.max() < 1
    assert not found[0, 1].any()
    assert found[1].flatten(1).amax(1).min() > 0.99


def test_fusion_over_scales_and_flips_step_by_step():
    torch.manual_seed(0)
    views = [(torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)), (torch.randn(2, 3, 2, 3), torch.randn(2, 3, 2, 3))]
    total = torch.zeros(2, 3, 16, 20)
    for plain, mirrored in views:
        plain = interpolate(plain, size=(16, 20), mode="bilinear", align_corners=False)
        mirrored = interpolate(mirrored, size=(16, 20), mode="bilinear", align_corners=False)
        total += torch.maximum(plain, mirrored.flip(-1)).clamp_min(0)
    total -= total.flatten(2).min(2).values[..., None, None]
    total /= total.flatten(2).max(2).values[..., None, None] + 1e-5
    torch.testing.assert_close(fuse_cams(views, (16, 20)), total, atol=1e-6, rtol=0)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 1), st.floats(0, 1))
def test_thresholds_equal_the_slow_loop(seed, a, b):
    low, high = torch.tensor(sorted([a, b])).tolist()  # as float32 sees them
    torch.manual_seed(seed)
    cam, label = torch.rand(1, 4, 3, 5), (torch.rand(1, 4) > 0.5).float()
    cam[0, :, 0, 0] = low  # exactly on the threshold: background
    cam[0, :, 0, 1] = high  # exactly on the other: ignored
    assert torch.equal(threshold_cam(cam, label, Thresholds(low, high))[0], slow_threshold(cam[0], label[0], low, high))


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.floats(0, 0.5), st.floats(0.5, 1))
def test_labels_name_only_present_classes(seed, low, high):
    torch.manual_seed(seed)
    cam, label = torch.rand(2, 6, 4, 4), (torch.rand(2, 6) > 0.5).float()
    found = threshold_cam(cam, label, Thresholds(low, high))
    for one, present in zip(found, label, strict=True):
        assert set(one.unique().tolist()) <= {0, 255, *(present.nonzero()[:, 0] + 1).tolist()}
    single = threshold_cam(cam, label, Thresholds(low, low))
    assert not (single == 255).any()
    # Raising the upper threshold only turns classes into ignored pixels.
    assert torch.equal(found[found != 255], single[found != 255])


def test_crossed_thresholds_are_refused():
    with pytest.raises(ShapeError, match="beta_low <= beta_high"):
        Thresholds(0.6, 0.5)


def test_outside_the_box_is_ignored_and_the_input_kept():
    label = torch.ones(2, 4, 5, dtype=torch.uint8)
    found = ignore_outside(label, torch.tensor([[0, 4, 0, 5], [1, 3, 2, 4]]))
    assert (found[0] == 1).all()
    assert (found[1, 1:3, 2:4] == 1).all() and (found[1] == 255).sum() == 16
    assert (label == 1).all()


def test_golden_thresholds():
    values = golden.load("pseudo")
    cam = interpolate(values["cam_lowres"], size=(128, 160), mode="bilinear", align_corners=False) ** 1.6
    cam, label = normalize_cam(cam), values["class_label"]
    valid = cam * label[:, :, None, None]
    torch.testing.assert_close(valid[..., ::8, ::8], values["valid_cam_sample"], atol=1e-4, rtol=0)
    assert torch.equal(threshold_cam(cam, label, Thresholds(0.45, 0.45)), values["label_eval"])
    assert torch.equal(threshold_cam(cam, label, Thresholds(0.35, 0.55), values["box"]), values["label_ignore_mid"])
