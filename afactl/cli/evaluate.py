"""`afactl eval`."""

from __future__ import annotations

from typing import Annotated

import typer

from afactl.cli.options import (
    AdoptedPresetOption,
    Backend,
    BackendOption,
    CheckpointFileOption,
    CrfOption,
    DataOption,
    DeviceOption,
    JsonOption,
    LimitOption,
    OverwriteOption,
    Palette,
    PaletteOption,
    PerClassOption,
    Protocol,
    RunArgument,
    RunOption,
    ScoringOption,
    SplitOption,
    adopted,
    chosen_crf,
    one_run,
    open_chosen_run,
    told,
)
from afactl.cli.tables import numbers, print_per_class, score_figures
from afactl.errors import UsageError
from afactl.files import require_free
from afactl.machine.terminal import out, table, tracker, write_json

app = typer.Typer(rich_markup_mode=None)


@app.command(
    "eval",
    epilog="Example: afactl eval --split val --crf --per-class",
    short_help="Score the segmentation, with the CRF if asked.",
)
def evaluate(
    run: RunArgument = None,
    split: SplitOption = "val",
    crf: CrfOption = False,
    crf_backend: BackendOption = Backend.torch,
    protocol: Annotated[
        Protocol | None,
        typer.Option(
            "--protocol", help="test as the paper or as the authors' script does; default: the preset's eval.*"
        ),
    ] = None,
    overrides: ScoringOption = None,
    limit: LimitOption = None,
    run_option: RunOption = None,
    data: DataOption = None,
    per_class: PerClassOption = False,
    worst: Annotated[
        int,
        typer.Option(
            "--worst", metavar="N", min=0, max=100, help="draw the N worst images with truth and segmentation"
        ),
    ] = 0,
    examples: Annotated[
        int, typer.Option("--examples", metavar="N", min=0, max=100, help="draw N images from worst to best (Fig. 6)")
    ] = 0,
    palette: PaletteOption = Palette.safe,
    json_file: JsonOption = None,
    overwrite: OverwriteOption = False,
    checkpoint: CheckpointFileOption = "last",
    preset: AdoptedPresetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Score the segmentation: single scale, multi-scale + flip, and + CRF; no image-level truth is used."""
    from afactl.evaluation.segmentation import evaluate_segmentation, with_protocol
    from afactl.inference.trained_run import open_split, scored_with
    from afactl.presets import protocol_name

    require_free([("--json", json_file)], overwrite)
    if protocol and any(override.strip().startswith("eval.") for override in overrides or []):
        raise UsageError(f"--protocol {protocol.value}: says all of eval.*; leave it out, or --set eval.*")
    backend = chosen_crf(crf, crf_backend)
    run, which = adopted(one_run(run, run_option), checkpoint, preset, data)
    trained = scored_with(open_chosen_run(run, device, which), overrides or [])
    dataset = open_split(trained, split, data, masks=True).head(limit)
    chosen = protocol.value if protocol else None
    scores = evaluate_segmentation(trained, dataset, backend, tracker("segmentation"), chosen)
    trained = with_protocol(trained, chosen)
    rows = [(score.name, score.text) for score in scores]
    out.print(table(f"segmentation of {split}, mIoU %", ("row", "mIoU"), rows))
    settings = trained.preset.eval
    side = f"long side {settings.long_side}" if settings.long_side else "size as stored"
    name = protocol_name(settings)
    out.print(
        f"split {split}, {told(dataset, trained.changes)}; protocol: {name} ({side}, sizes: {settings.sizes}; "
        f"multi-scale: {numbers(settings.scales)}, each with its mirror image by {settings.mirror}, "
        f"fused at the {settings.fuse_at} by maximum); "
        f"no image-level truth was used; {trained.checkpoint} checkpoint, step {trained.iteration}"
    )
    if per_class:
        print_per_class({score.name: score for score in scores}, dataset.classes)
    if json_file is not None:
        write_json(
            json_file,
            {
                "split": split,
                "images": len(dataset.samples),
                "limited": dataset.whole is not None,
                "set": trained.changes,
                "run": str(trained.folder),
                "step": trained.iteration,
                "protocol": name,
                "miou": {score.name: score.miou for score in scores},
                "rows": {score.name: score_figures(score, dataset.classes) for score in scores},
            },
        )
    for name, count in (("worst", worst), ("examples", examples)):
        if count and not out.quiet:
            from afactl.pictures.figures import draw_ranked

            out.print(f"picture: {draw_ranked(trained, dataset, scores[1].images, name, count, palette.value)}")
