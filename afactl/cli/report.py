"""`afactl report`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afactl.cli.options import (
    CheckpointOption,
    DataOption,
    DeviceOption,
    OverwriteOption,
    RunArgument,
    RunOption,
    Which,
    WithoutAfaOption,
    one_run,
    open_chosen_run,
)
from afactl.files import require_free
from afactl.machine.terminal import out

app = typer.Typer(rich_markup_mode=None)


@app.command(
    "report",
    epilog="Example: afactl report --run runs/voc --without-afa runs/plain",
    short_help="Write one self-contained HTML page of a run.",
)
def report(
    run: RunArgument = None,
    run_option: RunOption = None,
    out_file: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="file to write; default: RUN/report.html")
    ] = None,
    without_afa: WithoutAfaOption = None,
    photos: Annotated[int, typer.Option("--photos", metavar="N", min=0, max=100, help="how many photos are shown")] = 6,
    data: DataOption = None,
    overwrite: OverwriteOption = False,
    checkpoint: CheckpointOption = Which.last,
    device: DeviceOption = "auto",
) -> None:
    """Write one self-contained HTML page of a run: curves, tables, photos with a slider, figures, manifest."""
    from afactl.pictures.report import write_report
    from afactl.runs.folder import find_run

    require_free([("--out", out_file)], overwrite)
    trained = open_chosen_run(one_run(run, run_option), device, checkpoint)
    if without_afa is not None:
        find_run(without_afa)
    made = write_report(trained, out_file, data, without_afa, photos)
    for text in made.missing:
        out.print(f"not on the page: {text}")
    out.print(f"report: {made.file} ({made.size / 1e6:.1f} MB)")
