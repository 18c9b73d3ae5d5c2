"""`afactl pseudo-eval`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from afactl.cli.options import (
    AdoptedPresetOption,
    CheckpointFileOption,
    DataOption,
    DeviceOption,
    JsonOption,
    Labels,
    LimitOption,
    OverwriteOption,
    PerClassOption,
    RunArgument,
    RunOption,
    ScoringOption,
    SplitOption,
    WithoutAfaOption,
    adopted,
    one_of,
    one_run,
    open_chosen_run,
    told,
)
from afactl.cli.tables import numbers, print_per_class, score_figures
from afactl.errors import UsageError, counted
from afactl.files import require_free
from afactl.machine.terminal import out, percent, table, tracker, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from afactl.cli.options import Which
    from afactl.evaluation.scores import Score
    from afactl.evaluation.sweep import Choice, Sweep
    from afactl.inference.trained_run import TrainedRun

app = typer.Typer(rich_markup_mode=None)
# Of --sweep.
THRESHOLDS = "0.2:0.7:0.05"


@app.command(
    "pseudo-eval",
    epilog="Example: afactl pseudo-eval --split train --per-class --json table3.json",
    short_help="Score the pseudo labels: the rows of the paper's Table 3.",
)
def pseudo_eval(
    run: RunArgument = None,
    split: SplitOption = "train",
    run_option: RunOption = None,
    without_afa: WithoutAfaOption = None,
    labels: Annotated[
        Labels,
        typer.Option(
            "--labels", help="predicted: also rows with the classifier's labels, beside those with the true ones"
        ),
    ] = Labels.truth,
    refiner: Annotated[
        str | None,
        typer.Option(
            "--refiner", metavar="NAME", help="of the second column: par, pamr, crf, ...; default: the run's own"
        ),
    ] = None,
    sweep: Annotated[
        bool, typer.Option("--sweep", help="also each row over thresholds, and at its best one; draws the curves")
    ] = False,
    sweep_from: Annotated[
        str | None,
        typer.Option(
            "--sweep-from", metavar="SPLIT", help="with --sweep: take the best thresholds of this split, not of --split"
        ),
    ] = None,
    thresholds: Annotated[
        str | None,
        typer.Option("--thresholds", metavar="FROM:TO:STEP", help=f"with --sweep: which ones; default: {THRESHOLDS}"),
    ] = None,
    overrides: ScoringOption = None,
    limit: LimitOption = None,
    data: DataOption = None,
    per_class: PerClassOption = False,
    json_file: JsonOption = None,
    overwrite: OverwriteOption = False,
    checkpoint: CheckpointFileOption = "last",
    preset: AdoptedPresetOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Score the pseudo labels: the rows of the paper's Table 3, without and with a refiner (the paper's: PAR)."""
    from afactl.evaluation.metrics import label_f1
    from afactl.evaluation.pseudo_labels import WITHOUT_AFA, score_pseudo_labels, scored_refiner
    from afactl.evaluation.sweep import choices, parse_thresholds, sweep_pseudo_labels
    from afactl.inference.cams import with_predicted_labels
    from afactl.inference.refiners import REFINERS, refiner_settings
    from afactl.inference.trained_run import open_split, scored_with

    require_free([("--json", json_file)], overwrite)
    if not sweep:
        for option, given in (("--sweep-from", sweep_from), ("--thresholds", thresholds)):
            if given is not None:
                raise UsageError(f"{option} {given}: belongs to --sweep; add it, or leave this out")
    if refiner is not None:
        one_of(REFINERS, "--refiner")(refiner)
    if sweep_from == split:
        raise UsageError(f"--sweep-from {split}: is the split that is scored; name another one, or leave it out")
    if limit is not None and labels is Labels.predicted:
        raise UsageError(f"--limit {limit}: not with --labels predicted, whose cache is of all photos; leave one out")
    values = parse_thresholds(thresholds or THRESHOLDS)
    run, which = adopted(one_run(run, run_option), checkpoint, preset, data)
    trained = scored_with(open_chosen_run(run, device, which), overrides or [])
    chosen = refiner or scored_refiner(trained.preset)
    dataset = open_split(trained, split, data, masks=True).head(limit)
    # What a call names is looked at before any work.
    other = None if without_afa is None else open_without_afa(without_afa, trained, device, which)
    others_split = None if other is None else open_split(other, split, data, masks=True).head(limit)
    chosen_on = None if sweep_from is None else open_split(trained, sweep_from, data, masks=True).head(limit)
    result = score_pseudo_labels(trained, dataset, overwrite, tracker("pseudo labels"), chosen)
    scores = dict(result.scores)
    if other is not None and others_split is not None:
        other = scored_with(other, overrides or [])
        plain = score_pseudo_labels(other, others_split, overwrite, tracker("pseudo labels w/o AFA"), chosen)
        scores = {WITHOUT_AFA: plain.scores[WITHOUT_AFA], **scores}
    if labels is Labels.predicted:
        guessed = with_predicted_labels(trained, dataset, overwrite, tracker("labels"))
        more = score_pseudo_labels(trained, guessed, overwrite, tracker("pseudo labels, predicted"), chosen)
        result = result._replace(passes=result.passes + more.passes, labelled=result.labelled + more.labelled)
        scores |= {f"{name}, predicted labels": pair for name, pair in more.scores.items()}
    rows = [(name, *(score.text for score in pair)) for name, pair in scores.items()]
    if WITHOUT_AFA not in scores:
        rows = [(f"{WITHOUT_AFA}: give --without-afa RUN", "-", "-"), *rows]
    title = result.ends[1].removeprefix(" + ")
    columns = ("row", f"without {title}", f"with {title}")
    out.print(table(f"Table 3, pseudo labels of {split}, mIoU %", columns, rows))
    cam, affinity = trained.preset.cam, trained.preset.affinity
    iterations = refiner_settings(trained.preset, chosen).get("iterations")
    out.print(
        f"split {split}, {told(dataset, trained.changes)}; CAM at scales {numbers(cam.scales)} with flip; "
        f"background threshold {cam.background} for CAMs, {affinity.background} for propagated ones; "
        f"{title}{'' if iterations is None else f' {iterations} iterations'}; "
        f"MHSA: mean over heads of the last blocks after softmax; image-level truth was used"
        f"{' but in the rows that say otherwise' if labels is Labels.predicted else ''}; "
        f"{trained.checkpoint} checkpoint, step {trained.iteration}"
    )
    print_differences(scores, columns[1:])
    if labels is Labels.predicted:
        f1 = label_f1([s.labels for s in dataset.samples], [s.labels for s in guessed.samples])
        out.print(
            f"predicted labels: probability over 1/2, at least the best one; F1 against the truth {100 * f1:.1f} %"
        )
    if result.passes:
        out.print(
            f"{counted(result.passes, 'image')} went through the network, "
            f"{result.images - result.passes} came from the cache"
        )
    else:
        out.print(
            f"no forward pass: {counted(result.images, 'image')} came from the cache ({result.labelled} labelled now)"
        )
    if per_class:
        print_per_class(
            {f"{n}{end}": p for n, pair in scores.items() for end, p in zip(result.ends, pair, strict=True)},
            dataset.classes,
        )
    swept = source = None
    if sweep:
        swept = sweep_pseudo_labels(trained, dataset, values, tracker("thresholds"), chosen)
        if chosen_on is not None:
            source = sweep_pseudo_labels(trained, chosen_on, values, tracker(f"thresholds on {sweep_from}"), chosen)
        print_sweep(swept, choices(swept, trained.preset, source), source)
    if json_file is not None:
        write_json(
            json_file,
            {
                "split": split,
                "images": result.images,
                "limited": dataset.whole is not None,
                "set": trained.changes,
                "run": str(trained.folder),
                "step": trained.iteration,
                "refiner": chosen,
                "miou": {n: {"plain": p[0].miou, "refined": p[1].miou} for n, p in scores.items()},
                "rows": {
                    f"{name}{end}": score_figures(score, dataset.classes)
                    for name, pair in scores.items()
                    for end, score in zip(result.ends, pair, strict=True)
                },
                **({"sweep": sweep_figures(swept, choices(swept, trained.preset, source), source)} if swept else {}),
            },
        )
    if swept is not None and not out.quiet:
        from afactl.pictures.figures import draw_sweep

        out.print(f"picture: {draw_sweep(trained, swept)}")


def open_without_afa(folder: Path, run: TrainedRun, device: str, checkpoint: Which) -> TrainedRun:
    """The run of the row w/o AFA, beside one that has the affinity branch.

    Raises:
        UsageError: one of the two is of the other kind.
    """
    if not run.preset.affinity.enabled:
        raise UsageError(f"--without-afa {folder}: {run.folder} is itself a run without AFA; leave it out")
    other = open_chosen_run(folder, device, checkpoint)
    if other.preset.affinity.enabled:
        raise UsageError(
            f"--without-afa {folder}: trained with the affinity branch; train one with --set affinity.enabled=false"
        )
    return other


def print_differences(scores: Mapping[str, tuple[Score, Score]], columns: Sequence[str]) -> None:
    """How far AFA is above each other row, where there is a branch that has learned to be."""
    from afactl.evaluation.intervals import difference
    from afactl.evaluation.pseudo_labels import WITH_AFFINITY

    if WITH_AFFINITY not in scores:
        return
    rows = []
    for name, pair in scores.items():
        both = zip(scores[WITH_AFFINITY], pair, strict=True)
        if name != WITH_AFFINITY:
            differences = (difference(first.tallies, second.tallies).text for first, second in both)
            rows.append((f"{WITH_AFFINITY} - {name}", *differences))
    out.print(table("differences, paired over the images [95 %]", ("rows", *columns), rows))


def print_sweep(sweep: Sweep, rows: Sequence[Choice], source: Sweep | None) -> None:
    """Each row at the preset's threshold and at the best one."""
    lines = [
        (row.row, f"{row.preset[0]:g}", percent(row.preset[1]), f"{row.chosen[0]:g}", percent(row.chosen[1]))
        for row in rows
    ]
    columns = ("row", "preset's threshold", "mIoU", f"best on {(source or sweep).split}", "mIoU")
    out.print(table(f"pseudo labels of {sweep.split} over thresholds, mIoU %", columns, lines))
    if source is None:
        out.print(
            f"the best thresholds were chosen with the truth of {sweep.split}, on which they are scored; "
            "--sweep-from SPLIT takes those of another split"
        )
    else:
        out.print(f"the best thresholds were chosen with the truth of {source.split}, not with that of {sweep.split}")


def sweep_figures(sweep: Sweep, rows: Sequence[Choice], source: Sweep | None) -> dict[str, Any]:
    """A sweep for --json, in per cent."""
    return {
        "thresholds": sweep.thresholds,
        "miou": {row: curve.tolist() for row, curve in sweep.miou.items()},
        "chosen_on": (source or sweep).split,
        "rows": {row.row: {"preset": row.preset, "chosen": row.chosen} for row in rows},
    }
