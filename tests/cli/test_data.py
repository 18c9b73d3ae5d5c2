"""`afactl data` as a user calls it."""

import json
import shutil

import numpy as np
from PIL import Image

from afactl.datasets import demo
from afactl.datasets.images import read_image
from afactl.datasets.masks import read_mask, write_mask
from afactl.runs.review import Reviewed, write_review
from tests.cli.conftest import refused
from tests.conftest import make_voc
from tests.datasets.test_keywords import iptc, jpeg


def test_data_check_finds_nothing_or_names_every_defect(call, tiny_data, tmp_path):
    data = demo.generate(tmp_path / "data", train=24, val=4, size=64)
    code, out, _ = call("data", "check", data)
    assert code == 0 and "no defects" in out and "triangle" in out and "photos by number of labels" in out
    assert "classes with fewer than 20 photos in train: disc" in out
    (tmp_path / "data/images/val/0001.png").write_bytes(b"\x89PNG cut")
    code, out, _ = call("data", "check", "demo", "--data", tmp_path / "data", "--json", tmp_path / "c.json")
    assert code == 1 and "photo cannot be read: 1" in out and "1 defect" in out
    report = json.loads((tmp_path / "c.json").read_text())
    assert report["defects"][0]["where"].endswith("0001.png") and [one["images"] for one in report["splits"]] == [24, 4]
    (tmp_path / "empty").mkdir()
    refused(call("data", "check", tmp_path / "empty"), 2, "expected labels.csv, labels.json")
    refused(call("data", "check", tiny_data, "--data", tiny_data), 2, "leave --data out")
    refused(call("data", "check", "vok"), 2, 'did you mean "voc"')


def test_data_prepare_folder_writes_the_table(call, tiny_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    refused(call("data", "prepare", "folder", "--data", data), 2, "labels.csv: is there already; --overwrite")
    code, out, _ = call("data", "prepare", "folder", "--data", data, "--labels-from", "masks", "--overwrite")
    assert code == 0 and "all photos" in out and f"labels: {data / 'labels.csv'}" in out
    (data / "masks/val/0000.png").unlink()
    assert (
        "left out, as they have no mask: 1 photo"
        in call("data", "prepare", "folder", "--data", data, "--labels-from", "masks", "--overwrite")[1]
    )
    refused(
        call("data", "prepare", "folder", "--data", data, "--overwrite", "--val", "0.2"),
        2,
        "there is a split val already (3 photos)",
    )
    refused(call("data", "prepare", "folder", "--data", tmp_path / "no"), 2, "expected a folder, found nothing")


def test_beside_data_a_name_is_a_preset_even_where_a_folder_has_it(call, tmp_path, monkeypatch):
    data = demo.generate(tmp_path / "data", train=24, val=4, size=64)
    (tmp_path / "demo").mkdir()
    monkeypatch.chdir(tmp_path)
    refused(call("data", "check", "demo"), 2, "expected labels.csv, labels.json")
    assert call("data", "check", "demo", "--data", data)[0] == 0


def test_data_preview_draws_a_contact_sheet(call, tiny_data, tmp_path):
    sheet = tmp_path / "deep" / "sheet.png"
    code, out, _ = call("data", "preview", tiny_data, "--split", "val", "--out", sheet)
    assert code == 0 and "4 photos of val" in out and min(read_image(sheet).shape[:2]) > 200
    assert call("data", "preview", "demo", "--data", tiny_data, "--count", "3", "--out", tmp_path / "s.svg")[0] == 0
    refused(call("data", "preview", tiny_data, "--out", tmp_path / "s.xyz"), 2, "give another .png, .svg or .pdf file")
    refused(call("data", "preview", tiny_data, "--split", "no"), 2, "splits there: train, val")


def test_data_prepare_tells_what_it_found(call, tmp_path):
    root = make_voc(tmp_path / "VOC2012", {"train": ["t1"], "val": ["v1"]}, {"t1": [0, 12], "v1": [0, 12]})
    (root / "Annotations").mkdir()
    (root / "Annotations" / "t1.xml").write_text("<a><filename>t1.jpg</filename><object><name>cat</name></object></a>")
    code, out, _ = call("data", "prepare", "voc", "--data", root, "--json", tmp_path / "p.json")
    assert code == 0 and "1464" in out and "no masks of SBD: train on the plain list" in out
    assert "1 photo whose mask and XML disagree" in out and "t1: only in the mask: dog; only in the XML: cat" in out
    assert json.loads((tmp_path / "p.json").read_text())["counts"] == {"train": 1, "val": 1}
    refused(call("data", "prepare", "voc", "--data", tmp_path), 2, "expected JPEGImages/")
    refused(call("data", "prepare", "voc", "--data", root, "--labels-from", "xml"), 2, "--set data.labels=xml")
    refused(call("data", "prepare", "coco", "--data", tmp_path), 2, "instances_train2014.json")
    refused(call("data", "prepare", "coco", "--data", tmp_path, "--year", "2017"), 2, "expected 2014")


def test_data_check_takes_the_training_split_by_its_name(call, tiny_data, tmp_path):
    """Photos of val come first in the table, and hold a class that is never trained."""
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    rows = (data / "labels.csv").read_text().splitlines()
    rows = [rows[0], *reversed(rows[1:])]
    (data / "classes.txt").write_text((data / "classes.txt").read_text() + "zebra\n")
    assert rows[1].split(",")[1] == "val"
    rows[1] += "|zebra"
    (data / "labels.csv").write_text("\n".join(rows) + "\n")
    code, out, _ = call("data", "check", data)
    assert code == 1 and "zebra: occurs in val but never in train" in out and "never in val" not in out
    (data / "labels.csv").write_text("\n".join(row.replace(",train,", ",test,") for row in rows) + "\n")
    code, out, _ = call("data", "check", data)
    assert "no split train for training; which classes are trained is not checked" in out and "never in" not in out


def test_data_check_takes_the_training_split_of_the_formats_presets(call, tmp_path):
    """The augmented list of VOC, whose masks hold a class that the plain list lacks."""
    masks = {"t1": [0, 1], "v1": [20, 255]}
    root = make_voc(tmp_path / "VOC2012", {"train": ["t1"], "val": ["v1"]}, masks)
    for image_id, row in {**masks, "s1": [20, 3]}.items():
        Image.fromarray(np.zeros((4, 2, 3), np.uint8)).save(root / "JPEGImages" / f"{image_id}.jpg")
        write_mask(root / "SegmentationClassAug" / f"{image_id}.png", np.array([row] * 4, np.uint8))
    _, out, _ = call("data", "check", root)
    assert "together in train_aug: bird and tvmonitor" in out and "tvmonitor: occurs in val but never" not in out


def test_what_is_no_photo_here_is_told_when_the_table_is_written(call, tmp_path):
    data = tmp_path / "own"
    for name in ("cat", "dog"):
        (data / name).mkdir(parents=True)
        jpeg(data / name / "a.jpg")
    (data / "cat" / "b.NEF").write_bytes(b"raw")
    code, out, _ = call("data", "prepare", "folder", "--data", data)
    assert code == 0 and "camera RAW (.nef 1)" in out and "labels.csv" in out


def test_keywords_become_labels(call, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    for number, words in enumerate((["Dog"], ["dog", "beach"], ["beach"], [])):
        jpeg(data / f"{number}.jpg", iptc(words, "utf-8") if words else b"")
    asked = ("data", "prepare", "folder", "--data", data, "--from-keywords")
    refused(call(*asked), 2, "4 photos: none has a keyword that 5 photos share", "--classes dog,cat")
    code, out, _ = call(*asked, "--classes", "dog, cat")
    assert code == 0 and "left out, as nothing says what is in them: 1 photo" in out
    assert "1 keyword that is no class: beach 2" in out
    assert (data / "labels.csv").read_text() == "image,split,labels\n0.jpg,train,dog\n1.jpg,train,dog\n2.jpg,train,\n"
    (data / "classes.txt").write_text("beach\ndog\n")
    again = ("data", "prepare", "folder", "--data", data, "--labels-from", "keywords", "--overwrite")
    assert call(*again)[0] == 0
    assert "1.jpg,train,beach|dog\n2.jpg,train,beach" in (data / "labels.csv").read_text()
    refused(call(*asked[:-1], "--classes", "dog"), 2, "--classes dog: goes with --labels-from keywords")


def test_photos_of_a_review_list_are_left_out(call, tmp_path):
    data = tmp_path / "data"
    for name in ("cat/a.jpg", "cat/b.jpg", "dog/a.jpg"):
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        jpeg(data / name)
    write_review(
        tmp_path / "review.csv", {Reviewed("cat/a.jpg", "train"): "wrong", Reviewed("dog/a.jpg", "train"): "unsure"}
    )
    asked = ("data", "prepare", "folder", "--data", data, "--exclude")
    code, out, _ = call(*asked, tmp_path / "review.csv")
    assert code == 0 and "review.csv says: 1 photo" in out
    assert (data / "labels.csv").read_text() == "image,split,labels\ncat/b.jpg,train,cat\ndog/a.jpg,train,dog\n"
    plain = tmp_path / "list.txt"
    plain.write_text("cat/b.jpg\n")
    assert call(*asked, plain, "--overwrite")[0] == 0 and "cat" not in (data / "labels.csv").read_text()
    plain.write_text("cat/c.jpg\n")
    refused(call(*asked, plain, "--overwrite"), 2, "--exclude: ", "has no cat/c.jpg")
    refused(call(*asked, tmp_path / "nothing.csv", "--overwrite"), 2, "--exclude", "cannot be read")


def test_data_check_says_which_objects_are_tiny(call, tmp_path):
    data = demo.generate(tmp_path / "data", train=24, val=2, size=64)
    code, out, _ = call("data", "check", data)
    assert code == 0 and "tiny objects" not in out
    for file in (data / "masks/train").glob("*.png"):
        mask = read_mask(file, 6)
        small = np.zeros_like(mask)
        for value in np.unique(mask[mask > 0]):
            small.flat[np.flatnonzero(mask == value)[:20]] = value
        write_mask(file, small)
    code, out, _ = call("data", "check", data)
    assert code == 0 and "tiny objects in train (share of the photo, median): disc 0.5 %" in out and "in val" not in out
