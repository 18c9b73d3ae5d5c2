"""`afactl pseudo-eval` as a user calls it."""

import json
import re
import shutil

import pytest

from tests.cli.conftest import SETS, refused


def test_pseudo_eval_prints_table_3_and_reuses_the_caches(call, run_copy, tmp_path):
    code, out, _ = call(
        "pseudo-eval", "--split", "val", "--run", run_copy, "--json", tmp_path / "t.json", "--per-class"
    )
    assert code == 0 and "Table 3, pseudo labels of val" in out and "without PAR" in out and "with PAR" in out
    for row in ("w/o AFA: give --without-afa RUN", "AFA (w/o prop.)", "AFA (prop. with MHSA)", "AFA"):
        assert row in out
    for fact in (
        "split val, 4 images",
        "scales 1, 1.5 with flip",
        "PAR 2 iterations",
        "after softmax",
        "image-level truth was used",
        "last checkpoint, step 4",
    ):
        assert fact in out, fact
    assert "4 images went through the network" in out and "triangle" in out
    figures = json.loads((tmp_path / "t.json").read_text())
    assert figures["images"] == 4 and set(figures["miou"]["AFA"]) == {"plain", "refined"}
    code, again, _ = call("pseudo-eval", "--split", "val", "--run", run_copy)
    assert "no forward pass: 4 images came from the cache" in again
    assert [line for line in again.splitlines() if line.startswith("│")] == [
        line for line in out.splitlines() if line.startswith("│")
    ][: 4 + 2], "table and differences"
    assert re.search(r"│ AFA +│ +[\d.]+ ± [\d.]+ │ +[\d.]+ ± [\d.]+ │", out)
    assert re.search(r"│ AFA - AFA \(w/o prop.\) +│ +[+-][\d.]+ \[-?[\d.]+, -?[\d.]+\] +│", out)
    row = figures["rows"]["AFA + PAR"]
    assert row["miou"] == figures["miou"]["AFA"]["refined"] and row["interval"][0] <= row["miou"] <= row["interval"][1]
    assert set(row["classes"]["background"]) == {"iou", "interval"}


def test_pseudo_eval_compares_any_refiner(call, run_copy, tmp_path):
    assert call("pseudo-eval", "--split", "val", "--run", run_copy)[0] == 0
    scores = (run_copy / "scores" / "pseudo-val.json").read_text()
    code, out, _ = call(
        "pseudo-eval", "--split", "val", "--run", run_copy, "--refiner", "crf", "--json", tmp_path / "t.json"
    )
    assert code == 0 and "without CRF" in out and "with CRF" in out and "CRF 10 iterations" in out and "PAR" not in out
    figures = json.loads((tmp_path / "t.json").read_text())
    assert figures["refiner"] == "crf" and "AFA + CRF" in figures["rows"]
    assert "no forward pass: 4 images came from the cache (4 labelled now)" in out
    kept = (run_copy / "scores" / "pseudo-val.json").read_text()
    assert kept == scores and len(list((run_copy / "scores").glob("pseudo-*.json"))) == 1, (
        "the run keeps those of its own refiner"
    )
    code, again, _ = call("pseudo-eval", "--split", "val", "--run", run_copy)
    assert "(0 labelled now)" in again, "each refiner has a cache of its own"
    refused(call("pseudo-eval", "--run", run_copy, "--refiner", "blur"), 2, "--refiner blur: expected one of par, pamr")


def test_pseudo_eval_shows_a_run_without_the_branch(call, run_copy, tmp_path, tiny_data):
    call("train", "demo", "--data", tiny_data, "--out", tmp_path / "plain", *SETS, "--set", "affinity.enabled=false")
    code, out, _ = call("pseudo-eval", "--split", "val", "--run", run_copy, "--without-afa", tmp_path / "plain")
    assert code == 0 and "give --without-afa" not in out and "w/o AFA" in out
    refused(
        call("pseudo-eval", "--split", "val", "--run", run_copy, "--without-afa", run_copy), 2, "affinity.enabled=false"
    )
    code, out, _ = call("pseudo-eval", "--split", "val", "--run", tmp_path / "plain")
    names = [line.split("│")[1].strip() for line in out.splitlines() if line.startswith("│")]
    assert code == 0 and names == ["w/o AFA", "w/o AFA (prop. with MHSA)"], "nothing of what was never trained"
    both = ("--run", tmp_path / "plain", "--without-afa", tmp_path / "plain")
    refused(call("pseudo-eval", "--split", "val", *both), 2, "is itself a run without AFA")


def test_pseudo_eval_shows_predicted_labels_beside_the_true_ones(call, run_copy):
    code, out, _ = call("pseudo-eval", "--split", "val", "--run", run_copy, "--labels", "predicted")
    assert code == 0 and "AFA, predicted labels" in out and "F1 against the truth" in out
    assert "image-level truth was used but in the rows that say otherwise" in out
    again = call("pseudo-eval", "--split", "val", "--run", run_copy, "--labels", "predicted")[1]
    assert "no forward pass" in again


def test_a_cache_of_other_weights_is_told_and_made_anew_on_request(call, run_copy, tiny_data, tmp_path):
    call("dump-cams", "--split", "val", "--run", run_copy)
    call("train", "demo", "--data", tiny_data, "--out", tmp_path / "other", *SETS, "--set", "train.seed=1")
    shutil.copytree(tmp_path / "other/checkpoints/last", run_copy / "checkpoints/last", dirs_exist_ok=True)
    refused(call("pseudo-eval", "--split", "val", "--run", run_copy), 1, "weights (", "--overwrite")
    assert call("pseudo-eval", "--split", "val", "--run", run_copy, "--overwrite")[0] == 0


def test_a_sweep_says_with_whose_truth_the_best_thresholds_were_chosen(call, run_copy, tmp_path):
    where = ("--split", "val", "--run", run_copy, "--sweep", "--thresholds", "0.3:0.6:0.1")
    code, out, _ = call("pseudo-eval", *where, "--json", tmp_path / "t.json")
    assert code == 0 and "chosen with the truth of val, on which they are scored" in out and "best on val" in out
    assert f"picture: {run_copy / 'figures' / 'sweep-val.png'}" in out
    figures = json.loads((tmp_path / "t.json").read_text())
    kept = figures["sweep"]
    assert kept["thresholds"] == [0.3, 0.35, 0.4, 0.45, 0.5, 0.6] and kept["chosen_on"] == "val"
    preset, chosen = kept["rows"]["AFA"]["preset"], kept["rows"]["AFA"]["chosen"]
    assert preset == [0.35, pytest.approx(figures["miou"]["AFA"]["plain"])]
    assert chosen[1] == max(kept["miou"]["AFA"]) >= preset[1]
    code, out, _ = call("pseudo-eval", *where, "--sweep-from", "train")
    assert code == 0 and "chosen with the truth of train, not with that of val" in out and "best on train" in out


def test_options_of_a_sweep_without_one_are_refused(call, run_copy):
    for option in (("--sweep-from", "train"), ("--thresholds", "0.2:0.7:0.1")):
        refused(call("pseudo-eval", "--split", "val", "--run", run_copy, *option), 2, "belongs to --sweep")
    same = call("pseudo-eval", "--split", "val", "--run", run_copy, "--sweep", "--sweep-from", "val")
    refused(same, 2, "is the split that is scored")
    refused(
        call("pseudo-eval", "--split", "val", "--run", run_copy, "--sweep", "--thresholds", "0.2:1.7:0.1"),
        2,
        'between 0 and 1, such as 0.2:0.7:0.05, got "0.2:1.7:0.1"',
    )


def test_the_first_photos_alone_are_scored_and_the_rest_of_the_caches_follows(call, run_copy, tmp_path):
    asked = ("pseudo-eval", "--split", "val", "--run", run_copy)
    code, out, _ = call(*asked, "--limit", 2, "--json", tmp_path / "t.json")
    assert code == 0 and "the first 2 images of 4; not kept as the run's score" in out
    assert json.loads((tmp_path / "t.json").read_text())["limited"] is True
    assert not (run_copy / "scores/pseudo-val.json").exists()
    code, out, _ = call(*asked)
    assert code == 0 and "2 images went through the network, 2 came from the cache" in out
    assert json.loads((run_copy / "scores/pseudo-val.json").read_text())["images"] == 4
    refused(call(*asked, "--limit", 2, "--labels", "predicted"), 2, "--limit 2: not with --labels predicted")


def test_other_settings_have_labels_of_their_own_and_leave_the_runs(call, run_copy, tmp_path):
    asked = ("pseudo-eval", "--split", "val", "--run", run_copy, "--json", tmp_path / "t.json", "--overwrite")
    assert call(*asked)[0] == 0
    before, scores = json.loads((tmp_path / "t.json").read_text()), run_copy / "scores/pseudo-val.json"
    kept = scores.read_bytes()
    code, out, _ = call(*asked, "--set", "cam.background=0.05")
    after = json.loads((tmp_path / "t.json").read_text())
    assert code == 0 and "cam.background=0.05" in out and after["set"] == ["cam.background=0.05"]
    assert "no forward pass" in out, "the CAMs are the same"
    assert after["miou"]["AFA (w/o prop.)"] != before["miou"]["AFA (w/o prop.)"]
    assert after["miou"]["AFA"] == before["miou"]["AFA"]
    assert scores.read_bytes() == kept
    assert (
        "(0 labelled now)" in call(*asked)[1] and "(0 labelled now)" in call(*asked, "--set", "cam.background=0.05")[1]
    )
    refused(call(*asked, "--set", "affinity.enabled=false"), 2, "affinity.enabled=false: concerns the training")
    result = call(*asked[:-1][:-2], "--set", "cam.scales=[1.0, 1.5, 2.0]")
    refused(result, 1, "cams-val.h5", "cam.scales", "--overwrite")


def test_the_settings_of_another_refiner_count_too(call, run_copy, tmp_path):
    """The CRF calls its iterations as PAR does; labels of ten are none of one, nor of PAR's two."""
    file = tmp_path / "t.json"
    asked = ("pseudo-eval", "--split", "val", "--run", run_copy, "--refiner", "crf", "--json", file, "--overwrite")
    refined = []
    for words in ((), ("--set", "crf.iterations=1"), ("--set", "crf.iterations=2")):
        code, out, _ = call(*asked, *words)
        assert code == 0 and ("(4 labelled now)" in out) == bool(words), "no labels of other settings"
        refined.append(json.loads(file.read_text())["miou"]["AFA"]["refined"])
    assert len(set(refined)) == 3
