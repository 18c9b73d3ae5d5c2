"""Every command on photos of 12 megapixels: results at their size, in bounded memory and cache (make test-all)."""

import pytest
from PIL import Image

from benchmarks.large_photos import SIDE, cache_megabytes, call, chain, make_folder

pytestmark = pytest.mark.slow
PHOTOS = 2


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("large")
    data, run = make_folder(folder / "data", PHOTOS, SIDE), folder / "run"
    return run, [call(command, folder) for command in chain(data, run)]


def test_every_command_ends_well(done):
    assert {one.command: one.tail for one in done[1] if one.status} == {}


def test_memory_is_bounded(done):
    assert {one.command: one.memory for one in done[1] if one.memory > 3} == {}


def test_the_cache_is_small(done):
    assert 0 < cache_megabytes(done[0], PHOTOS) < 3


def test_masks_have_the_size_of_their_photos(done):
    masks = sorted((done[0] / "predictions").rglob("*.png"))
    assert len(masks) == PHOTOS
    for mask in masks:
        with Image.open(mask) as picture:
            assert picture.size == (SIDE, SIDE * 3 // 4)


def test_pictures_and_page_are_there(done):
    figures = {path.name.split("-")[0].split(".")[0] for path in (done[0] / "figures").iterdir()}
    assert len(figures) >= 4 and (done[0] / "report.html").stat().st_size > 10_000
