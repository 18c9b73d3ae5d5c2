import pytest

from afactl.datasets.photo_files import (
    LAYER_SUFFIXES,
    PHOTO_SUFFIXES,
    RAW_SUFFIXES,
    VIDEO_SUFFIXES,
    find_files,
    passed_over,
)


def put(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")


def found(root, **more):
    return [path.relative_to(root).as_posix() for path in find_files(root, **more).photos]


def test_every_suffix_of_a_photo_counts_in_any_case(tmp_path):
    names = [f"{number}{suffix}" for number, suffix in enumerate(PHOTO_SUFFIXES)]
    put(tmp_path, *names, "x.JFIF", "y.Heic")
    assert found(tmp_path) == sorted([*names, "x.JFIF", "y.Heic"])
    assert {".jfif", ".jpe", ".gif", ".avif", ".heic"} <= set(PHOTO_SUFFIXES)


def test_links_to_folders_are_followed_and_never_in_circles(tmp_path):
    put(tmp_path / "elsewhere", "a.jpg", "deep/b.jpg")
    root = tmp_path / "root"
    root.mkdir()
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "deep" / "back").symlink_to(root)
    (root / "gone").symlink_to(tmp_path / "nowhere")
    assert found(root) == ["dog/a.jpg", "dog/deep/b.jpg"]


def test_what_is_passed_over_is_counted(tmp_path):
    put(tmp_path, "labels.csv", "dog/a.jpg", "dog/b.svg", "dog/c.SVG", "dog/notes", "dog/._a.jpg")
    put(tmp_path, ".ipynb_checkpoints/x.jpg", "__MACOSX/y.jpg", "dog/@eaDir/z.jpg", "masks/m.png", "masks/n.txt")
    files = find_files(tmp_path, leave_out=("masks",))
    assert files.photos == [tmp_path / "dog" / "a.jpg"]
    assert passed_over(files, 2) == (
        "passed over: 3 other files (.svg 2, notes 1); "
        "4 hidden or system entries (hidden files, .ipynb_checkpoints, @eaDir, __MACOSX); 2 photos in no class folder",
    )


@pytest.mark.parametrize("names", [[], ["a.jpg"], ["readme.txt", "a.jpg"]])
def test_where_nothing_is_passed_over_nothing_is_said(tmp_path, names):
    put(tmp_path, *names)
    assert passed_over(find_files(tmp_path)) == ()


def test_what_holds_pictures_and_is_not_read_is_told_with_what_to_do(tmp_path):
    put(tmp_path, "a.CR2", "b.cr2", "dog/c.NEF", "dog/d.psd", "e.mp4", "readme.txt", "dog/f.svg", "dog/g.jpg")
    assert passed_over(find_files(tmp_path)) == (
        "passed over: 3 files of camera RAW (.cr2 2, .nef 1), not read here: export as JPEG",
        "passed over: 1 file of pictures in layers (.psd 1), not read here: export as JPEG or PNG",
        "passed over: 1 file of video (.mp4 1), not read here: save single frames as JPEG",
        "passed over: 1 other file (.svg 1)",
    )


def test_no_suffix_is_of_two_kinds():
    kinds = (PHOTO_SUFFIXES, RAW_SUFFIXES, LAYER_SUFFIXES, VIDEO_SUFFIXES)
    assert len(set().union(*kinds)) == sum(map(len, kinds))
