"""`afactl runs`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afactl.cli.options import OverwriteOption
from afactl.files import require_free
from afactl.machine.terminal import log, out, percent, table, write_json

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog="Example: afactl runs, or afactl runs experiments --json runs.json",
    short_help="List runs: preset, data, steps, scores, size.",
)
def runs(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="folder whose runs are listed")] = Path("runs"),
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="also write the list to this file")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """List runs: preset, data, steps, scores of the last validation, size on disk."""
    from afactl.runs.overview import list_runs

    require_free([("--json", json_file)], overwrite)
    overviews = list_runs(folder)
    rows = [
        (
            line.run.name,
            line.preset or "-",
            line.backbone or "-",
            line.data or "-",
            line.started[:16].replace("T", " ") or "-",
            f"{line.step}/{line.max_iters}" if line.max_iters else "-",
            "-" if line.segmentation is None else percent(line.segmentation),
            "-" if line.cam is None else percent(line.cam),
            f"{line.size / 1e6:.0f} MB",
        )
        for line in overviews
    ]
    columns = ("run", "preset", "backbone", "data", "started", "steps", "mIoU", "CAM mIoU", "size")
    out.print(table(f"runs under {folder}, the newest first; mIoU % of the last validation", columns, rows, texts=5))
    for line in overviews:
        if line.fault:
            log.print(f"{line.run}: its preset cannot be read: {line.fault}")
    if json_file is not None:
        write_json(json_file, [{**line._asdict(), "run": str(line.run)} for line in overviews])
        out.print(f"json: {json_file}")
