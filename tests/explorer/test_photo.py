import numpy as np
import pytest
import torch
import torch.nn.functional as F

from afactl.datasets.images import read_image
from afactl.errors import PresetError, UsageError
from afactl.evaluation.metrics import confusion_matrix, mean_iou
from afactl.evaluation.pseudo_labels import labels_over
from afactl.explorer.photo import MASKS, ExploredPhoto, label_preset
from afactl.inference.cams import cam_record, query_maps
from afactl.inference.segmentation import photo_mask
from afactl.inference.trained_run import open_split
from afactl.method.affinity import affinity_logits, mean_attention, neighborhood_mask
from afactl.method.pseudo_labels import background_planes
from afactl.presets import changed_preset


@pytest.fixture
def photo(run):
    """A validation picture with its truth; two tags, so that labels can differ in classes too."""
    split = open_split(run, "val", None, masks=True)
    sample = split.samples[0]
    tags = tuple(sorted({*sample.labels, (sample.labels[0] + 1) % len(split.classes)}))
    return ExploredPhoto(run, "one", read_image(sample.image_path), tags, split.require_masks().read(sample))


def planes_of(photo):
    """K: the classes, and the background."""
    return len(photo.run.architecture.classes) + 1


def shares(photo, preset, row):
    """Labels as pseudo-eval makes them: a row of Table 3, refined, at beta_high and beta_low."""
    record = cam_record(photo.run._replace(preset=preset), photo.image, photo.labels)
    betas = [(preset.cam.beta_high, preset.cam.beta_low)] * 3
    return labels_over(photo.image, record, preset, photo.run.device, betas, preset.cam.refiner)[row, 1]


@pytest.mark.parametrize(("walk", "row"), [("off", 0), ("mhsa", 1), ("affinity", 2)])
def test_a_label_is_what_the_commands_make_with_the_same_values(photo, walk, row):
    preset = label_preset(photo.run.preset, {"cam.beta_low": "0.2", "cam.beta_high": "0.6", "affinity.radius": "3"})
    made = photo.label(preset, walk)
    high, low = shares(photo, preset, row)
    expected = np.where((high == 0) & (low != 0), 255, high)
    # The cache rounds affinity and attention to half precision.
    assert (made.label == expected).mean() > 0.999
    assert made.miou == pytest.approx(100 * mean_iou(confusion_matrix(photo.truth, low, planes_of(photo))), abs=0.5)
    assert made.ignored == pytest.approx((expected == 255).mean(), abs=1e-3)
    assert made.ignored > 0


def test_the_walk_equals_the_matrices_written_out(photo):
    preset = label_preset(photo.run.preset, {"cam.refiner": "none", "affinity.radius": "2", "affinity.alpha": "3"})
    head, passed = photo.run.model.affinity_head, photo.passed
    height, width = passed.grid
    with torch.no_grad():
        affinity = affinity_logits(passed.queries, passed.keys, head.weight, head.bias)[0].sigmoid().double()
        for walk, matrix in (("affinity", affinity), ("mhsa", mean_attention(passed.queries, passed.keys)[0].double())):
            powered = matrix**3 * neighborhood_mask(height, width, 2)
            transition = powered / powered.sum(1, keepdim=True)
            tokens = F.interpolate(photo.cam[None], size=passed.grid, mode="bilinear", align_corners=False)[0]
            labels, certain = [], torch.ones(photo.size, dtype=torch.bool)
            for beta in (preset.cam.beta_high, preset.cam.beta_low):
                planes = background_planes(tokens, (beta,))[0].double().flatten(1)
                planes = (transition @ planes.T).T.view(1, -1, height, width)
                # To the photo, to half of it where refiners work, with the corners aligned as they do it, and back.
                for size, corners in (
                    (photo.size, False),
                    ([side // 2 for side in photo.size], True),
                    (photo.size, False),
                ):
                    planes = F.interpolate(planes, size=size, mode="bilinear", align_corners=corners)
                best = planes[0].topk(2, dim=0).values
                certain &= best[0] - best[1] > 1e-6  # float32 cannot tell the others apart
                labels.append(torch.tensor([0, *(label + 1 for label in photo.labels)])[planes[0].argmax(0)].numpy())
            expected = np.where((labels[0] == 0) & (labels[1] != 0), 255, labels[0])
            assert certain.float().mean() > 0.9
            assert np.array_equal(photo.label(preset, walk).label[certain], expected[certain])


@pytest.mark.parametrize(
    ("key", "value"),
    [("cam.beta_low", "0.05"), ("cam.beta_high", "0.9"), ("cam.refiner", "none"), ("par.iterations", "0")],
)
def test_every_slider_moves_the_label(photo, key, value):
    before = photo.label(photo.run.preset, "off").label
    assert (photo.label(label_preset(photo.run.preset, {key: value}), "off").label != before).any()


@pytest.mark.parametrize(("key", "value"), [("affinity.radius", "0"), ("affinity.alpha", "40")])
def test_every_slider_of_the_walk_moves_the_label(photo, key, value):
    before = photo.label(photo.run.preset, "mhsa").label
    assert (photo.label(label_preset(photo.run.preset, {key: value}), "mhsa").label != before).any()


def test_values_that_cannot_be_are_refused(photo):
    preset = photo.run.preset
    with pytest.raises(PresetError, match="these values: cam.beta_low: expected at most beta_high"):
        label_preset(preset, {"cam.beta_low": "0.9"})
    with pytest.raises(PresetError, match='cam.refiner: "crfs" is unknown; did you mean "crf"'):
        label_preset(preset, {"cam.refiner": "crfs"})
    with pytest.raises(UsageError, match="optim.lr: expected one of cam.beta_low"):
        label_preset(preset, {"optim.lr": "1"})
    with pytest.raises(UsageError, match="walk: expected affinity, mhsa, off, got up"):
        photo.label(preset, "up")
    with pytest.raises(UsageError, match="mask: expected one of CAM"):
        photo.mask("cam")


def test_maps_are_those_of_viz_attn_and_the_pass_is_kept(photo, monkeypatch):
    expected = query_maps(photo.run, photo.image, [(50, 20)])
    photo.maps((3, 3))
    monkeypatch.setattr(photo.run.model, "multi_scale_cam", None)
    maps = photo.maps((50, 20))
    assert np.allclose(maps.attention, expected.attention, atol=1e-6)
    assert np.allclose(maps.affinity, expected.affinity, atol=1e-6)
    assert (photo.maps((50, 20), slice(0, 1)).attention != maps.attention).any()
    with pytest.raises(UsageError, match="outside the photo"):
        photo.maps((64, 0))


def test_masks_are_those_of_predict_with_their_probabilities(photo):
    segmentation, crf = photo.mask("segmentation"), photo.mask("segmentation + CRF")
    assert np.array_equal(segmentation.label, photo_mask(photo.run, photo.image))
    assert segmentation.miou == pytest.approx(
        100 * mean_iou(confusion_matrix(photo.truth, segmentation.label, planes_of(photo)))
    )
    for mask in (segmentation, crf):
        assert mask.probability.shape == photo.size and mask.probability.min() >= 1 / planes_of(photo) - 1e-6
    assert not np.array_equal(segmentation.probability, crf.probability)
    cam = photo.mask("CAM")
    record = cam_record(photo.run, photo.image, photo.labels)
    assert np.allclose(cam.probability, record.cam.max(0))
    assert np.array_equal(cam.label > 0, record.cam.max(0) > photo.run.preset.cam.background)
    assert photo.mask("truth").label is photo.truth
    assert set(MASKS) == {"CAM", "segmentation", "segmentation + CRF", "truth"}


def test_without_truth_and_without_tags_there_are_no_scores_and_no_classes(run, photo):
    bare = ExploredPhoto(run, "bare", photo.image, ())
    for walk in ("off", "mhsa", "affinity"):
        label = bare.label(run.preset, walk)
        assert label.miou is None and not label.label.any()
    assert not bare.mask("CAM").label.any() and bare.mask("segmentation").miou is None
    with pytest.raises(UsageError, match="bare: has no true mask"):
        bare.mask("truth")
    blank = ExploredPhoto(run, "blank", photo.image, (0,), np.full(photo.size, 255, np.uint8))
    assert blank.mask("CAM").miou is None


def test_a_large_segmentation_is_enlarged_to_the_photo(run, photo):
    preset = changed_preset(run.preset, ["eval.max_pixels=1024"])
    small = ExploredPhoto(run._replace(preset=preset), "small", photo.image, photo.labels, photo.truth)
    mask = small.mask("segmentation")
    assert mask.label.shape == mask.probability.shape == photo.size
