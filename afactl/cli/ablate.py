"""`afactl ablate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afactl.cli.options import (
    DeviceOption,
    JsonOption,
    OverwriteOption,
)
from afactl.errors import counted
from afactl.files import require_free
from afactl.machine.terminal import out, percent, table, tracker, write_json
from afactl.training.observers.live_view import watch_training

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog="Example: afactl ablate table2 --preset demo",
    short_help="Measure an ablation table of the paper, row by row.",
)
def ablate(
    name: Annotated[
        str, typer.Argument(metavar="TABLE", help="table1, table2, table4, table7, table8, table9, table10 or table11")
    ],
    preset: Annotated[
        str | None, typer.Option("--preset", metavar="PRESET|FILE", help="base of the rows that are trained")
    ] = None,
    run: Annotated[
        Path | None,
        typer.Option(
            "--run", metavar="RUN", help="whose CAMs tables 4, 8 and 9 refine; default: of --preset, or the newest run"
        ),
    ] = None,
    split: Annotated[str, typer.Option("--split", metavar="SPLIT", help="split of those CAMs")] = "train",
    data: Annotated[Path | None, typer.Option("--data", metavar="FOLDER", help="folder of the dataset")] = None,
    out_folder: Annotated[
        Path | None,
        typer.Option("--out", metavar="FOLDER", help="folder of the trained rows; default: runs/ablate-PRESET"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="change a value of the base preset; repeatable"),
    ] = None,
    json_file: JsonOption = None,
    overwrite: OverwriteOption = False,
    device: DeviceOption = "auto",
) -> None:
    """Measure an ablation table of the paper, row by row; finished rows are skipped."""
    from afactl.ablation.measuring import TableRequest
    from afactl.ablation.measuring import ablate as measure

    require_free([("--json", json_file)], overwrite)
    request = TableRequest(name, preset, data, tuple(overrides or ()), out_folder, run, split, device)
    result = measure(request, watch_training, tracker("scoring"))
    splits = zip(result.columns, result.papers, strict=True)
    columns = [text for ours, paper in splits for text in (f"{ours}, here", f"the paper's, VOC {paper}")]
    rows = []
    for row in result.rows:
        pairs = zip(row.ours, row.paper, strict=True)
        rows.append(
            (row.name, *(text for ours, paper in pairs for text in (percent(ours), percent(paper) if paper else "-")))
        )
    out.print(table(f"{result.title}, mIoU %", ("row", *columns), rows))
    reused = sum(row.reused for row in result.rows)
    out.print(f"{result.where}; {counted(len(rows) - reused, 'row')} measured now, {reused} finished before")
    figures = [{"row": row.name, "miou": row.ours, "paper": row.paper} for row in result.rows]
    if json_file is not None:
        write_json(json_file, {"table": name, "columns": result.columns, "where": result.where, "rows": figures})
