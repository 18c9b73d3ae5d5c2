import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from afactl.datasets.images import read_image
from afactl.errors import DataError, PresetError, UsageError
from afactl.explorer.photo import ExploredPhoto
from afactl.explorer.session import OWN, Place, Session, encoded_mask
from afactl.inference.cams import query_maps
from afactl.inference.trained_run import open_split
from tests.explorer.conftest import first


def decoded(png):
    return np.array(Image.open(io.BytesIO(png)))


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


def test_figures_are_numbered_and_show_what_is_seen(session, run):
    place = first(session)
    files = [session.save_figure(place, (10, 10), {"cam.beta_low": "0.2"}, "off") for _ in range(2)]
    assert [file.name for file in files] == [f"explored-{Path(place.photo).name}-{n}.png" for n in (1, 2)]
    assert all(file.parent == run.folder / "figures" for file in files)
    assert Image.open(files[0]).width > 1500


def test_without_the_dataset_own_photos_can_be_explored(run):
    photo = open_split(run, "val", None, masks=False).samples[0].image_path.read_bytes()
    session = Session(run, run.folder / "nowhere")
    assert "nowhere" in session.list.missing and session.about()["splits"] == []
    with pytest.raises(DataError, match="nowhere"):
        session.photos("val")
    assert session.photo(session.add_own("a.png", photo))["width"] == 64


def test_the_photos_looked_at_last_are_kept(session, monkeypatch):
    monkeypatch.setattr("afactl.explorer.session.KEPT_PHOTOS", 2)
    ids = [entry["id"] for entry in session.photos("train")["photos"][:3]]
    opened = [session.opened(Place("train", image_id)) for image_id in ids]
    assert all(isinstance(photo, ExploredPhoto) for photo in opened)
    assert session.opened(Place("train", ids[2])) is opened[2]
    assert session.opened(Place("train", ids[0])) is not opened[0]
