import json
import os

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from afactl.datasets.coco import Photo, Region, draw_mask, load, prepared_paths, recognizes
from afactl.datasets.preparing import prepare_coco
from afactl.errors import AfactlError, DataError


def box(x, y, width, height):
    return [[x, y, x + width, y, x + width, y + height, x, y + height]]


def annotation(category, x, y, width, height, image=1, crowd=0):
    shape = box(x, y, width, height)
    if crowd:
        counts = [0, 4, 100 - 4]  # the first column of a 10 x 10 mask down to row 3
        shape = {"size": [10, 10], "counts": counts}
    return {"image_id": image, "category_id": category, "segmentation": shape, "area": width * height, "iscrowd": crowd}


@pytest.fixture
def root(tmp_path):
    table = {
        "images": [
            {"id": 2, "file_name": "b.jpg", "height": 10, "width": 10},
            {"id": 1, "file_name": "a.jpg", "height": 10, "width": 10},
        ],
        "categories": [{"id": 18, "name": "dog"}, {"id": 3, "name": "car"}],
        "annotations": [
            annotation(18, 0, 0, 4, 4),
            annotation(3, 0, 0, 8, 8),
            annotation(18, 0, 0, 1, 4, image=2, crowd=1),
        ],
    }
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations" / "instances_val2014.json").write_text(json.dumps(table))
    return tmp_path


def test_classes_follow_the_category_ids_and_crowds_give_no_label(root):
    split = load(root, "val")
    assert split.classes == ("car", "dog") and split.category_ids == (3, 18)
    assert [(s.image_id, s.labels) for s in split.samples] == [("a", (0, 1)), ("b", ())]
    assert split.samples[0].image_path == root / "val2014" / "a.jpg"


def test_the_ids_of_the_categories_are_those_of_prepared_data_too(root):
    pytest.importorskip("pycocotools", reason="COCO masks need the extra [coco]")
    prepare_coco(root, "val")
    assert load(root, "val").category_ids == (3, 18)
    table, _ = prepared_paths(root, "val")
    content = json.loads(table.read_text())
    del content["ids"]  # as earlier versions wrote it
    table.write_text(json.dumps(content))
    assert load(root, "val").category_ids == (3, 18)


def test_small_objects_lie_on_top_and_crowds_are_ignored(root):
    pytest.importorskip("pycocotools", reason="COCO masks need the extra [coco]")
    split = load(root, "val")
    mask = split.masks.read(split.samples[0])
    assert (mask[:4, :4] == 2).all() and (mask[4:8, :8] == 1).all() and not mask[8:].any()
    crowd = split.masks.read(split.samples[1])
    assert (crowd[:4, 0] == 255).all() and crowd.astype(int).sum() == 4 * 255


def test_an_object_over_a_crowd_counts():
    pytest.importorskip("pycocotools", reason="COCO masks need the extra [coco]")
    parts = [annotation(1, 0, 0, 1, 2), annotation(1, 0, 0, 1, 4, crowd=1)]
    regions = [Region(1, one["area"], bool(one["iscrowd"]), one["segmentation"]) for one in parts]
    mask = draw_mask(Photo("a.jpg", 10, 10, regions), {1: 0})
    assert mask[:5, 0].tolist() == [1, 1, 255, 255, 0]


@pytest.mark.parametrize("shape", [[[1.0, 2.0]], [], {"counts": [1, 2]}, {}, None])
def test_an_annotation_that_cannot_be_drawn_is_told_with_its_photo(shape):
    pytest.importorskip("pycocotools", reason="COCO needs the extra [coco]")
    with pytest.raises(DataError, match="b.jpg: an annotation of category 1 cannot be drawn"):
        draw_mask(Photo("b.jpg", 10, 10, [Region(1, 1.0, False, shape)]), {1: 0})


def test_missing_and_damaged_annotations_are_named(root):
    with pytest.raises(DataError, match="expected COCO annotations there"):
        load(root, "train")
    with pytest.raises(DataError, match='did you mean "val"'):
        load(root, "vall")
    (root / "annotations" / "instances_train2014.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as COCO annotations"):
        load(root, "train")
    (root / "annotations" / "instances_train2014.json").write_text('{"images": [], "annotations": []}')
    with pytest.raises(DataError, match="found no categories"):
        load(root, "train")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda table: table["images"][0].update(file_name="../../x.jpg"), "is no plain file name"),
        (lambda table: table["images"][0].pop("height"), "an entry of images has no height"),
        (lambda table: table["annotations"][0].update(category_id=5), "category 5 is annotated but not among"),
    ],
)
def test_annotations_with_a_wrong_entry_are_explained(root, change, message):
    path = root / "annotations" / "instances_val2014.json"
    table = json.loads(path.read_text())
    change(table)
    path.write_text(json.dumps(table))
    with pytest.raises(DataError, match=message):
        load(root, "val")


def test_coco_mini(shared):
    pytest.importorskip("pycocotools", reason="COCO masks need the extra [coco]")
    root = shared / "data" / "coco-mini"
    if not root.is_dir():
        pytest.skip(f"{root} is absent")
    train, val = load(root, "train"), load(root, "val")
    assert (len(train.samples), len(val.samples), len(val.classes)) == (83, 43, 80)
    for sample in val.samples:
        present = set(np.unique(val.masks.read(sample)).tolist()) - {0, 255}
        assert present <= {label + 1 for label in sample.labels}, "labels come from the same objects"


def test_only_its_own_annotations_make_a_folder_coco(root, tmp_path_factory):
    assert recognizes(root)
    other = tmp_path_factory.mktemp("own")
    (other / "annotations").mkdir()
    (other / "annotations" / "a.xml").write_text("<annotation/>")
    assert not recognizes(other)


JUNK = st.none() | st.integers(-5, 50) | st.floats() | st.text(max_size=5) | st.lists(st.integers(0, 3), max_size=3)


@settings(deadline=None, max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_mutated_annotations_are_read_or_refused_in_one_line(root, data):
    """One value anywhere in the file is taken away or replaced; every mask has the photo's size and its classes."""
    pytest.importorskip("pycocotools", reason="COCO masks need the extra [coco]")
    path = root / "annotations" / "instances_val2014.json"
    if not (root / "sound.json").exists():
        (root / "sound.json").write_text(path.read_text())
    table = json.loads((root / "sound.json").read_text())
    place, key = table, data.draw(st.sampled_from(sorted(table)))
    while isinstance(place[key], dict | list) and place[key] and data.draw(st.integers(0, 3)):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    if data.draw(st.booleans()):
        place[key] = data.draw(JUNK)
    else:
        del place[key]
    path.write_text(json.dumps(table))
    os.utime(path, ns=(data.draw(st.integers(1, 2**60)),) * 2)
    try:
        split = load(root, "val")
        masks = [split.require_masks().read(sample) for sample in split.samples]
    except AfactlError as error:
        if "\n" in str(error) or not str(error).strip():
            raise
        return
    for sample, mask in zip(split.samples, masks, strict=True):
        drawn = set(np.unique(mask).tolist()) - {0, 255}
        assert mask.ndim == 2 and mask.dtype == np.uint8 and drawn <= {label + 1 for label in sample.labels}
