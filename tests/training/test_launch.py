import os
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch

from afactl.errors import AfactlError, BusyError, CheckpointError, DataError, PresetError, UsageError
from afactl.presets import load_preset
from afactl.runs.checkpoints import find_checkpoint, load_model
from afactl.runs.folder import lock_run, read_manifest, run_preset
from afactl.runs.metrics import read_metrics
from afactl.training.events import Noted, Stepped
from afactl.training.launch import resume
from tests.conftest import TINY, train_tiny


def weights_of(run, which="last"):
    return load_model(find_checkpoint(run, which).folder)[0].state_dict()


def go_on(run, *changes, allow_changes=False):
    """Resume a run with other values."""
    return resume(run, load_preset(str(run / "preset.yaml"), changes), allow_changes, "cpu")


def test_a_run_holds_what_the_documentation_says(tiny_run):
    for name in ("preset.yaml", "manifest.json", "metrics.jsonl", "cache", "figures"):
        assert (tiny_run / name).exists(), name
    for which in ("last", "best"):
        assert {p.name for p in (tiny_run / "checkpoints" / which).iterdir()} == {
            "weights.safetensors",
            "training.pt",
            "checksums.json",
        }
    manifest = read_manifest(tiny_run)
    assert manifest["effective_batch"] == 2 and manifest["seed"] == 0 and manifest["device"] == "cpu"
    (job,) = manifest["jobs"]
    assert job["steps"] == [0, 4] and job["seconds"] > 0
    assert manifest["versions"]["torch"] == torch.__version__ and manifest["images"] == 8


def test_phases_and_their_losses_are_logged(tiny_run):
    steps = [line for line in read_metrics(tiny_run) if "phase" in line]
    assert [line["step"] for line in steps] == [1, 2, 3, 4]
    assert [line["phase"] for line in steps] == ["classification", "refined labels"] + ["propagated labels"] * 2
    assert "loss_seg" not in steps[0] and all({"loss_seg", "loss_aff"} <= line.keys() for line in steps[1:])
    assert [line for line in read_metrics(tiny_run) if "val_seg_miou" in line][-1]["step"] == 4


def test_a_run_that_another_process_is_training_is_left_alone(run_copy, tiny_data):
    before = (run_copy / "metrics.jsonl").read_bytes()
    # Held as a training holds it, which the next test shows.
    with lock_run(run_copy), pytest.raises(BusyError, match="another process is training it; wait for that one to end"):
        go_on(run_copy, "train.max_iters=6", allow_changes=True)
    assert (run_copy / "metrics.jsonl").read_bytes() == before


def test_a_training_holds_its_run_and_lets_it_go(tmp_path, tiny_data):
    run, busy = tmp_path / "run", []

    def look(event):
        if isinstance(event, Stepped):
            with pytest.raises(BusyError):
                lock_run(run)
            busy.append(event.step)

    train_tiny(tiny_data, run, observers=(look,))
    assert busy == [1, 2, 3, 4]
    lock_run(run).release()
    longer = load_preset(str(run / "preset.yaml"), ["train.max_iters=6"])
    resume(run, longer, allow_changes=True, device="cpu", observers=(look,))
    assert busy[4:] == [5, 6]
    lock_run(run).release()


def test_full_supervision_trains_and_needs_masks(tmp_path, tiny_data):
    train_tiny(tiny_data, tmp_path / "run", "train.supervision=masks")
    assert all(
        set(line) >= {"loss_seg"} and "loss_cls" not in line
        for line in read_metrics(tmp_path / "run")
        if "phase" in line
    )
    shutil.copytree(tiny_data, tmp_path / "data")
    shutil.rmtree(tmp_path / "data/masks")
    with pytest.raises(UsageError, match="needs true masks"):
        train_tiny(tmp_path / "data", tmp_path / "other", "train.supervision=masks")


def test_small_batches_add_up_to_the_effective_one(tmp_path, tiny_data):
    """In the classification phase the mean over photos is the mean over batches, so the weights agree."""
    same = [
        "train.max_iters=2",
        "train.cls_warmup_iters=2",
        "train.eval_iters=2",
        "model.drop_path=0",
        "optim.warmup_iters=0",
    ]
    told = []
    train_tiny(tiny_data, tmp_path / "four", *same, "train.batch_size=4")
    changes = [*same, "train.batch_size=2", "train.effective_batch=3"]
    train_tiny(tiny_data, tmp_path / "two", *changes, observers=(told.append,))
    assert any(isinstance(event, Noted) and "effective batch 4: 2 x 2" in event.text for event in told), "it is said"
    assert read_manifest(tmp_path / "two")["effective_batch"] == 4
    whole, parts = weights_of(tmp_path / "four"), weights_of(tmp_path / "two")
    for name in whole:
        torch.testing.assert_close(whole[name], parts[name], atol=2e-5, rtol=1e-3)


@pytest.mark.slow  # torch.compile takes a minute
def test_the_compiled_backbone_takes_the_same_steps(tmp_path, tiny_data, tiny_run, monkeypatch):
    """Traced, and run by torch's own operations: building C++ for it takes minutes."""
    traced = []
    original = torch.nn.Module.compile
    monkeypatch.setattr(
        torch.nn.Module,
        "compile",
        lambda self, **options: traced.append(self) or original(self, backend="eager", **options),
    )
    run = train_tiny(tiny_data, tmp_path / "run", "train.compile=true").run
    assert len(traced) == 1
    for one, other in zip(read_metrics(run), read_metrics(tiny_run), strict=True):
        assert one.keys() == other.keys()
        assert all(one[name] == pytest.approx(other[name], abs=1e-4) for name in one if name.startswith("loss"))


def test_training_learns_the_labels(tmp_path, tiny_data):
    overrides = [
        "train.max_iters=60",
        "train.cls_warmup_iters=60",
        "train.eval_iters=60",
        "optim.warmup_iters=5",
        "train.batch_size=4",
    ]
    train_tiny(tiny_data, tmp_path / "r", *overrides)
    losses = [line["loss_cls"] for line in read_metrics(tmp_path / "r") if "loss_cls" in line]
    assert sum(losses[-10:]) < 0.8 * sum(losses[:10])


def test_going_on_gives_the_same_weights_as_going_through(tmp_path, tiny_data, tiny_run):
    run = tmp_path / "run"

    def stop(event):
        if isinstance(event, Stepped) and event.step == 2:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        train_tiny(tiny_data, run, observers=(stop,))
    assert load_model(find_checkpoint(run).folder)[2] in (2, 3), "the step at hand ends first"
    resume(run, device="cpu")
    straight, resumed = weights_of(tiny_run), weights_of(run)
    assert all(torch.equal(straight[name], resumed[name]) for name in straight)


def test_kill_9_loses_nothing_but_time(tmp_path, tiny_data):
    """Forty steps straight equal a job that is killed in the middle and resumed, to the last bit."""
    longer = [
        *TINY,
        "train.max_iters=40",
        "train.eval_iters=15",
        "train.checkpoint_iters=7",
        "train.cls_warmup_iters=10",
        "train.aff_warmup_iters=10",
    ]
    straight = train_tiny(tiny_data, tmp_path / "straight", *longer).run
    killed = tmp_path / "killed"
    sets = [word for change in longer for word in ("--set", change)]
    job = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "afactl",
            "train",
            "demo",
            "--data",
            tiny_data,
            "--out",
            killed,
            "--device",
            "cpu",
            *sets,
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    while job.poll() is None and len(read_metrics(killed)) < 20:
        time.sleep(0.01)
    job.kill()
    job.wait()
    assert 20 <= len(read_metrics(killed)) < 40, "killed in the middle"
    resume(killed, device="cpu")
    for which in ("last", "best"):
        one, other = weights_of(straight, which), weights_of(killed, which)
        assert all(torch.equal(one[name], other[name]) for name in one)
    lines = [
        [{k: v for k, v in line.items() if k != "images_per_second"} for line in read_metrics(run)]
        for run in (straight, killed)
    ]
    assert lines[0] == lines[1]


def test_a_resumed_run_takes_changes_only_when_told(run_copy):
    with pytest.raises(
        UsageError, match=r"train.max_iters: 4 -> 6\); leave them, go on with the new ones by --allow-changes"
    ):
        go_on(run_copy, "train.max_iters=6")
    done = go_on(run_copy, "train.max_iters=6", allow_changes=True)
    assert done.steps == 6 and run_preset(run_copy).train.max_iters == 6
    assert read_manifest(run_copy)["changes"] == [{"step": 4, "values": ["train.max_iters: 4 -> 6"]}]
    assert [job["steps"] for job in read_manifest(run_copy)["jobs"]] == [[0, 4], [4, 6]]
    with pytest.raises(CheckpointError, match="another architecture"):
        go_on(run_copy, "train.max_iters=8", "model.decoder_width=8", allow_changes=True)
    assert run_preset(run_copy).model.decoder_width == 16, "what does not fit changes nothing"


def test_changed_settings_of_the_optimizer_count_from_the_resumed_step_on(run_copy, monkeypatch):
    seen, step = [], torch.optim.AdamW.step
    names = ("lr", "betas", "weight_decay")

    def noted(optimizer, *rest):
        seen.append([{name: group[name] for name in names} for group in optimizer.param_groups])
        return step(optimizer, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", noted)
    before = weights_of(run_copy)
    changes = ("optim.weight_decay=0.25", "optim.head_lr_factor=3", "optim.betas=[0.5,0.6]", "optim.freeze=nothing")
    go_on(run_copy, "train.max_iters=6", "optim.warmup_iters=0", "optim.lr=0.01", *changes, allow_changes=True)
    after = weights_of(run_copy)
    assert len(seen) == 2
    for backbone, heads in seen:
        assert backbone["weight_decay"] == heads["weight_decay"] == 0.25
        assert tuple(backbone["betas"]) == tuple(heads["betas"]) == (0.5, 0.6)
        assert heads["lr"] == pytest.approx(3 * backbone["lr"]) and backbone["lr"] > 0
    norms = [name for name in after if name.startswith("backbone.") and "norm" in name]
    assert norms and not any(torch.equal(before[name], after[name]) for name in norms), "no longer frozen"
    # Frozen again, they stay.
    go_on(run_copy, "train.max_iters=7", "optim.freeze=norms", allow_changes=True)
    last = weights_of(run_copy)
    assert all(torch.equal(after[name], last[name]) for name in norms)
    assert not torch.equal(after["classifier"], last["classifier"])


def test_a_refiner_that_is_none_is_told_before_anything_is_written(tmp_path, tiny_data):
    with pytest.raises(UsageError, match='cam.refiner: "pra" is unknown; did you mean "par"'):
        train_tiny(tiny_data, tmp_path / "run", "cam.refiner=pra")
    assert not (tmp_path / "run").exists()


def test_deterministic_runs_repeat_themselves(tmp_path, tiny_data, tiny_run):
    """Also with another number of workers; and the switch is taken back by the next job."""
    same = ["train.deterministic=true", "loss.reg=0.01"]
    for name, workers in (("one", 0), ("two", 2)):
        train_tiny(tiny_data, tmp_path / name, *same, f"train.workers={workers}")
        assert torch.are_deterministic_algorithms_enabled()
    one, two = weights_of(tmp_path / "one"), weights_of(tmp_path / "two")
    assert all(torch.equal(one[name], two[name]) for name in one)
    lines = [
        [{k: v for k, v in line.items() if k != "images_per_second"} for line in read_metrics(tmp_path / name)]
        for name in ("one", "two")
    ]
    assert lines[0] == lines[1]
    train_tiny(tiny_data, tmp_path / "three")
    assert not torch.are_deterministic_algorithms_enabled()


def test_a_full_disk_is_told_and_the_former_checkpoint_kept(tmp_path, tiny_data, monkeypatch):
    from afactl.runs import checkpoints

    original = checkpoints.torch.save

    def full(state, path):
        if state["iteration"] > 2:
            raise OSError(28, "No space left on device")
        original(state, path)

    monkeypatch.setattr(checkpoints.torch, "save", full)
    with pytest.raises(AfactlError, match="step 4 cannot be written .*No space left on device.*the former one is kept"):
        train_tiny(tiny_data, tmp_path / "run")
    assert load_model(find_checkpoint(tmp_path / "run").folder)[2] == 2


def test_resume_refuses_what_it_cannot_do(run_copy):
    with pytest.raises(UsageError, match="is finished"):
        resume(run_copy, device="cpu")
    with pytest.raises(UsageError, match="train.seed: 0 -> 5"):
        go_on(run_copy, "train.seed=5")
    shutil.rmtree(run_copy / "checkpoints")
    with pytest.raises(AfactlError, match="no checkpoint yet"):
        resume(run_copy, device="cpu")


def test_nothing_is_written_when_something_is_wrong(tmp_path, tiny_data):
    run = tmp_path / "run"
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    with pytest.raises(PresetError, match="max_iters"):
        train_tiny(data, run, "train.max_iter=1")
    with pytest.raises(AfactlError, match="no such weights file"):
        train_tiny(data, run, f"model.init={tmp_path / 'no.pth'}")
    (data / "images/train/0003.png").unlink()
    with pytest.raises(DataError, match=r"1 of 8 listed files .*0003.png"):
        train_tiny(data, run)
    assert not run.exists()


def test_a_folder_that_holds_something_is_left_alone(tmp_path, tiny_data, run_copy):
    before = (run_copy / "metrics.jsonl").read_text()
    with pytest.raises(UsageError, match="holds a run already"):
        train_tiny(tiny_data, run_copy)
    assert (run_copy / "metrics.jsonl").read_text() == before
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "x").write_text("")
    with pytest.raises(UsageError, match="holds other files"):
        train_tiny(tiny_data, tmp_path / "other")
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot be written"):
        train_tiny(tiny_data, tmp_path / "file" / "run")


def test_a_truncated_photo_is_named_and_the_checkpoint_kept(tmp_path, tiny_data):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    for path in (data / "images/train").iterdir():
        path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(DataError, match=r"images/train/\d+.png: truncated"):
        train_tiny(data, tmp_path / "run")


def test_training_without_masks_works_and_keeps_no_best(tmp_path, tiny_data):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    shutil.rmtree(data / "masks")
    result = train_tiny(data, tmp_path / "run")
    assert result.validation is None
    assert find_checkpoint(tmp_path / "run", "best").folder.name == "last"


def test_going_on_with_another_dataset_is_told_as_another_run(run_copy, tiny_data, tmp_path):
    own = load_preset(str(run_copy / "preset.yaml"))
    moved = own.model_copy(update={"data": own.data.model_copy(update={"root": str(tmp_path / "other")})})
    with pytest.raises(UsageError, match=f"is another run, trained on {tiny_data} and not on {tmp_path}/other; leave"):
        resume(run_copy, moved)
    with pytest.raises(UsageError, match="was started with other values"):
        resume(run_copy, own.model_copy(update={"train": own.train.model_copy(update={"max_iters": 9})}))
