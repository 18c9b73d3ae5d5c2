"""What `predict` hands over, read back by those for whom it is meant."""

import json
import tempfile
import xml.etree.ElementTree as ElementTree
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from afactl.datasets.images import read_image
from afactl.datasets.mask_encodings import voc_palette
from afactl.datasets.masks import read_mask
from afactl.errors import DependencyError, PresetError, UsageError
from afactl.prediction.label_studio import brush_rle
from afactl.prediction.registry import WRITERS
from afactl.prediction.writers import VOC_FOLDER, Labelled, coco_image_id, writer_class

CLASSES = ("cat", "dog")


def labelled(name="deep/a.png", enlarged=1, seed=0):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(size=(3, 6, 8)).astype(np.float32))
    mask = logits.argmax(0).numpy().astype(np.uint8)
    return Labelled(
        Path(name),
        Path(name).with_suffix(".jpg"),
        (6 * enlarged, 8 * enlarged),
        rng.integers(0, 256, (6, 8, 3)).astype(np.uint8),
        mask,
        logits,
    )


@pytest.fixture(params=[1, 2])
def one(request):
    return labelled(enlarged=request.param)


def write(form, out, *photos):
    writer = writer_class(form)(out, CLASSES)
    for photo in photos:
        writer.add(photo)
    paths = [photo.path for photo in photos]
    writer.close(paths)
    return [writer.target(path) for path in paths], writer.files(paths)


def test_png(tmp_path, one):
    (path,), files = write("png", tmp_path, one)
    assert files == [path] and path == tmp_path / "deep" / "a.png"
    mask = read_mask(path, 2)
    assert mask.shape == one.size and np.array_equal(mask[:: one.size[0] // 6, :: one.size[0] // 6], one.mask)


def test_grey(tmp_path, one):
    (path,), files = write("grey", tmp_path, one)
    assert files == [path] and path == tmp_path / "deep" / "a.png"
    with Image.open(path) as image:
        assert image.mode == "L" and image.size == one.size[::-1], "no palette that others would apply"
        assert np.array_equal(np.array(image), one.full) and one.full.any()


def test_overlay(tmp_path, one):
    (path,), _ = write("overlay", tmp_path, one)
    assert path.name == "a_overlay.png" and read_image(path).shape == (6, 8, 3)


def test_probabilities(tmp_path, one):
    (path,), _ = write("probabilities", tmp_path, one)
    found = np.load(path)
    assert found.dtype == np.float16 and np.allclose(found.astype(np.float32).sum(0), 1, atol=2e-3)
    assert np.allclose(found, one.logits.softmax(0).numpy(), atol=1e-3)


def test_coco_reads_its_list_back(tmp_path):
    coco = pytest.importorskip("pycocotools.coco", reason="COCO needs the extra [coco]")
    photos = [labelled("COCO_val2014_000000000042.png", 2), labelled("deep/a.png", seed=1)]
    _, (path,) = write("coco-rle", tmp_path, *photos)
    entries = json.loads(path.read_text())
    assert {(entry["image_id"], entry["file_name"]) for entry in entries} == {
        (42, "COCO_val2014_000000000042.jpg"),
        ("deep/a", "deep/a.jpg"),
    }
    truth = coco.COCO()
    truth.dataset = {
        "images": [{"id": 42, "height": 12, "width": 16}, {"id": "deep/a", "height": 6, "width": 8}],
        "annotations": [],
        "categories": [{"id": 1}, {"id": 2}],
    }
    truth.createIndex()
    back = truth.loadRes(str(path))
    for photo, image_id in zip(photos, (42, "deep/a"), strict=True):
        rebuilt = np.zeros(photo.size, np.uint8)
        for entry in back.loadAnns(back.getAnnIds(imgIds=[image_id])):
            rebuilt[back.annToMask(entry) > 0] = entry["category_id"]
            expected = photo.logits.softmax(0)[entry["category_id"]].numpy()[photo.mask == entry["category_id"]].mean()
            assert entry["score"] == pytest.approx(expected, abs=1e-3)
        assert np.array_equal(rebuilt, photo.full)


def test_coco_entries_have_the_ids_of_the_data(tmp_path, one):
    pytest.importorskip("pycocotools", reason="COCO needs the extra [coco]")
    writer = writer_class("coco-rle")(tmp_path, ("stop sign", "toothbrush"))
    writer.category_ids = (13, 90)
    writer.add(one)
    writer.close([one.path])
    found = {entry["category_id"] for entry in json.loads((tmp_path / "results.json").read_text())}
    assert found == {(13, 90)[value - 1] for value in np.unique(one.mask[one.mask > 0])} and found


def test_voc_server(tmp_path, one):
    _, (path,) = write("voc-server", tmp_path, one)
    with zipfile.ZipFile(path) as archive:
        assert archive.namelist() == [f"{VOC_FOLDER}/a.png"]
        archive.extractall(tmp_path / "open")
    assert np.array_equal(read_mask(tmp_path / "open" / VOC_FOLDER / "a.png", 2), one.full)


def test_cvat(tmp_path, one):
    _, (path,) = write("cvat", tmp_path, one, labelled("b.png"))
    with zipfile.ZipFile(path) as archive:
        archive.extractall(tmp_path / "open")
    assert (tmp_path / "open/ImageSets/Segmentation/default.txt").read_text().split() == ["deep/a", "b"]
    lines = (tmp_path / "open/labelmap.txt").read_text().splitlines()
    assert lines[1:] == ["background:0,0,0::", "cat:128,0,0::", "dog:0,128,0::"]
    colors = np.asarray(Image.open(tmp_path / "open/SegmentationClass/deep/a.png"))
    assert np.array_equal(colors, voc_palette()[one.full])


def test_label_studio(tmp_path):
    one, other = labelled("deep/ü b.png", 2), labelled("b.png", seed=1)
    _, (path, config) = write("label-studio", tmp_path, one, other)
    tasks = json.loads(path.read_text())
    assert [task["data"]["image"] for task in tasks] == [
        "/data/local-files/?d=deep/%C3%BC%20b.jpg",
        "/data/local-files/?d=b.jpg",
    ]
    (prediction,) = tasks[0]["predictions"]
    assert [region["value"]["brushlabels"] for region in prediction["result"]] == [["cat"], ["dog"]]
    for value, region in enumerate(prediction["result"], 1):
        assert (region["original_height"], region["original_width"]) == one.full.shape == (12, 16)
        assert region["value"]["rle"] == brush_rle(one.full == value)
        assert region["score"] == pytest.approx(
            float(one.logits.softmax(0)[value][torch.from_numpy(one.mask == value)].mean()), abs=1e-4
        )
    control, image = (ElementTree.parse(config).find(tag) for tag in ("BrushLabels", "Image"))
    region = prediction["result"][0]
    assert (control.get("name"), image.get("name"), image.get("value")) == (
        region["from_name"],
        region["to_name"],
        "$image",
    )
    assert [(label.get("value"), label.get("background")) for label in control] == [
        ("cat", "#800000"),
        ("dog", "#008000"),
    ]


@pytest.mark.parametrize("form", ["voc-server", "cvat", "coco-rle", "label-studio"])
def test_one_file_for_all_appears_only_when_it_is_whole(tmp_path, form):
    pytest.importorskip("pycocotools", reason="COCO needs the extra [coco]")
    writer = writer_class(form)(tmp_path, CLASSES)
    writer.add(labelled())
    assert not [path for path in writer.files([labelled().path]) if path.exists()]
    writer.close([labelled().path])
    assert all(path.is_file() for path in writer.files([labelled().path]))
    assert {path for path in tmp_path.iterdir() if path.is_file()} == set(writer.files([labelled().path]))


def objection(form, *names, classes=CLASSES, crf=False):
    return writer_class(form)(Path("out"), classes).objection([Path(name) for name in names], crf)


def test_the_server_knows_masks_by_their_name_alone():
    assert "2 photos are named a" in objection("voc-server", "x/a.png", "y/a.png")
    assert objection("voc-server", "x/a.png") is None
    assert objection("cvat", "x/a.png", "y/a.png", crf=True) is None


def test_the_crf_gives_no_probabilities():
    assert "leave --crf out" in objection("probabilities", "a.png", crf=True)
    assert objection("probabilities", "a.png") is None


@pytest.mark.parametrize(
    ("name", "image_id"),
    [
        ("000000000042.png", 42),
        ("deep/COCO_val2014_000000000042.png", 42),
        ("COCO_train2014_000000581929.png", 581929),
        ("2007_000032.png", "2007_000032"),
        ("deep/IMG_0042.png", "deep/IMG_0042"),
        ("cats/a1.png", "cats/a1"),
        ("\u0661\u0662.png", "\u0661\u0662"),
        ("a.jpg.png", "a.jpg"),
    ],
)
def test_an_image_id_is_the_number_of_cocos_names_and_the_path_of_others(name, image_id):
    assert coco_image_id(Path(name)) == image_id


@pytest.mark.parametrize(
    "names", [("cats/0001.png", "dogs/0001.png"), ("1.png", "01.png"), ("1.png", "COCO_val2014_001.png")]
)
def test_two_photos_with_one_image_id_are_refused(names):
    pytest.importorskip("pycocotools", reason="COCO needs the extra [coco]")
    both = " and ".join(name.removesuffix(".png") for name in names)
    assert (
        objection("coco-rle", *names) == f"{both} would both be image_id 1; predict them into different --out folders"
    )
    assert objection("coco-rle", "2007_000032.png", "2008_000032.png", "1.png") is None


def label_map(text):
    """What a reader of labelmap.txt understands: a name per line, up to the colon; lines that begin with # are none."""
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n")]
    fields = [line.split(":") for line in lines if line and not line.startswith("#")]
    assert all(len(one) == 4 for one in fields)
    return {one[0]: tuple(int(part) for part in one[1].split(",")) for one in fields}


@settings(max_examples=60)
@given(
    st.lists(
        st.text(min_size=1, max_size=8) | st.text(":# \r\nab", min_size=1, max_size=4),
        min_size=1,
        max_size=3,
        unique=True,
    )
)
def test_any_names_of_classes_come_back_from_cvats_list_or_are_refused_by_name(classes):
    refusal = objection("cvat", "a.png", classes=classes)
    bad = [
        name
        for name in classes
        if name == "background" or name.strip() != name or name[0] == "#" or set(name) & set(":\r\n")
    ]
    if bad:
        assert f"cannot hold {bad[0]!r}" in refusal
        return
    assert refusal is None
    with tempfile.TemporaryDirectory() as folder:
        writer = writer_class("cvat")(Path(folder), classes)
        writer.close([])
        with zipfile.ZipFile(Path(folder) / "masks.zip") as archive:
            found = label_map(archive.read("labelmap.txt").decode("utf-8"))
    assert list(found) == ["background", *classes]
    assert list(found.values()) == [tuple(color) for color in voc_palette()[: len(classes) + 1].tolist()]


@pytest.mark.parametrize("name", ["dog: big", "#dog", " dog", "dog ", "two\nlines", "background", "caf\udce9"])
def test_a_class_that_cvats_list_cannot_hold_is_named(name):
    assert f"CVAT's list of classes cannot hold {name!r}" in objection("cvat", "a.png", classes=("cat", name))


def test_a_class_that_xml_cannot_hold_is_named(tmp_path):
    assert "the class 'dog\\x01'" in objection("label-studio", "a.png", classes=("cat", "dog\x01"))
    odd = ("two\nlines", "<b>&\"'", "\U0001f415")
    assert objection("label-studio", "a.png", classes=odd) is None
    writer = writer_class("label-studio")(tmp_path, odd)
    writer.close([])
    labels = ElementTree.parse(tmp_path / "labeling.xml").find("BrushLabels")
    assert [label.get("value") for label in labels] == list(odd)


@pytest.mark.parametrize("form", ["voc-server", "cvat"])
@pytest.mark.parametrize("name", ["caf\udce9.png", "two\nlines.png"])
def test_a_photo_whose_name_no_archive_can_hold_is_named(form, name):
    assert f"the name {name.removesuffix('.png')!r} is no UTF-8, or of two lines; rename the photo" in objection(
        form, name
    )


def test_label_studio_finds_a_photo_whose_name_is_no_utf8(tmp_path):
    one = labelled("caf\udce9.png")
    _, (path, _) = write("label-studio", tmp_path, one)
    assert json.loads(path.read_text())[0]["data"]["image"] == "/data/local-files/?d=caf%E9.jpg"


def test_a_form_has_a_name_of_its_own_and_is_a_writer(monkeypatch):
    monkeypatch.setattr(WRITERS, "_registered", {"odd": list})
    with pytest.raises(PresetError, match='--format: "odd" of this program is the class list; expected a subclass of'):
        writer_class("odd")
    with pytest.raises(UsageError, match='--format: "png" is taken by afactl itself'):
        WRITERS.register("png", object)


def test_what_is_missing_is_said_before_the_work(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pycocotools", None)
    with pytest.raises(DependencyError, match="pip install 'afactl\\[coco\\]'"):
        writer_class("coco-rle")(tmp_path, CLASSES)
