import numpy as np
import pytest
import torch
from PIL import Image

from afactl.datasets.images import read_image
from afactl.datasets.masks import read_mask
from afactl.errors import UsageError
from afactl.inference.segmentation import multi_scale, segment, segment_windows
from afactl.inference.trained_run import open_run
from afactl.method.refinement.crf import dense_crf
from afactl.prediction.predict import find_photos, predict


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    for name in ("a.jpg", "deep/b c.png", "deep/ü.v2.JPG", "note.txt"):
        path = tmp_path / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith("txt"):
            path.write_text("no photo")
        else:
            Image.fromarray(rng.integers(0, 256, (40, 56, 3)).astype(np.uint8)).save(path)
    return tmp_path / "photos"


@pytest.fixture
def run(tiny_run):
    return open_run(tiny_run, torch.device("cpu"))


def test_folders_files_and_globs(photos):
    masks = [str(photo.mask) for photo in find_photos([str(photos)])]
    assert masks == ["a.png", "deep/b c.png", "deep/ü.v2.png"]
    assert [p.mask.name for p in find_photos([str(photos / "a.jpg"), str(photos / "deep" / "*.png")])] == [
        "a.png",
        "b c.png",
    ]
    assert len(find_photos([str(photos), str(photos / "a.jpg")])) == 3, "each photo once"


def test_photos_that_differ_in_suffix_keep_it(photos):
    (photos / "a.png").write_bytes((photos / "deep" / "b c.png").read_bytes())
    assert {str(p.mask) for p in find_photos([str(photos)])} >= {"a.jpg.png", "a.png.png"}


def test_masks_that_would_overwrite_each_other_are_refused(photos, tmp_path):
    other = tmp_path / "more"
    other.mkdir()
    (other / "a.jpg").write_bytes((photos / "a.jpg").read_bytes())
    with pytest.raises(UsageError, match="both would write a.png"):
        find_photos([str(photos), str(other)])


@pytest.mark.parametrize("name", ["nowhere", "*.gif", "empty"])
def test_inputs_without_photos_are_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="expected a photo, a folder with photos"):
        find_photos([str(tmp_path / name)])


def test_masks_are_what_eval_would_score(run, photos, tmp_path):
    found = find_photos([str(photos)])
    result = predict(run, found, tmp_path / "out", forms=("png", "overlay"))
    assert result.failed == [] and [p.relative_to(tmp_path / "out") for p in result.written[:3]] == [
        p.mask for p in found
    ]
    image = read_image(photos / "a.jpg")
    expected = segment(run.model, image, run.device, multi_scale(run.preset.eval)).argmax(0)
    assert np.array_equal(read_mask(tmp_path / "out" / "a.png", 6), expected.numpy())
    assert read_image(tmp_path / "out" / "deep" / "ü.v2_overlay.png").shape == (40, 56, 3)


def test_crf_refines_the_mask(run, photos, tmp_path):
    found = find_photos([str(photos / "a.jpg")])
    (written,) = predict(run, found, tmp_path / "crf", crf="torch").written
    image = read_image(photos / "a.jpg")
    logits = segment(run.model, image, run.device, multi_scale(run.preset.eval))
    expected = dense_crf(
        torch.from_numpy(image).permute(2, 0, 1), logits.softmax(0), **run.preset.crf.model_dump()
    ).argmax(0)
    assert np.array_equal(read_mask(written, 6), expected.numpy())


def test_a_large_photo_is_labelled_smaller_and_said_so(run, tmp_path, monkeypatch):
    monkeypatch.setattr("afactl.prediction.predict.MAX_PIXELS", 3000)
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "large.png")
    result = predict(run, find_photos([str(tmp_path / "large.png")]), tmp_path / "out", forms=("png", "overlay"))
    assert result.reduced == 1 and read_mask(result.written[0], 6).shape == (90, 120)
    height, width, _ = read_image(tmp_path / "out" / "large_overlay.png").shape
    assert height * width <= 3000 and height / width == pytest.approx(90 / 120, abs=0.03)


def test_a_window_is_for_photos_that_are_larger(run, photos, tmp_path):
    found = find_photos([str(photos / "a.jpg")])
    (whole,) = predict(run, found, tmp_path / "whole").written
    (below,) = predict(run, found, tmp_path / "below", window=64).written
    assert below.read_bytes() == whole.read_bytes()
    (cut,) = predict(run, found, tmp_path / "cut", window=32, forms=("probabilities",)).written
    logits = segment_windows(
        run.model, read_image(photos / "a.jpg"), run.device, multi_scale(run.preset.eval), 32, (40, 56)
    )
    np.testing.assert_array_equal(np.load(cut), logits.softmax(0).half().numpy())


def test_windows_see_a_large_photo_at_its_own_size(run, tmp_path, monkeypatch):
    monkeypatch.setattr("afactl.prediction.predict.MAX_PIXELS", 3000)
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "large.png")
    seen = []
    monkeypatch.setattr(
        "afactl.inference.segmentation.segment",
        lambda model, tile, *rest: seen.append(tile) or segment(model, tile, *rest),
    )
    result = predict(run, find_photos([str(tmp_path / "large.png")]), tmp_path / "out", window=64)
    assert len(seen) == 6 and all(tile.shape == (64, 64, 3) for tile in seen)
    assert np.array_equal(seen[0], picture[:64, :64])
    assert result.reduced == 1 and read_mask(result.written[0], 6).shape == (90, 120)


def test_with_the_crf_the_size_follows_from_the_classes_that_are_there(run, photos, tmp_path, monkeypatch):
    """All seven classes are probable somewhere for a network with next to no training: 40 x 56 pixels are too many."""
    monkeypatch.setattr("afactl.prediction.predict.MAX_CRF_VALUES", 7 * 600)
    seen = []
    monkeypatch.setattr(
        "afactl.prediction.predict.crf_label",
        lambda photo, backend, settings: seen.append(photo) or photo[1].argmax(0).to(torch.uint8),
    )
    result = predict(run, find_photos([str(photos / "a.jpg")]), tmp_path / "out", crf="torch")
    ((image, logits),) = seen
    assert image.shape[1:] == logits.shape[1:] and 400 < image.shape[1] * image.shape[2] <= 600
    assert result.reduced == 1 and read_mask(result.written[0], 6).shape == (40, 56)
    monkeypatch.setattr("afactl.prediction.predict.MAX_CRF_VALUES", 7 * 40 * 56)
    assert predict(run, find_photos([str(photos / "a.jpg")]), tmp_path / "whole", crf="torch").reduced == 0


def test_a_network_that_gives_nan_is_told_by_photo(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("afactl.prediction.predict.segment", lambda *arguments: torch.full((7, 40, 56), float("nan")))
    result = predict(run, find_photos([str(photos / "a.jpg")]), tmp_path / "out")
    assert not result.written and "a.jpg: the network gives non-finite values" in result.failed[0]


def test_a_broken_photo_is_named_and_the_others_are_done(run, photos, tmp_path):
    (photos / "a.jpg").write_bytes(b"\xff\xd8\xff cut off")
    result = predict(run, find_photos([str(photos)]), tmp_path / "out")
    assert len(result.written) == 2 and len(result.failed) == 1 and "a.jpg" in result.failed[0]


def test_an_output_folder_that_cannot_be_written_is_named(run, photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        predict(run, find_photos([str(photos / "a.jpg")]), tmp_path / "file" / "out")


def test_probabilities_are_the_networks(run, photos, tmp_path):
    found = find_photos([str(photos / "a.jpg")])
    with pytest.raises(UsageError, match="leave --crf out"):
        predict(run, found, tmp_path / "out", crf="torch", forms=("probabilities",))
    (path,) = predict(run, found, tmp_path / "out", forms=("probabilities",)).written
    image = read_image(photos / "a.jpg")
    logits = segment(run.model, image, run.device, multi_scale(run.preset.eval))
    assert np.allclose(np.load(path), logits.softmax(0).numpy(), atol=1e-3)
