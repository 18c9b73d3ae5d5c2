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
    RunOption,
    Which,
    open_chosen_run,
)
from afactl.errors import UsageError
from afactl.files import require_free
from afactl.machine.terminal import out

app = typer.Typer(rich_markup_mode=None)


@app.command("report", epilog="Example: afactl report --run runs/voc --without-afa runs/plain")
def report(
    run: Annotated[
        Path | None,
        typer.Argument(metavar="[RUN]", help="run folder; default: $AFACTL_RUN, or the newest under runs/"),
    ] = None,
    run_option: RunOption = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="file to write; default: RUN/report.html")] = None,
    without_afa: Annotated[
        Path | None,
        typer.Option("--without-afa", metavar="RUN", help="a scored run without AFA, for the first row of Table 3"),
    ] = None,
    photos: Annotated[int, typer.Option("--photos", min=0, max=100, help="how many photos are shown")] = 6,
    data: DataOption = None,
    overwrite: OverwriteOption = False,
    checkpoint: CheckpointOption = Which.last,
    device: DeviceOption = "auto",
) -> None:
    """Write one self-contained HTML page of a run: curves, tables, photos with a slider, figures, manifest."""
    from afactl.pictures.report import write_report

    if run is not None and run_option is not None:
        raise UsageError("report: give the run once, as RUN or as --run RUN")
    require_free([("--out", out_file)], overwrite)
    trained = open_chosen_run(run or run_option, device, checkpoint)
    made = write_report(trained, out_file, data, without_afa, photos)
    for text in made.missing:
        out.print(f"not on the page: {text}")
    out.print(f"report: {made.file} ({made.size / 1e6:.1f} MB)")
