import errno
import json

import pytest

from afactl.errors import UsageError
from afactl.prediction.unfinished import FOLDER, Unfinished, begun_files, require_idle


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "photo.jpg"
    path.write_text("pixels")
    return path


def test_what_a_killed_call_noted_is_known_to_the_next(tmp_path, source):
    first = Unfinished(tmp_path, {"weights": "a"})
    first.note("a.png", source, reduced=True)
    assert first.done("a.png", source) is None, "its own notes are no news to a call"
    first.close()  # which writes nothing: a kill leaves the same
    again = Unfinished(tmp_path, {"weights": "a"})
    assert again.done("a.png", source) == {"reduced": True} and again.done("b.png", source) is None
    again.finish()
    assert not (tmp_path / FOLDER).exists()


def test_other_settings_or_another_photo_count_for_nothing(tmp_path, source):
    def noted(weights):
        record = Unfinished(tmp_path, {"weights": weights})
        found = record.done("a.png", source)
        record.note("a.png", source)
        record.close()
        return found

    assert noted("a") is None and noted("a") == {}
    assert noted("b") is None
    source.write_text("other pixels")
    assert noted("b") is None


def test_two_jobs_do_not_write_into_one_folder(tmp_path, source):
    record = Unfinished(tmp_path, {})
    record.note("a.png", source)
    with pytest.raises(
        UsageError, match="another job is writing there; wait for it, or give another folder with --out"
    ):
        Unfinished(tmp_path, {})
    assert set(record.lines()) == {"a.png"}, "the first one has lost nothing"
    record.finish()
    Unfinished(tmp_path, {}).finish()


def test_what_a_killed_call_was_about_to_write_is_its_own(tmp_path, source):
    assert begun_files(tmp_path / "none", {"weights": "a"}) == set()
    record = Unfinished(tmp_path, {"weights": "a"})
    record.begin([tmp_path / "deep" / "a.png", tmp_path / "caf\udce9.png"])
    record.close()  # a kill before the file was there, or after
    expected = {tmp_path / "deep" / "a.png", tmp_path / "caf\udce9.png"}
    assert begun_files(tmp_path, {"weights": "a"}) == expected
    assert begun_files(tmp_path, {"weights": "b"}) == set(), "another command wrote them"
    Unfinished(tmp_path, {"weights": "a"}).close()
    assert begun_files(tmp_path, {"weights": "a"}) == expected, "for the call after the next one too"


def test_a_folder_in_which_a_job_is_at_work_is_told(tmp_path):
    require_idle(tmp_path)
    record = Unfinished(tmp_path, {"weights": "a"}, 3)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UsageError, match="another job is writing there; wait for it"):
        require_idle(tmp_path)
    record.close()
    require_idle(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_job_that_cannot_start_leaves_nothing(tmp_path, monkeypatch):
    def none_here(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", none_here)
    with pytest.raises(UsageError, match="no locks"):
        Unfinished(tmp_path / "out", {})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_a_kill_cut_off_costs_that_item_only(tmp_path, source, cut):
    record = Unfinished(tmp_path, {"weights": "a"})
    record.note("a.png", source)
    record.note("b.png", source)
    record.close()
    path = tmp_path / FOLDER / "done-0.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    again = Unfinished(tmp_path, {"weights": "a"})
    assert again.done("a.png", source) == {} and (again.done("b.png", source) is None) == (cut > 1)
    again.note("c.png", source)
    assert set(again.lines()) == {"a.png", "c.png"} | ({"b.png"} if cut == 1 else set())
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_processes_read_each_others_notes_and_the_newest_counts(tmp_path, source):
    one, two = Unfinished(tmp_path, {}, 1), Unfinished(tmp_path, {}, 0)
    one.note("a.png", source, failed="once")
    two.note("a.png", source, failed=None)
    one.note("b.png", source)
    found = two.lines()
    assert set(found) == {"a.png", "b.png"} and found["a.png"]["values"] == {"failed": None}
