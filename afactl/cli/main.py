"""The command line. Each command reads its options, calls one function and prints what came back.

torch and everything that needs it is imported inside the commands: `afactl --help` must be quick.
"""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Optional

import typer

from afactl.cli.around import around_app
from afactl.cli.data import data_app
from afactl.cli.options import (
    Backend,
    BackendOption,
    CheckpointOption,
    CrfOption,
    DataOption,
    DeviceOption,
    DumpFormat,
    DumpFormatOption,
    Format,
    FormatOption,
    JsonOption,
    Labels,
    OverwriteOption,
    Palette,
    PaletteOption,
    PerClassOption,
    RunOption,
    SplitOption,
    Which,
    chosen_crf,
    open_chosen_run,
)
from afactl.cli.viz import viz_app
from afactl.errors import AfactlError, UsageError
from afactl.machine.allocator import keep_freed_memory
from afactl.machine.terminal import duration, error_line, keep_quiet, out, percent, table, tracker, write_json
from afactl.training.live_view import training_reporter

if TYPE_CHECKING:
    from afactl.evaluation.pseudo_labels import Score

app = typer.Typer(
    name="afactl",
    help="Masks from tagged photos: AFA, Learning Affinity from Attention (CVPR 2022).\n\n"
    "Start with: afactl train demo, afactl pseudo-eval --split train, afactl viz-attn --query 60,50, "
    "afactl predict PHOTOS. With --verbose anywhere, an error shows where it came from.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


app.add_typer(data_app, name="data")
app.add_typer(viz_app)
app.add_typer(around_app)
# What `afactl` alone prints.
FIRST_STEPS = """\
afactl: masks from tagged photos (AFA, Learning Affinity from Attention, CVPR 2022)

The first five commands, in this order:

  afactl train demo                  train on generated pictures, some minutes on two cores
  afactl pseudo-eval                 judge the pseudo labels: Table 3 of the paper
  afactl viz-attn --query 60,50      see what the attention of a pixel has learned
  afactl predict PHOTOS --overlay    masks for any photos
  afactl report                      all of it on one page

Your own photos: afactl data check DIR, then afactl train animals --data DIR. All commands: afactl --help"""
# Commands whose work several processes share, started by torchrun.
SHARED = ("train", "dump-cams", "predict", "eval")


@app.command(epilog="Example: afactl train voc --data VOCdevkit/VOC2012 --init mit_b1.pth --set train.max_iters=20000")
def train(
    preset: Annotated[Optional[str], typer.Argument(metavar="PRESET|FILE", help="a shipped preset (afactl presets) or a YAML file")] = None,
    data: Annotated[Optional[Path], typer.Option("--data", help="folder of the dataset")] = None,
    out_folder: Annotated[Optional[Path], typer.Option("--out", help="run folder; default: runs/PRESET-DATE-TIME")] = None,
    init: Annotated[Optional[str], typer.Option("--init", help="starting weights: a file, hf:REPOSITORY, or none")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on with the run --out, or the newest one")] = False,
    allow_changes: Annotated[bool, typer.Option("--allow-changes", help="with --resume: go on with the values given now where they differ")] = False,
    overrides: Annotated[Optional[list[str]], typer.Option("--set", metavar="KEY=VALUE", help="change a value, such as train.max_iters=100; repeatable")] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="also write curves and pictures for TensorBoard into RUN/tensorboard")] = False,
    device: DeviceOption = "auto",
) -> None:
    """Train from image-level labels; writes a run folder."""
    from afactl.training.job import train as train_preset

    with training_reporter() as report:
        result = train_preset(preset, data, out_folder, init, resume, overrides or [], device, report, allow_changes, tensorboard)
    if result.validation:
        names = {"val_seg_miou": "segmentation", "val_cam_miou": "CAM, image-level truth used"}
        rows = [(names[name], percent(value)) for name, value in result.validation.items()]
        out.print(table(f"validation at step {result.steps}", ("labels", "mIoU %"), rows))
    memory = f", peak memory {result.peak_memory / 2**30:.1f} GiB" if result.peak_memory else ""
    out.print(f"{result.steps} steps, {duration(result.seconds)} here{memory}")
    out.print(f"run: {result.run}")


@app.command("pseudo-eval", epilog="Example: afactl pseudo-eval --split train --per-class --json table3.json")
def pseudo_eval(
    split: SplitOption = "train",
    run: RunOption = None,
    without_afa: Annotated[Optional[Path], typer.Option("--without-afa", help="a run trained with --set affinity.enabled=false, for the row w/o AFA")] = None,
    labels: Annotated[Labels, typer.Option("--labels", help="predicted: also rows with the classifier's labels, beside those with the true ones")] = Labels.truth,
    data: DataOption = None,
    per_class: PerClassOption = False,
    json_file: JsonOption = None,
    overwrite: OverwriteOption = False,
    checkpoint: CheckpointOption = Which.last,
    device: DeviceOption = "auto",
) -> None:
    """Judge the pseudo labels: the rows of the paper's Table 3, without and with PAR."""
    from afactl.evaluation.metrics import label_f1
    from afactl.evaluation.pseudo_labels import WITHOUT_AFA, WITHOUT_PROPAGATION, score_pseudo_labels
    from afactl.inference.cams import open_split, with_predicted_labels

    trained = open_chosen_run(run, device, checkpoint)
    found = open_split(trained, split, data, masks=True)
    result = score_pseudo_labels(trained, found, overwrite, tracker("pseudo labels"))
    scores = dict(result.scores)
    if without_afa is not None:
        other = open_chosen_run(without_afa, device, checkpoint)
        if other.preset.affinity.enabled:
            raise UsageError(f"--without-afa {without_afa}: trained with the affinity branch; train one with --set affinity.enabled=false")
        plain = score_pseudo_labels(other, open_split(other, split, data, masks=True), overwrite, tracker("pseudo labels w/o AFA"))
        scores = {WITHOUT_AFA: plain.scores[WITHOUT_PROPAGATION], **scores}
    if labels is Labels.predicted:
        guessed = with_predicted_labels(trained, found, overwrite, tracker("labels"))
        more = score_pseudo_labels(trained, guessed, overwrite, tracker("pseudo labels, predicted"))
        result = result._replace(passes=result.passes + more.passes, labelled=result.labelled + more.labelled)
        scores |= {f"{name}, predicted labels": pair for name, pair in more.scores.items()}
    rows = [(name, *(percent(score.miou) for score in pair)) for name, pair in scores.items()]
    if without_afa is None:
        rows = [(f"{WITHOUT_AFA}: give --without-afa RUN", "-", "-"), *rows]
    out.print(table(f"Table 3, pseudo labels of {split}, mIoU %", ("row", "without PAR", "with PAR"), rows))
    cam, par, affinity = trained.preset.cam, trained.preset.par, trained.preset.affinity
    out.print(
        f"split {split}, {result.images} images; CAM at scales {_numbers(cam.scales)} with flip; threshold {cam.background} for CAMs, "
        f"background plane {affinity.background} for propagated ones; PAR {par.iterations} iterations; "
        f"MHSA: mean over heads of the last blocks after softmax; image-level truth was used"
        f"{' but in the rows that say otherwise' if labels is Labels.predicted else ''}; "
        f"{checkpoint.value} checkpoint, step {trained.iteration}"
    )
    if labels is Labels.predicted:
        f1 = label_f1([s.labels for s in found.samples], [s.labels for s in guessed.samples])
        out.print(f"predicted labels: probability over 1/2, at least the best one; F1 against the truth {100 * f1:.1f} %")
    if result.passes:
        out.print(f"{result.passes} images went through the network, {result.images - result.passes} came from the cache")
    else:
        out.print(f"no forward pass: all {result.images} images came from the cache ({result.labelled} labelled anew)")
    if per_class:
        _print_per_class({f"{n}{s}": p for n, pair in scores.items() for s, p in zip(("", " + PAR"), pair, strict=True)}, found.classes)
    figures = {n: {"without_par": p[0].miou, "with_par": p[1].miou} for n, p in scores.items()}
    if json_file is not None:
        write_json(json_file, {"split": split, "images": result.images, "run": str(trained.folder), "step": trained.iteration, "miou": figures})


@app.command("eval", epilog="Example: afactl eval --split val --crf --per-class")
def evaluate(
    split: SplitOption = "val",
    crf: CrfOption = False,
    crf_backend: BackendOption = Backend.torch,
    run: RunOption = None,
    data: DataOption = None,
    per_class: PerClassOption = False,
    worst: Annotated[int, typer.Option("--worst", metavar="N", min=0, max=100, help="draw the N worst images with truth and segmentation")] = 0,
    examples: Annotated[int, typer.Option("--examples", metavar="N", min=0, max=100, help="draw N images from worst to best (Fig. 6)")] = 0,
    palette: PaletteOption = Palette.safe,
    json_file: JsonOption = None,
    checkpoint: CheckpointOption = Which.last,
    device: DeviceOption = "auto",
) -> None:
    """Score the segmentation: single scale, multi-scale + flip, and + CRF; no image-level truth is used."""
    from afactl.evaluation.pseudo_labels import evaluate_segmentation
    from afactl.inference.cams import open_split

    backend = chosen_crf(crf, crf_backend)
    trained = open_chosen_run(run, device, checkpoint)
    found = open_split(trained, split, data, masks=True)
    scores, images = evaluate_segmentation(trained, found, backend, tracker("segmentation"))
    rows = [(score.name, percent(score.miou)) for score in scores]
    out.print(table(f"segmentation of {split}, mIoU %", ("row", "mIoU"), rows))
    settings = trained.preset.eval
    side = f"long side {settings.long_side}" if settings.long_side else "size as stored"
    out.print(
        f"split {split}, {len(found.samples)} images; {side}; multi-scale: {_numbers(settings.scales)} with flip, fused by maximum; "
        f"no image-level truth was used; {checkpoint.value} checkpoint, step {trained.iteration}"
    )
    if per_class:
        _print_per_class({score.name: score for score in scores}, found.classes)
    figures = {score.name: score.miou for score in scores}
    if json_file is not None:
        write_json(json_file, {"split": split, "images": len(found.samples), "run": str(trained.folder), "step": trained.iteration, "miou": figures})
    for name, count in (("worst", worst), ("examples", examples)):
        if count and not out.quiet:
            from afactl.pictures.figures import draw_ranked

            out.print(f"picture: {draw_ranked(trained, found, images, name, count, palette.value)}")


@app.command("dump-cams", epilog="Example: afactl dump-cams --split train")
def dump(
    split: SplitOption = "train",
    run: RunOption = None,
    data: DataOption = None,
    form: DumpFormatOption = DumpFormat.hdf5,
    overwrite: OverwriteOption = False,
    checkpoint: CheckpointOption = Which.last,
    device: DeviceOption = "auto",
) -> None:
    """Put CAMs, affinity and attention of a split into RUN/cache/*.h5; finished images are skipped."""
    from afactl.inference.cams import dump_cams, export_cams, open_split

    trained = open_chosen_run(run, device, checkpoint)
    found = open_split(trained, split, data, masks=False)
    path, images, computed = dump_cams(trained, found, overwrite, tracker("CAMs"))
    out.print(f"{path}: {images} images, {computed} of them made now")
    if form is DumpFormat.npy:
        out.print(f"{export_cams(trained, found, tracker('npy'))}: one dictionary per image")


@app.command(epilog="Example: afactl ablate table2 --preset demo")
def ablate(
    name: Annotated[str, typer.Argument(metavar="TABLE", help="table1, table2, table4, table7, table8, table9, table10 or table11")],
    preset: Annotated[Optional[str], typer.Option("--preset", metavar="PRESET|FILE", help="base of the rows that are trained")] = None,
    run: Annotated[Optional[Path], typer.Option("--run", help="whose CAMs tables 4, 8 and 9 refine; default: of --preset, or the newest run")] = None,
    split: Annotated[str, typer.Option("--split", help="split of those CAMs")] = "train",
    data: Annotated[Optional[Path], typer.Option("--data", help="folder of the dataset")] = None,
    out_folder: Annotated[Optional[Path], typer.Option("--out", help="folder of the trained rows; default: runs/ablate-PRESET")] = None,
    overrides: Annotated[Optional[list[str]], typer.Option("--set", metavar="KEY=VALUE", help="change a value of the base preset; repeatable")] = None,
    json_file: JsonOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Measure an ablation table of the paper, row by row; finished rows are skipped."""
    from afactl.ablation.measuring import ablate as measure
    from afactl.machine.devices import choose_device

    result = measure(
        name, preset, data, out_folder, run, split, overrides or [], choose_device(device), training_reporter, tracker("scoring")
    )
    columns = [f"{column}{whose}" for column in result.columns for whose in (", here", ", the paper's on VOC")]
    rows = []
    for row in result.rows:
        pairs = zip(row.ours, row.paper, strict=True)
        rows.append((row.name, *(text for ours, paper in pairs for text in (percent(ours), percent(paper) if paper else "-"))))
    out.print(table(f"{result.title}, mIoU %", ("row", *columns), rows))
    reused = sum(row.reused for row in result.rows)
    out.print(f"{result.where}; {len(rows) - reused} rows measured now, {reused} finished before")
    figures = [{"row": row.name, "miou": row.ours, "paper": row.paper} for row in result.rows]
    if json_file is not None:
        write_json(json_file, {"table": name, "columns": result.columns, "where": result.where, "rows": figures})


@app.command(epilog="Example: afactl predict holiday/ --crf --overlay --out masks")
def predict(
    photos: Annotated[list[str], typer.Argument(metavar="PHOTOS...", help="files, folders or globs")],
    run: RunOption = None,
    out_folder: Annotated[Optional[Path], typer.Option("--out", help="folder for the masks; default: RUN/predictions")] = None,
    crf: CrfOption = False,
    crf_backend: BackendOption = Backend.torch,
    form: FormatOption = Format.png,
    overlay: Annotated[bool, typer.Option("--overlay", help="also write the photo with its mask over it, contours and class names")] = False,
    palette: PaletteOption = Palette.safe,
    window: Annotated[Optional[int], typer.Option("--window", min=64, help="pass photos with a longer side than this at their own size, in overlapping windows of this side")] = None,
    checkpoint: CheckpointOption = Which.last,
    device: DeviceOption = "auto",
) -> None:
    """Write masks for any photos; no label files are needed."""
    from afactl.prediction.predict import MAX_PIXELS, find_photos
    from afactl.prediction.predict import predict as predict_photos

    backend = chosen_crf(crf, crf_backend)
    found = find_photos(photos)
    trained = open_chosen_run(run, device, checkpoint)
    folder = out_folder or trained.folder / "predictions"
    forms = [form.value, *(["overlay"] if overlay and form is not Format.overlay else [])]
    result = predict_photos(trained, found, folder, backend, forms, palette.value, window, tracker("predict"))
    for line in result.failed:
        error_line(line)
    kept = f", {result.kept} of them before a stop" if result.kept else ""
    out.print(f"{result.photos} of {len(found)} photos{kept} as {' and '.join(forms)} in {folder} (multi-scale + flip{' + CRF' if crf else ''}; {trained.iteration} steps)")
    out.print(f"values: 0 background, {', '.join(f'{i} {name}' for i, name in enumerate(trained.architecture.classes, 1))}")
    if result.reduced:
        out.print(f"{result.reduced} large photos: their masks were made with at most {MAX_PIXELS / 1e6:.0f} megapixels and enlarged")
    if result.failed:
        raise typer.Exit(1)


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:g}" for value in values)


def _print_per_class(scores: dict[str, Score], classes: tuple[str, ...]) -> None:
    from afactl.evaluation.metrics import class_iou

    ious = [100 * class_iou(score.confusion) for score in scores.values()]
    rows = [(name, *(percent(iou[i]) for iou in ious)) for i, name in enumerate(("background", *classes))]
    rows.append(("mIoU", *(percent(score.miou) for score in scores.values())))
    out.print(table("IoU % per class (a dash: not in the truth)", ("class", *scores), rows))


def _processes(arguments: list[str]) -> contextlib.AbstractContextManager[None]:
    """Join the other processes where torchrun has started several; all but the first one keep quiet."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return contextlib.nullcontext()
    if arguments[:1] and arguments[0] not in SHARED:
        raise UsageError(f"afactl {arguments[0]}: runs in one process; only {', '.join(SHARED)} can share their work under torchrun")
    # DistributedDataParallel would wonder at every phase that uses all parameters.
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from afactl.machine.distributed import joined

    if os.environ["RANK"] != "0":
        keep_quiet()
    return joined()


# Typer brings its own copy of click's exceptions in newer versions: reach them through its own.
_ParseError = typer.BadParameter.__mro__[1]


def main(arguments: list[str] | None = None) -> None:
    """Entry point: every error becomes one line and an exit code."""
    keep_freed_memory()
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    verbose = "--verbose" in arguments
    arguments = [argument for argument in arguments if argument != "--verbose"]
    if not arguments and "_AFACTL_COMPLETE" not in os.environ:  # which the shell's completion sets
        out.print(FIRST_STEPS, markup=False)
        sys.exit(0)
    command = typer.main.get_command(app)
    try:
        with _processes(arguments):
            code = command.main(arguments, prog_name="afactl", standalone_mode=False)
    except AfactlError as error:
        if verbose:
            traceback.print_exc()
        error_line(str(error))
        code = error.exit_code
    except _ParseError as error:
        error_line(f"{error.format_message()} (see afactl --help)")
        code = 2
    except (KeyboardInterrupt, typer.Abort):
        error_line("stopped")
        code = 130
    except OSError as error:  # such as a full disk, wherever it is met
        if verbose:
            traceback.print_exc()
        error_line(f"{error.filename or 'the system says'}: {error.strerror or error}; mend that, then call again")
        code = 1
    except Exception as error:  # noqa: BLE001 - the last line of defence: a bug is told in one line too
        if verbose:
            raise
        error_line(f"unexpected {type(error).__name__}: {error} (this is a bug; --verbose shows where)")
        code = 1
    sys.exit(code)
