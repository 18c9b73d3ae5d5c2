"""Save, load and resume: weights as safetensors, training state loadable with weights_only=True.

A checkpoint is a folder with `weights.safetensors` (its metadata says which network it fits),
`training.pt` (optimizer and iteration) and the checksums of both. It is written beside its place, brought to
the disk and then moved there; the former one stays beside it. So a killed job or a power cut leaves a whole
one, and a damaged one is known by its checksum.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from afactl.errors import CheckpointError, PresetError, first_line
from afactl.files import whole_file, writing
from afactl.network.model import AFA
from afactl.presets import Model
from afactl.runs.foreign_weights import read_state, to_authors
from afactl.runs.hugging_face import configuration, write_folder
from afactl.runs.optimizer_state import optimizer_state, restore_optimizer
from afactl.runs.starting_weights import load_state

WEIGHTS = "weights.safetensors"
TRAINING = "training.pt"
CHECKSUMS = "checksums.json"


class Architecture(NamedTuple):
    """What is needed to build the network that weights fit, and to name its classes.

    Attributes:
        category_ids: the numbers that the dataset gives its classes (COCO's go to 90); () where class c is c + 1.
    """

    backbone: str
    classes: tuple[str, ...]
    pooling: str | float
    decoder_width: int
    drop_path: float
    category_ids: tuple[int, ...] = ()

    def build(self) -> AFA:
        """The network with random weights."""
        return AFA(self.backbone, len(self.classes), self.pooling, self.decoder_width, self.drop_path)


def architecture_of(model: Model, classes: Sequence[str], category_ids: Sequence[int] = ()) -> Architecture:
    """The network that the section `model` of a preset describes, for the classes of a dataset."""
    widths = model.decoder_width, model.drop_path
    return Architecture(model.backbone, tuple(classes), model.pooling, *widths, tuple(category_ids))


def save_checkpoint(
    folder: Path, model: AFA, optimizer: torch.optim.Optimizer | None, iteration: int, architecture: Architecture
) -> None:
    """Write a checkpoint to `folder`, replacing the one there only when the new one is complete.

    Args:
        optimizer: None for weights that no training goes on with.

    Raises:
        CheckpointError: it cannot be written, on a full disk for instance; the former one is kept.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    fresh = folder.with_name(folder.name + ".new")
    former = folder.with_name(folder.name + ".old")
    metadata = {"architecture": json.dumps(architecture._asdict()), "iteration": str(iteration)}
    state = {name: value.contiguous() for name, value in _on_cpu(model.state_dict()).items()}
    try:
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        save_file(state, fresh / WEIGHTS, metadata=metadata)
        if optimizer is not None:
            torch.save({**_on_cpu(optimizer_state(model, optimizer)), "iteration": iteration}, fresh / TRAINING)
        sums = {path.name: _checksum(path) for path in sorted(fresh.iterdir())}
        (fresh / CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")
        # A rename may reach the disk before the bytes of what is renamed.
        for path in (*fresh.iterdir(), fresh):
            _sync(path)
        if folder.exists():
            shutil.rmtree(former, ignore_errors=True)
            os.rename(folder, former)
        os.rename(fresh, folder)
        _sync(folder.parent)
    except (
        OSError,
        RuntimeError,
        SafetensorError,
    ) as error:  # torch and safetensors have kinds of their own for a full disk
        shutil.rmtree(fresh, ignore_errors=True)  # a half-written one would keep it full
        raise CheckpointError(
            f"{folder}: the checkpoint of step {iteration} cannot be written ({first_line(error)}); "
            "the former one is kept: make room, then afactl train --resume"
        ) from error


def _on_cpu(tree: Any) -> Any:
    """Nested dictionaries and lists with their tensors on the CPU: a checkpoint knows no device."""
    if isinstance(tree, Tensor):
        return tree.cpu()
    if isinstance(tree, Mapping):
        return {key: _on_cpu(value) for key, value in tree.items()}
    return [_on_cpu(value) for value in tree] if isinstance(tree, list) else tree


def _checksum(path: Path) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**22):
            digest.update(part)
    return digest.hexdigest()


def _sync(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FoundCheckpoint(NamedTuple):
    """A checkpoint's folder, and in words why it is another one than was asked for, if it is."""

    folder: Path
    note: str


def find_checkpoint(run: Path, which: str = "last", needed: Sequence[str] = (WEIGHTS, TRAINING)) -> FoundCheckpoint:
    """The newest whole checkpoint of a run.

    Args:
        needed: the files that must be whole; inference does without TRAINING.
        which: "last", or "best" of the validation score (the last where none was kept).

    Raises:
        CheckpointError: the run has none yet, or every one is damaged.
    """
    damaged: list[str] = []
    for name in [*(["best", "best.new", "best.old"] if which == "best" else []), "last", "last.new", "last.old"]:
        folder = run / "checkpoints" / name
        if _is_whole(folder, needed):
            note = f"{', '.join(damaged)} is damaged or unfinished (checksum); using {name}" if damaged else ""
            if which == "best" and name.startswith("last") and not damaged:
                note = f"no best checkpoint was kept, since no validation had a score; using {name}"
            return FoundCheckpoint(folder, note)
        if folder.is_dir() and not name.endswith(".new"):  # .new without its checksums was being written
            damaged.append(f"checkpoints/{name}")
    if damaged:
        raise CheckpointError(
            f"{run}: {', '.join(damaged)} damaged or unfinished (checksum); train again, or restore a copy"
        )
    raise CheckpointError(f"{run}: no checkpoint yet; train first: afactl train PRESET --out {run}")


def _is_whole(folder: Path, needed: Sequence[str]) -> bool:
    try:
        sums = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
        return all(_checksum(folder / name) == sums[name] for name in needed)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def load_model(folder: Path) -> tuple[AFA, Architecture, int]:
    """The network of a checkpoint in evaluation mode, what it is, and its iteration.

    Raises:
        CheckpointError: missing, unreadable, or not one of ours. PresetError: its backbone is not known here.
    """
    from safetensors import safe_open

    path = folder / WEIGHTS
    state = read_state(path)
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata() or {}
    try:
        fields = json.loads(metadata["architecture"])
        for name in ("classes", "category_ids"):  # checkpoints of earlier versions have no ids
            fields[name] = tuple(fields.get(name, ()))
        architecture = Architecture(**fields)
        iteration = int(metadata["iteration"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: expected weights saved by afactl train, found no description of the network"
        ) from error
    try:
        model = architecture.build()
    except PresetError as error:
        raise PresetError(
            f'{path}: its backbone "{architecture.backbone}" is not known here; call the script that registers it, or '
            "install the package that brings it"
        ) from error
    load_state(model, state, str(path))
    return model.eval(), architecture, iteration


def export_weights(checkpoint: Path, out: Path, form: str) -> None:
    """Write the weights of a checkpoint into one file, without the training state.

    Args:
        form: "safetensors": with the description of the network, as `--init` takes it; "authors": a PyTorch file
            under the names of the authors' code; "hf": `out` is a folder that Hugging Face's SegFormer loads.

    Raises:
        CheckpointError: the checkpoint cannot be read. UsageError: `out` cannot be written, or SegFormer has no such
            network.
    """
    source = checkpoint / WEIGHTS
    if form == "hf":
        model, network, _ = load_model(checkpoint)
        config = configuration(network.backbone, network.classes, network.decoder_width, network.drop_path)
        write_folder(out, model.state_dict(), config)
        return
    # torch raises a kind of its own for a full disk.
    with writing(f"--out {out}", "give another file", also=(RuntimeError,)), whole_file(out) as fresh:
        if form == "authors":
            with open(fresh, "wb") as file:  # given a name, torch would write it into the file
                torch.save(to_authors(read_state(source)), file)
        else:
            shutil.copyfile(source, fresh)


def restore_training(folder: Path, model: AFA, optimizer: torch.optim.Optimizer) -> int:
    """Put a checkpoint's weights and the optimizer's moments back; gives its iteration.

    The optimizer keeps the settings that it was built with (rates, betas, weight decay), and learns the parameters
    that it was built for: one that the checkpoint has no moments of starts without any.

    Raises:
        CheckpointError: unreadable, or of another architecture.
    """
    load_state(model, read_state(folder / WEIGHTS), str(folder / WEIGHTS))
    try:
        state = torch.load(folder / TRAINING, map_location="cpu", weights_only=True)
        restore_optimizer(model, optimizer, state)
        return int(state["iteration"])
    except Exception as error:  # torch raises many kinds; the remedy is the same
        raise CheckpointError(f"{folder / TRAINING}: cannot be read ({first_line(error)})") from error


def weights_hash(folder: Path) -> str:
    """First 16 hex digits of the SHA-256 of the weights of a checkpoint that `find_checkpoint` gave.

    Caches are tied to it.
    """
    sums: dict[str, str] = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))
    return sums[WEIGHTS][:16]
