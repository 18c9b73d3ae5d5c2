"""The commands that draw: `afactl viz-...`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afactl.cli.options import (
    CheckpointOption,
    DataOption,
    DeviceOption,
    OverwriteOption,
    Palette,
    PaletteOption,
    RunArgument,
    RunOption,
    Which,
    former_names,
    one_run,
    open_chosen_run,
    spread_options,
)
from afactl.errors import UsageError
from afactl.files import require_free
from afactl.machine.terminal import out

if TYPE_CHECKING:
    from afactl.inference.trained_run import TrainedRun
    from afactl.pictures.figures import Drawn

PhotoArgument = Annotated[
    Path | None,
    typer.Argument(
        metavar="PHOTO",
        help="a photo; default: the first of the validation split, or of training where there is none",
    ),
]


@dataclass(frozen=True)
class PictureOptions:
    """The options of every command that draws something of a run."""

    run: RunOption = None
    out_file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="picture to write (.png, .svg, .pdf); default: in RUN/figures"),
    ] = None
    overwrite: OverwriteOption = False
    checkpoint: CheckpointOption = Which.last

    def require_free(self, photos: Sequence[Path] = (), more: Sequence[tuple[str, Path | None]] = ()) -> None:
        """See that the picture, and what else the command writes, may be written; photos are what it reads."""
        require_free([("--out", self.out_file), *more], self.overwrite, photos)


@dataclass(frozen=True)
class PhotoPictureOptions(PictureOptions):
    """The options of those that pass photos through the network."""

    data: DataOption = None
    palette: PaletteOption = Palette.safe
    device: DeviceOption = "auto"

    def open_run(self, other: Path | None = None) -> TrainedRun:
        """The run that was chosen, or another one in the same way."""
        return open_chosen_run(other or self.run, self.device, self.checkpoint)


def show(drawn: Drawn) -> None:
    """Tell where the picture lies, and what it was made of."""
    out.print(drawn.source)
    out.print(f"picture: {drawn.file}")


app = typer.Typer(rich_markup_mode=None)


@app.command(
    "viz-attn",
    short_help="Draw attention and learned affinity of query points.",
    epilog="Example: afactl viz-attn photo.jpg --query 32,40 --query 100,80",
    context_settings=former_names(compare="without-afa"),
)
@spread_options
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
        typer.Option(
            "--layer", metavar="N", help="attention of this one of the last blocks, from 1, in place of the mean"
        ),
    ] = None,
    head: Annotated[
        int | None, typer.Option("--head", metavar="N", help="attention of this head of --layer, from 1")
    ] = None,
    without_afa: Annotated[
        Path | None, typer.Option("--without-afa", metavar="RUN", help="a run without AFA, drawn beside it")
    ] = None,
    *,
    options: PhotoPictureOptions,
) -> None:
    """Look at attention and learned affinity of query points, with CAM and pseudo labels (Fig. 1, 4, 11, 13)."""
    from afactl.pictures.drawing import parse_query
    from afactl.pictures.figures import Attended, draw_attention

    options.require_free([image] if image else [])
    queries = [parse_query(text) for text in query or []]
    if head is not None and layer is None:
        raise UsageError("--head: of which layer? give --layer too")
    trained = options.open_run()
    other = options.open_run(without_afa) if without_afa else None
    heads = None if layer is None else (layer, head)
    drawn = draw_attention(
        trained,
        image,
        Attended(queries, heads, other),
        options.data,
        options.out_file,
        options.overwrite,
        options.palette.value,
    )
    show(drawn)


@app.command(
    "viz-heads",
    short_help="Draw the learned weight of each head in the affinity.",
    epilog="Example: afactl viz-heads --run runs/voc",
)
@spread_options
def viz_heads(folder: RunArgument = None, *, options: PictureOptions) -> None:
    """Draw the learned weight of each head in the affinity, as in figure 14."""
    from afactl.pictures.figures import draw_heads

    options.require_free()
    drawn = draw_heads(open_chosen_run(one_run(folder, options.run), "cpu", options.checkpoint), options.out_file)
    show(drawn)


@app.command(
    "viz-cams",
    short_help="Draw CAMs as they are, spread by MHSA, and by affinity.",
    epilog="Example: afactl viz-cams --without-afa runs/plain",
)
@spread_options
def viz_cams(
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="PHOTOS",
            help="photos, a row each; default: the first three of the validation split, or of training",
        ),
    ] = None,
    without_afa: Annotated[
        Path | None,
        typer.Option("--without-afa", metavar="RUN", help="a run without AFA, whose CAM stands beside ours"),
    ] = None,
    *,
    options: PhotoPictureOptions,
) -> None:
    """Compare CAMs: as they are, spread by MHSA, and spread by the learned affinity (Fig. 2, 9)."""
    from afactl.pictures.figures import draw_cams, first_photos

    options.require_free(images or [])
    trained = options.open_run()
    other = options.open_run(without_afa) if without_afa else None
    photos = images or first_photos(trained, options.data, 3)
    drawn = draw_cams(trained, photos, options.data, options.out_file, options.palette.value, other)
    show(drawn)


@app.command(
    "viz-par",
    short_help="Draw labels before and after each refiner.",
    epilog="Example: afactl viz-par photo.jpg --gif par.gif",
)
@spread_options
def viz_par(
    image: PhotoArgument = None,
    gif: Annotated[
        Path | None, typer.Option("--gif", metavar="FILE", help="also write the way of the labels as an animation")
    ] = None,
    *,
    options: PhotoPictureOptions,
) -> None:
    """Compare labels before and after each refiner, and over the iterations of PAR (Fig. 5, 10)."""
    from afactl.pictures.figures import draw_refiners

    options.require_free([image] if image else [], [("--gif", gif)])
    drawn = draw_refiners(options.open_run(), image, options.data, options.out_file, options.palette.value, gif)
    show(drawn)
