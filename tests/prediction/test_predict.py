import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from afactl.datasets.images import read_image
from afactl.datasets.masks import read_mask
from afactl.errors import UsageError
from afactl.inference.segmentation import multi_scale, segment, segment_windows
from afactl.inference.trained_run import open_run
from afactl.method.refinement.crf import DenseCrf, dense_crf
from afactl.prediction.predict import PredictOptions, find_photos, predict
from afactl.prediction.unfinished import Unfinished


def with_values(run, section, **values):
    """The run with other values in a section of its preset."""
    changed = getattr(run.preset, section).model_copy(update=values)
    return run._replace(preset=run.preset.model_copy(update={section: changed}))


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
    masks = [str(photo.mask) for photo in find_photos([str(photos)]).photos]
    assert masks == ["a.png", "deep/b c.png", "deep/ü.v2.png"]
    assert [p.mask.name for p in find_photos([str(photos / "a.jpg"), str(photos / "deep" / "*.png")]).photos] == [
        "a.png",
        "b c.png",
    ]
    assert len(find_photos([str(photos), str(photos / "a.jpg")]).photos) == 3, "each photo once"


def test_photos_that_differ_in_suffix_keep_it(photos):
    (photos / "a.png").write_bytes((photos / "deep" / "b c.png").read_bytes())
    assert {str(p.mask) for p in find_photos([str(photos)]).photos} >= {"a.jpg.png", "a.png.png"}


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
    found = find_photos([str(photos)]).photos
    result = predict(run, found, tmp_path / "out", PredictOptions(forms=("png", "overlay")))
    assert result.failed == [] and [p.relative_to(tmp_path / "out") for p in result.written[:3]] == [
        p.mask for p in found
    ]
    image = read_image(photos / "a.jpg")
    expected = segment(run.model, image, run.device, multi_scale(run.preset.eval)).argmax(0)
    assert np.array_equal(read_mask(tmp_path / "out" / "a.png", 6), expected.numpy())
    assert read_image(tmp_path / "out" / "deep" / "ü.v2_overlay.png").shape == (40, 56, 3)


def test_crf_refines_the_mask(run, photos, tmp_path):
    found = find_photos([str(photos / "a.jpg")]).photos
    written, _ = predict(run, found, tmp_path / "crf", PredictOptions(crf="torch")).written
    image = read_image(photos / "a.jpg")
    logits = segment(run.model, image, run.device, multi_scale(run.preset.eval))
    expected = dense_crf(
        torch.from_numpy(image).permute(2, 0, 1), logits.softmax(0), DenseCrf(**run.preset.crf.model_dump())
    ).argmax(0)
    assert np.array_equal(read_mask(written, 6), expected.numpy())


def test_a_large_photo_is_labelled_smaller_and_said_so(run, tmp_path, monkeypatch):
    run = with_values(run, "eval", max_pixels=3000)
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "large.png")
    result = predict(
        run,
        find_photos([str(tmp_path / "large.png")]).photos,
        tmp_path / "out",
        PredictOptions(forms=("png", "overlay")),
    )
    assert result.reduced == 1 and read_mask(result.written[0], 6).shape == (90, 120)
    height, width, _ = read_image(tmp_path / "out" / "large_overlay.png").shape
    assert height * width <= 3000 and height / width == pytest.approx(90 / 120, abs=0.03)


def test_a_window_is_for_photos_that_are_larger(run, photos, tmp_path):
    found = find_photos([str(photos / "a.jpg")]).photos
    whole, _ = predict(run, found, tmp_path / "whole").written
    below, _ = predict(run, found, tmp_path / "below", PredictOptions(window=64)).written
    assert below.read_bytes() == whole.read_bytes()
    cut, _ = predict(run, found, tmp_path / "cut", PredictOptions(window=32, forms=("probabilities",))).written
    logits = segment_windows(
        run.model, read_image(photos / "a.jpg"), run.device, multi_scale(run.preset.eval), 32, (40, 56)
    )
    np.testing.assert_array_equal(np.load(cut), logits.softmax(0).half().numpy())


def test_windows_see_a_large_photo_at_its_own_size(run, tmp_path, monkeypatch):
    run = with_values(run, "eval", max_pixels=3000)
    picture = np.random.default_rng(0).integers(0, 256, (90, 120, 3)).astype(np.uint8)
    Image.fromarray(picture).save(tmp_path / "large.png")
    seen = []
    monkeypatch.setattr(
        "afactl.inference.segmentation.segment",
        lambda model, tile, *rest: seen.append(tile) or segment(model, tile, *rest),
    )
    result = predict(
        run, find_photos([str(tmp_path / "large.png")]).photos, tmp_path / "out", PredictOptions(window=64)
    )
    assert len(seen) == 6 and all(tile.shape == (64, 64, 3) for tile in seen)
    assert np.array_equal(seen[0], picture[:64, :64])
    assert result.reduced == 1 and read_mask(result.written[0], 6).shape == (90, 120)


def test_with_the_crf_the_size_follows_from_the_classes_that_are_there(run, photos, tmp_path, monkeypatch):
    """All seven classes are probable somewhere for a network with next to no training: 40 x 56 pixels are too many."""
    monkeypatch.setattr("afactl.inference.segmentation.MAX_CRF_VALUES", 7 * 600)
    seen = []
    monkeypatch.setattr(
        "afactl.prediction.predict.crf_label",
        lambda photo, backend, settings: seen.append(photo) or photo[1].argmax(0).to(torch.uint8),
    )
    result = predict(run, find_photos([str(photos / "a.jpg")]).photos, tmp_path / "out", PredictOptions(crf="torch"))
    ((image, logits),) = seen
    assert image.shape[1:] == logits.shape[1:] and 400 < image.shape[1] * image.shape[2] <= 600
    assert result.reduced == 1 and read_mask(result.written[0], 6).shape == (40, 56)
    monkeypatch.setattr("afactl.inference.segmentation.MAX_CRF_VALUES", 7 * 40 * 56)
    assert (
        predict(
            run, find_photos([str(photos / "a.jpg")]).photos, tmp_path / "whole", PredictOptions(crf="torch")
        ).reduced
        == 0
    )


def test_a_network_that_gives_nan_is_told_by_photo(run, photos, tmp_path, monkeypatch):
    monkeypatch.setattr("afactl.prediction.predict.segment", lambda *arguments: torch.full((7, 40, 56), float("nan")))
    result = predict(run, find_photos([str(photos / "a.jpg")]).photos, tmp_path / "out")
    assert not result.written and "a.jpg: the network gives non-finite values" in result.failed[0]


def test_a_broken_photo_is_named_and_the_others_are_done(run, photos, tmp_path):
    (photos / "a.jpg").write_bytes(b"\xff\xd8\xff cut off")
    result = predict(run, find_photos([str(photos)]).photos, tmp_path / "out")
    assert len(result.written) == 3 and len(result.failed) == 1 and "a.jpg" in result.failed[0]


def test_an_output_folder_that_cannot_be_written_is_named(run, photos, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        predict(run, find_photos([str(photos / "a.jpg")]).photos, tmp_path / "file" / "out")


def test_probabilities_are_the_networks(run, photos, tmp_path):
    found = find_photos([str(photos / "a.jpg")]).photos
    with pytest.raises(UsageError, match="leave --crf out"):
        predict(run, found, tmp_path / "out", PredictOptions(crf="torch", forms=("probabilities",)))
    path, _ = predict(run, found, tmp_path / "out", PredictOptions(forms=("probabilities",))).written
    image = read_image(photos / "a.jpg")
    logits = segment(run.model, image, run.device, multi_scale(run.preset.eval))
    assert np.allclose(np.load(path), logits.softmax(0).numpy(), atol=1e-3)


CLASSES = 7


@pytest.fixture
def quick(monkeypatch):
    """A network that takes no time; what it says is of no interest where files are looked at."""
    monkeypatch.setattr(
        "afactl.prediction.predict.segment", lambda model, image, *rest: torch.zeros(CLASSES, *image.shape[:2])
    )


def snapshot(folder):
    """Every path, and what is in the files; links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        found[path] = path.read_bytes() if path.is_file() and not path.is_symlink() else None
    return found


def picture(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (8, 8, 3)).astype(np.uint8)
    Image.fromarray(pixels).save(path)


# Relative to the folder with `photos/` in it; that folder is the working one.
NAMES = ["beach.png", "beach.jpg", "beach_overlay.png", "deep/beach.png", "tree.png", "results.png"]
OUTS = [
    "photos",
    ".",
    "photos/masks",
    "photos/deep",
    "masks",
    "photos/../photos",
    "link",
    "photos/tree.png",
    "new/deep",
]
INPUTS = [["photos"], ["photos/*.png"], ["photos/beach.png"], ["."], ["photos/deep", "photos/tree.png"], ["link"]]
FORMS = [
    ("png",),
    ("cvat", "png"),
    ("png", "overlay"),
    ("overlay",),
    ("probabilities", "overlay"),
    ("voc-server",),
    ("cvat", "overlay"),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    names=st.lists(st.sampled_from(NAMES), min_size=1, unique=True),
    mine=st.lists(st.sampled_from(["beach.png", "beach_overlay.png", "masks.zip", "deep/beach.png"]), max_size=2),
    out=st.sampled_from(OUTS),
    inputs=st.sampled_from(INPUTS),
    forms=st.sampled_from(FORMS),
    overwrite=st.booleans(),
)
def test_out_anywhere_relative_to_the_input(run, quick, names, mine, out, inputs, forms, overwrite):
    """Whatever is asked: what was there stays as it was, but for files of --out with --overwrite; photos always."""
    with tempfile.TemporaryDirectory() as text, pytest.MonkeyPatch.context() as patch:
        patch.chdir(text)
        top = Path(text).resolve()
        for number, name in enumerate(names):
            picture(Path("photos", name), number)
        Path("link").symlink_to("photos")
        for name in set(mine):  # drawn by hand
            picture(Path("masks", name).with_suffix(".png"), 9)
            Path("masks", name).with_suffix(".png").rename(Path("masks", name))
        before = snapshot(top)
        try:
            found = find_photos(inputs, Path(out)).photos
            read = {photo.path.resolve() for photo in found}
            result = predict(run, found, Path(out), PredictOptions(forms=forms, overwrite=overwrite))
        except UsageError:
            assert snapshot(top) == before, "refused before anything was changed"
            return
        after = snapshot(top)
        for path, content in before.items():
            replaced = overwrite and path not in read and path.is_relative_to(Path(out).resolve())
            assert after[path] == content or (replaced and path in {one.resolve() for one in result.written})
        assert result.failed == [] and result.photos == len(found)
        assert len({one.resolve() for one in result.written}) == len(result.written)
        fresh = {path for path, content in after.items() if content is not None and before.get(path) != content}
        assert fresh <= {one.resolve() for one in result.written}, "nothing else was written"
        assert all(one.is_file() for one in result.written)


@pytest.mark.parametrize("overwrite", [False, True])
def test_photos_are_never_overwritten(run, quick, tmp_path, monkeypatch, overwrite):
    monkeypatch.chdir(tmp_path)
    for name in ("beach.png", "tree.png", "plain.jpg"):
        picture(tmp_path / "photos" / name)
    before = snapshot(tmp_path)

    def refused(inputs, out, message):
        with pytest.raises(UsageError, match=message):
            predict(run, find_photos(inputs, Path(out)).photos, Path(out), PredictOptions(overwrite=overwrite))
        assert snapshot(tmp_path) == before

    refused(["photos"], "photos", "--out photos: is the folder of the photos, .* give another folder")
    refused(["photos/beach.png"], "photos", "beach.png is read by this command and never overwritten")
    refused(["photos/*.png"], "photos/../photos", "is read by this command and never overwritten")
    (tmp_path / "photos/plain.jpg").rename(tmp_path / "photos/tree.jpg")
    before = snapshot(tmp_path)
    beside = "lies among the photos and may be one, which are never overwritten" if overwrite else "is there already"
    refused(["photos/tree.jpg"], "photos", f"--out photos: .*tree.png.* {beside}")


def test_masks_drawn_by_hand_are_kept(run, quick, tmp_path, monkeypatch):
    """The name that our own pages use for --out."""
    monkeypatch.chdir(tmp_path)
    for name in ("images/a.jpg", "images/b.jpg", "masks/b.png"):
        picture(tmp_path / name, 7)
    before, found = snapshot(tmp_path), find_photos(["images"], Path("masks")).photos
    for forms in (("png",), ("overlay", "png")):
        with pytest.raises(UsageError, match="--out masks: masks/b.png is there already; .* --overwrite to replace"):
            predict(run, found, Path("masks"), PredictOptions(forms=forms))
        assert snapshot(tmp_path) == before
    predict(run, found, Path("masks"), PredictOptions(forms=("overlay",)))
    assert (tmp_path / "masks/b.png").read_bytes() == before[tmp_path / "masks/b.png"]
    predict(run, found, Path("masks"), PredictOptions(overwrite=True))
    assert read_mask(tmp_path / "masks/b.png", 6).shape == (8, 8)


def test_results_that_would_be_one_file_are_refused(run, quick, tmp_path):
    for name in ("beach.png", "beach_overlay.png"):
        picture(tmp_path / "photos" / name)
    found = find_photos([str(tmp_path / "photos")]).photos
    with pytest.raises(UsageError, match=r"two results would be one file \(.*beach_overlay.png\)"):
        predict(run, found, tmp_path / "out", PredictOptions(forms=("png", "overlay")))
    assert not (tmp_path / "out").exists()
    assert len(predict(run, found, tmp_path / "out").written) == 3


def test_results_below_the_photos_are_no_photos(run, quick, tmp_path):
    picture(tmp_path / "photos/a.jpg")
    out = tmp_path / "photos" / "masks"
    for notes in ([], [f"passed over: 1 picture in {out}, as results of an earlier call"]):
        found = find_photos([str(tmp_path / "photos")], out)
        assert [photo.path.name for photo in found.photos] == ["a.jpg"] and found.notes == notes
        predict(run, found.photos, out, PredictOptions(overwrite=True))


@pytest.fixture
def killed(run, quick, tmp_path, monkeypatch):
    """Of four photos two are done, and the third one's mask is written but not noted."""
    for name in "abcd":
        picture(tmp_path / f"photos/{name}.jpg")
    found = find_photos([str(tmp_path / "photos")]).photos
    note = Unfinished.note

    def stop(record, item, *rest, **values):
        if item == "c.png":
            raise KeyboardInterrupt
        note(record, item, *rest, **values)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Unfinished, "note", stop)
        predict(run, found, tmp_path / "out")
    return found


def test_a_killed_call_may_replace_its_own_files(run, killed, tmp_path):
    assert sorted(path.name for path in (tmp_path / "out").glob("*.png")) == ["a.png", "b.png", "c.png"]
    result = predict(run, killed, tmp_path / "out")
    assert (result.photos, result.kept, result.failed) == (4, 2, [])
    with pytest.raises(UsageError, match=r"a.png \(and 3 more\) is there already"):
        predict(run, killed, tmp_path / "out")


def test_a_file_that_came_after_the_kill_is_not_its_own(run, killed, tmp_path):
    picture(tmp_path / "out/d.png", 5)
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match="d.png is there already"):
        predict(run, killed, tmp_path / "out")
    assert snapshot(tmp_path) == before
    assert predict(run, killed, tmp_path / "out", PredictOptions(overwrite=True)).kept == 2


def test_another_command_than_the_killed_one_has_no_right_to_its_files(run, killed, tmp_path):
    before = snapshot(tmp_path)
    with pytest.raises(UsageError, match=r"a.png \(and 2 more\) is there already"):
        predict(run, killed, tmp_path / "out", PredictOptions(window=64))
    assert snapshot(tmp_path) == before
    assert predict(run, killed, tmp_path / "out").kept == 2, "the killed one goes on as if nothing had been"


def test_a_file_that_appears_meanwhile_is_kept_and_told(run, quick, tmp_path):
    for name in "ab":
        picture(tmp_path / f"photos/{name}.jpg")

    def track(photos):
        for photo in photos:
            picture(tmp_path / "out/b.png", 5)
            yield photo

    result = predict(run, find_photos([str(tmp_path / "photos")]).photos, tmp_path / "out", track=track)
    assert [path.name for path in result.written] == ["a.png", "classes.csv"]
    assert result.failed == [f"{tmp_path / 'out/b.png'}: appeared while the masks were made, and is left as it is"]
    assert np.asarray(Image.open(tmp_path / "out/b.png")).shape == (8, 8, 3)


def test_another_job_in_the_folder_is_told_before_its_files_are(run, quick, tmp_path):
    picture(tmp_path / "photos/a.jpg")
    record = Unfinished(tmp_path / "out", {"other": True}, 1)
    picture(tmp_path / "out/a.png")
    with pytest.raises(UsageError, match="another job is writing there"):
        predict(run, find_photos([str(tmp_path / "photos")]).photos, tmp_path / "out")
    record.close()


def test_what_is_passed_over_in_a_folder_is_said(photos):
    (photos / ".hidden").mkdir()
    (photos / ".hidden" / "x.jpg").write_bytes(b"x")
    (photos / "deep" / "raw.cr2").write_bytes(b"x")
    found = find_photos([str(photos)])
    assert not [photo for photo in found.photos if ".hidden" in str(photo.path)]
    assert any(note.startswith(f"{photos}: passed over: ") and "(.hidden)" in note for note in found.notes)
    assert any(".cr2 1" in note for note in found.notes)
