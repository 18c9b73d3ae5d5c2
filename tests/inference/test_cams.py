import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import interpolate

from afactl.datasets.images import read_image
from afactl.datasets.transforms import normalize
from afactl.errors import CacheError, CheckpointError, UsageError
from afactl.inference.cams import (
    cam_record,
    dump_cams,
    export_cams,
    likely_labels,
    open_cam_cache,
    read_record,
    record_of,
)
from afactl.inference.segmentation import _windows, segment, segment_windows
from afactl.inference.trained_run import multi_hot, open_run, open_split, to_tensor
from afactl.method.affinity import mean_attention
from afactl.runs.cache import Cache

CPU = torch.device("cpu")


@pytest.fixture
def run(run_copy):
    return open_run(run_copy, CPU)


@pytest.fixture
def val(run):
    return open_split(run, "val", None, masks=True)


def test_a_run_opens_with_its_weights(run):
    assert run.iteration == 4 and not run.model.training and len(run.weights) == 16
    assert run.architecture.classes == ("disc", "square", "triangle", "star", "ring", "cross")


def test_segmentation_of_one_scale_is_the_network_on_the_photo(run, val):
    image = read_image(val.samples[0].image)
    with torch.no_grad():
        logits = run.model(normalize(to_tensor(image, CPU))).seg_logits
    expected = interpolate(logits, size=image.shape[:2], mode="bilinear", align_corners=False)[0]
    torch.testing.assert_close(segment(run.model, image, CPU), expected, atol=1e-5, rtol=0)


def test_fusion_takes_the_maximum_over_scales_and_flips(run, val):
    image = read_image(val.samples[0].image)
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


def test_a_record_is_what_the_network_says(run, val):
    sample = val.samples[0]
    image = read_image(sample.image)
    record = cam_record(run, image, sample.labels)
    passed = run.model.multi_scale_cam(
        normalize(to_tensor(image, CPU)), run.preset.cam.scales, run.preset.affinity.scale
    )
    assert record.cam.dtype == record.affinity.dtype == np.float16
    assert record.classes.tolist() == list(sample.labels) and record.grid == passed.grid
    np.testing.assert_allclose(record.cam, passed.cam[0, list(sample.labels)], atol=1e-3)
    np.testing.assert_allclose(record.attention, mean_attention(passed.queries, passed.keys)[0].detach(), atol=1e-3)


def test_a_dump_goes_on_where_it_stopped(run, val):
    with open_cam_cache(run, val) as cache:
        assert record_of(run, cache, val.samples[2])[1]
        assert not record_of(run, cache, val.samples[2])[1]
    path, images, computed = dump_cams(run, val)
    assert (images, computed) == (4, 3)
    assert dump_cams(run, val)[2] == 0
    with open_cam_cache(run, val) as cache:
        assert sorted(cache.ids()) == sorted(sample.image_id for sample in val.samples)
        kept = read_record(cache, val.samples[1].image_id)
    fresh = cam_record(run, read_image(val.samples[1].image), val.samples[1].labels)
    assert all(np.array_equal(a, b) for a, b in zip(kept, fresh, strict=True))
    assert path == run.folder / "cache" / "cams-val.h5"


def test_a_cache_of_other_weights_is_refused(run, val):
    dump_cams(run, val)
    with pytest.raises(CacheError, match=r"weights \(.* there, other now\).*--overwrite"):
        open_cam_cache(run._replace(weights="other"), val)
    dump_cams(run._replace(weights="other"), val, overwrite=True)


def test_photos_without_labels_are_kept_too(run, val):
    record = cam_record(run, read_image(val.samples[0].image), ())
    assert record.cam.shape == (0, 64, 64) and record.classes.shape == (0,)


def test_likely_labels_are_never_empty(run, val):
    image = read_image(val.samples[0].image)
    assert set(likely_labels(run, image)) <= set(range(6)) and likely_labels(run, image)
    assert multi_hot([1, 3], 5).tolist() == [0, 1, 0, 1, 0]


def test_a_dataset_that_does_not_belong_is_refused(run, tmp_path, tiny_data):
    (tmp_path / "images").mkdir()
    (tmp_path / "labels.csv").write_text("image,split,labels\nimages/a.png,val,cat\n")
    with pytest.raises(CheckpointError, match="trained on the classes disc, .* but the dataset has cat"):
        open_split(run, "val", tmp_path, masks=False)


def test_scoring_without_masks_says_what_is_missing(run, tmp_path, tiny_data):
    import shutil

    shutil.copytree(tiny_data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data" / "masks")
    open_split(run, "val", tmp_path / "data", masks=False)
    with pytest.raises(UsageError, match="scoring needs true masks"):
        open_split(run, "val", tmp_path / "data", masks=True)


def test_the_cache_is_plain_hdf5(run, val):
    path, *_ = dump_cams(run, val)
    with Cache.open(path, open_header(run, val)) as cache:
        arrays = cache.read(val.samples[0].image_id)
    assert set(arrays) == {"cam", "keys", "size", "affinity", "attention", "grid"}
    assert arrays["size"].tolist() == [64, 64]


def open_header(run, val):
    from afactl.datasets.registry import data_fingerprint
    from afactl.runs.cache import CacheHeader

    settings = {"cam.scales": list(run.preset.cam.scales), "affinity.scale": run.preset.affinity.scale}
    return CacheHeader("cams", settings, run.weights, data_fingerprint(val))


def test_cams_are_handed_over_as_irn_dictionaries(run, val):
    with pytest.raises(CacheError, match="dump it first"):
        export_cams(run, val)
    dump_cams(run, val)
    folder = export_cams(run, val)
    written = {path: path.stat().st_mtime_ns for path in folder.rglob("*.npy")}
    assert len(written) == len(val.samples)
    with open_cam_cache(run, val) as cache:
        for sample in val.samples:
            found = np.load(folder / f"{sample.image_id}.npy", allow_pickle=True).item()
            record = read_record(cache, sample.image_id)
            assert found["keys"].tolist() == list(sample.labels)
            assert found["high_res"].dtype == np.float32 and np.array_equal(
                found["high_res"], record.cam.astype(np.float32)
            )
            assert found["cam"].shape == (len(sample.labels), 16, 16)
    export_cams(run, val)
    assert {path: path.stat().st_mtime_ns for path in written} == written, "finished files are left alone"
