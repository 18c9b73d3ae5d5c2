"""Run folders: where a training job puts everything, and how later commands find it.

runs/<preset>-<date>-<time>/
    preset.yaml     the resolved preset
    manifest.json   versions, git revision, seed, effective batch, device, command, data fingerprint
    metrics.jsonl   one line per logged step or validation
    checkpoints/    last/ and best/
    cache/          HDF5 of the stages
    scores/         what pseudo-eval and eval counted, whole and by image, for the report and comparisons
    figures/        pictures
    .lock           what a training holds while it runs
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from afactl.errors import BusyError, CheckpointError, UsageError, first_line
from afactl.files import Lock, is_utf8, lock, whole_file, writing
from afactl.presets import Preset, load_preset, save_preset

# The file whose lock a training holds.
LOCK = ".lock"


def new_run(preset: Preset, name: str, out: Path | None) -> tuple[Path, Lock]:
    """Create a run folder with its resolved preset.

    Args:
        name: of the preset, for the default folder `runs/<name>-<date>-<time>`.
        out: the folder to use instead.

    Returns:
        (folder, the lock that keeps other trainings out of it).

    Raises:
        UsageError: the folder holds something already, or cannot be written.
    """
    run = out or Path("runs") / f"{name}-{datetime.now():%Y%m%d-%H%M%S}"
    if not is_utf8(str(run)):
        raise UsageError(
            f"--out {run}: the name is no UTF-8, without which weights cannot be read; give another folder"
        )
    _require_empty(run)  # first of all: nothing is to be changed in a folder with something else
    with writing(f"--out {run}", "give another folder"):
        run.mkdir(parents=True, exist_ok=True)
        held = lock_run(run)
        try:
            _require_empty(run)
            for part in ("checkpoints", "cache", "figures"):
                (run / part).mkdir()
            save_preset(preset, run / "preset.yaml")
        except BaseException:
            held.release()
            raise
    return run, held


def _require_empty(run: Path) -> None:
    if run.is_dir() and any(path.name != LOCK for path in run.iterdir()):
        what = "a run" if (run / "preset.yaml").exists() else "other files"
        raise UsageError(
            f"--out {run}: the folder holds {what} already; give an empty one, or --resume to go on with a run"
        )


def lock_run(run: Path) -> Lock:
    """Keep other trainings out of a run.

    Raises:
        BusyError: another process is training it.
    """
    try:
        return lock(run / LOCK)
    except BusyError as error:
        raise BusyError(f"{run}: another process is training it; wait for that one to end") from error


def drop_unstarted(run: Path) -> None:
    """Take away what a training left that ended before its first checkpoint: there is nothing to go on with.

    Raises:
        BusyError: it has not ended.
    """
    with lock_run(run):
        if any(run.glob("checkpoints/*/weights.safetensors")):
            return
        for name in ("checkpoints", "cache", "figures", "tensorboard", "mlflow", "wandb"):
            shutil.rmtree(run / name, ignore_errors=True)
        for name in ("preset.yaml", "manifest.json", "metrics.jsonl"):
            (run / name).unlink(missing_ok=True)


def run_folders(root: Path) -> list[Path]:
    """The run folders right below a folder, in no order."""
    return [preset.parent for preset in root.glob("*/preset.yaml")]


def find_run(run: Path | None, root: Path = Path("runs")) -> tuple[Path, str]:
    """The run that a command works on, and how it was chosen.

    Args:
        run: what the user gave, or None: then `$AFACTL_RUN`, or else the newest under `root`.

    Returns:
        (folder, "given" | "from AFACTL_RUN" | "the newest under runs").

    Raises:
        UsageError: there is none, or the folder is no run.
    """
    chosen, how = run, "given"
    if chosen is None and os.environ.get("AFACTL_RUN"):
        chosen, how = Path(os.environ["AFACTL_RUN"]), "from AFACTL_RUN"
    if chosen is None:
        runs = run_folders(root)
        if not runs:
            raise UsageError(f"no run under {root}/; train one first (afactl train demo) or give --run RUN")
        chosen, how = (
            max(runs, key=lambda folder: (folder / "preset.yaml").stat().st_mtime),
            f"the newest under {root}",
        )
    if not (chosen / "preset.yaml").is_file():
        raise UsageError(
            f"--run {chosen}: expected a run folder with a preset.yaml; train one with afactl train PRESET"
        )
    return chosen, how


def run_preset(run: Path) -> Preset:
    """The preset a run was trained with.

    Versions that had no `loss.part_photos` took the means of seg and aff over each batch: their runs go on so.
    """
    preset = load_preset(str(run / "preset.yaml"))
    if "part_photos" in preset.loss.model_fields_set:
        return preset
    batch = preset.train.batch_size
    photos = read_manifest(run).get("effective_batch", preset.train.effective_batch or batch)
    parts = {"part_photos": batch if photos > batch else None}
    return preset.model_copy(update={"loss": preset.loss.model_copy(update=parts)})


def change_preset(run: Path, preset: Preset, step: int, changes: Sequence[str]) -> None:
    """Go on with another preset from a step on; the manifest keeps what was changed, and when."""
    with whole_file(run / "preset.yaml") as fresh:
        save_preset(preset, fresh)
    manifest = read_manifest(run)
    manifest.setdefault("changes", []).append({"step": step, "values": list(changes)})
    with whole_file(run / "manifest.json") as fresh:
        fresh.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def write_manifest(run: Path, **facts: Any) -> None:
    """Write manifest.json: what is needed to tell later how this run came about.

    Args:
        facts: JSON-able values of the job: seed, device, effective batch, data fingerprint.
    """
    import h5py
    import numpy
    import torch

    from afactl import __version__

    manifest = {
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
        "command": sys.argv,
        "git_revision": _git_revision(),
        "versions": {
            "afactl": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
            "h5py": h5py.__version__,
        },
        "platform": platform.platform(),
        "cpu_count": os.cpu_count(),
        **facts,
    }
    (run / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def note_job(run: Path, steps: tuple[int, int], seconds: float, peak_memory: int | None) -> None:
    """Add to the manifest what a job took that went from one step to another; validations are in it."""
    manifest = read_manifest(run)
    job = {"steps": list(steps), "seconds": round(seconds, 1), "peak_memory": peak_memory}
    manifest.setdefault("jobs", []).append(job)
    with whole_file(run / "manifest.json") as fresh:
        fresh.write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


class Cost(NamedTuple):
    """What the training of a run took.

    Attributes:
        seconds: of all its jobs, validations included.
        peak_memory: bytes of the largest one; None where the system does not count them.
        photos_per_second: of whole jobs, reading and validations included.
    """

    seconds: float
    peak_memory: int | None
    photos_per_second: float


def run_cost(run: Path) -> Cost | None:
    """What the training took by its manifest; None where an earlier version noted nothing.

    Raises:
        CheckpointError: the manifest is damaged.
    """
    manifest = read_manifest(run)
    jobs = manifest.get("jobs", [])
    seconds = sum(job["seconds"] for job in jobs)
    if not seconds:
        return None
    steps = sum(last - first for first, last in (job["steps"] for job in jobs))
    largest = max((job["peak_memory"] for job in jobs if job["peak_memory"]), default=None)
    return Cost(seconds, largest, steps * manifest.get("effective_batch", 0) / seconds)


def read_manifest(run: Path) -> dict[str, Any]:
    """The manifest of a run, or {} where it is missing.

    Raises:
        CheckpointError: it is damaged.
    """
    path = run / "manifest.json"
    return _read_json(path) if path.is_file() else {}


def write_scores(run: Path, name: str, scores: dict[str, Any], tallies: Mapping[str, np.ndarray]) -> None:
    """Keep what a scoring command found: scores/<name>.json, and by row what each image counted, in <name>.npz."""
    with whole_file(run / "scores" / f"{name}.npz") as fresh, open(fresh, "wb") as file:
        np.savez_compressed(file, **tallies)  # type: ignore[arg-type]  # a row may have any name
    with whole_file(run / "scores" / f"{name}.json") as fresh:
        fresh.write_text(json.dumps(scores) + "\n", encoding="utf-8")


def read_tallies(run: Path, name: str) -> dict[str, np.ndarray]:
    """By row what each image counted, n x 3 x K; {} where the run does not keep it.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = run / "scores" / f"{name}.npz"
    if not path.is_file():
        return {}
    try:
        with np.load(path) as kept:
            return dict(kept)
    except (ValueError, OSError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)}); remove it and score again") from error


def read_scores(run: Path) -> dict[str, dict[str, Any]]:
    """Everything that scoring commands kept in a run, by name.

    Raises:
        CheckpointError: a file is damaged.
    """
    return {path.stem: _read_json(path) for path in sorted((run / "scores").glob("*.json"))}


def _read_json(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path}: cannot be read ({first_line(error)}); bring it back, or remove it") from error
    if not isinstance(read, dict):
        raise CheckpointError(f"{path}: expected a JSON object; bring it back, or remove it")
    return read


def _git_revision() -> str | None:
    """The commit of the source checkout, or None for an installed package."""
    source = Path(__file__).resolve().parents[2]
    if not (source / ".git").exists():
        return None
    result = subprocess.run(
        ["git", "-C", str(source), "rev-parse", "HEAD"], capture_output=True, text=True, check=False
    )
    return result.stdout.strip() or None
