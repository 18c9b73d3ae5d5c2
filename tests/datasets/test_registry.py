"""Dataset formats by name; which one lies in a folder; what a format added from outside may do."""

import pytest
from PIL import Image

from afactl.datasets import registry
from afactl.datasets.registry import (
    FORMATS,
    check_files,
    dataset_folder,
    dataset_format,
    format_of,
    is_missing,
    load_all,
    load_split,
    register,
    split_names,
)
from afactl.datasets.samples import DatasetFormat, Sample, Split
from afactl.errors import DataError, DependencyError, PresetError, UsageError
from tests.conftest import make_voc


@pytest.fixture
def added(monkeypatch, tmp_path):
    """A format of one photo per split, known by a file that says so, with a folder of its own."""
    monkeypatch.setattr(FORMATS, "_registered", {})

    def load(root, split):
        if split not in splits(root):
            raise DataError(f"{root}: no split {split}")
        return Split(split, ("thing",), (Sample("1", root / split / "1.png", (0,)),))

    def splits(root):
        return [name for name in ("train", "val") if (root / name).is_dir()]

    def generate():
        (tmp_path / "made").mkdir()
        return tmp_path / "made"

    def add(**more):
        register("mine", DatasetFormat(load, splits, lambda root: (root / "mine.txt").exists(), **more))

    add.generate = generate
    root = tmp_path / "data"
    (root / "train").mkdir(parents=True)
    (root / "mine.txt").touch()
    Image.new("RGB", (4, 4)).save(root / "train" / "1.png")
    add.root = root
    return add


def test_a_format_that_was_added_is_a_full_citizen(added):
    added()
    assert format_of(added.root) == "mine" and split_names("mine", added.root) == ["train"]
    (split,) = load_all("mine", added.root)
    check_files(split, masks=True)
    assert not is_missing("mine", added.root, "val"), "an error says that it is not there"
    with pytest.raises(UsageError, match="the folder of the mine dataset is needed"):
        dataset_folder("mine", None)


def test_a_format_says_that_it_goes_without_validation_and_makes_its_own_data(added):
    added(val_may_be_missing=True, generate=added.generate)
    assert is_missing("mine", added.root, "val") and not is_missing("mine", added.root, "train")
    assert dataset_folder("mine", None).name == "made"


def test_a_name_is_given_once(added):
    added()
    with pytest.raises(UsageError, match='data.name: "mine" is taken by this program'):
        added()
    with pytest.raises(UsageError, match='data.name: "voc" is taken by afactl itself'):
        register("voc", DatasetFormat(lambda root, split: None, list))


def test_what_is_no_format_is_refused(monkeypatch):
    monkeypatch.setattr(FORMATS, "_registered", {"odd": list})
    with pytest.raises(PresetError, match='"odd" of this program is the class list; expected a DatasetFormat'):
        dataset_format("odd")


def test_formats_are_told_by_what_lies_in_a_folder(tmp_path, tiny_data, added):
    assert format_of(make_voc(tmp_path / "voc", {"train": []}, {})) == "voc"
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "instances_train2014.json").touch()
    assert format_of(tmp_path / "coco") == "coco" and format_of(tiny_data) == "folder"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="found none"):
        format_of(tmp_path / "empty")


def test_a_format_of_a_broken_package_stops_no_other(tmp_path, tiny_data, monkeypatch):
    monkeypatch.setattr(registry.FORMATS, "_registered", {"odd": list})
    assert format_of(tiny_data) == "folder"


def test_own_photos_go_without_validation_and_voc_does_not(tmp_path, tiny_data):
    root = make_voc(tmp_path, {"train": ["s1"]}, {"s1": [0, 1]})
    assert not is_missing("voc", root, "val")
    with pytest.raises(DataError, match="the list of split val is missing"):
        load_split("voc", root, "val")
    assert is_missing("folder", tiny_data, "holdout") and is_missing("demo", tiny_data, "holdout")


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (
            ["a.NEF", "b.nef", "c.cr2", "d.jpg"],
            r"split train: 3 files of camera RAW \(.cr2 1, .nef 2\), not read here: export as JPEG",
        ),
        (["a.mp4"], r"split train: 1 file of video \(.mp4 1\), not read here"),
    ],
)
def test_listed_files_that_hold_pictures_and_are_not_read_are_told_before_a_job(tmp_path, names, told):
    """Pillow opens some of them: as the small preview that they hold."""
    for name in names:
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=told):
        check_files(Split("train", ("a",), tuple(Sample(name, tmp_path / name, ()) for name in names)), masks=False)


def test_heic_without_its_reader_is_told_before_a_job(tmp_path, monkeypatch):
    monkeypatch.setattr(registry.importlib.util, "find_spec", lambda name: None)
    (tmp_path / "a.HEIC").write_bytes(b"x")
    for number, told in ((1, "1 photo is HEIC, .* or convert it"), (2, "2 photos are HEIC, .* or convert them")):
        samples = tuple(Sample(str(one), tmp_path / "a.HEIC", ()) for one in range(number))
        with pytest.raises(DependencyError, match=rf"split train: {told} to JPEG"):
            check_files(Split("train", ("a",), samples), masks=False)
