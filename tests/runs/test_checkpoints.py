import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from afactl.errors import CheckpointError, PresetError
from afactl.runs import checkpoints
from afactl.runs.checkpoints import (
    Architecture,
    find_checkpoint,
    load_model,
    restore_training,
    save_checkpoint,
    weights_hash,
)

ARCHITECTURE = Architecture("mit_demo", ("cat", "dög"), "gmp", 8, 0.1, (3, 90))


@pytest.fixture
def saved(tmp_path):
    torch.manual_seed(0)
    model = ARCHITECTURE.build()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    model.classify(model(torch.randn(1, 3, 32, 32))).sum().backward()
    optimizer.step()
    folder = tmp_path / "run" / "checkpoints" / "last"
    save_checkpoint(folder, model, optimizer, 7, ARCHITECTURE)
    return folder, model, optimizer


def test_what_was_saved_comes_back(saved):
    folder, model, optimizer = saved
    loaded, architecture, iteration = load_model(folder)
    assert architecture == ARCHITECTURE and iteration == 7 and not loaded.training
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in model.state_dict().items())
    other = ARCHITECTURE.build()
    fresh = torch.optim.AdamW(other.parameters(), lr=0.1)
    assert restore_training(folder, other, fresh) == 7
    first, second = optimizer.state_dict()["state"], fresh.state_dict()["state"]
    assert all(torch.equal(first[k]["exp_avg"], second[k]["exp_avg"]) for k in first)


def test_weights_of_earlier_versions_have_no_category_ids(saved):
    folder = saved[0]
    with safe_open(folder / "weights.safetensors", framework="pt") as file:
        metadata, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    fields = json.loads(metadata["architecture"])
    del fields["category_ids"]
    save_file(state, folder / "weights.safetensors", {**metadata, "architecture": json.dumps(fields)})
    assert load_model(folder)[1] == ARCHITECTURE._replace(category_ids=())


def test_a_network_of_a_script_that_is_not_running_is_named(saved):
    folder = saved[0]
    with safe_open(folder / "weights.safetensors", framework="pt") as file:
        metadata, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
    fields = {**json.loads(metadata["architecture"]), "backbone": "mine"}
    save_file(state, folder / "weights.safetensors", {**metadata, "architecture": json.dumps(fields)})
    with pytest.raises(PresetError, match='backbone "mine" is not known here; call the script'):
        load_model(folder)


def test_a_new_checkpoint_replaces_the_old_one_and_changes_the_hash(saved):
    folder, model, optimizer = saved
    before = weights_hash(folder)
    assert before == weights_hash(folder) and len(before) == 16
    with torch.no_grad():
        model.classifier.add_(1)
    save_checkpoint(folder, model, optimizer, 8, ARCHITECTURE)
    assert weights_hash(folder) != before and load_model(folder)[2] == 8
    assert sorted(p.name for p in folder.parent.iterdir()) == ["last", "last.old"], "two are kept"
    assert load_model(folder.with_name("last.old"))[2] == 7


def test_a_checkpoint_is_on_the_disk_before_it_takes_its_place(saved, monkeypatch):
    """A rename may reach the disk before the bytes of what is renamed: each file and the folder are synced first."""
    folder, model, optimizer = saved
    fresh, done = folder.with_name("last.new"), []
    sync, rename = os.fsync, os.rename

    def synced(handle):
        done.append(("synced", os.fstat(handle).st_ino))
        sync(handle)

    def renamed(source, target):
        if source == fresh:
            written.extend(path.stat().st_ino for path in (*fresh.iterdir(), fresh))
        done.append(("renamed", source, target))
        rename(source, target)

    written = []
    monkeypatch.setattr(checkpoints.os, "fsync", synced)
    monkeypatch.setattr(checkpoints.os, "rename", renamed)
    save_checkpoint(folder, model, optimizer, 8, ARCHITECTURE)
    placed = done.index(("renamed", fresh, folder))
    moved_away = done.index(("renamed", folder, folder.with_name("last.old")))
    assert len(written) == 4 and {("synced", inode) for inode in written} <= set(done[:moved_away])
    assert moved_away < placed and ("synced", folder.parent.stat().st_ino) in done[placed:], "the renames, too"


def test_the_last_checkpoint_in_place_of_a_best_one_is_told(saved):
    folder, model, optimizer = saved
    run, best = folder.parent.parent, folder.with_name("best")
    why = "no best checkpoint was kept, since no validation had a score; using last"
    assert find_checkpoint(run, "best") == (folder, why)
    save_checkpoint(best, model, optimizer, 8, ARCHITECTURE)
    assert find_checkpoint(run, "best") == (best, "") and find_checkpoint(run) == (folder, "")
    (best / "weights.safetensors").write_bytes(b"cut off")
    assert find_checkpoint(run, "best") == (
        folder,
        "checkpoints/best is damaged or unfinished (checksum); using last",
    )


def test_a_half_written_checkpoint_is_passed_over(saved):
    folder, *_ = saved
    run = folder.parent.parent
    half = folder.with_name("last.new")
    half.mkdir()
    (half / "weights.safetensors").write_bytes(b"half")
    assert find_checkpoint(run) == (folder, "")
    folder.rename(folder.with_name("last.old"))  # killed between the two renames
    assert find_checkpoint(run) == (folder.with_name("last.old"), "")
    with pytest.raises(CheckpointError, match="no checkpoint yet; train first"):
        find_checkpoint(run.parent)


@pytest.mark.parametrize("name", ["weights.safetensors", "training.pt", "checksums.json"])
@pytest.mark.parametrize("damage", ["cut", "flip", "remove"])
def test_a_damaged_checkpoint_is_known_and_the_former_one_used(saved, name, damage):
    folder, model, optimizer = saved
    save_checkpoint(folder, model, optimizer, 8, ARCHITECTURE)
    content = (folder / name).read_bytes()
    if damage == "remove":
        (folder / name).unlink()
    elif damage == "cut":
        (folder / name).write_bytes(content[: len(content) // 2])
    else:
        middle = len(content) // 2
        (folder / name).write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    found = find_checkpoint(folder.parent.parent)
    assert (
        found.folder.name == "last.old"
        and "checkpoints/last is damaged or unfinished (checksum); using last.old" in found.note
    )
    (folder.with_name("last.old") / name).write_bytes(b"")
    with pytest.raises(CheckpointError, match="checkpoints/last, checkpoints/last.old damaged or unfinished"):
        find_checkpoint(folder.parent.parent)


def test_weights_without_a_description_are_refused(saved):
    folder, model, _ = saved
    save_file(model.state_dict(), folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match="expected weights saved by afactl train"):
        load_model(folder)
    (folder / "training.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="training.pt: cannot be read"):
        restore_training(folder, model, torch.optim.AdamW(model.parameters()))


def test_inference_does_without_the_training_state(run_copy):
    from afactl.inference.trained_run import open_run

    (run_copy / "checkpoints/last/training.pt").write_bytes(b"spoiled")
    run = open_run(run_copy, torch.device("cpu"))
    assert run.note == "" and run.iteration == 4
    assert find_checkpoint(run_copy).folder.name == "last.old"
