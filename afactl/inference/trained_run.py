"""A run ready for inference, and the splits of its dataset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from afactl.datasets.registry import check_files, load_split
from afactl.datasets.samples import Split
from afactl.errors import CheckpointError, UsageError
from afactl.network.model import AFA
from afactl.presets import Preset, changed_preset
from afactl.runs.checkpoints import WEIGHTS, Architecture, find_checkpoint, load_model, weights_hash
from afactl.runs.folder import run_preset

# Sections of a preset that scoring and prediction follow, without another training.
SCORING = ("cam", "par", "affinity", "eval", "crf")


class TrainedRun(NamedTuple):
    """A run ready for inference.

    Attributes:
        weights_hash: 16 hex digits, which caches are tied to.
        iteration: of the checkpoint. checkpoint: its name: "last", "best", or "last.old" where that one is damaged.
        note: what is to be said about the checkpoint, if anything.
        changes: `section.key=value` in which the preset is not that of the run, see `scored_with`.
    """

    folder: Path
    preset: Preset
    model: AFA
    architecture: Architecture
    device: torch.device
    weights_hash: str
    iteration: int
    checkpoint: str = "last"
    note: str = ""
    changes: tuple[str, ...] = ()


def open_run(folder: Path, device: torch.device, which: str = "last") -> TrainedRun:
    """Load a run's network.

    Args:
        which: "best" or "last" checkpoint.

    Raises:
        CheckpointError: there is none, or it does not fit.
    """
    checkpoint, note = find_checkpoint(folder, which, needed=(WEIGHTS,))
    model, architecture, iteration = load_model(checkpoint)
    return TrainedRun(
        folder,
        run_preset(folder),
        model.to(device),
        architecture,
        device,
        weights_hash(checkpoint),
        iteration,
        checkpoint.name,
        note,
    )


def scored_with(run: TrainedRun, overrides: Sequence[str]) -> TrainedRun:
    """The run with other values for this call, of what concerns scoring and not the training.

    Raises:
        UsageError: a key of another section, or `affinity.enabled`. PresetError: as `changed_preset`.
    """
    for override in overrides:
        key = override.partition("=")[0].strip()
        if key == "affinity.enabled" or ("." in key and key.partition(".")[0] not in SCORING):
            raise UsageError(
                f"--set {override}: concerns the training, which is over; "
                f"expected a key of {', '.join(SCORING[:-1])} or {SCORING[-1]}"
            )
    if not overrides:
        return run
    return run._replace(preset=changed_preset(run.preset, overrides), changes=tuple(overrides))


def open_split(run: TrainedRun, split: str, data: Path | None, masks: bool) -> Split:
    """A split of the run's dataset, with its files checked.

    Args:
        data: where the dataset lies, if not where the run was trained from.
        masks: the true masks are needed.

    Raises:
        DataError: no such split, missing files. UsageError: masks are needed and the dataset has none.
        CheckpointError: the dataset's classes are not those of the network.
    """
    settings = run.preset.data
    loaded = load_split(settings.name, settings.folder(data), split, settings.labels)
    if loaded.classes != run.architecture.classes:
        raise CheckpointError(
            f"{run.folder}: trained on the classes {', '.join(run.architecture.classes)}, "
            f"but the dataset has {', '.join(loaded.classes)}; give the dataset of the run with --data"
        )
    if masks:
        loaded.require_masks()
    check_files(loaded, masks)
    return loaded


def to_tensor(image: np.ndarray, device: torch.device) -> Tensor:
    """h x w x 3 uint8 -> 1 x 3 x h x w float in 0..255."""
    return torch.tensor(image, device=device).permute(2, 0, 1)[None].float()


def multi_hot(labels: Iterable[int], classes: int) -> Tensor:
    """Class indices as a C vector of 0 and 1."""
    label = torch.zeros(classes)
    label[list(labels)] = 1
    return label
