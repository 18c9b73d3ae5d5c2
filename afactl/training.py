"""Training: three phases, one loop, a run folder that survives being stopped."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader

from afactl.affinity import affinity_label
from afactl.checkpoints import Architecture, initialize, restore_training, save_checkpoint
from afactl.datasets.registry import check_files, data_fingerprint, load_split
from afactl.datasets.samples import Split
from afactl.datasets.training_stream import TrainingStream
from afactl.datasets.transforms import normalize
from afactl.errors import AfactlError, CheckpointError
from afactl.losses import affinity_loss, classification_loss, segmentation_loss
from afactl.model import AFA
from afactl.presets import Preset
from afactl.pseudo_labels import propagated_label, refined_label
from afactl.refinement.par import pixel_adaptive_refinement
from afactl.runs import append_metrics, write_manifest
from afactl.schedule import Phase, learning_rate, phase_at
from afactl.evaluation import validate

MAX_SKIPPED = 5


def training_losses(
    model: AFA, image: Tensor, label: Tensor, box: Tensor, phase: Phase, preset: Preset
) -> dict[str, Tensor]:
    """The unweighted loss terms of one step; which ones there are depends on the phase.

    Args:
        image: B x 3 x h x w RGB uint8. label: B x C. box: B x 4, the true image inside padding.

    Returns:
        "cls" always; "seg" after the classification warm-up, and "aff" with the affinity branch.
    """
    pixels = normalize(image)
    encoded = model.backbone(pixels)
    losses = {"cls": classification_loss(model.classify(encoded), label)}
    if phase is Phase.CLASSIFICATION:
        return losses

    cam, affinity = preset.cam, preset.affinity
    refine = partial(pixel_adaptive_refinement, **preset.par.model_dump())
    passed = model.multi_scale_cam(pixels, cam.scales, affinity_scale=max(cam.scales))
    refined = target = refined_label(image, passed.cam, label, refine, cam.beta_low, cam.beta_high, box)
    if affinity.enabled:
        pairs = affinity_label(refined, affinity.radius)
        losses["aff"] = affinity_loss(model.affinity(encoded).float(), pairs)
    if phase is Phase.PROPAGATED:
        with torch.no_grad():
            target = propagated_label(
                image, passed.cam, label, model.affinity(passed).float(), passed.grid, refine,
                cam.beta_low, cam.beta_high, affinity.radius, affinity.alpha, affinity.eps, box,
            )  # fmt: skip
    logits = model.decoder(encoded.features)
    logits = F.interpolate(logits, size=target.shape[1:], mode="bilinear", align_corners=False)
    losses["seg"] = segmentation_loss(logits, target)
    return losses


def build_optimizer(model: AFA, preset: Preset) -> torch.optim.AdamW:
    """AdamW with two groups: the backbone, and the heads at `head_lr_factor` times its rate.

    With `freeze_norms` the backbone's norm layers keep their values (the authors give them rate 0).
    """
    optim = preset.optim
    if optim.freeze_norms:
        for module in model.backbone.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(False)
    backbone = [p for p in model.backbone.parameters() if p.requires_grad]
    own = {id(p) for p in model.backbone.parameters()}
    heads = [p for p in model.parameters() if id(p) not in own]
    return torch.optim.AdamW(
        [{"params": backbone, "factor": 1.0}, {"params": heads, "factor": optim.head_lr_factor}],
        lr=optim.lr, betas=optim.betas, weight_decay=optim.weight_decay,
    )  # fmt: skip


def set_learning_rate(optimizer: torch.optim.Optimizer, step: int, preset: Preset) -> float:
    """Set the rate of every group for a step; gives the backbone's."""
    optim = preset.optim
    rate = learning_rate(step, optim.lr, preset.train.max_iters, optim.warmup_iters, optim.warmup_ratio, optim.power)
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    return rate


class Event(NamedTuple):
    """What the loop tells while it runs: `kind` is "step", "validation", "checkpoint" or "note"."""

    kind: str
    step: int
    values: dict[str, Any]


class Training(NamedTuple):
    """What a job leaves behind."""

    run: Path
    steps: int
    validation: dict[str, float] | None


def train(
    preset: Preset,
    run: Path,
    device: torch.device,
    resume: bool = False,
    report: Callable[[Event], None] = lambda event: None,
) -> Training:
    """Train a run from its preset, or go on with it.

    The data order, the augmentation and the network's random numbers are functions of
    (seed, step), so going on after a stop repeats nothing and needs no stored random state.

    Args:
        run: a folder made by `runs.new_run`.
        resume: continue from the run's last checkpoint.
        report: is called for every event.

    Raises:
        DataError: a listed file is missing (before the first step) or broken.
        CheckpointError: nothing to resume, or weights of another architecture.
        AfactlError: the loss stayed non-finite.
        KeyboardInterrupt: passed on after the last checkpoint has been written.
    """
    job = preset.train
    data, val = _load_data(preset)
    torch.manual_seed(job.seed)
    architecture = Architecture(
        preset.model.backbone, data.classes, preset.model.pooling, preset.model.decoder_width, preset.model.drop_path
    )
    model = architecture.build()
    start = 0
    optimizer: torch.optim.AdamW
    if resume:
        from afactl.checkpoints import find_checkpoint

        model.to(device)
        optimizer = build_optimizer(model, preset)
        start = restore_training(find_checkpoint(run, "last"), model, optimizer)
        report(Event("note", start, {"text": f"resumed at step {start} of {job.max_iters}"}))
        if start >= job.max_iters:
            raise CheckpointError(f"{run}: finished already ({start} of {job.max_iters} steps); nothing to resume")
    else:
        report(Event("note", 0, {"text": f"weights: {initialize(model, preset.model.init)}"}))
        model.to(device)
        optimizer = build_optimizer(model, preset)
        write_manifest(
            run, seed=job.seed, device=str(device), effective_batch=job.batch_size,
            data_fingerprint=data_fingerprint(data), classes=list(data.classes), images=len(data.samples),
        )  # fmt: skip

    save = partial(save_checkpoint, model=model, optimizer=optimizer, architecture=architecture)
    loop = _Loop(preset, run, device, model, optimizer, save, val, report)
    validation = loop.run_steps(data, start)
    return Training(run, job.max_iters, validation)


def _load_data(preset: Preset) -> tuple[Split, Split | None]:
    """The training split and, where it has masks, the validation split; every listed file exists."""
    root = Path(preset.data.root) if preset.data.root else None
    data = load_split(preset.data.name, root, preset.data.train_split)
    check_files(data, masks=False)
    val = load_split(preset.data.name, root, preset.data.val_split)
    if val.read_mask is None:
        return data, None
    check_files(val, masks=True)
    return data, val


class _Loop:
    """The state of a running job, so that stopping it anywhere saves the same things."""

    def __init__(self, preset, run, device, model, optimizer, save, val, report) -> None:  # noqa: ANN001
        self.preset, self.run, self.device = preset, run, device
        self.model, self.optimizer, self.save, self.val, self.report = model, optimizer, save, val, report
        self.best = -math.inf
        self.skipped = 0

    def run_steps(self, data: Split, start: int) -> dict[str, float] | None:
        job = self.preset.train
        stream = TrainingStream(
            data, crop_size=job.crop_size, scale_range=job.scale_range, flip=True, seed=job.seed,
            start=start * job.batch_size, stop=job.max_iters * job.batch_size,
        )  # fmt: skip
        loader = DataLoader(
            stream, batch_size=job.batch_size, num_workers=job.workers, pin_memory=self.device.type == "cuda",
            persistent_workers=False, prefetch_factor=4 if job.workers else None,
        )  # fmt: skip
        step, validation = start, None
        clock, seen = time.perf_counter(), 0
        self.model.train()
        try:
            for step, batch in enumerate(loader, start=start):
                values = self.one_step(step, batch)
                seen += len(batch["image"])
                done = step + 1
                if done % job.log_iters == 0 or done == job.max_iters:
                    elapsed = time.perf_counter() - clock
                    values |= {"images_per_second": round(seen / elapsed, 2)}
                    append_metrics(self.run, step=done, **values)
                    self.report(Event("step", done, values))
                if self.val and (done % job.eval_iters == 0 or done == job.max_iters):
                    validation = self.validate(done)
                if done % job.checkpoint_iters == 0 or done == job.max_iters:
                    self.checkpoint(done)
        except KeyboardInterrupt:
            self.checkpoint(step)
            raise
        return validation

    def one_step(self, step: int, batch: dict[str, Any]) -> dict[str, Any]:
        job, weights = self.preset.train, self.preset.loss
        # Dropout and stochastic depth follow from (seed, step): a resumed run draws the same.
        torch.manual_seed((job.seed << 32) + step)
        rate = set_learning_rate(self.optimizer, step, self.preset)
        phase = phase_at(step, job.cls_warmup_iters, job.aff_warmup_iters, self.preset.affinity.enabled)
        image, label, box = (batch[name].to(self.device, non_blocking=True) for name in ("image", "label", "box"))
        with torch.autocast(self.device.type, torch.bfloat16, enabled=job.precision == "bfloat16"):
            losses = training_losses(self.model, image, label, box, phase, self.preset)
        total = sum(getattr(weights, name) * loss for name, loss in losses.items())
        values = {name: loss.item() for name, loss in losses.items()} | {"total": total.item()}
        if not math.isfinite(values["total"]):
            self._skip(step, batch["image_id"])
        else:
            self.skipped = 0
            self.optimizer.zero_grad(set_to_none=True)
            total.backward()
            self.optimizer.step()
        return {"phase": phase.value, **{f"loss_{k}": v for k, v in values.items()}, "lr": rate}

    def _skip(self, step: int, image_ids: list[str]) -> None:
        """Leave a step with a non-finite loss out; stop after several in a row."""
        self.skipped += 1
        text = f"step {step}: non-finite loss, step skipped; images: {', '.join(image_ids)}"
        append_metrics(self.run, step=step, skipped=list(image_ids))
        self.report(Event("note", step, {"text": text}))
        if self.skipped >= MAX_SKIPPED:
            raise AfactlError(f"{text}; {MAX_SKIPPED} in a row: stopped. Lower optim.lr, or look at those images")

    def validate(self, step: int) -> dict[str, float]:
        scores = validate(self.model, self.val, self.preset, self.device)
        append_metrics(self.run, step=step, **scores)
        self.report(Event("validation", step, scores))
        if scores["val_seg_miou"] > self.best:
            self.best = scores["val_seg_miou"]
            self.save(self.run / "checkpoints" / "best", iteration=step)
        return scores

    def checkpoint(self, step: int) -> None:
        self.save(self.run / "checkpoints" / "last", iteration=step)
        self.report(Event("checkpoint", step, {"folder": str(self.run / "checkpoints" / "last")}))
