"""`afactl predict`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afactl.cli.options import (
    AdoptedPresetOption,
    Backend,
    BackendOption,
    CheckpointFileOption,
    CrfOption,
    DeviceOption,
    FormatOption,
    LimitOption,
    Palette,
    PaletteOption,
    RunOption,
    ScoringOption,
    adopted,
    chosen_crf,
    open_chosen_run,
)
from afactl.errors import UsageError, counted
from afactl.machine.terminal import error_line, log, out, tracker

if TYPE_CHECKING:
    from afactl.prediction.predict import Photo

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog="Example: afactl predict holiday/ --crf --overlay --out masks",
    short_help="Write masks for any photos; no label files are needed.",
)
def predict(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTOS...", help="files, folders or globs")],
    run: RunOption = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", metavar="FOLDER", help="folder for the masks; default: RUN/predictions")
    ] = None,
    crf: CrfOption = False,
    crf_backend: BackendOption = Backend.torch,
    form: FormatOption = "png",
    overlay: Annotated[
        bool, typer.Option("--overlay", help="also write the photo with its mask over it, contours and class names")
    ] = False,
    palette: PaletteOption = Palette.safe,
    only_kept: Annotated[
        bool,
        typer.Option("--only-kept", help="of the photos, those that the run's review list keeps (afactl explore)"),
    ] = False,
    limit: LimitOption = None,
    overrides: ScoringOption = None,
    window: Annotated[
        int | None,
        typer.Option(
            "--window",
            metavar="N",
            min=64,
            help="pass photos with a longer side than this at their own size, in overlapping windows of this side",
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="replace files of earlier calls that are in the way; photos never")
    ] = False,
    checkpoint: CheckpointFileOption = "last",
    preset: AdoptedPresetOption = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data",
            metavar="FOLDER",
            help="with --checkpoint FILE: the dataset whose classes the weights have; voc needs none",
        ),
    ] = None,
    device: DeviceOption = "auto",
) -> None:
    """Write masks for any photos; no label files are needed."""
    from afactl.inference.trained_run import scored_with
    from afactl.prediction.predict import PredictOptions, find_photos
    from afactl.prediction.predict import predict as predict_photos
    from afactl.runs.folder import find_run

    backend = chosen_crf(crf, crf_backend)
    if data is not None and preset is None:
        raise UsageError(f"--data {data}: goes with --checkpoint FILE and --preset; give the photos as arguments")
    run, which = adopted(run, checkpoint, preset, data)
    folder = out_folder or find_run(run)[0] / "predictions"
    to_predict = find_photos(photos, folder)
    chosen = only_kept_photos(to_predict.photos, find_run(run)[0]) if only_kept else to_predict.photos
    for note in to_predict.notes:
        log.print(note)
    if len(chosen) < len(to_predict.photos):
        is_kept = "is kept" if len(chosen) == 1 else "are kept"
        log.print(f"{len(chosen)} of {counted(len(to_predict.photos), 'photo')} {is_kept} by the review list")
    if limit is not None and limit < len(chosen):
        log.print(f"the first {limit} of {counted(len(chosen), 'photo')}")
        chosen = chosen[:limit]
    trained = scored_with(open_chosen_run(run, device, which), overrides or [])
    forms = [form, *(["overlay"] if overlay and form != "overlay" else [])]
    options = PredictOptions(backend, forms, palette.value, window, overwrite)
    result = predict_photos(trained, chosen, folder, options, tracker("predict"))
    for line in result.failed:
        error_line(line)
    kept = f", {result.kept} of them before a stop" if result.kept else ""
    out.print(
        f"{result.photos} of {counted(len(chosen), 'photo')}{kept} as {' and '.join(forms)} in {folder} "
        f"(multi-scale + flip{' + CRF' if crf else ''}; {counted(trained.iteration, 'step')})"
    )
    if overrides:
        out.print(f"with {', '.join(overrides)}")
    out.print(
        f"values: 0 background, {', '.join(f'{i} {name}' for i, name in enumerate(trained.architecture.classes, 1))}"
    )
    if result.reduced:
        out.print(
            f"{counted(result.reduced, 'large photo')}: masks made with at most "
            f"{(trained.preset.eval.max_pixels or 0) / 1e6:.0f} megapixels (eval.max_pixels) or, for the CRF, fewer, "
            "and enlarged"
        )
    if result.failed:
        raise typer.Exit(1)


def only_kept_photos(photos: list[Photo], run: Path) -> list[Photo]:
    """Those of the photos that the review list of a run keeps.

    Raises:
        UsageError: the run has no such list, or it keeps none of the photos.
    """
    from afactl.datasets.registry import dataset_folder
    from afactl.runs.folder import run_preset
    from afactl.runs.review import REVIEW, kept_photos

    settings = run_preset(run).data
    wanted = kept_photos(run / REVIEW, dataset_folder(settings.name, settings.folder()))
    kept = [photo for photo in photos if photo.path.resolve() in wanted]
    if not kept:
        raise UsageError(f"--only-kept: none of the {counted(len(photos), 'photo')} is kept by {run / REVIEW}")
    return kept
