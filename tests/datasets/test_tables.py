"""Every form in which own photos carry their labels."""

import json

import pytest

from afactl.datasets import tables
from afactl.datasets.tables import read_rows, read_xml
from afactl.errors import DataError


def put(root, *photos):
    for photo in photos:
        (root / photo).parent.mkdir(parents=True, exist_ok=True)
        (root / photo).write_bytes(b"photo")


def found(root):
    return sorted((row.image, row.split, row.names) for row in read_rows(root))


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
def test_csv_in_three_dialects(tmp_path, delimiter):
    rows = [("image", "split", "labels"), ("images/a b.jpg", "val", "cat|dog"), ("images/ü.jpg", "train", "")]
    (tmp_path / "labels.csv").write_text("\n".join(delimiter.join(row) for row in rows), encoding="utf-8-sig")
    assert found(tmp_path) == [("images/a b.jpg", "val", ("cat", "dog")), ("images/ü.jpg", "train", ())]


def test_csv_without_splits_takes_them_from_the_folders(tmp_path):
    (tmp_path / "labels.csv").write_text("labels,image\ncat,images/val/a.jpg\ndog,b.jpg\n")
    assert found(tmp_path) == [("b.jpg", "train", ("dog",)), ("images/val/a.jpg", "val", ("cat",))]


def test_one_folder_per_class(tmp_path):
    put(tmp_path, "dog/a.JPG", "dog/deep/b.png", "background/c.webp", "masks/dog/a.png", "loose.jpg", "dog/notes.txt")
    assert found(tmp_path) == [
        ("background/c.webp", "train", ()),
        ("dog/a.JPG", "train", ("dog",)),
        ("dog/deep/b.png", "train", ("dog",)),
    ]


def test_one_folder_per_class_below_splits(tmp_path):
    put(tmp_path, "images/train/dog/a.jpg", "images/val/cat/b.jpg", "test/cat/c.jpg")
    assert found(tmp_path) == [
        ("images/train/dog/a.jpg", "train", ("dog",)),
        ("images/val/cat/b.jpg", "val", ("cat",)),
        ("test/cat/c.jpg", "test", ("cat",)),
    ]


def test_json_of_names(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"images/val/ä.jpg": ["cat"], "b.jpg": []}))
    assert found(tmp_path) == [("b.jpg", "train", ()), ("images/val/ä.jpg", "val", ("cat",))]


def test_json_in_the_style_of_coco(tmp_path):
    put(tmp_path, "images/a.jpg")
    table = {
        "images": [{"id": 7, "file_name": "a.jpg"}, {"id": 9, "file_name": "images/val/b.jpg"}],
        "annotations": [
            {"image_id": 7, "category_id": 3},
            {"image_id": 7, "category_id": 3},
            {"image_id": 7, "category_id": 1},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 3, "name": "dog"}],
    }
    (tmp_path / "annotations.json").write_text(json.dumps(table))
    assert found(tmp_path) == [("images/a.jpg", "train", ("dog", "cat")), ("images/val/b.jpg", "val", ())]


XML = "<annotation><filename>{name}</filename>{objects}</annotation>"
OBJECT = "<object><name>{name}</name><difficult>{difficult}</difficult><part><name>head</name></part></object>"


def test_xml_in_the_style_of_voc(tmp_path):
    put(tmp_path, "JPEGImages/a.jpg", "Annotations/a.xml")
    objects = (
        OBJECT.format(name="dog", difficult=0)
        + OBJECT.format(name="cat", difficult=1)
        + OBJECT.format(name="dog", difficult=0)
    )
    (tmp_path / "Annotations" / "a.xml").write_text(XML.format(name="a.jpg", objects=objects))
    assert found(tmp_path) == [("JPEGImages/a.jpg", "train", ("dog", "cat"))]
    assert read_xml(tmp_path / "Annotations" / "a.xml") == ("a.jpg", [("dog", False), ("cat", True), ("dog", False)])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("labels.json", "{", "cannot be read as JSON"),
        ("labels.json", "[" * 100_000, "cannot be read as JSON"),
        ("labels.json", "[1]", r'expected \{"photo.jpg": \["class", ...\], ...\}, got \[1\]'),
        ("labels.json", '{"a.jpg": "cat"}', 'labels.json: "a.jpg": expected a list of class names, got "cat"'),
        ("labels.json", '{"../a.jpg": ["cat"]}', "leaves the data folder"),
        ("annotations.json", '{"images": []}', "expected COCO's lists .* missing or unknown: 'categories'"),
        (
            "annotations.json",
            '{"images": [], "categories": [], "annotations": [{"image_id": 1, "category_id": 5}]}',
            "missing or unknown: 5",
        ),
        ("Annotations/a.xml", "<annotation>", "cannot be read as XML"),
        ("Annotations/a.xml", "<annotation/>", "expected a VOC annotation with a filename"),
        ("Annotations/a.xml", XML.format(name="../../x.jpg", objects=""), "leaves the data folder"),
        ("labels.csv", "image,labels\n\0,\0\n,", "expected an image"),
    ],
)
def test_what_is_wrong_is_told_with_its_place(tmp_path, name, content, message):
    put(tmp_path, name)
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path)


def test_a_billion_laughs_are_not_laughed(tmp_path):
    entities = "".join(f'<!ENTITY l{i} "{f"&l{i - 1};" * 10 if i else "ha" * 10}">' for i in range(12))
    put(tmp_path, "Annotations/a.xml")
    (tmp_path / "Annotations" / "a.xml").write_text(
        f"<!DOCTYPE x [{entities}]><annotation><filename>&l11;</filename></annotation>"
    )
    with pytest.raises(DataError, match="cannot be read as XML"):
        read_rows(tmp_path)


def test_tables_beyond_any_sense_are_refused_by_their_size(tmp_path, monkeypatch):
    monkeypatch.setattr(tables, "MAX_BYTES", 100)
    (tmp_path / "labels.json").write_text(json.dumps({f"{i}.jpg": ["cat"] for i in range(20)}))
    with pytest.raises(DataError, match="more than the 0 that a table of labels may have; split the dataset"):
        read_rows(tmp_path)
