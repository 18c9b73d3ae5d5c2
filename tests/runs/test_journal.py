import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afactl.runs.journal import JournaledFile

CHANGES = st.lists(
    st.tuples(st.sampled_from(["write", "truncate", "commit"]), st.integers(0, 60), st.binary(max_size=20)), max_size=25
)


@settings(max_examples=150, deadline=None)
@given(CHANGES, st.integers(0, 80), st.integers(0, 80))
def test_it_reads_as_a_plain_file_does(tmp_path_factory, changes, start, count):
    path, plain = tmp_path_factory.mktemp("j") / "f", io.BytesIO()
    file = JournaledFile(path)
    for kind, offset, data in changes:
        if kind == "commit":
            file.commit()
            assert path.read_bytes() == plain.getvalue()
        for one in (file, plain):
            if kind == "write" and data:
                one.seek(offset)
                one.write(data)
        if kind == "truncate":
            file.truncate(offset)
            plain.truncate(offset)
            plain.seek(0, io.SEEK_END)
            plain.write(bytes(max(0, offset - plain.tell())))  # a file grows by zeros, BytesIO does not
    assert file.seek(0, io.SEEK_END) == len(plain.getvalue())
    file.seek(start)
    assert file.read(count) == plain.getvalue()[start : start + count]


def stopped_at_apply(path, monkeypatch):
    file = JournaledFile(path)
    file.write(b"new and longer")
    with monkeypatch.context() as patch:
        patch.setattr(JournaledFile, "_apply", lambda *arguments: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            file.commit()
    file.close()
    return path.with_name("f.journal")


def test_changes_that_were_not_committed_are_dropped(tmp_path):
    (tmp_path / "f").write_bytes(b"old")
    file = JournaledFile(tmp_path / "f")
    file.write(b"new")
    file.close()
    assert (tmp_path / "f").read_bytes() == b"old"


def test_a_whole_journal_is_applied_at_the_next_opening(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"old")
    journal = stopped_at_apply(tmp_path / "f", monkeypatch)
    assert (tmp_path / "f").read_bytes() == b"old" and journal.exists()
    JournaledFile(tmp_path / "f").close()
    assert (tmp_path / "f").read_bytes() == b"new and longer" and not journal.exists()


@pytest.mark.parametrize("left", [0, 5, 40, -1])
def test_half_a_journal_is_dropped(tmp_path, monkeypatch, left):
    (tmp_path / "f").write_bytes(b"old")
    journal = stopped_at_apply(tmp_path / "f", monkeypatch)
    journal.write_bytes(journal.read_bytes()[:left])
    JournaledFile(tmp_path / "f").close()
    assert (tmp_path / "f").read_bytes() == b"old" and not journal.exists()


def test_a_fresh_file_forgets_the_journal(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"old")
    journal = stopped_at_apply(tmp_path / "f", monkeypatch)
    JournaledFile(tmp_path / "f", fresh=True).close()
    assert (tmp_path / "f").read_bytes() == b"" and not journal.exists()


def test_a_later_commit_without_room_keeps_a_journal_that_is_not_applied_yet(tmp_path, monkeypatch):
    (tmp_path / "f").write_bytes(b"old")
    file = JournaledFile(tmp_path / "f")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    file.write(b"first")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(JournaledFile, "_apply", full)
        file.commit()
    file.write(b" second")
    with monkeypatch.context() as patch, pytest.raises(OSError, match="No space"):
        patch.setattr(type(tmp_path), "write_bytes", full)
        file.commit()
    file.close()
    JournaledFile(tmp_path / "f").close()
    assert (tmp_path / "f").read_bytes() == b"first" and sorted(path.name for path in tmp_path.iterdir()) == ["f"]
