"""The options that several commands share, their choices, and the run that --run, --checkpoint and --device choose."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Sequence
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_type_hints

import typer

from afactl.errors import UsageError, counted
from afactl.machine.terminal import log
from afactl.prediction.registry import WRITERS
from afactl.registry import Registry

if TYPE_CHECKING:
    from afactl.datasets.samples import Split
    from afactl.inference.trained_run import TrainedRun


class Which(str, Enum):
    """Checkpoints of a run."""

    last = "last"
    best = "best"


class Palette(str, Enum):
    """Colours of classes in pictures."""

    safe = "safe"
    voc = "voc"


class Protocol(str, Enum):
    """Ways to test a segmentation that have a name; see presets.PROTOCOLS."""

    paper = "paper"
    authors = "authors"


class Labels(str, Enum):
    """Which image-level labels pseudo labels are made with."""

    truth = "truth"
    predicted = "predicted"


class Backend(str, Enum):
    """Implementations of the dense CRF."""

    torch = "torch"
    pydensecrf = "pydensecrf"


class DumpFormat(str, Enum):
    """What `dump-cams` writes."""

    hdf5 = "hdf5"
    npy = "npy"


class WeightsFormat(str, Enum):
    """What `export` writes."""

    safetensors = "safetensors"
    authors = "authors"
    onnx = "onnx"
    torchscript = "torchscript"
    hf = "hf"

    @property
    def file(self) -> str:
        """What is written in the run's folder where --out was not given; of hf it is a folder."""
        files = {"safetensors": "weights.safetensors", "authors": "weights.pth", "onnx": "network.onnx"}
        return {**files, "torchscript": "network.pt", "hf": "hf"}[self.value]

    @property
    def suffix(self) -> str:
        """That of its file; "" for a folder."""
        return Path(self.file).suffix


def spread_options(command: Callable[..., None]) -> Callable[..., None]:
    """A command on whose command line a parameter that is a dataclass of options appears as these options.

    So that options which several commands share are said in one place, with their defaults and their order.
    """
    hints = get_type_hints(command, include_extras=True)
    parameters: list[inspect.Parameter] = []
    groups: dict[str, type] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = hints[parameter.name]
        if not (isinstance(kind, type) and dataclasses.is_dataclass(kind)):
            parameters.append(parameter.replace(annotation=kind))
            continue
        groups[parameter.name] = kind
        options = get_type_hints(kind, include_extras=True)
        parameters += [
            inspect.Parameter(option.name, parameter.kind, default=option.default, annotation=options[option.name])
            for option in dataclasses.fields(kind)
        ]

    def call(**values: Any) -> None:
        for name, kind in groups.items():
            values[name] = kind(**{option.name: values.pop(option.name) for option in dataclasses.fields(kind)})
        command(**values)

    call.__name__, call.__doc__ = command.__name__, command.__doc__
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]  # what inspect looks for
    return call


def former_names(**names: str) -> dict[str, Any]:
    """Settings of a command that still understands options by the names which they had: `count="photos"`."""
    return {"token_normalize_func": lambda name: names.get(name, name)}


def one_run(argument: Path | None, option: Path | None) -> Path | None:
    """The run of a command that takes it as RUN and as --run RUN.

    Raises:
        UsageError: both are given.
    """
    if argument is not None and option is not None:
        raise UsageError(f"{argument}: give the run once, as RUN or as --run RUN")
    return argument or option


def one_of(registry: Registry, option: str | None = None) -> Callable[[str], str]:
    """Reads an option whose choices are the names of a registry, by default its own; nothing is imported for it."""

    def read(text: str) -> str:
        if text not in registry.names():
            raise UsageError(f"{option or registry.setting} {text}: expected one of {', '.join(registry.names())}")
        return text

    return read


RunOption = Annotated[
    Path | None,
    typer.Option("--run", metavar="RUN", help="run folder; default: $AFACTL_RUN, or the newest under runs/"),
]
RunArgument = Annotated[Path | None, typer.Argument(metavar="RUN", help="the same as --run RUN")]
WithoutAfaOption = Annotated[
    Path | None,
    typer.Option(
        "--without-afa",
        metavar="RUN",
        help="a run with affinity.enabled=false, such as voc-without-afa, for the row w/o AFA",
    ),
]
DataOption = Annotated[
    Path | None,
    typer.Option("--data", metavar="FOLDER", help="folder of the dataset; default: where the run was trained from"),
]
DeviceOption = Annotated[
    str, typer.Option("--device", metavar="DEVICE", help="auto, cpu, cuda, mps or xpu; cuda:1 is the second one")
]
CheckpointOption = Annotated[Which, typer.Option("--checkpoint", help="which checkpoint of the run")]
CheckpointFileOption = Annotated[
    str,
    typer.Option(
        "--checkpoint",
        metavar="<last|best|FILE>",
        help="which checkpoint of the run; or trained weights of others, with --preset: a run is made of them",
    ),
]
AdoptedPresetOption = Annotated[
    str | None,
    typer.Option(
        "--preset",
        metavar="PRESET|FILE",
        help="with --checkpoint FILE: what the weights were trained with, a name or a YAML file",
    ),
]
JsonOption = Annotated[Path | None, typer.Option("--json", metavar="FILE", help="also write the figures to this file")]
OverwriteOption = Annotated[
    bool,
    typer.Option(
        "--overwrite", help="replace what is in the way: files named here, caches of other weights, settings or data"
    ),
]
PaletteOption = Annotated[
    Palette, typer.Option("--palette", help="colours of pictures: safe for all eyes, or VOC's own")
]
PerClassOption = Annotated[bool, typer.Option("--per-class", help="also print IoU per class")]
SplitOption = Annotated[
    str, typer.Option("--split", metavar="SPLIT", help="split of the dataset, such as train or val")
]
ScoringOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="KEY=VALUE", help="for this call, a value of cam, par, affinity, eval or crf; repeatable"
    ),
]
LimitOption = Annotated[
    int | None, typer.Option("--limit", metavar="N", min=1, help="a quick look: the first N photos alone")
]
CrfOption = Annotated[bool, typer.Option("--crf", help="refine with the dense CRF")]
BackendOption = Annotated[
    Backend, typer.Option("--crf-backend", help="pydensecrf: the C++ cross-check (pip install 'afactl[crf]')")
]
FormatOption = Annotated[
    str,
    typer.Option(
        "--format",
        parser=one_of(WRITERS),
        metavar=f"<{'|'.join(WRITERS.names())}>",
        autocompletion=WRITERS.names,
        help="png: indexed masks; grey: class numbers as grey values; probabilities: .npy; "
        "coco-rle, voc-server, cvat, label-studio: one file for all",
    ),
]
DumpFormatOption = Annotated[DumpFormat, typer.Option("--format", help="npy: also one IRN-style dictionary per image")]


def adopted(
    run: Path | None, checkpoint: str, preset: str | None, data: Path | None = None
) -> tuple[Path | None, Which]:
    """The run and the checkpoint that --run, --checkpoint and --preset choose; made of a file where one is given."""
    if checkpoint in (*Which,):
        if preset is not None:
            raise UsageError(f"--preset {preset}: goes with --checkpoint FILE; a run has a preset of its own")
        return run, Which(checkpoint)
    weights = Path(checkpoint)
    if not weights.is_file():
        raise UsageError(f"--checkpoint {checkpoint}: expected last, best, or a file of trained weights")
    if preset is None:
        raise UsageError(f"--checkpoint {checkpoint}: say by --preset what the weights were trained with, such as voc")
    from afactl.inference.adopted import adopt
    from afactl.presets import load_preset
    from afactl.training.launch import preset_changes

    made = adopt(weights, load_preset(preset, preset_changes(data, checkpoint, ())), Path(preset).stem, run)
    log.print(f"run: {made}, made of {weights.name}; other commands take it by --run {made}")
    return made, Which.last


def open_chosen_run(folder: Path | None, device: str, checkpoint: Which) -> TrainedRun:
    """Find and load the run that a command works on, and say which it is."""
    from afactl.runs.folder import find_run

    chosen, how = find_run(folder)
    from afactl.inference.trained_run import open_run
    from afactl.machine.devices import choose_device

    run = open_run(chosen, choose_device(device), checkpoint.value)
    say_which(chosen, how)
    if run.note:
        log.print(f"run: {chosen}: {run.note}")
    return run


def told(split: Split, changes: Sequence[str]) -> str:
    """How the line beneath a table names the images, and what was not the run's own.

    Args:
        split: as it was scored. changes: of `TrainedRun`.
    """
    images = counted(len(split.samples), "image")
    if split.whole is not None:
        images = f"the first {images} of {len(split.whole.samples)}; not kept as the run's score"
    elif changes:
        images += "; not kept as the run's score"
    return images + (f"; {', '.join(changes)}" if changes else "")


def say_which(run: Path, how: str) -> None:
    """Tell which run `find_run` took, where the user gave none."""
    if how != "given":
        log.print(f"run: {run} ({how})")


def chosen_crf(asked: bool, backend: Backend) -> str | None:
    """The backend's name where --crf is given; fails before any work where it cannot be used."""
    if asked and backend is Backend.pydensecrf:
        from afactl.method.refinement.crf import require_pydensecrf

        require_pydensecrf()
    return backend.value if asked else None
