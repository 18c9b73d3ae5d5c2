"""`afactl pseudo-eval`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from afactl.cli.options import (
    CheckpointOption,
    DataOption,
    DeviceOption,
    JsonOption,
    Labels,
    OverwriteOption,
    PerClassOption,
    RunOption,
    SplitOption,
    Which,
    open_chosen_run,
)
from afactl.cli.tables import numbers, print_per_class, score_figures, signed
from afactl.errors import UsageError
from afactl.files import require_free
from afactl.machine.terminal import out, table, tracker, write_json

if TYPE_CHECKING:
    from collections.abc import Mapping

    from afactl.evaluation.scores import Score

app = typer.Typer(rich_markup_mode=None)


@app.command("pseudo-eval", epilog="Example: afactl pseudo-eval --split train --per-class --json table3.json")
def pseudo_eval(
    split: SplitOption = "train",
    run: RunOption = None,
    without_afa: Annotated[
        Path | None,
        typer.Option("--without-afa", help="a run trained with --set affinity.enabled=false, for the row w/o AFA"),
    ] = None,
    labels: Annotated[
        Labels,
        typer.Option(
            "--labels", help="predicted: also rows with the classifier's labels, beside those with the true ones"
        ),
    ] = Labels.truth,
    data: DataOption = None,
    per_class: PerClassOption = False,
    json_file: JsonOption = None,
    overwrite: OverwriteOption = False,
    checkpoint: CheckpointOption = Which.last,
    device: DeviceOption = "auto",
) -> None:
    """Judge the pseudo labels: the rows of the paper's Table 3, without and with PAR."""
    from afactl.evaluation.metrics import label_f1
    from afactl.evaluation.pseudo_labels import PAR, WITHOUT_AFA, score_pseudo_labels
    from afactl.inference.cams import with_predicted_labels
    from afactl.inference.trained_run import open_split

    require_free([("--json", json_file)], overwrite)
    trained = open_chosen_run(run, device, checkpoint)
    dataset = open_split(trained, split, data, masks=True)
    result = score_pseudo_labels(trained, dataset, overwrite, tracker("pseudo labels"))
    scores = dict(result.scores)
    if without_afa is not None:
        if not trained.preset.affinity.enabled:
            raise UsageError(f"--without-afa {without_afa}: {trained.folder} is itself a run without AFA; leave it out")
        other = open_chosen_run(without_afa, device, checkpoint)
        if other.preset.affinity.enabled:
            raise UsageError(
                f"--without-afa {without_afa}: trained with the affinity branch; "
                "train one with --set affinity.enabled=false"
            )
        plain = score_pseudo_labels(
            other, open_split(other, split, data, masks=True), overwrite, tracker("pseudo labels w/o AFA")
        )
        scores = {WITHOUT_AFA: plain.scores[WITHOUT_AFA], **scores}
    if labels is Labels.predicted:
        guessed = with_predicted_labels(trained, dataset, overwrite, tracker("labels"))
        more = score_pseudo_labels(trained, guessed, overwrite, tracker("pseudo labels, predicted"))
        result = result._replace(passes=result.passes + more.passes, labelled=result.labelled + more.labelled)
        scores |= {f"{name}, predicted labels": pair for name, pair in more.scores.items()}
    rows = [(name, *(score.text for score in pair)) for name, pair in scores.items()]
    if WITHOUT_AFA not in scores:
        rows = [(f"{WITHOUT_AFA}: give --without-afa RUN", "-", "-"), *rows]
    out.print(table(f"Table 3, pseudo labels of {split}, mIoU %", ("row", "without PAR", "with PAR"), rows))
    cam, par, affinity = trained.preset.cam, trained.preset.par, trained.preset.affinity
    out.print(
        f"split {split}, {result.images} images; CAM at scales {numbers(cam.scales)} with flip; "
        f"threshold {cam.background} for CAMs, background plane {affinity.background} for propagated ones; "
        f"PAR {par.iterations} iterations; "
        f"MHSA: mean over heads of the last blocks after softmax; image-level truth was used"
        f"{' but in the rows that say otherwise' if labels is Labels.predicted else ''}; "
        f"{trained.checkpoint} checkpoint, step {trained.iteration}"
    )
    print_differences(scores)
    if labels is Labels.predicted:
        f1 = label_f1([s.labels for s in dataset.samples], [s.labels for s in guessed.samples])
        out.print(
            f"predicted labels: probability over 1/2, at least the best one; F1 against the truth {100 * f1:.1f} %"
        )
    if result.passes:
        out.print(
            f"{result.passes} images went through the network, {result.images - result.passes} came from the cache"
        )
    else:
        out.print(f"no forward pass: all {result.images} images came from the cache ({result.labelled} labelled anew)")
    if per_class:
        print_per_class(
            {f"{n}{s}": p for n, pair in scores.items() for s, p in zip(("", PAR), pair, strict=True)},
            dataset.classes,
        )
    if json_file is not None:
        write_json(
            json_file,
            {
                "split": split,
                "images": result.images,
                "run": str(trained.folder),
                "step": trained.iteration,
                "miou": {n: {"without_par": p[0].miou, "with_par": p[1].miou} for n, p in scores.items()},
                "rows": {
                    f"{name}{end}": score_figures(score, dataset.classes)
                    for name, pair in scores.items()
                    for end, score in zip(("", PAR), pair, strict=True)
                },
            },
        )


def print_differences(scores: Mapping[str, tuple[Score, Score]]) -> None:
    """How far AFA is above each other row, where there is a branch that has learned to be."""
    from afactl.evaluation.intervals import difference
    from afactl.evaluation.pseudo_labels import WITH_AFFINITY

    if WITH_AFFINITY not in scores:
        return
    rows = []
    for name, pair in scores.items():
        both = zip(scores[WITH_AFFINITY], pair, strict=True)
        if name != WITH_AFFINITY:
            differences = (difference(first.tallies, second.tallies) for first, second in both)
            rows.append((f"{WITH_AFFINITY} - {name}", *map(signed, differences)))
    out.print(table("differences, paired over the images [95 %]", ("rows", "without PAR", "with PAR"), rows))
