import os
import shutil

import pytest

from afactl.errors import DataError, UsageError
from afactl.evaluation.doubt import doubts
from afactl.explorer import photo_list
from afactl.explorer.photo_list import PAGE
from afactl.explorer.session import Session
from afactl.inference.trained_run import open_split
from afactl.runs.folder import read_scores, read_tallies
from tests.conftest import until
from tests.explorer.conftest import first


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

    monkeypatch.setattr("afactl.explorer.photo_list.doubts", broken)
    assert until(lambda: session.photos("val", order="doubt")["note"]) == "a.png: is broken"


def test_a_split_without_masks_has_no_scores_and_no_order_by_them(session, tmp_path):
    data = tmp_path / "bare"
    shutil.copytree(session.run.preset.data.folder(), data)
    shutil.rmtree(data / "masks")
    bare = Session(session.run, data)
    assert bare.photo(first(bare))["truth"] is False
    with pytest.raises(UsageError, match="the order by score needs true masks"):
        bare.photos("val", order="worst")


def test_scores_are_read_again_only_when_they_have_changed(session, monkeypatch):
    read, files = [], read_scores
    monkeypatch.setattr(photo_list, "read_scores", lambda run: read.append(run) or files(run))
    before = session.photos("val", order="worst")
    assert session.photos("val", order="worst") == before and len(read) == 1
    os.utime(session.run.folder / "scores" / "segmentation-val.json", ns=(1, 1))
    assert session.photos("val", order="worst") == before and len(read) == 2
