"""The commands that draw: `afactl viz-...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afactl.cli.options import (
    CheckpointOption,
    DataOption,
    DeviceOption,
    OverwriteOption,
    Palette,
    PaletteOption,
    RunOption,
    Which,
    open_chosen_run,
)
from afactl.errors import UsageError
from afactl.files import require_free
from afactl.machine.terminal import out

OutOption = Annotated[
    Path | None, typer.Option("--out", help="picture to write (.png, .svg, .pdf); default: in RUN/figures")
]


PhotoArgument = Annotated[
    Path | None,
    typer.Argument(help="a photo; default: the first of the validation split, or of training where there is none"),
]


app = typer.Typer(rich_markup_mode=None)


@app.command("viz-attn", epilog="Example: afactl viz-attn photo.jpg --query 32,40 --query 100,80")
def viz_attn(
    image: PhotoArgument = None,
    query: Annotated[
        list[str] | None,
        typer.Option(
            "--query",
            metavar="X,Y",
            help="pixel of the upright photo, as a person sees it; repeatable; default: its centre",
        ),
    ] = None,
    layer: Annotated[
        int | None,
        typer.Option("--layer", help="attention of this one of the last blocks, from 1, in place of the mean"),
    ] = None,
    head: Annotated[int | None, typer.Option("--head", help="attention of this head of --layer, from 1")] = None,
    compare: Annotated[
        Path | None, typer.Option("--compare", metavar="RUN", help="a run without AFA, drawn beside it")
    ] = None,
    run: RunOption = None,
    data: DataOption = None,
    out_file: OutOption = None,
    palette: PaletteOption = Palette.safe,
    overwrite: OverwriteOption = False,
    checkpoint: CheckpointOption = Which.last,
    device: DeviceOption = "auto",
) -> None:
    """Look at attention and learned affinity of query points, with CAM and pseudo labels (Fig. 1, 4, 11, 13)."""
    from afactl.pictures.drawing import parse_query
    from afactl.pictures.figures import draw_attention

    require_free([("--out", out_file)], overwrite, [image] if image else [])
    queries = [parse_query(text) for text in query or []]
    if head is not None and layer is None:
        raise UsageError("--head: of which layer? give --layer too")
    trained = open_chosen_run(run, device, checkpoint)
    other = open_chosen_run(compare, device, checkpoint) if compare else None
    heads = None if layer is None else (layer, head)
    drawn = draw_attention(trained, image, queries, data, out_file, overwrite, palette.value, heads, other)
    out.print(drawn.source)
    out.print(f"picture: {drawn.file}")


@app.command("viz-heads", epilog="Example: afactl viz-heads --run runs/voc")
def viz_heads(
    run: RunOption = None,
    out_file: OutOption = None,
    overwrite: OverwriteOption = False,
    checkpoint: CheckpointOption = Which.last,
) -> None:
    """Draw the learned weight of each head in the affinity, as in figure 14."""
    from afactl.pictures.figures import draw_heads

    require_free([("--out", out_file)], overwrite)
    drawn = draw_heads(open_chosen_run(run, "cpu", checkpoint), out_file)
    out.print(drawn.source)
    out.print(f"picture: {drawn.file}")


@app.command("viz-cams", epilog="Example: afactl viz-cams --without-afa runs/plain")
def viz_cams(
    images: Annotated[
        list[Path] | None,
        typer.Argument(help="photos, a row each; default: the first three of the validation split, or of training"),
    ] = None,
    without_afa: Annotated[
        Path | None,
        typer.Option("--without-afa", metavar="RUN", help="a run without AFA, whose CAM stands beside ours"),
    ] = None,
    run: RunOption = None,
    data: DataOption = None,
    out_file: OutOption = None,
    palette: PaletteOption = Palette.safe,
    overwrite: OverwriteOption = False,
    checkpoint: CheckpointOption = Which.last,
    device: DeviceOption = "auto",
) -> None:
    """Compare CAMs: as they are, spread by MHSA, and spread by the learned affinity (Fig. 2, 9)."""
    from afactl.pictures.figures import draw_cams, first_photos

    require_free([("--out", out_file)], overwrite, images or [])
    trained = open_chosen_run(run, device, checkpoint)
    other = open_chosen_run(without_afa, device, checkpoint) if without_afa else None
    drawn = draw_cams(trained, images or first_photos(trained, data, 3), data, out_file, palette.value, other)
    out.print(drawn.source)
    out.print(f"picture: {drawn.file}")


@app.command("viz-par", epilog="Example: afactl viz-par photo.jpg --gif par.gif")
def viz_par(
    image: PhotoArgument = None,
    gif: Annotated[Path | None, typer.Option("--gif", help="also write the way of the labels as an animation")] = None,
    run: RunOption = None,
    data: DataOption = None,
    out_file: OutOption = None,
    palette: PaletteOption = Palette.safe,
    overwrite: OverwriteOption = False,
    checkpoint: CheckpointOption = Which.last,
    device: DeviceOption = "auto",
) -> None:
    """Compare labels before and after each refiner, and over the iterations of PAR (Fig. 5, 10)."""
    from afactl.pictures.figures import draw_refiners

    require_free([("--out", out_file), ("--gif", gif)], overwrite, [image] if image else [])
    drawn = draw_refiners(open_chosen_run(run, device, checkpoint), image, data, out_file, palette.value, gif)
    out.print(drawn.source)
    out.print(f"picture: {drawn.file}")
