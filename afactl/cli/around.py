"""The commands around the jobs: `afactl presets` before them, `afactl export` after them, `afactl doctor` at any time."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from afactl.cli.options import CheckpointOption, RunOption, WeightsFormat, Which, say_which
from afactl.errors import UsageError
from afactl.machine.terminal import out, table

around_app = typer.Typer(rich_markup_mode=None)


@around_app.command(epilog="Example: afactl presets voc --copy mine.yaml")
def presets(
    name: Annotated[Optional[str], typer.Argument(help="print this preset")] = None,
    copy: Annotated[Optional[Path], typer.Option("--copy", help="write it to this file, to be changed")] = None,
) -> None:
    """List the shipped presets, print one, or copy one."""
    from afactl.presets import find_preset, preset_names, preset_summary

    if name is None:
        if copy is not None:
            raise UsageError("--copy: which preset? give its name: afactl presets voc --copy mine.yaml")
        out.print(table("presets", ("name", "what"), [(one, preset_summary(one)) for one in preset_names()], texts=2))
        return
    text = find_preset(name).read_text(encoding="utf-8")
    if copy is None:
        out.print(text, markup=False, end="")
        return
    if copy.exists():
        raise UsageError(f"--copy {copy}: the file exists; give a new name")
    try:
        copy.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UsageError(f"--copy {copy}: cannot be written ({error.strerror})") from error
    out.print(f"{copy}: train it with afactl train {copy}")


@around_app.command(epilog="Example: afactl export --run runs/voc --out voc.safetensors")
def export(
    run: RunOption = None,
    out_file: Annotated[Optional[Path], typer.Option("--out", help="file to write; default: in the run's folder")] = None,
    form: Annotated[WeightsFormat, typer.Option("--format", help="safetensors: for --init and other tools; authors: .pth under the names of the authors' code")] = WeightsFormat.safetensors,
    checkpoint: CheckpointOption = Which.last,
) -> None:
    """Write the weights alone, to be passed on or to start another training from."""
    from afactl.runs.checkpoints import WEIGHTS, export_weights, find_checkpoint
    from afactl.runs.folder import find_run, run_preset

    folder, how = find_run(run)
    say_which(folder, how)
    found = find_checkpoint(folder, checkpoint.value, needed=(WEIGHTS,))
    target = out_file or folder / ("weights.pth" if form is WeightsFormat.authors else WEIGHTS)
    export_weights(found.folder, target, form.value)
    start = run_preset(folder).model.init
    origin = "random weights" if start == "none" else f"{start}, whose licence holds for these too"
    out.print(f"weights: {target} ({target.stat().st_size / 1e6:.1f} MB), {found.folder.name} checkpoint; trained from {origin}", markup=False)


@around_app.command(epilog="Example: afactl doctor")
def doctor() -> None:
    """Report versions, devices and what is missing, with the way to mend it."""
    from afactl.cli.doctor import examine

    findings = examine()
    out.print(table("doctor", ("what", "found"), [(finding.what, finding.found) for finding in findings], texts=2))
    for finding in findings:
        if finding.advice:
            out.print(f"{finding.what}: {finding.advice}")
    if any(finding.broken for finding in findings):
        raise typer.Exit(1)
