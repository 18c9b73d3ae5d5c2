"""Trained weights of others as a run of ours, so that every command works on them."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from afactl.datasets.registry import dataset_format, load_split
from afactl.errors import CheckpointError, UsageError
from afactl.presets import Preset, differences
from afactl.runs.checkpoints import Architecture, architecture_of, save_checkpoint
from afactl.runs.folder import new_run, read_manifest, run_preset, write_manifest
from afactl.runs.foreign_weights import read_state, require_finite, translate
from afactl.runs.starting_weights import load_state


def adopt(weights: Path, preset: Preset, name: str, out: Path | None = None) -> Path:
    """Make a run folder of a file of trained weights; one that an earlier call made of it is taken again.

    Args:
        weights: a whole AFA network: a checkpoint of the authors, or weights that `afactl export` wrote.
        preset: what it was trained with, as far as that matters now: network, data, scoring.
        name: of the preset, for the manifest.
        out: the run folder; None: runs/NAME-HASH, by the name of the file and what it holds.

    Returns:
        The run folder.

    Raises:
        CheckpointError: no weights, or of another network, or of a backbone alone.
        UsageError: the folder holds something else, or the data are needed to know the classes and not given.
    """
    state = translate(read_state(weights), str(weights)).state
    require_finite(state, str(weights))
    if all(key.startswith(("backbone.", "decoder.")) for key in state):
        raise CheckpointError(
            f"{weights}: holds a backbone without the classifier and the affinity head of AFA; "
            f"train from it: afactl train {name} --init {weights}"
        )
    digest = hashlib.sha256(weights.read_bytes()).hexdigest()
    run = out or Path("runs") / f"{weights.stem}-{digest[:8]}"
    if run.is_dir() and read_manifest(run).get("weights") == digest:
        if changed := differences(run_preset(run), preset):
            raise UsageError(
                f"{run}: was made of {weights.name} with other values ({'; '.join(changed)}); "
                f"use it with --run {run}, or remove it"
            )
        return run
    architecture = _architecture(preset)
    model = architecture.build()
    load_state(model, state, str(weights))
    folder, held = new_run(preset, name, run)
    with held:
        step = int(match[1]) if (match := re.search(r"iter_?(\d+)$", weights.stem)) else 0
        save_checkpoint(folder / "checkpoints" / "last", model, None, step, architecture)
        write_manifest(folder, preset=name, adopted_from=str(weights.resolve()), weights=digest)
    return folder


def _architecture(preset: Preset) -> Architecture:
    """Of the preset's network, with the classes of its dataset."""
    if preset.data.root is None and (known := dataset_format(preset.data.name).classes):
        return architecture_of(preset.model, known)
    split = load_split(preset.data.name, preset.data.folder(None), preset.data.train_split, preset.data.labels)
    return architecture_of(preset.model, split.classes, split.category_ids)
