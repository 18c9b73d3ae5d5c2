import json
import os

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from afactl.errors import CheckpointError
from afactl.runs import checkpoints
from afactl.runs.checkpoints import (
    Architecture,
    find_checkpoint,
    initialize,
    load_model,
    load_state,
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
        metadata, state = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    fields = json.loads(metadata["architecture"])
    del fields["category_ids"]
    save_file(state, folder / "weights.safetensors", {**metadata, "architecture": json.dumps(fields)})
    assert load_model(folder)[1] == ARCHITECTURE._replace(category_ids=())


def test_settings_win_over_the_state_that_was_saved(saved):
    """The next step is AdamW's with the moments of the checkpoint and the rates, betas and decay of the optimizer."""
    folder, model, former = saved
    other = ARCHITECTURE.build()
    rate, beta1, beta2, decay, eps = 0.03, 0.7, 0.8, 0.5, 1e-8
    optimizer = torch.optim.AdamW(other.parameters(), lr=rate, betas=(beta1, beta2), weight_decay=decay)
    restore_training(folder, other, optimizer)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["betas"], group["weight_decay"]) == (rate, (beta1, beta2), decay)
    moments, weight = former.state[model.classifier], other.classifier
    gradient = torch.linspace(-1, 1, weight.numel()).reshape(weight.shape)
    first = beta1 * moments["exp_avg"] + (1 - beta1) * gradient
    second = beta2 * moments["exp_avg_sq"] + (1 - beta2) * gradient**2
    update = (first / (1 - beta1**2)) / ((second / (1 - beta2**2)).sqrt() + eps)  # the second step of the job
    expected = weight.detach() * (1 - rate * decay) - rate * update
    weight.grad = gradient
    optimizer.step()
    torch.testing.assert_close(weight.detach(), expected)


def halves(model, learned):
    """An optimizer as `build_optimizer` groups it, with the backbone's norm layers or without them."""
    norms = {
        f"backbone.{name}" for name, part in model.backbone.named_modules() if isinstance(part, torch.nn.LayerNorm)
    }
    names = [name for name, _ in model.named_parameters() if learned == "all" or name.rpartition(".")[0] not in norms]
    parameters = dict(model.named_parameters())
    groups = [[n for n in names if n.startswith("backbone.") == backbone] for backbone in (True, False)]
    return torch.optim.AdamW([{"params": [parameters[name] for name in group]} for group in groups]), names


@pytest.mark.parametrize("now", ["all", "without norms"])
@pytest.mark.parametrize("before", ["all", "without norms"])
@pytest.mark.parametrize("version", ["this", "an earlier one"])
def test_moments_go_to_the_parameters_that_they_belong_to(tmp_path, before, now, version):
    """Also where norm layers were frozen before and are not now, or the other way round."""
    model = ARCHITECTURE.build()
    optimizer, known = halves(model, before)
    for number, (_, parameter) in enumerate(model.named_parameters()):
        parameter.grad = torch.full_like(parameter, float(number))
    optimizer.step()
    save_checkpoint(tmp_path / "last", model, optimizer, 1, ARCHITECTURE)
    if version != "this":  # which did not note the names
        state = torch.load(tmp_path / "last/training.pt", weights_only=True)
        del state["parameters"]
        torch.save(state, tmp_path / "last/training.pt")
    other = ARCHITECTURE.build()
    fresh, learned = halves(other, now)
    restore_training(tmp_path / "last", other, fresh)
    for number, (name, parameter) in enumerate(other.named_parameters()):
        assert (parameter in fresh.state) == (name in known and name in learned), name
        if parameter in fresh.state:
            expected = torch.full_like(parameter, 0.1 * number)
            torch.testing.assert_close(fresh.state[parameter]["exp_avg"], expected, msg=name)


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


def test_weights_of_another_architecture_are_explained(saved):
    _, model, _ = saved
    with pytest.raises(CheckpointError, match=r"\d+ of \d+ parameters do not fit \(first: .* expected"):
        load_state(Architecture("mit_b0", ("a", "b"), "gmp", 8, 0.1).build(), model.state_dict(), "file")
    with pytest.raises(CheckpointError, match=r"classifier is \(2, 160\), expected \(3, 160\)"):
        load_state(Architecture("mit_demo", ("a", "b", "c"), "gmp", 8, 0.1).build(), model.state_dict(), "file")


def test_weights_without_a_description_are_refused(saved):
    folder, model, _ = saved
    save_file(model.state_dict(), folder / "weights.safetensors")
    with pytest.raises(CheckpointError, match="expected weights saved by afactl train"):
        load_model(folder)
    (folder / "training.pt").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="training.pt: cannot be read"):
        restore_training(folder, model, torch.optim.AdamW(model.parameters()))


def test_starting_weights(saved, tmp_path):
    _, model, _ = saved
    torch.save(model.backbone.state_dict() | {"head.weight": torch.zeros(1)}, tmp_path / "mit.pth")
    torch.save(model.state_dict(), tmp_path / "all.pth")
    torch.manual_seed(1)
    fresh = ARCHITECTURE.build()
    head = fresh.classifier.clone()
    assert initialize(fresh, "none") == "random weights"
    assert "heads random" in initialize(fresh, str(tmp_path / "mit.pth"))
    assert torch.equal(fresh.backbone.norm4.weight, model.backbone.norm4.weight) and torch.equal(fresh.classifier, head)
    assert "all weights" in initialize(fresh, str(tmp_path / "all.pth"))
    assert torch.equal(fresh.classifier, model.classifier)
    with pytest.raises(CheckpointError, match="another architecture"):
        initialize(Architecture("mit_b0", ("a",), "gmp", 8, 0.1).build(), str(tmp_path / "mit.pth"))


def test_inference_does_without_the_training_state(run_copy):
    from afactl.inference.trained_run import open_run

    (run_copy / "checkpoints/last/training.pt").write_bytes(b"spoiled")
    run = open_run(run_copy, torch.device("cpu"))
    assert run.note == "" and run.iteration == 4
    assert find_checkpoint(run_copy).folder.name == "last.old"
