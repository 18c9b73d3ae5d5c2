import csv
import io
import shutil

import pytest

from afactl.errors import DataError, UsageError
from afactl.explorer.session import Place, Session
from afactl.runs.review import Reviewed, read_review
from tests.explorer.conftest import first


def test_verdicts_are_in_the_run_at_once_and_after_it_was_opened_again(session, run):
    place, file = first(session), run.folder / "review.csv"
    assert session.judge(place, "wrong") == {"keep": 0, "wrong": 1, "unsure": 0}
    assert read_review(file) == {Reviewed(f"images/{place.photo}.png", "val"): "wrong"}
    assert session.photo(place)["verdict"] == "wrong"
    again = Session(run)
    assert again.photos("val")["photos"][0]["verdict"] == "wrong"
    again.judge(Place("train", again.photos("train")["photos"][1]["id"]), "keep")
    assert again.verdicts.counts() == {"keep": 1, "wrong": 1, "unsure": 0}
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
    assert [line["verdict"] for line in csv.DictReader(io.StringIO(session.verdicts.text()))] == ["keep"]
    assert session.maps(place, (1, 1))["attention"]["values"]
    with pytest.raises(DataError, match="the run is gone"):
        session.save_figure(place, (1, 1), {}, "off")
