"""The commands that draw: `afactl viz-...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from afactl.options import CheckpointOption, DataOption, DeviceOption, OverwriteOption, RunOption, Which, open_chosen_run
from afactl.terminal import out

viz_app = typer.Typer(rich_markup_mode=None)


@viz_app.command("viz-attn", epilog="Example: afactl viz-attn photo.jpg --query 32,40 --query 100,80")
def viz_attn(
    image: Annotated[Optional[Path], typer.Argument(help="a photo; default: the first of the validation split")] = None,
    query: Annotated[Optional[list[str]], typer.Option("--query", metavar="X,Y", help="pixel of the photo as stored; repeatable; default: its centre")] = None,
    run: RunOption = None,
    data: DataOption = None,
    out_file: Annotated[Optional[Path], typer.Option("--out", help="picture to write (.png, .svg, .pdf)")] = None,
    overwrite: OverwriteOption = False,
    checkpoint: CheckpointOption = Which.last,
    device: DeviceOption = "auto",
) -> None:
    """Look at attention and learned affinity of query points, with CAM and pseudo labels (Fig. 4)."""
    from afactl.visualization import draw_attention, parse_query

    queries = [parse_query(text) for text in query or []]
    trained = open_chosen_run(run, device, checkpoint)
    figure = draw_attention(trained, image, queries, data, out_file, overwrite)
    out.print(figure.source)
    out.print(f"picture: {figure.file}")
