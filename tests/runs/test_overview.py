"""What a list of runs says of each."""

import json
import shutil

import pytest

from afactl.errors import UsageError
from afactl.runs.overview import list_runs, overview


def test_a_trained_run(run_copy):
    summary = overview(run_copy)
    lines = [json.loads(line) for line in (run_copy / "metrics.jsonl").read_text().splitlines()]
    last = [line for line in lines if "val_seg_miou" in line][-1]
    assert (summary.segmentation, summary.cam) == (last["val_seg_miou"], last["val_cam_miou"])
    assert summary.step == summary.max_iters == lines[-1]["step"] > 0
    assert summary.backbone == "mit_demo" and summary.fault == ""
    before = summary.size
    (run_copy / "figures" / "more.bin").write_bytes(bytes(1000))
    assert overview(run_copy).size == before + 1000


def test_the_newest_first_and_nothing_else(run_copy, tmp_path):
    for name, started in (("old", "2026-01-01T00:00:00"), ("new", "2026-02-01T00:00:00")):
        shutil.copytree(run_copy, tmp_path / "all" / name)
        manifest = tmp_path / "all" / name / "manifest.json"
        manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "started": started}))
    (tmp_path / "all" / "masks").mkdir()
    assert [line.run.name for line in list_runs(tmp_path / "all")] == ["new", "old"]
    with pytest.raises(UsageError, match="expected a folder with runs"):
        list_runs(tmp_path / "nowhere")


def test_a_run_that_cannot_be_read_is_listed(run_copy):
    (run_copy / "preset.yaml").write_text("train: [")
    (run_copy / "manifest.json").unlink()
    summary = overview(run_copy)
    assert "not readable as YAML" in summary.fault and summary.max_iters == 0 and summary.started == ""
    assert summary.segmentation is not None


def test_a_damaged_manifest_is_told_and_the_rest_is_there(run_copy):
    (run_copy / "manifest.json").write_text('{"started": ')
    summary = overview(run_copy)
    assert "manifest.json: cannot be read" in summary.fault and summary.segmentation is not None
    (run_copy / "manifest.json").write_text("[]")
    assert "expected a JSON object" in overview(run_copy).fault


def test_a_file_that_goes_meanwhile_counts_nothing(run_copy, monkeypatch):
    gone, size = run_copy / "figures" / "gone.part", overview(run_copy).size
    rglob = type(run_copy).rglob
    monkeypatch.setattr(type(run_copy), "rglob", lambda folder, pattern: [*rglob(folder, pattern), gone])
    assert overview(run_copy).size == size
