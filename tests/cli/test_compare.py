"""`afactl compare` as a user calls it."""

import json
import shutil

import numpy as np
import pytest

from afactl.datasets.masks import write_mask
from tests.cli.conftest import SETS, refused


@pytest.fixture
def other(call, tiny_data, tmp_path):
    """A run of another seed and without the affinity branch."""
    sets = ("--set", "train.seed=1", "--set", "affinity.enabled=false")
    assert call("train", "demo", "--data", tiny_data, "--out", tmp_path / "other", *SETS, *sets)[0] == 0
    return tmp_path / "other"


def test_two_runs(call, run_copy, other, tmp_path):
    call("pseudo-eval", "--run", run_copy, "--split", "val")
    code, out, _ = call("compare", run_copy, other, "--json", tmp_path / "c.json")
    assert code == 0
    for text in (
        "affinity.enabled",
        "train.seed",
        "peak memory, GiB",
        "split val, 4 images",
        "difference",
        "background",
    ):
        assert text in out, text
    assert "Table 3" not in out and "AFA" not in out, "a row that one run lacks is not compared"
    assert f"picture: {other / 'figures' / 'compare-val.png'}" in out and (other / "figures/compare-val.png").is_file()
    told = json.loads((tmp_path / "c.json").read_text())
    assert told["presets"] == {"affinity.enabled": [True, False], "train.seed": [0, 1]}
    assert told["runs"] == [str(run_copy), str(other)] and 0 < len(told["changed"]) <= 4
    row = told["rows"]["multi-scale + flip"]
    gain = row[str(other)]["difference"]
    assert gain["value"] == pytest.approx(row[str(other)]["miou"] - row[str(run_copy)]["miou"])
    assert gain["interval"][0] <= gain["value"] <= gain["interval"][1]
    assert told["costs"][str(other)]["seconds"] > 0 and told["costs"][str(other)]["photos_per_second"] > 0
    for name, change in told["classes"].items():
        before, after = (row[run]["classes"][name]["iou"] for run in told["runs"])
        assert change["iou"] == pytest.approx([before, after]) and change["difference"] == pytest.approx(after - before)


def test_a_run_against_itself_has_nothing_to_show(call, run_copy, tmp_path):
    shutil.copytree(run_copy, tmp_path / "twin")
    code, out, _ = call("compare", run_copy, tmp_path / "twin", run_copy)
    assert code == 0 and "presets: the same in every value" in out and "+0.0 [0.0, 0.0]" in out and "picture" not in out


def test_masks_of_any_origin(call, tmp_path):
    for name, value in (("truth", 1), ("one", 1), ("two", 0)):
        write_mask(tmp_path / name / "a.png", np.full((4, 4), value, np.uint8))
        write_mask(tmp_path / name / "b.png", np.ones((4, 4), np.uint8))
    (tmp_path / "names.txt").write_text("cat\n")
    folders = ("--masks", tmp_path / "one", tmp_path / "two", "--truth", tmp_path / "truth")
    code, out, _ = call("compare", *folders, "--classes", tmp_path / "names.txt", "--json", tmp_path / "c.json")
    assert code == 0 and "2 masks, 1 class;" in out and "cat" in out
    told = json.loads((tmp_path / "c.json").read_text())
    assert told["classes"]["cat"]["iou"] == [100, 50] and told["rows"]["masks"][str(tmp_path / "two")]["miou"] == 50


def test_bad_calls_are_told(call, run_copy, tmp_path):
    refused(call("compare", run_copy), 2, "expected two run folders or more")
    refused(call("compare"), 2, "expected two run folders or more")
    refused(call("compare", run_copy, tmp_path / "none"), 2, "none")
    refused(call("compare", run_copy, run_copy, "--truth", tmp_path), 2, "belong to --masks")
    refused(call("compare", "--masks", tmp_path, tmp_path), 2, "expected --truth FOLDER")
    refused(call("compare", run_copy, "--masks", tmp_path, tmp_path), 2, "takes folders of masks, no runs")
    folders = ("--masks", tmp_path, tmp_path, "--truth", tmp_path)
    refused(call("compare", *folders, "--classes", tmp_path / "no.txt"), 2, "no.txt: expected a file")
