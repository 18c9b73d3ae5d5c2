"""`afactl export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afactl.cli.options import CheckpointOption, OverwriteOption, RunOption, WeightsFormat, Which, say_which
from afactl.files import require_free
from afactl.machine.terminal import log, out

app = typer.Typer(rich_markup_mode=None)


@app.command(epilog="Example: afactl export --run runs/voc --out voc.safetensors")
def export(
    run: RunOption = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="file to write; default: in the run's folder")] = None,
    form: Annotated[
        WeightsFormat,
        typer.Option(
            "--format",
            help="safetensors: for --init and other tools; authors: .pth under the names of the authors' code",
        ),
    ] = WeightsFormat.safetensors,
    overwrite: OverwriteOption = False,
    checkpoint: CheckpointOption = Which.last,
) -> None:
    """Write the weights alone, to be passed on or to start another training from."""
    from afactl.runs.checkpoints import WEIGHTS, export_weights, find_checkpoint
    from afactl.runs.folder import find_run, run_preset

    require_free([("--out", out_file)], overwrite)
    folder, how = find_run(run)
    say_which(folder, how)
    source, note = find_checkpoint(folder, checkpoint.value, needed=(WEIGHTS,))
    if note:
        log.print(f"run: {folder}: {note}")
    target = out_file or folder / ("weights.pth" if form is WeightsFormat.authors else WEIGHTS)
    export_weights(source, target, form.value)
    start = run_preset(folder).model.init
    origin = "random weights" if start == "none" else f"{start}, whose licence holds for these too"
    out.print(
        f"weights: {target} ({target.stat().st_size / 1e6:.1f} MB), {source.name} checkpoint; trained from {origin}",
    )
