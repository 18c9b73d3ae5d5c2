import json

import numpy as np
import pytest
from PIL import Image

from afactl.datasets.folder import load
from afactl.datasets.masks import write_mask
from afactl.datasets.registry import check_files, data_fingerprint, load_split
from afactl.errors import DataError, PresetError, UsageError

HEADER = "image,split,labels\n"


def make(root, rows, classes=None, masks=False):
    """A folder with 8 x 8 photos for the rows `image,split,labels`."""
    (root / "labels.csv").write_text(HEADER + "\n".join(rows) + "\n", encoding="utf-8")
    if classes:
        (root / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
    for row in rows:
        path = root / row.split(",")[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path)
        if masks:
            name = path.relative_to(root / "images").with_suffix(".png")
            write_mask(root / "masks" / name, np.ones((8, 8), np.uint8))
    return root


def test_rows_become_samples(tmp_path):
    rows = ["images/train/a b.ä.jpg,train,cat|dog", "images/c.png,val,dog", "images/none.png,val,"]
    split = load(make(tmp_path, rows, ["dog", "cat"]), "train")
    (sample,) = split.samples
    assert sample.image_id == "train/a b.ä" and sample.labels == (0, 1) and sample.image_path.is_file()
    assert split.classes == ("dog", "cat") and split.masks is None
    assert [s.labels for s in load(tmp_path, "val").samples] == [(0,), ()]


def test_photos_that_differ_in_their_suffix_keep_it(tmp_path):
    split = load(
        make(tmp_path, ["images/a.png,train,cat", "images/a.jpg,train,cat", "images/A.b.png,train,cat"]), "train"
    )
    assert [sample.image_id for sample in split.samples] == ["a.png", "a.jpg", "A.b"]
    write_mask(tmp_path / "masks" / "a.jpg.png", np.full((8, 8), 1, np.uint8))
    split = load(tmp_path, "train")
    assert (
        split.masks.read(split.samples[1]).all()
        and split.masks.path(split.samples[0]) == tmp_path / "masks" / "a.png.png"
    )


def test_numbers_of_ones_own_annotations_stay_with_the_classes(tmp_path):
    """In the order of the classes, for masks that go back to the tool that they came from."""
    table = {
        "images": [{"id": 7, "file_name": "a.jpg"}],
        "annotations": [{"image_id": 7, "category_id": 31}, {"image_id": 7, "category_id": 5}],
        "categories": [{"id": 31, "name": "cat"}, {"id": 5, "name": "dog"}, {"id": 2, "name": "unused"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(table))
    split = load(tmp_path, "train")
    assert (split.classes, split.category_ids) == (("cat", "dog"), (31, 5))
    (tmp_path / "classes.txt").write_text("dog\ncat\n")
    assert load(tmp_path, "train").category_ids == (5, 31)
    (tmp_path / "classes.txt").write_text("dog\ncat\ncow\n")  # a class without a number
    assert load(tmp_path, "train").category_ids == ()
    table["categories"].append({"id": 9, "name": "cat"})  # a name with two
    (tmp_path / "annotations.json").write_text(json.dumps(table))
    (tmp_path / "classes.txt").unlink()
    assert load(tmp_path, "train").category_ids == ()


def test_numbers_of_the_classes_may_stand_beside_any_table(tmp_path):
    (tmp_path / "labels.csv").write_text("image,labels\na.jpg,cat|dog\n")
    listed = tmp_path / "categories.json"
    listed.write_text('[{"id": 31, "name": "cat"}, {"id": 5, "name": "dog", "supercategory": "animal"}]')
    assert load(tmp_path, "train").category_ids == (31, 5)
    listed.write_text('[{"id": 31, "name": "cat"}, {"id": 31, "name": "dog"}]')  # nothing that tells them apart
    assert load(tmp_path, "train").category_ids == ()
    for wrong in ('[{"id": 31}]', "7", '[{"id": 1, "name": ["cat"]}]'):
        listed.write_text(wrong)
        with pytest.raises(DataError, match=r"categories.json: expected COCO's categories, \[\{"):
            load(tmp_path, "train")


def test_without_a_class_list_the_names_are_sorted(tmp_path):
    assert load(make(tmp_path, ["images/a.png,train,zebra|ant"]), "train").classes == ("ant", "zebra")


def test_masks_are_found_and_a_missing_one_is_named(tmp_path):
    split = load(make(tmp_path, ["images/x/a.jpg,val,cat", "images/b.jpg,val,cat"], masks=True), "val")
    assert split.masks.read(split.samples[0]).shape == (8, 8)
    check_files(split, masks=True)
    (tmp_path / "masks" / "b.png").unlink()
    with pytest.raises(DataError, match=r"1 of 4 listed files are missing or empty \(first: .*b.png"):
        check_files(split, masks=True)
    check_files(split, masks=False)


def test_masks_of_the_validation_photos_alone_are_enough(tmp_path):
    make(tmp_path, ["images/a.jpg,train,cat", "images/b.jpg,val,cat"], masks=True)
    (tmp_path / "masks" / "a.png").unlink()
    train, val = (load(tmp_path, name) for name in ("train", "val"))
    assert train.masks is None and val.masks.read(val.samples[0]).shape == (8, 8)


def test_black_and_white_masks_are_the_one_class_and_that_is_said(tmp_path):
    make(tmp_path, ["images/a.png,train,cat", "images/b.png,val,cat"], masks=True)
    for name in ("a", "b"):
        Image.fromarray(np.array([[0, 255]], np.uint8)).save(tmp_path / "masks" / f"{name}.png")
    for name in ("train", "val"):
        split = load(tmp_path, name)
        assert split.require_masks().read(split.samples[0]).tolist() == [[0, 1]]
        assert split.notes == ("masks: white (255) is cat, since none of them holds the value 1",)
    write_mask(tmp_path / "masks" / "a.png", np.array([[1, 255]], np.uint8))
    split = load(tmp_path, "val")
    assert split.require_masks().read(split.samples[0]).tolist() == [[0, 255]] and not split.notes
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "masks" / "a.png").unlink()
    with pytest.raises(DataError, match="masks: none of 2 masks holds a class"):
        load(tmp_path, "val")


def test_missing_and_empty_photos_stop_the_job_before_it_starts(tmp_path):
    split = load(make(tmp_path, ["images/a.png,train,cat", "images/b.png,train,cat"]), "train")
    (tmp_path / "images" / "a.png").write_bytes(b"")
    (tmp_path / "images" / "b.png").unlink()
    with pytest.raises(DataError, match="split train: 2 of 2 listed files"):
        check_files(split, masks=False)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["images/a.png,train,kat"], r'line 2: class "kat" is not in classes.txt; did you mean "cat"'),
        (
            ["images/a.png,train,cat", "images/a.png,val,cat"],
            r"line 3: images/a.png is listed twice \(first: .*line 2\)",
        ),
        (
            ["images/a.png,train,cat", "images/A.png,val,cat"],
            "line 3: images/A.png is listed twice .* differ in more than case",
        ),
        (["../a.png,train,cat"], "line 2: ../a.png leaves the data folder"),
        (["/etc/a.png,train,cat"], "leaves the data folder"),
        ([",train,cat"], "line 2: expected an image and a split"),
        (["images/a.png,val,cat"], 'split "train" is empty; splits there: val'),
    ],
)
def test_wrong_rows_are_told_with_their_line(tmp_path, rows, message):
    (tmp_path / "labels.csv").write_text(HEADER + "\n".join(rows) + "\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    with pytest.raises(DataError, match=message):
        load(tmp_path, "train")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "expected the columns image, labels, got nothing; add image, labels"),
        (b"photo,split,labels\na,b,c\n", "got photo, split, labels; add image"),
        (HEADER.encode(), "no rows below the header"),
        (b"image,split,labels\n\xff\xfe,train,cat\n", "expected UTF-8 text"),
    ],
)
def test_a_table_that_is_none_is_explained(tmp_path, content, message):
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(DataError, match=message):
        load(tmp_path, "train")
    (tmp_path / "labels.csv").unlink()
    with pytest.raises(
        DataError, match="expected labels.csv, labels.json, annotations.json, Annotations or one folder"
    ):
        load(tmp_path, "train")


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    make(tmp_path, ["images/a.png,train,cat"])
    table = tmp_path / "labels.csv"
    table.write_bytes(b"\xef\xbb\xbf" + table.read_bytes())
    assert len(load(tmp_path, "train").samples) == 1


def test_class_lists_with_repeated_names_are_refused(tmp_path):
    make(tmp_path, ["images/a.png,train,cat"], ["cat", "cat"])
    with pytest.raises(DataError, match="each once"):
        load(tmp_path, "train")


def test_the_fingerprint_follows_list_labels_and_files(tmp_path):
    root = make(tmp_path, ["images/a.png,train,cat|dog", "images/b.png,train,dog"])
    before = data_fingerprint(load(root, "train"))
    assert before == data_fingerprint(load(root, "train"))
    (root / "labels.csv").write_text(HEADER + "images/a.png,train,cat\nimages/b.png,train,dog\n")
    assert data_fingerprint(load(root, "train")) != before


def test_the_registry_explains_what_is_wrong(tmp_path):
    with pytest.raises(PresetError, match='data.name: "foler" is unknown; did you mean "folder"'):
        load_split("foler", tmp_path, "train")
    with pytest.raises(UsageError, match="give --data DIR"):
        load_split("voc", None, "train")
    with pytest.raises(DataError, match="expected a folder, found nothing"):
        load_split("voc", tmp_path / "no", "train")


def test_animals(shared):
    root = shared / "data" / "animals"
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    train, val = (load_split("folder", root, name) for name in ("train", "val"))
    assert (len(train.samples), len(val.samples)) == (2740, 237)
    assert train.classes == ("cat", "dog", "horse", "cow", "sheep", "person")
    check_files(val, masks=True)
    sample = val.samples[0]
    present = set(np.unique(val.masks.read(sample)).tolist()) - {0, 255}
    assert present == {label + 1 for label in sample.labels}
