"""The paper's ablation tables as jobs: train or re-evaluate every row, and put the paper's figure beside ours.

Finished rows are kept in `results.json` of the run they belong to, so a table that was stopped goes on
where it was, and tables share the rows they have in common.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from afactl.ablation.tables import COMMANDS, TABLES, Row, Table
from afactl.datasets.registry import data_fingerprint
from afactl.datasets.samples import Split, Track
from afactl.errors import UsageError, nearest
from afactl.evaluation.pseudo_labels import score_refined_cams
from afactl.evaluation.segmentation import evaluate_segmentation
from afactl.files import lock, whole_file
from afactl.inference.refiners import REFINERS, refiner_settings, refiner_title
from afactl.inference.trained_run import TrainedRun, open_run, open_split
from afactl.machine.devices import choose_device
from afactl.presets import Preset, differences, load_preset, protocol_name
from afactl.runs.folder import drop_unstarted, find_run, run_preset
from afactl.training.events import Event, Noted, Observer
from afactl.training.launch import Request, preset_changes, resume, start

# Opens what shows a training, and closes it after that.
Watch = Callable[[], AbstractContextManager[Observer]]
# Another process has the file of results for a moment only.
LOCK_SECONDS = 10.0


def ignore(event: Event) -> None:
    """The observer of a training that nobody watches."""


def unwatched() -> AbstractContextManager[Observer]:
    """For a table that nobody watches."""
    return nullcontext(ignore)


class Measured(NamedTuple):
    """A row with our figures and the paper's, per column in mIoU %; `reused`: finished by an earlier call."""

    name: str
    ours: tuple[float, ...]
    paper: tuple[float | None, ...]
    reused: bool


class Result(NamedTuple):
    """A finished table.

    Attributes:
        columns, papers: the splits of our figures, and those of VOC that the paper's are of. where: what it was
            measured on.
    """

    title: str
    columns: tuple[str, ...]
    papers: tuple[str, ...]
    rows: list[Measured]
    where: str


@dataclass(frozen=True)
class TableRequest:
    """A table that is to be measured.

    Attributes:
        table: a key of TABLES.
        preset: name or file of what the trained rows start from; not needed where the table refines cached CAMs.
        data, overrides: changes of that preset.
        out: folder of the trained rows, by default `runs/ablate-PRESET`.
        run: whose CAMs are refined, where the table does that; by default the run of `preset`
            in `out`, trained if need be, or else the newest run.
        split: of those CAMs.
        device: "auto", "cpu" or "cuda".
    """

    table: str
    preset: str | None = None
    data: Path | None = None
    overrides: tuple[str, ...] = ()
    out: Path | None = None
    run: Path | None = None
    split: str = "train"
    device: str = "auto"


def ablate(request: TableRequest, watch: Watch = unwatched, track: Track = iter) -> Result:
    """Measure every row of a table that is not yet finished.

    Args:
        watch: opened around each training, gives its observer.
        track: wraps the walk over the images that are scored.

    Raises:
        UsageError: no such table, or options that do not go together.
    """
    name = request.table
    if name in COMMANDS:
        raise UsageError(f"ablate {name}: is what another command prints: {COMMANDS[name]}")
    if name not in TABLES:
        raise UsageError(f'ablate "{name}": expected one of {", ".join(TABLES)}{nearest(name, TABLES)}')
    table = TABLES[name]
    splits = tuple(column or request.split for column in table.splits)
    of_row: Callable[[Sequence[str]], TrainedRun]
    if table.measure != "refined":
        if request.run is not None or request.preset is None:
            raise UsageError(f"ablate {name}: its rows are trained, so give --preset PRESET and no --run")
        where, of_row = f"preset {request.preset}", partial(_trained_row, request, request.preset, watch)
        if table.measure == "segmentation":
            where += f", protocol {protocol_name(load_preset(request.preset, request.overrides).eval)}"
    else:
        if request.run is None and request.preset is not None:
            base = _trained_row(request, request.preset, watch, ())
        else:
            if request.preset or request.overrides or request.out:
                raise UsageError(
                    f"ablate {name}: --preset, --set and --out are for a run that is trained first; "
                    "leave them out where --run or the newest run is refined"
                )
            base = open_run(find_run(request.run)[0], choose_device(request.device))
        where, of_row = f"CAMs of {base.folder}, step {base.iteration}", lambda changes: base
    rows = [*table.rows, *(_added_refiners() if name == "table4" else ())]
    measured = [_measure(table, row, of_row(row.changes), splits, request.data, track) for row in rows]
    papers = tuple(column or "train" for column in table.splits)  # Tables 4 and 8 refine CAMs of VOC's train
    return Result(f"{name}: {table.title}", splits, papers, measured, where)


def _added_refiners() -> list[Row]:
    """A row for each refiner that others brought; the paper has no figure for it."""
    return [Row(refiner_title(name), (), (None,), name) for name in REFINERS.others()]


def _trained_row(request: TableRequest, preset_name: str, watch: Watch, changes: Sequence[str]) -> TrainedRun:
    """The finished run of a row: as it lies there, gone on with, or trained from the start."""
    device = choose_device(request.device)
    own = preset_changes(request.data, None, request.overrides)
    total = load_preset(preset_name, own).train.max_iters
    changes = [change.format(max_iters=total) for change in changes]
    preset = load_preset(preset_name, [*own, *changes])
    folder = (request.out or Path("runs") / f"ablate-{Path(preset_name).stem}") / _slug(changes)
    if (folder / "preset.yaml").is_file() and not any(folder.glob("checkpoints/*/weights.safetensors")):
        drop_unstarted(folder)
    if not (folder / "preset.yaml").is_file():
        with watch() as observer:
            observer(Noted(0, f"row {folder}"))
            start(Request(preset, out=folder, device=request.device, observers=(observer,)))
        return open_run(folder, device)
    changed = differences(run_preset(folder), preset)
    if changed:
        raise UsageError(f"{folder}: was trained with other values ({'; '.join(changed)}); give another --out")
    if open_run(folder, device).iteration < total:
        with watch() as observer:
            observer(Noted(0, f"row {folder}"))
            resume(folder, device=request.device, observers=(observer,))
    return open_run(folder, device)


def _slug(changes: Sequence[str]) -> str:
    """A folder name for a set of changes: readable, and the same for the same changes."""
    text = "_".join(sorted(change.split(".", 1)[1].replace("=", "-").replace(" ", "") for change in changes))
    return text or "base"


def _measure(
    table: Table, row: Row, run: TrainedRun, splits: Sequence[str], data: Path | None, track: Track
) -> Measured:
    figures, reused = [], True
    for name in splits:
        split = open_split(run, name, data, masks=True)
        settings: dict[str, Any] = {
            "measure": table.measure,
            "split": name,
            "data": data_fingerprint(split),
            "weights": run.weights_hash,
        }
        if table.measure == "segmentation":
            settings |= {
                "eval": run.preset.eval.model_dump(mode="json"),
                "crf": row.crf and run.preset.crf.model_dump(mode="json"),
            }
            job = partial(_segmentation, run, split, row.crf, track)
        else:
            preset = _changed(run.preset, row.changes) if table.measure == "refined" else run.preset
            refiner = (row.refiner, refiner_settings(preset, row.refiner)) if row.refiner else None
            settings |= {"threshold": preset.cam.background, "scales": list(preset.cam.scales), "refiner": refiner}
            job = partial(score_refined_cams, run, split, refiner, track)
        value, kept = _kept(run.folder / "results.json", settings, job)
        figures.append(value)
        reused &= kept
    return Measured(row.name, tuple(figures), row.paper, reused)


def _segmentation(run: TrainedRun, split: Split, crf: bool, track: Track) -> float:
    return evaluate_segmentation(run, split, "torch" if crf else None, track)[-1].miou


def _changed(preset: Preset, changes: Sequence[str]) -> Preset:
    """A preset with some values of its section `par` replaced."""
    tree = preset.model_dump()
    for change in changes:
        section, key = change.partition("=")[0].split(".")
        tree[section][key] = json.loads(change.partition("=")[2])
    return Preset.model_validate(tree)


def _kept(path: Path, settings: dict[str, Any], job: Callable[[], float]) -> tuple[float, bool]:
    """The figure for these settings out of a file of results, or else measured and put there.

    Returns:
        (mIoU in per cent, whether it was there).
    """
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]
    results = _results(path)
    if key in results:
        return float(results[key]["miou"]), True
    value = job()
    with lock(path.with_name(f".{path.name}.lock"), LOCK_SECONDS):
        results = _results(path)  # another table may have put its rows there meanwhile
        results[key] = {"miou": value, **settings}
        with whole_file(path) as fresh:
            fresh.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return value, False


def _results(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
