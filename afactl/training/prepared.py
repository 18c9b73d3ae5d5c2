"""What a training needs, checked before anything is written."""

from __future__ import annotations

from typing import NamedTuple

import torch

from afactl.datasets.advice import size_advice, tag_advice
from afactl.datasets.checking import unequal_sizes
from afactl.datasets.registry import check_files, is_missing, load_split
from afactl.datasets.samples import Split
from afactl.errors import DataError
from afactl.inference.refiners import preset_refiner
from afactl.machine import distributed
from afactl.machine.devices import require_compiler, seed_everything
from afactl.network.backbones import require_whole_tokens
from afactl.network.model import AFA, widen_heads
from afactl.presets import Preset
from afactl.runs.checkpoints import Architecture, architecture_of
from afactl.training.optimizer import build_optimizer


class Prepared(NamedTuple):
    """The parts of a training.

    Attributes:
        data: what is trained on. val: what is scored, or None.
        model: random weights on `device`; those to start or go on with are loaded into it.
        shares: how the photos of a step are shared out.
        notes: what is to be said about the data.
    """

    preset: Preset
    device: torch.device
    data: Split
    val: Split | None
    architecture: Architecture
    model: AFA
    optimizer: torch.optim.AdamW
    shares: distributed.Shares
    notes: tuple[str, ...] = ()


def prepare(preset: Preset, device: torch.device) -> Prepared:
    """Build and check everything that a preset asks for; nothing is written.

    Raises:
        UsageError, DataError, DependencyError: what is wrong with the refiner, the data, the sizes or the compiler.
    """
    preset_refiner(preset)  # a wrong name is told now
    data, val = load_data(preset)
    architecture = architecture_of(preset.model, data.classes, data.category_ids)
    seed_everything(preset.train.seed, preset.train.deterministic)
    model = architecture.build().to(device)
    if preset.model.head_init == "normal":
        widen_heads(model)
    require_whole_tokens(model.backbone, preset.train.crop_size)
    if preset.train.compile:
        require_compiler()
        # One graph for all sizes: the CAM passes come in several, validation in many.
        model.backbone.compile(dynamic=True)
    processes = distributed.world_size()
    shares = distributed.step_shares(preset.train.batch_size, preset.train.effective_batch, processes)
    optimizer = build_optimizer(model, preset)
    advice = [*size_advice(data, preset.train.crop_size, preset.data.long_side)]
    if preset.train.supervision == "labels":
        advice += tag_advice(data)
    notes = dict.fromkeys((*data.notes, *advice, *(val.notes + _unscored(val) if val else ())))
    return Prepared(preset, device, data, val, architecture, model, optimizer, shares, tuple(notes))


def load_data(preset: Preset) -> tuple[Split, Split | None]:
    """The training split, and the validation split where there is one with masks; every listed file exists.

    Raises:
        UsageError: full supervision of a dataset without masks. DataError: what is missing, or masks of another size
            than their photos where they are trained on.
    """
    root = preset.data.folder()
    data = load_split(preset.data.name, root, preset.data.train_split, preset.data.labels)
    masks = preset.train.supervision == "masks"
    if masks:
        data.require_masks("train.supervision=masks")
    check_files(data, masks=masks)
    wrong = unequal_sizes(data) if masks else []
    if wrong:
        raise DataError(
            f"split {data.name}: {len(wrong)} of {len(data.samples)} masks have another size than their photos "
            f"(first: {wrong[0].where}: {wrong[0].detail}); afactl data check names all"
        )
    if is_missing(preset.data.name, root, preset.data.val_split):
        return data, None
    val = load_split(preset.data.name, root, preset.data.val_split, preset.data.labels)
    if val.masks is None:
        return data, None
    check_files(val, masks=True)
    return data, val


def _unscored(val: Split) -> tuple[str, ...]:
    """What can be told before the first step: masks that cannot be compared with their photos."""
    wrong = unequal_sizes(val)
    if not wrong:
        return ()
    return (
        f"split {val.name}: {len(wrong)} of {len(val.samples)} photos will not be scored, their masks have another "
        f"size (first: {wrong[0].where}: {wrong[0].detail}); afactl data check names all",
    )
