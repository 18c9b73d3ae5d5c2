"""`afactl train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from afactl.cli.options import DeviceOption
from afactl.errors import UsageError, counted
from afactl.machine.terminal import duration, out, percent, table
from afactl.training.events import Noted
from afactl.training.observers.live_view import watch_training

app = typer.Typer(rich_markup_mode=None)


@app.command(
    epilog="Example: afactl train voc --data VOCdevkit/VOC2012 --init mit_b1.pth --set train.max_iters=20000",
    short_help="Train from image-level labels; writes a run folder.",
)
def train(
    preset: Annotated[
        str | None, typer.Argument(metavar="PRESET|FILE", help="a shipped preset (afactl presets) or a YAML file")
    ] = None,
    data: Annotated[Path | None, typer.Option("--data", metavar="FOLDER", help="folder of the dataset")] = None,
    out_folder: Annotated[
        Path | None, typer.Option("--out", metavar="RUN", help="run folder; default: runs/PRESET-DATE-TIME")
    ] = None,
    init: Annotated[
        str | None, typer.Option("--init", metavar="FILE|hf:REPOSITORY|timm|none", help="weights to start from")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run --out, or the newest one")] = False,
    allow_changes: Annotated[
        bool, typer.Option("--allow-changes", help="with --resume: go on with the values given now where they differ")
    ] = False,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="change a value, such as train.max_iters=100; repeatable"),
    ] = None,
    tensorboard: Annotated[
        bool, typer.Option("--tensorboard", help="also write curves and pictures for TensorBoard into RUN/tensorboard")
    ] = False,
    mlflow: Annotated[
        bool, typer.Option("--mlflow", help="also keep preset, curves and pictures for MLflow in RUN/mlflow")
    ] = False,
    wandb: Annotated[
        bool,
        typer.Option("--wandb", help="the same for Weights & Biases in RUN/wandb, offline (wandb sync sends it)"),
    ] = False,
    device: DeviceOption = "auto",
) -> None:
    """Train from image-level labels; writes a run folder."""
    from afactl.presets import find_preset, load_preset, preset_names
    from afactl.runs.folder import find_run
    from afactl.training import launch
    from afactl.training.observers.mlflow import MlflowLog
    from afactl.training.observers.tensorboard import TensorBoardLog
    from afactl.training.observers.wandb import WandbLog

    changes = launch.preset_changes(data, init, overrides or [])
    with watch_training() as show:
        others = ((tensorboard, TensorBoardLog), (mlflow, MlflowLog), (wandb, WandbLog))
        observers = (show, *(make() for wanted, make in others if wanted))
        if resume:
            run, how = find_run(out_folder)
            show(Noted(0, f"run: {run} ({how})"))
            wanted = load_preset(preset or str(run / "preset.yaml"), changes)
            result = launch.resume(run, wanted, allow_changes, device, observers)
        elif preset is None:
            raise UsageError(f"train: expected a preset, one of {', '.join(preset_names())}, or a YAML file")
        else:
            name = find_preset(preset).stem
            if name != Path(preset).stem:
                show(Noted(0, f"preset: {preset} is called {name} now, and has other values than before"))
            chosen = load_preset(preset, changes)
            result = launch.start(launch.Request(chosen, name, out_folder, device, observers))
    if result.validation:
        names = {"val_seg_miou": "segmentation", "val_cam_miou": "CAM, image-level truth used"}
        rows = [(names[name], percent(value)) for name, value in result.validation.items()]
        out.print(table(f"validation at step {result.steps}", ("labels", "mIoU %"), rows))
    memory = f", peak memory {result.peak_memory / 2**30:.1f} GiB" if result.peak_memory else ""
    out.print(f"{counted(result.steps, 'step')}, {duration(result.seconds)} here{memory}")
    out.print(f"run: {result.run}")
