"""`afactl presets`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afactl.cli.options import OverwriteOption
from afactl.errors import UsageError
from afactl.files import require_free, whole_file, writing
from afactl.machine.terminal import out, table

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog="Example: afactl presets voc --copy mine.yaml",
    short_help="List the shipped presets, print one, or copy one.",
)
def presets(
    name: Annotated[str | None, typer.Argument(metavar="PRESET", help="print this preset")] = None,
    copy: Annotated[
        Path | None, typer.Option("--copy", metavar="FILE", help="write it to this file, to be changed")
    ] = None,
    overwrite: OverwriteOption = False,
) -> None:
    """List the shipped presets, print one, or copy one."""
    from afactl.presets import find_preset, preset_names, preset_summary, weights_licence
    from afactl.runs.weights_at_hand import needed_weights

    require_free([("--copy", copy)], overwrite)
    if name is None:
        if copy is not None:
            raise UsageError("--copy: which preset? give its name: afactl presets voc --copy mine.yaml")
        missing = {preset for weights in needed_weights() if not weights.here for preset in weights.presets}
        rows = [
            (preset, preset_summary(preset), weights_licence(preset), "no" if preset in missing else "yes")
            for preset in preset_names()
        ]
        out.print(table("presets", ("name", "what", "licence of its weights", "here"), rows, texts=4))
        if missing:
            out.print("not here: fetched when a training starts; without a network: --init FILE, or --init none")
        return
    text = find_preset(name).read_text(encoding="utf-8")
    if copy is None:
        for line in text.splitlines():
            out.print(line)
        return
    with writing(f"--copy {copy}", "give another file"), whole_file(copy) as fresh:
        fresh.write_text(text, encoding="utf-8")
    out.print(f"{copy}: train it with afactl train {copy}")
