"""What is known of each run without opening its network: for a list of runs."""

from __future__ import annotations

import contextlib
import stat
from pathlib import Path
from typing import Any, NamedTuple

from afactl.errors import AfactlError, UsageError
from afactl.runs.folder import read_manifest, run_folders, run_preset
from afactl.runs.metrics import read_metrics


class Overview(NamedTuple):
    """One run at a glance.

    Attributes:
        run: its folder. started: local time in ISO 8601, or "" where the manifest is missing.
        preset: the name it was started by, or "" in runs that did not keep it.
        data: folder of the dataset, or the name of its format. backbone: by its registered name.
        step, max_iters: the last logged step, and the steps of the whole training.
        segmentation, cam: mIoU in per cent of the last validation, or None where there was none.
        size: bytes on disk, caches and figures included.
        fault: why preset or manifest cannot be read, or "".
    """

    run: Path
    started: str
    preset: str
    data: str
    backbone: str
    step: int
    max_iters: int
    segmentation: float | None
    cam: float | None
    size: int
    fault: str = ""


def list_runs(root: Path) -> list[Overview]:
    """Every run folder right below `root`, the newest first.

    Raises:
        UsageError: there is no such folder.
    """
    if not root.is_dir():
        raise UsageError(f"{root}: expected a folder with runs; train one first (afactl train demo), or name another")
    overviews = [overview(run) for run in run_folders(root)]
    return sorted(overviews, key=lambda line: (line.started, line.run.name), reverse=True)


def overview(run: Path) -> Overview:
    """What preset, manifest and metrics of a run say; a run that cannot be read is listed with its fault."""
    manifest: dict[str, Any] = {}
    metrics = read_metrics(run)
    validation: dict[str, float] = next((line for line in reversed(metrics) if "val_seg_miou" in line), {})
    data, backbone, max_iters, fault = "", "", 0, ""
    try:
        manifest = read_manifest(run)
        preset = run_preset(run)
        data = str(preset.data.root or preset.data.name)
        backbone, max_iters = preset.model.backbone, preset.train.max_iters
    except AfactlError as error:
        fault = str(error)
    return Overview(
        run,
        manifest.get("started", ""),
        manifest.get("preset", ""),
        data,
        backbone,
        max((line["step"] for line in metrics), default=0),
        max_iters,
        validation.get("val_seg_miou"),
        validation.get("val_cam_miou"),
        _size(run),
        fault,
    )


def _size(run: Path) -> int:
    """Bytes of all files below; one that a job takes away meanwhile counts nothing."""
    total = 0
    for path in run.rglob("*"):
        with contextlib.suppress(OSError):
            status = path.lstat()
            total += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return total
