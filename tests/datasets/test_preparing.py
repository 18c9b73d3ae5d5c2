"""Lists, labels and masks that are made once of a download."""

import csv
import json
import math
import shutil

import numpy as np
import pytest
from PIL import Image

from afactl.datasets import coco, demo, preparing, voc
from afactl.datasets.masks import read_mask, write_mask
from afactl.datasets.preparing import Disagreement, prepare_coco, prepare_folder, prepare_voc, set_aside
from afactl.datasets.registry import load_split
from afactl.errors import DataError, PresetError, UsageError
from tests.conftest import make_voc

XML = "<annotation><filename>{name}.jpg</filename>{objects}</annotation>"
OBJECT = "<object><name>{name}</name><difficult>{difficult}</difficult></object>"


def xml(root, image_id, **objects):
    (root / "Annotations").mkdir(exist_ok=True)
    parts = "".join(OBJECT.format(name=name, difficult=difficult) for name, difficult in objects.items())
    (root / "Annotations" / f"{image_id}.xml").write_text(XML.format(name=image_id, objects=parts))


@pytest.fixture
def root(tmp_path):
    """VOC with one photo in train and one in val; no SBD."""
    return make_voc(tmp_path / "VOC2012", {"train": ["t1"], "val": ["v1"]}, {"t1": [0, 1], "v1": [15, 255]})


def labels(root, split, source=None):
    return [(sample.image_id, sample.labels) for sample in load_split("voc", root, split, source).samples]


def test_without_sbd_the_plain_list_serves(root):
    done = prepare_voc(root)
    assert done.counts == {"train": 1, "val": 1} and not done.augmented and done.converted == 0


def test_sbd_as_png_joins_train_and_leaves_val_out(root, tmp_path):
    for image_id in ("s1", "v1", "t1"):
        write_mask(tmp_path / "sbd" / f"{image_id}.png", np.array([[7, 7]], np.uint8))
    done = prepare_voc(root, sbd=tmp_path / "sbd")
    assert done.counts == {"train": 1, "val": 1, "train_aug": 2} and done.converted == 2
    assert labels(root, "train_aug") == [("s1", (6,)), ("t1", (0,))], "the official mask of t1 comes first"
    assert not (root / "SegmentationClassAug" / "v1.png").exists()
    assert prepare_voc(root, sbd=tmp_path / "sbd").converted == 0, "a second time finds all done"


def test_sbd_as_mat(root, tmp_path):
    savemat = pytest.importorskip("scipy.io", reason="SBD's .mat files need the extra [sbd]").savemat
    (tmp_path / "sbd" / "cls").mkdir(parents=True)
    mask = np.array([[0, 20, 3], [0, 3, 3]], np.uint8)
    savemat(tmp_path / "sbd" / "cls" / "s1.mat", {"GTcls": {"Segmentation": mask, "Boundaries": 0}})
    assert prepare_voc(root, sbd=tmp_path / "sbd").counts["train_aug"] == 2, (
        "train's own photo is in it, with or without SBD"
    )
    assert np.array_equal(read_mask(root / "SegmentationClassAug" / "s1.png", 20), mask)
    (tmp_path / "sbd" / "cls" / "s2.mat").write_bytes(b"broken")
    with pytest.raises(DataError, match="s2.mat: cannot be read as a mask of SBD"):
        prepare_voc(root, sbd=tmp_path / "sbd", overwrite=True)


def test_a_list_that_was_downloaded_is_replaced_only_where_the_user_says_so(root, tmp_path):
    write_mask(tmp_path / "sbd" / "s1.png", np.array([[7, 7]], np.uint8))
    mine = root / "ImageSets" / "Segmentation" / "train_aug.txt"
    mine.write_text("t1\ns9\n")
    before = sorted(root.rglob("*"))
    with pytest.raises(UsageError, match="train_aug.txt: is there already and names other photos; --overwrite"):
        prepare_voc(root, sbd=tmp_path / "sbd")
    assert mine.read_text() == "t1\ns9\n" and sorted(root.rglob("*")) == before, "before any work"
    mine.write_text("t1\ns1\n")
    assert prepare_voc(root, sbd=tmp_path / "sbd").converted == 1, "the same photos"
    mine.write_text("t1\ns9\n")
    prepare_voc(root, sbd=tmp_path / "sbd", overwrite=True)
    assert mine.read_text() == "s1\nt1\n"


def test_a_prepared_folder_serves_labels_of_masks_and_of_xml(root):
    xml(root, "t1", aeroplane=0, dog=1)
    done = prepare_voc(root)
    assert done.disagreements == [Disagreement("t1", (), ("dog",))] and (done.compared, done.without_xml) == (1, 1)
    assert labels(root, "train", "xml") == [("t1", (0, 11))]
    assert labels(root, "train", "masks") == labels(root, "train") == [("t1", (0,))]
    assert labels(root, "val", "xml") == [("v1", (14,))], "without XML those of the mask"
    assert not prepare_voc(root, difficult=False).disagreements
    assert labels(root, "train", "xml") == [("t1", (0,))]
    xml(root, "t1", cat=0)
    assert prepare_voc(root).disagreements == [Disagreement("t1", ("aeroplane",), ("cat",))]
    assert labels(root, "train", "xml") == [("t1", (7,))] and labels(root, "train", "masks") == [("t1", (0,))]


def test_labels_that_an_earlier_version_chose_for_the_folder_stay_its_own(root):
    (root / voc.CHOSEN_LABELS).write_text(json.dumps({"t1": ["dog"]}))
    assert labels(root, "train") == [("t1", (11,))]
    assert labels(root, "train", "masks") == [("t1", (0,))]
    xml(root, "t1", cat=0)
    prepare_voc(root)
    assert labels(root, "train") == [("t1", (11,))] and labels(root, "train", "xml") == [("t1", (7,))]


def test_sources_of_labels_that_are_not_there_are_told(root, tiny_data):
    prepare_voc(root)
    with pytest.raises(DataError, match=r"xml_labels.json: data.labels=xml needs .*or set data.labels=masks"):
        labels(root, "train", "xml")
    with pytest.raises(
        PresetError, match='data.labels: "xlm" .* expected one of masks, xml, or null; did you mean "xml"'
    ):
        labels(root, "train", "xlm")
    with pytest.raises(PresetError, match="no source of labels of the format folder; expected null$"):
        load_split("folder", tiny_data, "train", "xml")


@pytest.mark.parametrize(("name", "source"), [(voc.CHOSEN_LABELS, None), (voc.XML_LABELS, "xml")])
def test_labels_that_are_no_labels_are_refused(root, name, source):
    (root / name).write_text(json.dumps({"t1": ["../../x"]}))
    with pytest.raises(DataError, match="expected image ids with class names"):
        labels(root, "train", source)


def test_folders_without_masks_are_refused(root, tmp_path):
    with pytest.raises(DataError, match="expected SBD's cls"):
        prepare_voc(root, sbd=tmp_path)
    with pytest.raises(DataError, match="expected JPEGImages"):
        prepare_voc(tmp_path)


def test_voc_mini(shared, tmp_path):
    data = shared / "data" / "voc-mini" / "VOCdevkit" / "VOC2012"
    if not data.is_dir():
        pytest.skip(f"{data} is absent")
    copy = tmp_path / "VOC2012"
    for folder in ("Annotations", "ImageSets", "SegmentationClass"):
        shutil.copytree(data / folder, copy / folder)
    (copy / "JPEGImages").symlink_to(data / "JPEGImages")
    plain = prepare_voc(copy)
    assert plain.counts == {"train": 90, "val": 70} and plain.compared <= 49
    done = prepare_voc(copy, sbd=data / "SegmentationClassAug")
    assert done.counts == {"train": 90, "val": 70, "train_aug": 120} and done.converted == 120
    assert {s.image_id for s in voc.load(copy, "train_aug").samples} == {
        s.image_id for s in voc.load(data, "train_aug").samples
    }
    of_masks, of_xml = (dict(labels(copy, "train_aug", source)) for source in ("masks", "xml"))
    differing = {image_id for image_id in of_masks if of_masks[image_id] != of_xml[image_id]}
    assert differing == {one.image_id for one in done.disagreements} & set(of_masks)


@pytest.fixture
def coco_mini(shared, tmp_path):
    pytest.importorskip("pycocotools", reason="COCO masks need the extra [coco]")
    data = shared / "data" / "coco-mini"
    if not data.is_dir():
        pytest.skip(f"{data} is absent")
    shutil.copytree(data / "annotations", tmp_path / "annotations")
    for split in coco.SPLITS:
        (tmp_path / f"{split}{coco.YEAR}").symlink_to(data / f"{split}{coco.YEAR}")
    return tmp_path


def test_prepared_coco_is_the_same_as_coco(coco_mini, monkeypatch):
    before = coco.load(coco_mini, "val")
    masks = [before.masks.read(sample) for sample in before.samples]
    done = prepare_coco(coco_mini, "val")
    assert (done.photos, done.drawn) == (43, 43)
    monkeypatch.setattr(coco, "read_instances", None)  # the annotations are not needed any more
    after = coco.load(coco_mini, "val")
    assert (after.classes, after.samples) == (before.classes, before.samples)
    for sample, mask in zip(after.samples, masks, strict=True):
        assert np.array_equal(after.masks.read(sample), mask) and after.masks.path(sample).is_file()


def test_large_annotations_are_read_in_parts_with_the_same_result(coco_mini, monkeypatch):
    """43 photos in parts of at most 7."""
    prepare_coco(coco_mini, "val")
    table, masks = coco.prepared_paths(coco_mini, "val")
    expected = table.read_text(), {path.name: path.read_bytes() for path in masks.iterdir()}
    shutil.rmtree(table.parent)
    sizes = []
    original = coco.read_part
    monkeypatch.setattr(coco, "read_part", lambda *given: sizes.append(len((part := original(*given)).photos)) or part)
    monkeypatch.setattr(
        preparing, "AT_ONCE_BYTES", math.ceil(coco.annotations_path(coco_mini, "val").stat().st_size / 7)
    )
    done = prepare_coco(coco_mini, "val")
    assert (done.photos, done.drawn) == (43, 43) and sizes == [7, 6, 6, 6, 6, 6, 6]
    assert (table.read_text(), {path.name: path.read_bytes() for path in masks.iterdir()}) == expected


def test_a_stopped_preparation_goes_on(coco_mini):
    table, folder = coco.prepared_paths(coco_mini, "val")
    seen = []

    def stopping(photos):
        for photo in photos:
            if len(seen) == 10:
                raise KeyboardInterrupt
            seen.append(photo)
            yield photo

    with pytest.raises(KeyboardInterrupt):
        prepare_coco(coco_mini, "val", stopping)
    assert not table.exists()
    there = {path.name: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    assert prepare_coco(coco_mini, "val").drawn == 43 - len(there)
    assert {name: (folder / name).stat().st_mtime_ns for name in there} == there, "finished masks are left alone"


def test_other_annotations_are_prepared_anew(coco_mini):
    prepare_coco(coco_mini, "val")
    path = coco.annotations_path(coco_mini, "val")
    table = json.loads(path.read_text())
    table["annotations"] = []
    path.write_text(json.dumps(table))
    assert all(not sample.labels for sample in coco.load(coco_mini, "val").samples)
    done = prepare_coco(coco_mini, "val")
    assert (done.drawn, done.empty) == (43, 43)


def rows_of(root):
    with open(root / "labels.csv", encoding="utf-8", newline="") as file:
        return [(row["image"], row["split"], row["labels"]) for row in csv.DictReader(file)]


@pytest.fixture
def tagged(tmp_path):
    """Ten photos of cats and ten of dogs in class folders, one in a folder whose name holds a comma."""
    for number in range(20):
        name = ("cat", "dog, small")[number % 2]
        (tmp_path / name).mkdir(exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), number, np.uint8)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_a_table_of_class_folders_holds_what_the_folders_say(tagged):
    before = load_split("folder", tagged, "train")
    done = prepare_folder(tagged)
    assert (
        done.splits == {"train": {"cat": 10, "dog, small": 10}} and done.photos == {"train": 20} and done.left_out == 0
    )
    after = load_split("folder", tagged, "train")
    assert (after.classes, after.samples) == (before.classes, before.samples)
    with pytest.raises(UsageError, match="labels.csv: is there already; --overwrite"):
        prepare_folder(tagged)


def test_numbers_of_the_classes_outlive_the_annotations_they_came_from(tagged):
    table = {
        "images": [{"id": 7, "file_name": "cat/0.png"}],
        "annotations": [{"image_id": 7, "category_id": 31}],
        "categories": [{"id": 31, "name": "cat"}],
    }
    (tagged / "annotations.json").write_text(json.dumps(table))
    prepare_folder(tagged)
    assert load_split("folder", tagged, "train").category_ids == (31,)
    own = '[{"id": 4, "name": "cat"}]'
    (tagged / "categories.json").write_text(own)
    prepare_folder(tagged, overwrite=True)
    assert (tagged / "categories.json").read_text() == own


def test_photos_are_set_aside_once(tagged):
    done = prepare_folder(tagged, val=0.25, seed=1)
    assert done.photos == {"train": 15, "val": 5} and sum(done.splits["val"].values()) == 5
    first = rows_of(tagged)
    with pytest.raises(UsageError, match="there is a split val already \\(5 photos\\)"):
        prepare_folder(tagged, val=0.25, overwrite=True)
    (tagged / "labels.csv").unlink()
    prepare_folder(tagged, val=0.25, seed=1)
    assert rows_of(tagged) == first, "the seed tells which"
    (tagged / "labels.csv").unlink()
    prepare_folder(tagged, val=0.25, seed=2)
    assert rows_of(tagged) != first


def test_only_training_photos_are_set_aside(tagged):
    (tagged / "test").mkdir()
    (tagged / "cat").rename(tagged / "test" / "cat")
    done = prepare_folder(tagged, val=0.5)
    assert done.photos == {"train": 5, "val": 5, "test": 10}


@pytest.mark.parametrize("seed", range(5))
def test_no_class_is_set_aside_as_a_whole(seed):
    labels = [("cat",)] * 8 + [("cat", "zebra"), ("ant",), ()]
    aside = set_aside(labels, 0.9, seed)
    assert aside == {*range(8), 10}, "of zebra, ant and cat one photo is left"


def test_labels_from_masks(tmp_path):
    data = demo.generate(tmp_path / "own", train=5, val=2, size=64)
    expected = rows_of(data)
    (data / "labels.csv").unlink()
    (data / "masks/train/0003.png").unlink()
    done = prepare_folder(data, labels_from="masks")
    assert done.left_out == 1 and done.photos == {"train": 4, "val": 2}
    found = {image: (split, set(labels.split("|"))) for image, split, labels in rows_of(data)}
    assert found == {image: (split, set(labels.split("|"))) for image, split, labels in expected if "0003" not in image}
    (data / "labels.csv").unlink()
    (data / "classes.txt").rename(data / "names.txt")
    with pytest.raises(DataError, match="classes.txt: expected the names of the mask values"):
        prepare_folder(data, labels_from="masks")
    (data / "names.txt").rename(data / "classes.txt")
    shutil.rmtree(data / "masks")
    with pytest.raises(DataError, match="expected masks at the photos' paths"):
        prepare_folder(data, labels_from="masks")


def test_names_that_a_table_cannot_hold_are_refused(tagged):
    (tagged / "cat").rename(tagged / "cat|tom")
    with pytest.raises(DataError, match=r"hold no \| and no blanks at their ends, got cat\|tom"):
        prepare_folder(tagged)
    assert not (tagged / "labels.csv").exists()
