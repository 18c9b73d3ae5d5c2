import os

import pytest

from afactl.errors import UsageError
from afactl.presets import Preset
from afactl.runs.folder import (
    append_metrics,
    find_run,
    new_run,
    read_manifest,
    read_metrics,
    run_preset,
    write_manifest,
)


def test_a_new_run_gets_its_folders_and_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = new_run(Preset(), "voc", None)
    assert run.parent.name == "runs" and run.name.startswith("voc-")
    assert run_preset(run) == Preset()
    assert {p.name for p in run.iterdir()} == {"preset.yaml", "checkpoints", "cache", "figures"}


def test_the_newest_run_is_found_and_the_environment_wins(tmp_path, monkeypatch):
    monkeypatch.delenv("AFACTL_RUN", raising=False)
    with pytest.raises(UsageError, match="no run under .*; train one first"):
        find_run(None, tmp_path)
    older, newer = (new_run(Preset(), "voc", tmp_path / name) for name in ("b", "a"))
    os.utime(older / "preset.yaml", (1, 1))
    assert find_run(None, tmp_path) == (newer, f"the newest under {tmp_path}")
    monkeypatch.setenv("AFACTL_RUN", str(older))
    assert find_run(None, tmp_path) == (older, "from AFACTL_RUN")
    assert find_run(newer, tmp_path) == (newer, "given")
    with pytest.raises(UsageError, match="expected a run folder"):
        find_run(tmp_path / "nothing", tmp_path)


def test_metrics_survive_a_line_that_a_kill_cut_off(tmp_path):
    append_metrics(tmp_path, step=1, loss=0.5)
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 0.5}]
    assert read_metrics(tmp_path / "nowhere") == []


def test_the_manifest_tells_how_a_run_came_about(tmp_path):
    assert read_manifest(tmp_path) == {}
    write_manifest(tmp_path, seed=3)
    manifest = read_manifest(tmp_path)
    assert manifest["seed"] == 3 and manifest["command"] and {"afactl", "python", "torch"} <= set(manifest["versions"])
