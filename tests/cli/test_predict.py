"""`afactl predict` as a user calls it."""

import shutil

from afactl.datasets.masks import read_mask
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
