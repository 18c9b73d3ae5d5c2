"""`afactl export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afactl.cli.options import CheckpointOption, OverwriteOption, RunOption, WeightsFormat, Which, say_which
from afactl.errors import UsageError
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
            help="safetensors: for --init and other tools; authors: .pth under the names of the authors' code; "
            "onnx: the network itself, to run without afactl and torch (pip install 'afactl[onnx]')",
        ),
    ] = WeightsFormat.safetensors,
    overwrite: OverwriteOption = False,
    checkpoint: CheckpointOption = Which.last,
) -> None:
    """Write the weights alone, to be passed on or to start another training from; or the network as ONNX."""
    from afactl.runs.checkpoints import WEIGHTS, export_weights, find_checkpoint
    from afactl.runs.folder import find_run, run_preset

    require_free([("--out", out_file)], overwrite)
    others = {kind.suffix: kind.value for kind in WeightsFormat if kind is not form}
    if out_file is not None and out_file.suffix in others:
        raise UsageError(
            f"--out {out_file}: is no name for --format {form.value}; "
            f"give one that ends in {form.suffix}, or --format {others[out_file.suffix]}"
        )
    folder, how = find_run(run)
    say_which(folder, how)
    source, note = find_checkpoint(folder, checkpoint.value, needed=(WEIGHTS,))
    if note:
        log.print(f"run: {folder}: {note}")
    name = "network.onnx" if form is WeightsFormat.onnx else f"weights{form.suffix}"
    target, what = out_file or folder / name, "weights"
    if form is WeightsFormat.onnx:
        from torch import device

        from afactl.inference.onnx_export import OUTPUTS, export_onnx
        from afactl.inference.trained_run import open_run

        log.print("onnx: translating the network, which takes minutes")
        difference = export_onnx(open_run(folder, device("cpu"), checkpoint.value), target)
        out.print(f"outputs {', '.join(OUTPUTS)}: at most {difference:.1g} from torch's at three sizes")
        what = "network"
    else:
        export_weights(source, target, form.value)
    start = run_preset(folder).model.init
    origin = "random weights" if start == "none" else f"{start}, whose licence holds for these too"
    out.print(
        f"{what}: {target} ({target.stat().st_size / 1e6:.1f} MB), {source.name} checkpoint; trained from {origin}",
    )
