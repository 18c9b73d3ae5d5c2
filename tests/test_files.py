import pytest

from afactl.files import whole_file


def test_a_file_appears_when_it_is_whole_and_with_its_folders(tmp_path):
    target = tmp_path / "a/b/out.txt"
    with whole_file(target) as fresh:
        fresh.write_text("whole")
        assert not target.exists()
    assert target.read_text() == "whole" and [path.name for path in target.parent.iterdir()] == ["out.txt"]


def test_an_error_leaves_the_former_file_and_nothing_beside_it(tmp_path):
    target = tmp_path / "out.txt"
    target.write_text("former")
    with pytest.raises(KeyboardInterrupt), whole_file(target) as fresh:
        fresh.write_text("ha")
        raise KeyboardInterrupt
    assert target.read_text() == "former" and [path.name for path in tmp_path.iterdir()] == ["out.txt"]
    with pytest.raises(FileNotFoundError), whole_file(target):
        pass  # nothing was written
    assert target.read_text() == "former"
