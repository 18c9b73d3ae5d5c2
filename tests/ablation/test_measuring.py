"""The ablation tables: every row is measured once, and a stopped table goes on where it was."""

import json
import subprocess
import sys
from contextlib import nullcontext

import pytest
import torch

from afactl.ablation.measuring import TableRequest, _kept, ablate, unwatched
from afactl.errors import BusyError, UsageError
from afactl.evaluation.pseudo_labels import score_pseudo_labels
from afactl.inference.refiners import REFINERS
from afactl.inference.trained_run import open_run, open_split
from afactl.method.refinement.stacks import refine_par
from afactl.presets import load_preset
from afactl.training.events import Stepped
from tests.conftest import ROOT, TINY

CPU = torch.device("cpu")
# Two steps a row: it is the bookkeeping that is tested here.
SHORT = (*TINY, "train.max_iters=2", "train.eval_iters=2", "train.cls_warmup_iters=1", "train.aff_warmup_iters=0")


def measured(table, watch=unwatched, **request):
    return ablate(TableRequest(table, device="cpu", **request), watch)


def not_again(*arguments, **options):
    raise AssertionError("a finished row is measured again")


def test_refiners_are_compared_on_cached_cams_and_kept(run_copy, monkeypatch):
    result = measured("table4", run=run_copy, split="val")
    assert [row.name for row in result.rows][:2] == ["CAM", "PAMR"]
    assert (result.columns, result.papers) == (("val",), ("train",)), "the paper refines the CAMs of VOC's train"
    assert not any(row.reused for row in result.rows)
    run = open_run(run_copy, CPU)
    scores = score_pseudo_labels(run, open_split(run, "val", None, masks=True)).scores["AFA (w/o prop.)"]
    assert result.rows[0].ours == (pytest.approx(scores[0].miou),), "the raw CAM is that of Table 3"
    assert len({row.ours for row in result.rows}) == 5
    monkeypatch.setattr("afactl.ablation.measuring.score_refined_cams", not_again)
    again = measured("table4", run=run_copy, split="val")
    assert all(row.reused for row in again.rows) and [row.ours for row in again.rows] == [
        row.ours for row in result.rows
    ]


def test_table4_has_a_row_for_each_refiner_that_others_brought(run_copy, monkeypatch):
    monkeypatch.setitem(REFINERS._registered, "mine", lambda image, stacks: refine_par(image, stacks, iterations=1))
    rows = {row.name: row for row in measured("table4", run=run_copy, split="val").rows}
    assert list(rows)[-1] == "mine" and rows["mine"].paper == (None,) and rows["mine"].ours != rows["CAM"].ours
    assert "mine" not in {row.name for row in measured("table8", run=run_copy, split="val").rows}


def test_tables_share_the_rows_they_have_in_common(run_copy):
    measured("table8", run=run_copy, split="val")
    reused = {row.name: row.reused for row in measured("table4", run=run_copy, split="val").rows}
    assert reused["CAM"] and reused["PAMR"] and reused["PAR"] and reused["dense CRF (Table 8)"]


def test_trained_rows_go_on_after_a_stop(tmp_path, tiny_data, monkeypatch):
    arguments = {"preset": "demo", "data": tiny_data, "out": tmp_path / "rows", "overrides": SHORT}
    seen = []

    def stop(event):
        if isinstance(event, Stepped):
            seen.append(event.step)
            if len(seen) == 4:  # the end of the second row's training
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measured("table2", lambda: nullcontext(stop), **arguments)
    first = json.loads(next((tmp_path / "rows").glob("*/results.json")).read_text())
    assert len(first) == 1
    result = measured("table2", **arguments)
    assert [row.reused for row in result.rows] == [True, False, False, False, False]
    assert result.rows[0].ours == (next(iter(first.values()))["miou"],)
    folders = {path.name for path in (tmp_path / "rows").iterdir()}
    assert len(folders) == 4, "the last two rows are one training"
    monkeypatch.setattr("afactl.ablation.measuring.start", not_again)
    assert all(row.reused for row in measured("table2", **arguments).rows)
    with pytest.raises(UsageError, match="was trained with other values.*train.seed"):
        measured("table2", **{**arguments, "overrides": (*SHORT, "train.seed=3")})


HOLDER = """
import sys, time
from pathlib import Path
from afactl.presets import load_preset
from afactl.runs.folder import new_run
with new_run(load_preset("demo"), "demo", Path(sys.argv[1]))[1]:
    print("ready", flush=True)
    time.sleep(60)
"""


def test_a_row_that_another_process_is_training_is_left_alone(tmp_path, tiny_data):
    """It has no checkpoint yet: without the lock it would be taken for one that was stopped, and removed."""
    row = tmp_path / "base"
    arguments = {"preset": "demo", "data": tiny_data, "out": tmp_path, "overrides": SHORT, "split": "val"}
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(row)], cwd=ROOT, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"ready\n"
        before = sorted(row.rglob("*"))
        with pytest.raises(BusyError, match="base: another process is training it; wait for that one to end"):
            measured("table4", **arguments)
        assert sorted(row.rglob("*")) == before
        other.kill()
    assert f"{row}, step 2" in measured("table4", **arguments).where


def test_rows_that_another_process_measured_meanwhile_are_kept(tmp_path):
    path = tmp_path / "results.json"

    def job():
        _kept(path, {"row": 2}, lambda: 2.0)
        return 1.0

    assert _kept(path, {"row": 1}, job) == (1.0, False)
    assert [_kept(path, {"row": row}, not_again) for row in (1, 2)] == [(1.0, True), (2.0, True)]


@pytest.mark.parametrize(
    ("name", "command"),
    [("table3", "pseudo-eval --split train"), ("table5", "preset voc"), ("table6", "preset coco")],
)
def test_tables_of_other_commands_are_answered_with_the_command(name, command):
    with pytest.raises(UsageError, match=f"ablate {name}: is what another command prints: afactl .*{command}"):
        measured(name, preset="demo")


def test_cached_tables_train_their_run_where_a_preset_is_given(tmp_path, tiny_data):
    result = measured("table4", preset="demo", data=tiny_data, out=tmp_path, overrides=SHORT, split="val")
    assert (tmp_path / "base" / "results.json").is_file() and f"{tmp_path / 'base'}, step 2" in result.where


def test_pooling_rows_train_the_classifier_alone_and_show_both_splits(tmp_path, tiny_data):
    result = measured("table1", preset="demo", data=tiny_data, out=tmp_path, overrides=SHORT)
    assert result.columns == ("train", "val") and all(len(row.ours) == 2 for row in result.rows)
    assert all(load_preset(str(path)).train.cls_warmup_iters == 2 for path in tmp_path.glob("*/preset.yaml"))


def test_options_that_do_not_go_together_are_refused(run_copy):
    with pytest.raises(UsageError, match='did you mean "table4"'):
        measured("tabel4")
    with pytest.raises(UsageError, match="give --preset PRESET and no --run"):
        measured("table2")
    with pytest.raises(UsageError, match="give --preset PRESET and no --run"):
        measured("table7", preset="demo", run=run_copy)
