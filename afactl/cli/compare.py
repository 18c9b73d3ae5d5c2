"""`afactl compare`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from afactl.cli.options import (
    CheckpointOption,
    DataOption,
    DeviceOption,
    JsonOption,
    OverwriteOption,
    Palette,
    PaletteOption,
    SplitOption,
    Which,
    open_chosen_run,
)
from afactl.cli.tables import score_figures
from afactl.errors import UsageError, counted
from afactl.files import require_free
from afactl.machine.terminal import duration, out, percent, table, tracker, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from afactl.evaluation.comparing import ClassChange
    from afactl.evaluation.scores import Score
    from afactl.inference.trained_run import TrainedRun

app = typer.Typer(rich_markup_mode=None)
# So many images are drawn, and so many classes printed at each end.
IMAGES, CLASSES = 12, 6


@app.command(
    epilog="Example: afactl compare runs/plain runs/mine --split val",
    short_help="Compare runs, or masks of any origin, on the same photos.",
)
def compare(
    runs: Annotated[
        list[Path] | None, typer.Argument(metavar="RUN RUN ...", help="run folders; each is compared with the first")
    ] = None,
    split: SplitOption = "val",
    masks: Annotated[
        tuple[Path, Path] | None,
        typer.Option("--masks", metavar="FOLDER FOLDER", help="in place of runs: folders of masks of any origin"),
    ] = None,
    truth: Annotated[
        Path | None, typer.Option("--truth", metavar="FOLDER", help="with --masks: the true ones, of the same names")
    ] = None,
    classes: Annotated[
        Path | None,
        typer.Option("--classes", metavar="FILE", help="with --masks: a class name per line; default: numbers"),
    ] = None,
    out_file: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="FILE", help="picture of the images that changed most; default: in figures of the last run"
        ),
    ] = None,
    data: DataOption = None,
    json_file: JsonOption = None,
    overwrite: OverwriteOption = False,
    palette: PaletteOption = Palette.safe,
    checkpoint: CheckpointOption = Which.last,
    device: DeviceOption = "auto",
) -> None:
    """Compare runs on the same photos: presets, scores with paired intervals, classes and photos that changed most."""
    require_free([("--json", json_file), ("--out", out_file)], overwrite)
    if masks is not None:
        if runs or out_file:
            raise UsageError("compare --masks: takes folders of masks, no runs and no --out; leave them out")
        _compare_masks(masks, truth, classes, json_file)
        return
    if truth or classes:
        raise UsageError("compare: --truth and --classes belong to --masks; give --masks FOLDER FOLDER too")
    if len(runs or []) < 2:
        raise UsageError("compare: expected two run folders or more; afactl runs lists them")
    from afactl.evaluation.comparing import MAIN_ROW, class_changes, most_changed, require_same_split, run_scores
    from afactl.inference.trained_run import open_split

    opened = [open_chosen_run(folder, device, checkpoint) for folder in runs or []]
    splits = [open_split(run, split, data, masks=True) for run in opened]
    require_same_split(opened, splits)
    scores = [
        run_scores(run, one, tracker(f"segmentation by {run.folder.name}"))
        for run, one in zip(opened, splits, strict=True)
    ]
    names = [str(run.folder) for run in opened]
    presets = _print_presets(opened)
    costs = _print_costs(opened)
    rows = [row for row in scores[0] if all(row in other for other in scores)]
    out.print(
        f"split {split}, {counted(len(splits[0].samples), 'image')}; differences are paired over the images [95 %]"
    )
    figures = _print_scores(names, [{row: one[row] for row in rows} for one in scores], splits[0].classes)
    first, last = scores[0][MAIN_ROW], scores[-1][MAIN_ROW]
    changes = class_changes(first, last, splits[0].classes)
    _print_classes(names[0], names[-1], MAIN_ROW, changes)
    chosen = most_changed(first, last, IMAGES)
    by_run = [one[MAIN_ROW].images for one in scores]
    if json_file is not None:
        photos = [
            {"image": splits[0].samples[place].image_id, "miou": [float(values[place]) for values in by_run]}
            for place in chosen
        ]
        told = {"split": split, "images": len(splits[0].samples), "runs": names, "presets": presets, "costs": costs}
        write_json(json_file, {**told, "rows": figures, "classes": _class_figures(changes), "changed": photos})
    if chosen and not out.quiet:
        from afactl.pictures.comparison import draw_comparison

        target = out_file or opened[-1].folder / "figures" / f"compare-{split}.png"
        drawn = [(place, [float(values[place]) for values in by_run]) for place in chosen]
        out.print(f"picture: {draw_comparison(opened, splits[0], drawn, target, palette.value)}")


def _compare_masks(folders: tuple[Path, Path], truth: Path | None, names: Path | None, json_file: Path | None) -> None:
    from afactl.datasets.tables import read_class_file
    from afactl.evaluation.comparing import class_changes, score_mask_folders

    if truth is None:
        raise UsageError("compare --masks: expected --truth FOLDER, the folder of true masks")
    found = score_mask_folders(folders, truth, read_class_file(names).names if names else None, tracker("masks"))
    labels = [str(folder) for folder in folders]
    out.print(
        f"{counted(len(found.images), 'mask')}, "
        f"{counted(len(found.classes), 'class', 'classes')}; differences are paired over the masks [95 %]"
    )
    figures = _print_scores(labels, [{"masks": score} for score in found.scores], found.classes)
    first, other = found.scores
    changes = class_changes(first, other, found.classes)
    _print_classes(labels[0], labels[1], "masks", changes)
    if json_file is not None:
        told = {"images": len(found.images), "masks": labels}
        write_json(json_file, {**told, "rows": figures, "classes": _class_figures(changes)})


def _print_presets(runs: Sequence[TrainedRun]) -> dict[str, list[Any]]:
    """The keys whose values differ; gives them by name."""
    from afactl.presets import values_by_key

    every = [values_by_key(run.preset) for run in runs]
    columns = {key: [values[key] for values in every] for key in every[0]}
    differing = {key: values for key, values in columns.items() if any(value != values[0] for value in values)}
    if differing:
        rows = [(key, *map(str, values)) for key, values in differing.items()]
        out.print(table("what differs in the presets", ("key", *(run.folder.name for run in runs)), rows))
    else:
        out.print("presets: the same in every value")
    return differing


def _print_costs(runs: Sequence[TrainedRun]) -> dict[str, Any]:
    """Time, memory and speed of each training, where the run has noted them."""
    from afactl.runs.folder import run_cost

    costs = {str(run.folder): run_cost(run.folder) for run in runs}
    rows = [
        (
            name,
            duration(cost.seconds) if cost else "-",
            f"{cost.peak_memory / 2**30:.1f}" if cost and cost.peak_memory else "-",
            f"{cost.photos_per_second:.1f}" if cost else "-",
        )
        for name, cost in costs.items()
    ]
    out.print(table("training", ("run", "time", "peak memory, GiB", "photos/s"), rows))
    return {name: cost._asdict() if cost else None for name, cost in costs.items()}


def _print_scores(
    names: Sequence[str], scores: Sequence[Mapping[str, Score]], classes: Sequence[str]
) -> dict[str, dict[str, Any]]:
    """A table per comparison with the first; gives the figures for --json."""
    from afactl.evaluation.intervals import difference

    figures: dict[str, dict[str, Any]] = {row: {} for row in scores[0]}
    columns = ["row", Path(names[0]).name]
    lines = {row: [row, score.text] for row, score in scores[0].items()}
    for row, score in scores[0].items():
        figures[row][names[0]] = score_figures(score, classes)
    for name, others in zip(names[1:], scores[1:], strict=True):
        columns += [Path(name).name, "difference"]
        for row, score in others.items():
            above = difference(score.tallies, scores[0][row].tallies)
            lines[row] += [score.text, above.text]
            told = {"value": above.value, "interval": list(above.interval)}
            figures[row][name] = {**score_figures(score, classes), "difference": told}
    out.print(table("mIoU %", columns, list(lines.values())))
    return figures


def _print_classes(first: str, other: str, row: str, changes: Sequence[ClassChange]) -> None:
    """The classes that gained and lost most."""
    shown = changes if len(changes) <= 2 * CLASSES else [*changes[:CLASSES], *changes[-CLASSES:]]
    lines = [(change.name, percent(change.before), percent(change.after), change.difference.text) for change in shown]
    left = f"; {len(changes) - len(shown)} in between left out" if len(shown) < len(changes) else ""
    columns = ("class", Path(first).name, Path(other).name, "difference")
    out.print(table(f"IoU % by class, {row}, the greatest gain first{left}", columns, lines))


def _class_figures(changes: Sequence[ClassChange]) -> dict[str, Any]:
    return {
        change.name: {
            "iou": [change.before, change.after],
            "difference": change.difference.value,
            "interval": list(change.difference.interval),
        }
        for change in changes
    }
