"""`afactl explore`."""

from __future__ import annotations

import contextlib
import webbrowser
from typing import Annotated

import typer

from afactl.cli.options import (
    CheckpointOption,
    DataOption,
    DeviceOption,
    RunArgument,
    RunOption,
    Which,
    one_run,
    open_chosen_run,
)
from afactl.errors import DependencyError
from afactl.machine.terminal import out

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog="Example: afactl explore runs/voc --port 8700 --no-open",
    short_help="Point at photos in a browser: attention, affinity, labels.",
)
def explore(
    run: RunArgument = None,
    run_option: RunOption = None,
    data: DataOption = None,
    port: Annotated[
        int | None,
        typer.Option("--port", metavar="N", min=1, max=65535, help="port of this machine; default: a free one"),
    ] = None,
    no_open: Annotated[bool, typer.Option("--no-open", help="print the address and open no browser")] = False,
    checkpoint: CheckpointOption = Which.last,
    device: DeviceOption = "auto",
) -> None:
    """Point at photos in a browser: attention, affinity, pseudo labels under sliders, masks, a review list."""
    chosen = one_run(run, run_option)
    try:
        from afactl.explorer.server import address, listen, server
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("starlette", "uvicorn", "anyio"):
            raise
        raise DependencyError(f"explore: needs {error.name}; pip install 'afactl[explore]'") from error
    from afactl.explorer.session import Session

    with listen(port) as bound:
        session = Session(open_chosen_run(chosen, device, checkpoint), data)
        if session.list.missing:
            out.print(f"no photos of the run's dataset ({session.list.missing}); drop some of your own on the page")
        out.print(f"page: {address(bound)} (this machine only; Ctrl-C stops it)")
        if not no_open:
            webbrowser.open(address(bound))
        with contextlib.suppress(KeyboardInterrupt):  # the way to stop it, and nothing that failed
            server(session).run(sockets=[bound])
    counts = session.verdicts.counts()
    if any(counts.values()):
        told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
        out.print(f"review list: {session.run.folder / 'review.csv'} ({told})")
