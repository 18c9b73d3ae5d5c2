"""CAMs and attention of one photo, and the cache that keeps them."""

import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from afactl.datasets.images import read_image, reduce_image
from afactl.datasets.transforms import normalize
from afactl.errors import CacheError, UsageError
from afactl.inference.cams import (
    cam_record,
    dump_cams,
    export_cams,
    likely_labels,
    open_cam_cache,
    query_maps,
    query_token,
    read_record,
    record_of,
)
from afactl.inference.trained_run import multi_hot, to_tensor
from afactl.method.affinity import Walk, mean_attention, random_walk
from afactl.runs.cache import Cache
from afactl.runs.journal import JournaledFile
from tests.conftest import ROOT
from tests.method.test_affinity import slow_windows

CPU = torch.device("cpu")


def test_a_record_is_what_the_network_says(run, val):
    sample = val.samples[0]
    image = read_image(sample.image_path)
    record = cam_record(run, image, sample.labels)
    passed = run.model.multi_scale_cam(
        normalize(to_tensor(image, CPU)), run.preset.cam.scales, run.preset.affinity.scale
    )
    assert record.affinity.dtype == record.attention.dtype == np.float16
    assert record.classes.tolist() == list(sample.labels) and record.grid == passed.grid
    np.testing.assert_allclose(record.cam, passed.cam[0, list(sample.labels)], atol=1e-6)
    radius = run.preset.affinity.radius
    logits = run.model.affinity_head(passed.queries, passed.keys).detach()
    affinity = slow_windows(F.logsigmoid(logits), *passed.grid, radius)[0]
    torch.testing.assert_close(record.log_affinity(CPU), affinity, atol=1e-3, rtol=1e-3)
    attention = slow_windows(mean_attention(passed.queries, passed.keys).log(), *passed.grid, radius)[0].detach()
    torch.testing.assert_close(record.log_attention(CPU), attention, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("factor", [1e3, 1e6, -1e6])
def test_a_record_keeps_what_sigmoid_would_lose(run, val, factor):
    """Half precision ends at 65504, and sigmoid at -17 in it: no row of the walk from the cache vanishes."""
    sample = val.samples[0]
    with torch.no_grad():
        run.model.affinity_head.weight.mul_(factor)
        run.model.affinity_head.bias.fill_(-3e4)
    record = cam_record(run, read_image(sample.image_path), sample.labels)
    logarithm = record.log_affinity(CPU)
    assert logarithm.min() == -torch.inf and not logarithm.isnan().any(), "outside the grid, and nowhere else"
    assert torch.equal(logarithm.isinf(), record.log_attention(CPU).isinf())
    ones = torch.ones(1, 1, *record.grid)
    walked = random_walk(ones, logarithm[None], Walk(**run.preset.walk_settings()))
    torch.testing.assert_close(walked, ones)


def test_a_large_photo_is_passed_reduced(run, val):
    """One rule for CAM, affinity, attention and the classes that are found; pixels are counted in the photo itself."""
    image = np.random.default_rng(0).integers(0, 256, (96, 128, 3)).astype(np.uint8)
    section = run.preset.cam.model_copy(update={"max_pixels": 3000})
    bounded = run._replace(preset=run.preset.model_copy(update={"cam": section}))
    small = reduce_image(image, 3000)
    assert small.shape == (47, 63, 3)
    record, expected = cam_record(bounded, image, [1, 3]), cam_record(run, small, [1, 3])
    assert record.cam.shape == (2, 47, 63) and np.array_equal(record.cam, expected.cam)
    assert np.array_equal(record.affinity, expected.affinity) and np.array_equal(record.attention, expected.attention)
    found = query_maps(bounded, image, [(127, 0)]), query_maps(run, small, [(62, 0)])
    assert all(np.array_equal(one, other) for one, other in zip(*found, strict=True))
    assert likely_labels(bounded, image) == likely_labels(run, small)


def test_what_a_pixel_looks_at(run, val):
    image = read_image(val.samples[0].image_path)
    passed = run.model.multi_scale_cam(normalize(to_tensor(image, CPU)), run.preset.cam.scales, 1.5)
    with torch.no_grad():
        attention = mean_attention(passed.queries, passed.keys)[0].unflatten(1, passed.grid)
        affinity = run.model.affinity(passed)[0].unflatten(1, passed.grid)
    queries = [(63, 0), (5, 40)]
    tokens = [query_token(query, (64, 64), passed.grid) for query in queries]
    found = query_maps(run, image, queries)
    np.testing.assert_allclose(found.attention, attention[tokens], atol=1e-6)
    np.testing.assert_allclose(found.affinity, affinity[tokens], atol=1e-5)
    heads = query_maps(run, image, queries, slice(3, 5)).attention
    np.testing.assert_allclose(
        heads,
        mean_attention(passed.queries[:, 3:5], passed.keys[:, 3:5])[0].unflatten(1, passed.grid)[tokens],
        atol=1e-6,
    )


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
    fresh = cam_record(run, read_image(val.samples[1].image_path), val.samples[1].labels)
    assert all(np.array_equal(a, b) for a, b in zip(kept[:-1], fresh[:-1], strict=True))
    assert len(kept.views) == 2 and all(np.array_equal(a, b) for a, b in zip(kept.views, fresh.views, strict=True))
    assert path == run.folder / "cache" / "cams-val.h5"


@pytest.fixture
def part(run, val):
    """A whole dump, in the file of a process that was killed before the images were taken in."""
    path, *_ = dump_cams(run, val)
    return path.rename(path.with_name("cams-val.part-1.h5"))


def test_what_a_killed_process_finished_is_taken_in(run, val, part):
    assert dump_cams(run, val)[1:] == (4, 0)
    assert [path.name for path in part.parent.iterdir() if "part" in path.name] == []
    with open_cam_cache(run, val) as cache:
        assert len(cache) == 4


HOLDER = """
import sys, time
from pathlib import Path
from afactl.files import lock
with lock(Path(sys.argv[1] + ".lock")):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_the_file_that_another_process_writes_is_left_alone(run, val, part):
    before = part.read_bytes()
    command = [sys.executable, "-c", HOLDER, str(part)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as writer:
        assert writer.stdout.readline() == "ready\n"
        for overwrite in (False, True):
            with pytest.raises(CacheError, match="part-1.h5: another process is writing it; wait"):
                dump_cams(run, val, overwrite)
        writer.kill()
    assert part.read_bytes() == before
    assert dump_cams(run, val)[2] == 0


@pytest.mark.parametrize("place", ["_recover", "_apply"])
def test_a_full_disk_takes_no_finished_image(run, val, part, monkeypatch, place):
    """While the file is opened, and while its images are taken in."""
    before, original = part.read_bytes(), getattr(JournaledFile, place)
    open_cam_cache(run, val).close()

    def full(disk, *arguments):
        if place == "_apply" or "part-1" in disk._journal.name:
            raise OSError(28, "No space left on device")
        original(disk, *arguments)

    with monkeypatch.context() as patch, pytest.raises(CacheError, match="make room, then call again"):
        patch.setattr(JournaledFile, place, full)
        dump_cams(run, val)
    assert part.read_bytes() == before and dump_cams(run, val)[2] == 0


def test_a_damaged_image_is_made_anew_and_the_others_are_taken_in(run, val, part, monkeypatch):
    read, bad = Cache.read, val.samples[2].image_id

    def damaged(cache, image_id):
        if image_id == bad and cache.path == part:
            raise CacheError("damaged")
        return read(cache, image_id)

    monkeypatch.setattr(Cache, "read", damaged)
    assert dump_cams(run, val)[1:] == (4, 1)
    assert not part.exists()


@pytest.mark.parametrize("content", [b"", b"cut off", None])
def test_what_cannot_be_used_of_a_killed_process_goes(run, val, part, content):
    """Cut off before anything was finished, or made by other weights."""
    if content is None:
        dump_cams(run._replace(weights_hash="other"), val)[0].rename(part)
    else:
        part.write_bytes(content)
    assert dump_cams(run, val)[1:] == (4, 4) and not part.exists()


def test_overwrite_keeps_what_can_be_used(run, val, part):
    """It may be given to replace a file of figures, and must not cost hours."""
    assert dump_cams(run, val, overwrite=True)[1:] == (4, 0) and not part.exists()
    assert dump_cams(run, val, overwrite=True)[1:] == (4, 0)
    assert dump_cams(run._replace(weights_hash="other"), val, overwrite=True)[1:] == (4, 4)


def test_a_cache_of_other_weights_is_refused(run, val):
    dump_cams(run, val)
    with pytest.raises(CacheError, match=r"weights \(.* there, other now\).*--overwrite"):
        open_cam_cache(run._replace(weights_hash="other"), val)
    dump_cams(run._replace(weights_hash="other"), val, overwrite=True)


def test_a_cache_of_another_radius_is_refused(run, val):
    """The cache holds the neighbours within the radius alone."""
    dump_cams(run, val)
    section = run.preset.affinity.model_copy(update={"radius": 3})
    other = run._replace(preset=run.preset.model_copy(update={"affinity": section}))
    with pytest.raises(CacheError, match=r"affinity.radius \(2 there, 3 now\).*--overwrite"):
        open_cam_cache(other, val)


@given(st.integers(1, 40), st.integers(1, 40), st.data())
def test_every_pixel_has_the_token_that_covers_it(height, width, data):
    grid = (data.draw(st.integers(1, height)), data.draw(st.integers(1, width)))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    row, column = divmod(query_token((x, y), (height, width), grid), grid[1])
    assert row <= y * grid[0] / height < row + 1 and column <= x * grid[1] / width < column + 1


@pytest.mark.parametrize("query", [(64, 0), (0, 48), (-1, 0), (500, 500)])
def test_a_query_outside_names_the_size(query):
    with pytest.raises(UsageError, match="outside the photo, which is 64 x 48 pixels"):
        query_token(query, (48, 64), (3, 4))


def test_photos_without_labels_are_kept_too(run, val):
    record = cam_record(run, read_image(val.samples[0].image_path), ())
    assert record.cam.shape == (0, 64, 64) and record.classes.shape == (0,)


def test_likely_labels_are_never_empty(run, val):
    image = read_image(val.samples[0].image_path)
    assert set(likely_labels(run, image)) <= set(range(6)) and likely_labels(run, image)
    assert multi_hot([1, 3], 5).tolist() == [0, 1, 0, 1, 0]


def test_the_cache_is_plain_hdf5(run, val):
    path, *_ = dump_cams(run, val)
    with Cache.open(path, open_header(run, val)) as cache:
        arrays = cache.read(val.samples[0].image_id)
    assert set(arrays) == {"cam_at_1", "cam_at_1.5", "keys", "size", "cam_size", "affinity", "attention"}
    assert arrays["size"].tolist() == [64, 64]


def open_header(run, val):
    from afactl.datasets.registry import data_fingerprint
    from afactl.runs.cache import CacheHeader

    settings = {
        "cam.scales": list(run.preset.cam.scales),
        "affinity.scale": run.preset.affinity.scale,
        "affinity.radius": run.preset.affinity.radius,
        "cam.max_pixels": run.preset.cam.max_pixels,
    }
    return CacheHeader("cams", settings, run.weights_hash, data_fingerprint(val))


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
