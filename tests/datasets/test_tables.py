"""Every form in which own photos carry their labels."""

import csv
import io
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from afactl.datasets import tables
from afactl.datasets.tables import read_classes, read_rows, read_tags, read_xml
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


def test_links_hidden_folders_and_background_beside_classes(tmp_path):
    put(tmp_path / "elsewhere", "a.jfif")
    root = tmp_path / "root"
    put(root, "cat/b.avif", "cat/c.txt", ".ipynb_checkpoints/b.jpg", "Background/d.jpg", "_background_/e.jpg", "f.jpg")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    rows, notes, _ = read_tags(root)
    assert sorted((row.image, row.names) for row in rows) == [
        ("Background/d.jpg", ()),
        ("_background_/e.jpg", ()),
        ("cat/b.avif", ("cat",)),
        ("dog/a.jfif", ("dog",)),
    ]
    (note,) = notes
    assert note == (
        "passed over: 1 other file (.txt 1); 1 hidden or system entry (.ipynb_checkpoints); 1 photo in no class folder"
    )


def test_background_is_no_label_in_any_table(tmp_path):
    (tmp_path / "labels.json").write_text(json.dumps({"a.jpg": ["Background", "cat"], "b.jpg": ["_background_"]}))
    rows, notes, _ = read_tags(tmp_path)
    assert [row.names for row in rows] == [("cat",), ()]
    assert notes == ("labels: background is no class and was left out of 2 photos",)


@pytest.mark.parametrize(
    ("lines", "left_out"),
    [
        (["background", "cat", "dog"], ("background",)),
        (["__ignore__", "_background_", "cat", "dog"], ("__ignore__", "_background_")),
        (["BACKGROUND", "cat", "dog"], ("BACKGROUND",)),
        (["cat", "dog"], ()),
    ],
)
def test_class_lists_of_other_tools_lose_what_is_no_class(tmp_path, lines, left_out):
    (tmp_path / "classes.txt").write_text("\n".join(lines) + "\n", encoding="utf-8-sig")
    found = read_classes(tmp_path)
    assert found.names == ["cat", "dog"] and found.left_out == left_out


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["cat", "background", "dog"], '"background" is no class'),
        (["cat", "__ignore__"], '"__ignore__" is no class'),
        (["__ignore__", "cat"], 'expected background after "__ignore__"'),
        (["background"], "got 0 names"),
    ],
)
def test_class_lists_that_would_shift_the_values_are_refused(tmp_path, lines, message):
    (tmp_path / "classes.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match=message):
        read_classes(tmp_path)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ("image,labels\na.jpg,dog,cat\n", "line 2: 3 fields, the header has 2; join the labels of a photo by |"),
        ("image,labels\nb.jpg,cat\na.jpg\n", "line 3: 1 fields, the header has 2"),
        ('image,labels\na.jpg,"dog,cat"\n', 'line 2: "dog,cat" may be one class or several'),
        ("image,labels\na.jpg,dog;cat\nb.jpg,dog\n", 'line 2: "dog;cat" may be one class or several'),
        ("image,labels\na.jpg,dog|cat\nb.jpg,dog;cat\n", 'line 3: "dog;cat" may be one class or several'),
        ('image,labels\na.jpg,"dog\nb.jpg,cat\n', "cannot be read as a table"),
    ],
)
def test_a_label_that_would_be_lost_or_glued_is_told_with_its_line(tmp_path, table, message):
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(DataError, match=message.replace("|", r"\|")):
        read_rows(tmp_path)


@pytest.mark.parametrize(("sign", "quote"), [(";", ""), (",", '"')])
def test_another_joiner_is_one_where_every_part_is_a_class_of_the_table(tmp_path, sign, quote):
    both = f"{quote}dog{sign}cat{quote}"
    (tmp_path / "labels.csv").write_text(f"image,labels\na.jpg,{both}\nb.jpg,dog\nc.jpg,cat\n")
    assert [names for _, _, names in found(tmp_path)] == [("dog", "cat"), ("dog",), ("cat",)]
    (tmp_path / "labels.csv").write_text(f"image,labels\na.jpg,{both}\n")
    (tmp_path / "classes.txt").write_text("cat\ndog\n")
    assert found(tmp_path) == [("a.jpg", "train", ("dog", "cat"))]
    (tmp_path / "classes.txt").write_text(f"cat\ndog{sign}cat\n")
    assert found(tmp_path) == [("a.jpg", "train", (f"dog{sign}cat",))]


WORDS = st.text(st.characters(blacklist_categories=("Cs", "Cc", "Zl", "Zp"), blacklist_characters="|;,"), min_size=1)
NO_CLASS = ("background", "_background_", "__ignore__")
PLAIN = WORDS.map(str.strip).filter(lambda name: name and name.casefold() not in NO_CLASS)


@settings(deadline=None)
@given(
    st.lists(
        st.tuples(st.lists(PLAIN, max_size=3, unique=True), st.sampled_from(["train", "val"])), min_size=1, max_size=6
    ),
    st.sampled_from(",;\t"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    st.sampled_from(["\n", "\r\n"]),
    st.sampled_from(["utf-8", "utf-8-sig"]),
    st.permutations(["image", "split", "labels"]),
)
def test_what_pythons_csv_writes_is_read_as_it_was_meant(
    tmp_path_factory, rows, delimiter, quoting, end, encoding, order
):
    root = tmp_path_factory.mktemp("csv")
    with open(root / "labels.csv", "w", encoding=encoding, newline="") as file:
        writer = csv.writer(file, delimiter=delimiter, quoting=quoting, lineterminator=end)
        writer.writerow(order)
        for number, (names, split) in enumerate(rows):
            entry = {"image": f"{number} a{delimiter}b.jpg", "split": split, "labels": "|".join(names)}
            writer.writerow([entry[column] for column in order])
    expected = [(f"{number} a{delimiter}b.jpg", split, tuple(names)) for number, (names, split) in enumerate(rows)]
    assert [(row.image, row.split, row.names) for row in read_rows(root)] == expected


@settings(deadline=None, max_examples=200)
@given(st.text('ab,;|"\n ', max_size=40), st.sampled_from(",;"))
def test_no_word_of_a_table_is_lost(tmp_path_factory, text, delimiter):
    """Whatever is read has as many fields as Python's csv sees, and every letter of its labels in some name."""
    root = tmp_path_factory.mktemp("csv")
    (root / "labels.csv").write_text(f"image{delimiter}labels\n{text}", newline="")
    try:
        rows = read_rows(root)
    except DataError:
        return
    fields = [line for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if line]
    assert [len(line) for line in fields] == [2] * len(rows)
    for line, row in zip(fields, rows, strict=True):
        assert row.image == line[0].strip()
        assert "".join(row.names).replace(" ", "") == line[1].translate(str.maketrans("", "", "|;, \n"))
        assert all(not set(name) & set("|;,\n") for name in row.names)


def test_annotations_of_other_tools(tmp_path):
    """Lower case, a byte order mark, another encoding, and a file name without suffix."""
    put(tmp_path, "images/a.JPG", "images/b.png", "annotations/a.xml", "annotations/b.xml")
    text = XML.format(name="a", objects=OBJECT.format(name="dög", difficult=0))
    (tmp_path / "annotations/a.xml").write_text(text, encoding="utf-8-sig")
    declared = '<?xml version="1.0" encoding="utf-16"?>' + XML.format(name="b.png", objects="")
    (tmp_path / "annotations/b.xml").write_text(declared, encoding="utf-16")
    assert found(tmp_path) == [("images/a.JPG", "train", ("dög",)), ("images/b.png", "train", ())]
    put(tmp_path, "images/a.png")
    with pytest.raises(DataError, match=r"a.xml: the filename a has no suffix; photos of that name: .*a.JPG, .*a.png"):
        read_rows(tmp_path)
