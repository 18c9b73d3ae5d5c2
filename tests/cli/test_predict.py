"""`afactl predict` as a user calls it."""

import csv
import shutil

from PIL import Image

from afactl.datasets.masks import read_mask
from afactl.runs.review import Reviewed, write_review
from tests.cli.conftest import refused


def test_predict_writes_masks(call, run_copy, tiny_data):
    code, out, _ = call("predict", tiny_data / "images/val", "--run", run_copy, "--overlay")
    assert code == 0 and "4 of 4 photos as png and overlay" in out and "1 disc" in out
    assert read_mask(run_copy / "predictions" / "0000.png", 6).shape == (64, 64)


def test_predict_names_a_broken_photo_and_does_the_others(call, run_copy, tiny_data, tmp_path):
    shutil.copytree(tiny_data / "images/val", tmp_path / "photos")
    (tmp_path / "photos" / "0001.png").write_bytes(b"\x89PNG cut off")
    result = call("predict", tmp_path / "photos", "--run", run_copy)
    refused(result, 1, "0001.png")
    assert "3 of 4 photos as png" in result[1]


def test_predict_takes_trained_weights_of_others(call, run_copy, tiny_data, tmp_path):
    photo, weights = tiny_data / "images" / "val" / "0001.png", tmp_path / "w.pth"
    call("export", "--run", run_copy, "--format", "authors", "--out", weights)
    assert call("predict", photo, "--run", run_copy, "--out", tmp_path / "a")[0] == 0
    made = ("--checkpoint", weights, "--preset", run_copy / "preset.yaml", "--data", tiny_data)
    code, _, err = call("predict", photo, *made, "--run", tmp_path / "made")
    assert code == 0 and "made of w.pth" in err
    assert (tmp_path / "made/predictions/0001.png").read_bytes() == (tmp_path / "a/0001.png").read_bytes()
    refused(call("predict", photo, "--data", tiny_data), 2, "goes with --checkpoint FILE and --preset")


def test_beside_the_masks_lies_what_their_values_mean(call, run_copy, tiny_data, tmp_path):
    out = tmp_path / "masks"
    predicted = ("predict", tiny_data / "images/val/0000.png", "--run", run_copy, "--out", out)
    assert call(*predicted)[0] == 0
    lines = list(csv.reader((out / "classes.csv").open(encoding="utf-8")))
    names = (tiny_data / "classes.txt").read_text(encoding="utf-8").split()
    assert lines[0] == ["value", "name", "colour"] and [line[1] for line in lines[1:]] == ["background", *names]
    mask = Image.open(out / "0000.png")
    for value, _, colour in lines[1:]:
        assert bytes.fromhex(colour.removeprefix("#")) == bytes(mask.getpalette()[3 * int(value) : 3 * int(value) + 3])
    # More photos into the same folder, and then those of a run with other classes.
    assert call("predict", tiny_data / "images/val/0001.png", "--run", run_copy, "--out", out)[0] == 0
    (out / "classes.csv").write_text("value,name,colour\n0,background,#000000\n1,cat,#800000\n")
    again = ("predict", tiny_data / "images/val/0002.png", "--run", run_copy, "--out", out)
    refused(call(*again), 2, "its classes.csv names other classes than this run has", "--overwrite")
    assert not (out / "0002.png").exists()
    assert call(*again, "--overwrite")[0] == 0 and "disc" in (out / "classes.csv").read_text()
    assert call("predict", out.parent, "--run", run_copy, "--out", tmp_path / "x", "--format", "overlay")[0] == 0
    assert not (tmp_path / "x/classes.csv").exists(), "overlays have names on them"


def test_only_what_the_review_list_keeps_is_predicted(call, run_copy, tiny_data, tmp_path):
    photos = tiny_data / "images/val"
    asked = ("predict", photos, "--run", run_copy, "--out", tmp_path / "masks", "--only-kept")
    refused(call(*asked), 2, "--only-kept: there is no", "review.csv; make it with `afactl explore`")
    write_review(run_copy / "review.csv", {Reviewed("images/val/0003.png", "val"): "wrong"})
    refused(call(*asked), 2, "keeps no photo")
    kept = {
        Reviewed(f"images/val/000{n}.png", "val"): verdict for n, verdict in ((0, "unsure"), (1, "keep"), (3, "wrong"))
    }
    write_review(run_copy / "review.csv", kept)
    code, out, err = call(*asked)
    assert code == 0 and "1 of 1 photo as png" in out and "1 of 4 photos is kept by the review list" in err
    assert [path.name for path in (tmp_path / "masks").glob("*.png")] == ["0001.png"]
    refused(call("predict", photos / "0000.png", *asked[2:]), 2, "none of the 1 photo is kept by")


def test_a_quick_look_and_other_settings(call, run_copy, tiny_data, tmp_path):
    asked = ("predict", tiny_data / "images/val", "--run", run_copy)
    code, out, err = call(*asked, "--out", tmp_path / "a", "--limit", 2)
    assert code == 0 and "2 of 2 photos" in out and "the first 2 of 4 photos" in err
    assert sorted(path.name for path in (tmp_path / "a").glob("*.png")) == ["0000.png", "0001.png"]
    crf = (*asked, "--limit", 1, "--crf")
    assert call(*crf, "--out", tmp_path / "b")[0] == 0
    code, out, _ = call(*crf, "--out", tmp_path / "c", "--set", "crf.iterations=1")
    assert code == 0 and "with crf.iterations=1" in out
    assert (tmp_path / "b/0000.png").read_bytes() != (tmp_path / "c/0000.png").read_bytes()
    refused(call(*asked, "--set", "train.seed=1"), 2, "--set train.seed=1: concerns the training, which is over")
    refused(call(*asked, "--limit", 0), 2, "--limit", "greater than or equal to 1")
