"""`afactl eval` as a user calls it."""

import json
import shutil

import numpy as np
import pytest

from afactl.datasets.masks import write_mask
from tests.cli.conftest import refused


def test_eval_prints_its_rows(call, run_copy, tmp_path):
    code, out, _ = call("eval", "--split", "val", "--run", run_copy, "--json", tmp_path / "e.json")
    assert code == 0 and "single scale" in out and "multi-scale + flip" in out and "CRF" not in out
    assert "no image-level truth was used" in out
    figures = json.loads((tmp_path / "e.json").read_text())
    assert set(figures["miou"]) == set(figures["rows"]) == {"single scale", "multi-scale + flip"}
    row = figures["rows"]["single scale"]
    low, high = row["interval"]
    assert row["miou"] == figures["miou"]["single scale"] and low <= row["miou"] <= high
    assert f"{row['miou']:.1f} ± {(high - low) / 2:.1f}" in out


@pytest.mark.parametrize("protocol", ["paper", "authors"])
def test_eval_by_a_named_protocol_says_which(call, run_copy, tmp_path, protocol):
    code, out, _ = call(
        "eval", "--split", "val", "--run", run_copy, "--protocol", protocol, "--json", tmp_path / "e.json"
    )
    figures = json.loads((tmp_path / "e.json").read_text())
    assert code == 0 and f"protocol: {protocol} (long side 512" in out and figures["protocol"] == protocol
    refused(call("eval", "--run", run_copy, "--protocol", "mine"), 2, "mine")


def test_eval_with_crf(call, run_copy):
    code, out, _ = call("eval", "--split", "val", "--run", run_copy, "--crf")
    assert code == 0 and "multi-scale + flip + CRF" in out


def test_a_mask_with_a_value_that_is_no_class_is_named(call, run_copy, tiny_data, tmp_path):
    shutil.copytree(tiny_data, tmp_path / "data")
    write_mask(tmp_path / "data/masks/val/0002.png", np.full((64, 64), 9, np.uint8))
    refused(
        call("eval", "--run", run_copy, "--data", tmp_path / "data"),
        1,
        "0002.png",
        "expected mask values 0..6 or 255, got 9",
    )


def test_a_checkpoint_in_place_of_another_one_is_named_as_what_it_is(call, run_copy):
    for folder in (run_copy / "checkpoints").glob("best*"):
        shutil.rmtree(folder)
    code, out, err = call("eval", "--run", run_copy, "--checkpoint", "best")
    assert code == 0 and "last checkpoint, step 4" in out and "best" not in out
    assert "no best checkpoint was kept, since no validation had a score; using last" in err


def test_eval_scores_trained_weights_of_others(call, run_copy, tmp_path):
    """A checkpoint of the authors' form, with no run of ours, gives the figures of the run that it came from."""
    call("export", "--run", run_copy, "--format", "authors", "--out", tmp_path / "w.pth")
    _, expected, _ = call("eval", "--split", "val", "--run", run_copy)
    made = ("--checkpoint", tmp_path / "w.pth", "--preset", run_copy / "preset.yaml", "--run", tmp_path / "made")
    code, out, err = call("eval", "--split", "val", *made)
    assert code == 0 and f"run: {tmp_path / 'made'}, made of w.pth" in err
    rows = [line for line in expected.splitlines() if " ± " in line]
    assert rows and [line for line in out.splitlines() if " ± " in line] == rows
    assert call("pseudo-eval", "--split", "val", "--run", tmp_path / "made")[0] == 0
    for wrong, message in (
        (("--checkpoint", tmp_path / "w.pth"), "say by --preset what the weights were trained with"),
        (("--checkpoint", "nope"), "expected last, best, or a file of trained weights"),
        (("--preset", "voc"), "--preset voc: goes with --checkpoint FILE"),
    ):
        refused(call("eval", *wrong), 2, message)


def test_the_first_photos_alone_or_with_other_settings_are_not_the_runs_score(call, run_copy, tmp_path):
    asked = ("eval", "--run", run_copy, "--json", tmp_path / "e.json", "--overwrite")
    assert call(*asked)[0] == 0
    whole, scores = json.loads((tmp_path / "e.json").read_text()), run_copy / "scores/segmentation-val.json"
    kept = scores.read_bytes()
    assert whole["limited"] is False and whole["set"] == []
    code, out, _ = call(*asked, "--limit", 1)
    assert code == 0 and "split val, the first 1 image of 4; not kept as the run's score; protocol" in out
    first = json.loads((tmp_path / "e.json").read_text())
    assert first["images"] == 1 and first["limited"] is True
    code, out, _ = call(*asked, "--set", "eval.scales=[0.5]", "--set", "eval.mirror=mean")
    assert code == 0 and "4 images; not kept as the run's score; eval.scales=[0.5], eval.mirror=mean; protocol" in out
    changed = json.loads((tmp_path / "e.json").read_text())
    row = "multi-scale + flip"
    assert len({whole["miou"][row], first["miou"][row], changed["miou"][row]}) == 3
    assert changed["miou"]["single scale"] == whole["miou"]["single scale"]
    assert scores.read_bytes() == kept
    assert call(*asked, "--limit", 99)[0] == 0 and json.loads((tmp_path / "e.json").read_text())["limited"] is False
    refused(
        call(*asked, "--set", "optim.lr=1"),
        2,
        "--set optim.lr=1: concerns the training",
        "cam, par, affinity, eval or crf",
    )
    refused(call(*asked, "--set", "eval.scale=[1]"), 2, 'did you mean "eval.scales"')


def test_a_protocol_and_a_value_of_it_are_not_given_together(call, run_copy):
    both = ("--protocol", "paper", "--set", "eval.long_side=64")
    refused(call("eval", "--run", run_copy, *both), 2, "--protocol paper: says all of eval.*; leave it out")
