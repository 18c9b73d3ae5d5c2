import csv
import io
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afactl.datasets.images import read_image
from afactl.errors import DataError, PresetError, UsageError
from afactl.evaluation.doubt import doubts
from afactl.explorer.photo import ExploredPhoto
from afactl.explorer.session import OWN, PAGE, Place, Session, encoded_mask
from afactl.inference.cams import query_maps
from afactl.inference.trained_run import open_split
from afactl.runs.folder import read_scores, read_tallies
from afactl.runs.review import Reviewed, read_review
from tests.explorer.conftest import until


def first(session, split="val"):
    return Place(split, session.photos(split)["photos"][0]["id"])


def decoded(png):
    return np.array(Image.open(io.BytesIO(png)))


def test_the_list_is_that_of_the_split_and_is_searched_by_id_and_class(session):
    split = open_split(session.run, "train", None, masks=False)
    listed = session.photos("train")
    assert [entry["id"] for entry in listed["photos"]] == [sample.image_id for sample in split.samples]
    assert listed["total"] == len(split.samples) == 8 and listed["photos"][0]["verdict"] == ""
    name = split.classes[split.samples[0].labels[0]]
    with_class = {s.image_id for s in split.samples if split.samples[0].labels[0] in s.labels}
    assert {entry["id"] for entry in session.photos("train", f" {name.upper()} ")["photos"]} == with_class
    assert [entry["id"] for entry in session.photos("train", split.samples[3].image_id)["photos"]] == [
        split.samples[3].image_id
    ]
    assert session.photos("train", start=6)["photos"] == listed["photos"][6:]
    assert PAGE >= 8


def test_worst_first_is_the_order_of_what_eval_counted(session):
    tallies = read_tallies(session.run.folder, "segmentation-val")["multi-scale + flip"]
    ids = [sample.image_id for sample in open_split(session.run, "val", None, masks=False).samples]
    scores = {}
    for image_id, (hits, truth, predicted) in zip(ids, tallies, strict=True):
        ious = [h / (t + p - h) for h, t, p in zip(hits, truth, predicted, strict=True) if t]
        scores[image_id] = 100 * sum(ious) / len(ious)
    listed = session.photos("val", order="worst")["photos"]
    assert [entry["miou"] for entry in listed] == pytest.approx(sorted(scores.values()))
    assert {entry["id"]: pytest.approx(entry["miou"]) for entry in listed} == scores
    with pytest.raises(UsageError, match="split train: not scored with these weights; run `afactl eval --split train"):
        session.photos("train", order="worst")
    with pytest.raises(UsageError, match="order: expected one of list, worst, doubt, got best"):
        session.photos("val", order="best")


def test_scores_of_other_weights_order_nothing(session):
    assert read_scores(session.run.folder)
    other = Session(session.run._replace(weights_hash="0" * 16))
    with pytest.raises(UsageError, match="not scored with these weights"):
        other.photos("val", order="worst")


def test_most_doubt_comes_first_when_all_photos_have_been_passed(session):
    def done():
        page = session.photos("val", order="doubt")
        return page if page["known"] == page["all"] == 4 else None

    listed = until(done)["photos"]
    expected = dict(doubts(session.run, open_split(session.run, "val", None, masks=False)))
    order = sorted(expected, key=lambda image_id: -expected[image_id].value)
    assert [entry["id"] for entry in listed] == order
    classes = session.run.architecture.classes
    for entry in listed:
        doubt = expected[entry["id"]]
        assert entry["entropy"] == doubt.entropy
        assert entry["denied"] == [classes[c] for c in doubt.denied]
        assert entry["missed"] == [classes[c] for c in doubt.missed]


def test_what_goes_wrong_with_the_doubts_is_said(session, monkeypatch):
    def broken(run, split):
        raise DataError("a.png: is broken")
        yield

    monkeypatch.setattr("afactl.explorer.session.doubts", broken)
    assert until(lambda: session.photos("val", order="doubt")["note"]) == "a.png: is broken"


def test_a_photo_tells_its_size_tags_and_truth(session):
    place = first(session)
    told = session.photo(place)
    assert (told["height"], told["width"], told["truth"], told["found"]) == (64, 64, True, False)
    assert told["labels"] == session.photos("val")["photos"][0]["labels"]
    picture = np.array(Image.open(io.BytesIO(session.picture(place))))
    assert picture.shape == (64, 64, 3)
    assert max(Image.open(io.BytesIO(session.thumbnail(place))).size) <= 96
    with pytest.raises(UsageError, match="split val: has no photo nothing"):
        session.photo(Place("val", "nothing"))
    with pytest.raises(DataError, match="nosplit"):
        session.photo(Place("nosplit", "a"))


def test_maps_are_integers_between_their_ends(session):
    place = first(session)
    split = open_split(session.run, "val", None, masks=False)
    maps = session.maps(place, (9, 33))
    expected = query_maps(session.run, read_image(split.samples[0].image_path), [(9, 33)])
    for name, values in (("attention", expected.attention), ("affinity", expected.affinity)):
        low, high = maps[name]["low"], maps[name]["high"]
        found = low + np.array(maps[name]["values"]) / 255 * (high - low)
        assert np.allclose(found, values.ravel(), atol=(high - low) / 255)
    assert maps["title"] == "MHSA (mean of heads)"
    assert session.maps(place, (9, 33), (1, 2))["title"] == "MHSA (layer 1, head 2)"
    with pytest.raises(UsageError, match="--layer: expected 1"):
        session.maps(place, (9, 33), (9, None))


def test_labels_and_masks_come_as_pictures_with_their_figures(session):
    place = first(session)
    photo = session.opened(place)
    png, told = session.label(place, {"cam.beta_low": "0.1"}, "mhsa")
    assert 0 < told["ignored"] < 1 and 0 <= told["miou"] <= 100
    assert set(np.unique(decoded(png)[..., 0])) <= {0, 255, *(label + 1 for label in photo.labels)}
    png, told = session.mask(place, "segmentation")
    mask = photo.mask("segmentation")
    assert np.array_equal(decoded(png)[..., 0], mask.label) and told == {"miou": mask.miou}
    assert np.abs(decoded(png)[..., 1] / 255 - mask.probability).max() < 1 / 255
    with pytest.raises(PresetError, match="cam.beta_low: expected a number"):
        session.label(place, {"cam.beta_low": "much"}, "off")


def test_an_encoded_mask_keeps_every_value():
    label = np.arange(256, dtype=np.uint8).reshape(16, 16)
    assert np.array_equal(decoded(encoded_mask(label, None))[..., 0], label)


def test_own_photos_have_the_classes_that_the_network_finds(session):
    split = open_split(session.run, "val", None, masks=False)
    place = session.add_own("<b>a.png", split.samples[0].image_path.read_bytes())
    told = session.photo(place)
    assert place.split == OWN and told["name"] == "<b>a.png" and told["found"] and not told["truth"]
    assert told["labels"] and session.label(place, {}, "off")[1]["miou"] is None
    with pytest.raises(DataError, match="a.txt"):
        session.add_own("a.txt", b"no photo")
    with pytest.raises(DataError, match="empty"):
        session.add_own("a.jpg", b"")
    with pytest.raises(UsageError, match="in no list"):
        session.judge(place, "keep")
    with pytest.raises(UsageError, match="drop it on the page again"):
        session.photo(Place(OWN, "99"))


def test_verdicts_are_in_the_run_at_once_and_after_it_was_opened_again(session, run):
    place, file = first(session), run.folder / "review.csv"
    assert session.judge(place, "wrong") == {"keep": 0, "wrong": 1, "unsure": 0}
    assert read_review(file) == {Reviewed(f"images/{place.photo}.png", "val"): "wrong"}
    assert session.photo(place)["verdict"] == "wrong"
    again = Session(run)
    assert again.photos("val")["photos"][0]["verdict"] == "wrong"
    again.judge(Place("train", again.photos("train")["photos"][1]["id"]), "keep")
    assert again.counts() == {"keep": 1, "wrong": 1, "unsure": 0}
    assert again.judge(place, "") == {"keep": 1, "wrong": 0, "unsure": 0}
    assert list(read_review(file).values()) == ["keep"]
    with pytest.raises(UsageError, match="verdict: expected one of keep, wrong, unsure, got good"):
        again.judge(place, "good")


def test_a_run_that_is_removed_is_said_and_the_list_stays(session, run):
    place = first(session)
    session.photo(place)
    shutil.rmtree(run.folder)
    with pytest.raises(DataError, match="the run is gone"):
        session.judge(place, "keep")
    assert not run.folder.exists()
    assert [line["verdict"] for line in csv.DictReader(io.StringIO(session.review()))] == ["keep"]
    assert session.maps(place, (1, 1))["attention"]["values"]
    with pytest.raises(DataError, match="the run is gone"):
        session.save_figure(place, (1, 1), {}, "off")


def test_figures_are_numbered_and_show_what_is_seen(session, run):
    place = first(session)
    files = [session.save_figure(place, (10, 10), {"cam.beta_low": "0.2"}, "off") for _ in range(2)]
    assert [file.name for file in files] == [f"explored-{Path(place.photo).name}-{n}.png" for n in (1, 2)]
    assert all(file.parent == run.folder / "figures" for file in files)
    assert Image.open(files[0]).width > 1500


def test_without_the_dataset_own_photos_can_be_explored(run):
    photo = open_split(run, "val", None, masks=False).samples[0].image_path.read_bytes()
    session = Session(run, run.folder / "nowhere")
    assert "nowhere" in session.no_photos and session.about()["splits"] == []
    with pytest.raises(DataError, match="nowhere"):
        session.photos("val")
    assert session.photo(session.add_own("a.png", photo))["width"] == 64


def test_a_split_without_masks_has_no_scores_and_no_order_by_them(session, tmp_path):
    data = tmp_path / "bare"
    shutil.copytree(session.run.preset.data.folder(), data)
    shutil.rmtree(data / "masks")
    bare = Session(session.run, data)
    assert bare.photo(first(bare))["truth"] is False
    with pytest.raises(UsageError, match="the order by score needs true masks"):
        bare.photos("val", order="worst")


def test_the_photos_looked_at_last_are_kept(session, monkeypatch):
    monkeypatch.setattr("afactl.explorer.session.KEPT_PHOTOS", 2)
    ids = [entry["id"] for entry in session.photos("train")["photos"][:3]]
    opened = [session.opened(Place("train", image_id)) for image_id in ids]
    assert all(isinstance(photo, ExploredPhoto) for photo in opened)
    assert session.opened(Place("train", ids[2])) is opened[2]
    assert session.opened(Place("train", ids[0])) is not opened[0]
