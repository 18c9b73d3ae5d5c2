"""`afactl dump-cams`."""

from __future__ import annotations

import typer

from afactl.cli.options import (
    CheckpointOption,
    DataOption,
    DeviceOption,
    DumpFormat,
    DumpFormatOption,
    OverwriteOption,
    RunArgument,
    RunOption,
    SplitOption,
    Which,
    one_run,
    open_chosen_run,
)
from afactl.errors import counted
from afactl.machine.terminal import out, tracker

app = typer.Typer(rich_markup_mode=None)


@app.command(
    "dump-cams",
    epilog="Example: afactl dump-cams --split train",
    short_help="Put CAMs, affinity and attention of a split into HDF5.",
)
def dump(
    run: RunArgument = None,
    split: SplitOption = "train",
    run_option: RunOption = None,
    data: DataOption = None,
    form: DumpFormatOption = DumpFormat.hdf5,
    overwrite: OverwriteOption = False,
    checkpoint: CheckpointOption = Which.last,
    device: DeviceOption = "auto",
) -> None:
    """Put CAMs, affinity and attention of a split into RUN/cache/*.h5; finished images are skipped."""
    from afactl.inference.cams import dump_cams, export_cams
    from afactl.inference.trained_run import open_split

    trained = open_chosen_run(one_run(run, run_option), device, checkpoint)
    dataset = open_split(trained, split, data, masks=False)
    path, images, computed = dump_cams(trained, dataset, overwrite, tracker("CAMs"))
    out.print(f"{path}: {counted(images, 'image')}, {computed} of them made now")
    if form is DumpFormat.npy:
        out.print(f"{export_cams(trained, dataset, tracker('npy'))}: one dictionary per image")
