import os
import re

import pytest

from afactl.errors import BusyError, UsageError
from afactl.presets import Preset, load_preset
from afactl.runs.folder import (
    LOCK,
    drop_unstarted,
    find_run,
    lock_run,
    new_run,
    note_job,
    read_manifest,
    run_cost,
    run_preset,
    write_manifest,
)
from afactl.runs.metrics import append_metrics


def test_a_new_run_gets_its_folders_and_preset(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run, lock = new_run(Preset(), "voc", None)
    lock.release()
    assert run.parent.name == "runs" and run.name.startswith("voc-")
    assert run_preset(run) == Preset()
    assert {p.name for p in run.iterdir()} == {"preset.yaml", "checkpoints", "cache", "figures", LOCK}


@pytest.mark.parametrize(
    ("batch", "effective", "manifest", "part"),
    [
        (8, "8", {}, None),  # one batch was the whole step
        (2, "8", {}, 2),
        (8, "null", {}, None),
        (4, "null", {"effective_batch": 8}, 4),  # two processes
    ],
)
def test_a_run_without_parts_goes_on_with_the_means_of_its_batches(tmp_path, batch, effective, manifest, part):
    preset = load_preset("demo", [f"train.batch_size={batch}", f"train.effective_batch={effective}"])
    run, lock = new_run(preset, "demo", tmp_path / "run")
    lock.release()
    if manifest:
        write_manifest(run, **manifest)
    assert run_preset(run) == preset, "a run of this version says what it does"
    written = (run / "preset.yaml").read_text()
    (run / "preset.yaml").write_text(re.sub(r"\n  part_photos: .*", "", written))
    assert run_preset(run).loss.part_photos == part
    assert run_preset(run).model_copy(update={"loss": preset.loss}) == preset


def test_a_folder_with_something_in_it_is_refused_and_stays_as_it_is(tmp_path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(UsageError, match="holds other files already"):
        new_run(Preset(), "voc", tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]
    new_run(Preset(), "voc", tmp_path / "run")[1].release()
    with pytest.raises(UsageError, match="holds a run already"):
        new_run(Preset(), "voc", tmp_path / "run")


def test_a_run_is_trained_by_one_process(tmp_path):
    run, lock = new_run(Preset(), "voc", tmp_path / "run")
    with pytest.raises(BusyError, match=f"{run}: another process is training it; wait"):
        lock_run(run)
    with pytest.raises(BusyError, match="is training it"):
        drop_unstarted(run)
    assert (run / "preset.yaml").is_file()
    lock.release()
    lock_run(run).release()


def test_a_run_without_a_checkpoint_is_dropped_and_nothing_else(tmp_path):
    run, lock = new_run(Preset(), "voc", tmp_path / "run")
    lock.release()
    append_metrics(run, step=1, loss=0.5)
    (run / "mine.txt").write_text("keep")
    drop_unstarted(run)
    assert {path.name for path in run.iterdir()} == {"mine.txt", LOCK}
    (run / "mine.txt").unlink()
    new_run(Preset(), "voc", run)[1].release()
    (run / "checkpoints" / "last").mkdir()
    (run / "checkpoints" / "last" / "weights.safetensors").write_text("")
    drop_unstarted(run)  # another process has come so far meanwhile
    assert (run / "preset.yaml").is_file()


def test_the_newest_run_is_found_and_the_environment_wins(tmp_path, monkeypatch):
    monkeypatch.delenv("AFACTL_RUN", raising=False)
    with pytest.raises(UsageError, match="no run under .*; train one first"):
        find_run(None, tmp_path)
    older, newer = (new_run(Preset(), "voc", tmp_path / name)[0] for name in ("b", "a"))
    os.utime(older / "preset.yaml", (1, 1))
    assert find_run(None, tmp_path) == (newer, f"the newest under {tmp_path}")
    monkeypatch.setenv("AFACTL_RUN", str(older))
    assert find_run(None, tmp_path) == (older, "from AFACTL_RUN")
    assert find_run(newer, tmp_path) == (newer, "given")
    with pytest.raises(UsageError, match="expected a run folder"):
        find_run(tmp_path / "nothing", tmp_path)


def test_the_manifest_adds_up_what_the_jobs_took(tmp_path):
    run, lock = new_run(Preset(), "voc", tmp_path / "run")
    lock.release()
    assert run_cost(run) is None
    write_manifest(run, effective_batch=8)
    assert run_cost(run) is None, "of a version that noted nothing"
    note_job(run, (0, 10), 20.04, None)
    assert run_cost(run) == (20.0, None, 4.0)
    note_job(run, (10, 40), 40, 3 * 2**30)
    assert run_cost(run) == (60, 3 * 2**30, pytest.approx(40 * 8 / 60))
    assert [job["steps"] for job in read_manifest(run)["jobs"]] == [[0, 10], [10, 40]]


def test_the_manifest_tells_how_a_run_came_about(tmp_path):
    assert read_manifest(tmp_path) == {}
    write_manifest(tmp_path, seed=3)
    manifest = read_manifest(tmp_path)
    assert manifest["seed"] == 3 and manifest["command"] and {"afactl", "python", "torch"} <= set(manifest["versions"])
