"""`afactl export`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afactl.cli.options import (
    CheckpointOption,
    OverwriteOption,
    RunArgument,
    RunOption,
    WeightsFormat,
    Which,
    one_run,
    say_which,
)
from afactl.errors import UsageError
from afactl.files import require_free
from afactl.machine.terminal import log, out

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog="Example: afactl export --run runs/voc --out voc.safetensors",
    short_help="Write the weights, or the network as ONNX or TorchScript.",
)
def export(
    run: RunArgument = None,
    run_option: RunOption = None,
    out_file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="file (hf: folder) to write; default: in the run's folder"),
    ] = None,
    form: Annotated[
        WeightsFormat,
        typer.Option(
            "--format",
            help="safetensors: for --init and other tools; authors: .pth under the names of the authors' code; "
            "onnx: the network itself, to run without afactl and torch (pip install 'afactl[onnx]'); torchscript: "
            "the same for torch alone; hf: a folder for transformers' SegformerForSemanticSegmentation",
        ),
    ] = WeightsFormat.safetensors,
    int8: Annotated[
        bool, typer.Option("--int8", help="with onnx: weights of linear layers as 8-bit integers; says what changes")
    ] = False,
    overwrite: OverwriteOption = False,
    checkpoint: CheckpointOption = Which.last,
) -> None:
    """Write the weights alone, to be passed on or to start another training from; or the network itself."""
    from afactl.runs.checkpoints import WEIGHTS, export_weights, find_checkpoint
    from afactl.runs.folder import find_run, run_preset

    if int8 and form is not WeightsFormat.onnx:
        raise UsageError(f"--int8: belongs to --format onnx, not {form.value}; leave it out, or export as onnx")
    _require_target(out_file, form, overwrite)
    folder, how = find_run(one_run(run, run_option))
    say_which(folder, how)
    source, note = find_checkpoint(folder, checkpoint.value, needed=(WEIGHTS,))
    if note:
        log.print(f"run: {folder}: {note}")
    target = out_file or folder / form.file
    network = form in (WeightsFormat.onnx, WeightsFormat.torchscript)
    if network:
        out.print(_export_network(folder, checkpoint.value, target, form, int8))
    else:
        export_weights(source, target, form.value)
    start = run_preset(folder).model.init
    origin = "random weights" if start == "none" else f"{start}, whose licence holds for these too"
    size = sum(file.stat().st_size for file in (target.iterdir() if target.is_dir() else [target]))
    out.print(
        f"{'network' if network else 'weights'}: {target} ({size / 1e6:.1f} MB), {source.name} checkpoint; "
        f"trained from {origin}"
    )


def _require_target(out_file: Path | None, form: WeightsFormat, overwrite: bool) -> None:
    """See that the name is one of that format, and free."""
    if form is WeightsFormat.hf:
        from afactl.runs.hugging_face import FILES

        require_free([("--out", out_file / name) for name in FILES] if out_file else [], overwrite)
        return
    require_free([("--out", out_file)], overwrite)
    others = {kind.suffix: kind.value for kind in WeightsFormat if kind is not form and kind.suffix}
    if out_file is not None and out_file.suffix in others:
        raise UsageError(
            f"--out {out_file}: is no name for --format {form.value}; "
            f"give one that ends in {form.suffix}, or --format {others[out_file.suffix]}"
        )


def _export_network(folder: Path, checkpoint: str, target: Path, form: WeightsFormat, int8: bool) -> str:
    """Translate the network; gives what is to be said of its outputs."""
    from torch import device

    from afactl.inference.network_outputs import OUTPUTS
    from afactl.inference.trained_run import open_run

    opened = open_run(folder, device("cpu"), checkpoint)
    log.print(f"{form.value}: translating the network, which takes minutes")
    if form is WeightsFormat.torchscript:
        from afactl.inference.torchscript_export import export_torchscript

        difference = export_torchscript(opened, target)
    else:
        from afactl.inference.onnx_export import export_int8, export_onnx

        if int8:
            changed = export_int8(opened, target)
            return (
                f"8-bit weights: {100 * changed.ratio:.0f} % of the size; {100 * changed.same:.1f} % of the pixels of "
                "noise keep their class; score it on your photos before you rely on it"
            )
        difference = export_onnx(opened, target)
    return f"outputs {', '.join(OUTPUTS)}: at most {difference:.1g} from torch's at three sizes"
