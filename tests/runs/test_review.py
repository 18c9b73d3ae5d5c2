import pytest

from afactl.errors import DataError, UsageError
from afactl.runs.review import Reviewed, excluded_photos, kept_photos, photo_key, read_review, write_review

VERDICTS = {
    Reviewed("images/b, c.jpg", "val"): "wrong",
    Reviewed('images/<b>"ä".jpg', "train"): "keep",
    Reviewed("images/d.jpg", "train"): "unsure",
}


def test_a_list_comes_back_as_it_was_written(tmp_path):
    file = tmp_path / "review.csv"
    assert read_review(file) == {}
    write_review(file, VERDICTS)
    assert read_review(file) == VERDICTS
    assert file.read_text(encoding="utf-8").splitlines() == [
        "image,split,verdict",
        '"images/<b>""ä"".jpg",train,keep',
        "images/d.jpg,train,unsure",
        '"images/b, c.jpg",val,wrong',
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,verdict\na.jpg,keep\n", "expected the columns image, split, verdict, split is missing"),
        ("", "image, split, verdict is missing"),
        ("image,split,verdict\na.jpg,val,keep\nb.jpg,val,good\n", "line 3: expected keep, wrong or unsure, got 'good'"),
        ("image,split,verdict\na.jpg\n", "line 2: expected keep, wrong or unsure, got None"),
    ],
)
def test_a_list_that_says_something_else_is_refused_with_its_line(tmp_path, text, message):
    file = tmp_path / "review.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=message):
        read_review(file)


def test_a_list_that_is_no_text_is_refused(tmp_path):
    file = tmp_path / "review.csv"
    file.write_bytes(b"image,split,verdict\n\xff\xfe,val,keep\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_review(file)


def test_a_photo_goes_by_its_path_below_the_dataset_and_else_by_all_of_it(tmp_path):
    assert photo_key(tmp_path / "data/images/a.jpg", tmp_path / "data") == "images/a.jpg"
    assert photo_key(tmp_path / "elsewhere/a.jpg", tmp_path / "data") == (tmp_path / "elsewhere/a.jpg").as_posix()


def test_kept_are_those_and_no_others_wherever_the_dataset_lies(tmp_path):
    file = tmp_path / "review.csv"
    with pytest.raises(UsageError, match="make it with `afactl explore`"):
        kept_photos(file, tmp_path)
    write_review(file, VERDICTS)
    for dataset in (tmp_path / "here", tmp_path / "there"):
        assert kept_photos(file, dataset) == {(dataset / 'images/<b>"ä".jpg').resolve()}
    write_review(file, {Reviewed("a.jpg", "val"): "wrong"})
    with pytest.raises(UsageError, match="keeps no photo"):
        kept_photos(file, tmp_path)


def test_left_out_is_what_a_review_calls_wrong_or_a_plain_list_names(tmp_path):
    file = tmp_path / "review.csv"
    write_review(file, VERDICTS)
    assert excluded_photos(file) == {"images/b, c.jpg"}
    plain = tmp_path / "list.txt"
    plain.write_text("images/a.jpg\n\n  images/sub/b.jpg \n", encoding="utf-8")
    assert excluded_photos(plain) == {"images/a.jpg", "images/sub/b.jpg"}
    with pytest.raises(UsageError, match="--exclude .*nothing.txt: cannot be read"):
        excluded_photos(tmp_path / "nothing.txt")
