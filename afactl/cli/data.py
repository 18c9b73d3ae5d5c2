"""The commands `afactl data ...`."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated

import typer

from afactl.cli.options import (
    JsonOption,
    OverwriteOption,
    Palette,
    PaletteOption,
    SplitOption,
    former_names,
)
from afactl.errors import MissingDataError, UsageError, counted, nearest
from afactl.files import require_free
from afactl.machine.terminal import out, table, tracker, write_json

# So many defects of a kind are printed; --json holds all.
SHOWN = 10

DatasetArgument = Annotated[
    str | None,
    typer.Argument(metavar="PRESET|FOLDER", help="a preset, or a folder in one of the formats; or give --data"),
]
FolderArgument = Annotated[Path | None, typer.Argument(metavar="FOLDER", help="the same as --data FOLDER")]
DownloadOption = Annotated[
    Path | None, typer.Option("--data", metavar="FOLDER", help="folder of the downloaded dataset")
]
FolderOption = Annotated[
    Path | None, typer.Option("--data", metavar="FOLDER", help="folder of the dataset, alone or of a preset")
]

app = typer.Typer(help="Look at a dataset before training on it.", rich_markup_mode=None)
prepare_app = typer.Typer(help="Make lists, labels and masks of a downloaded dataset.", rich_markup_mode=None)


@app.callback(invoke_without_command=True)
@prepare_app.callback(invoke_without_command=True)
def _alone(context: typer.Context) -> None:
    """What a group of commands does without one: it shows its help."""
    if context.invoked_subcommand is None:
        for line in context.get_help().splitlines():
            out.print(line)


app.add_typer(prepare_app, name="prepare")


class TagSource(str, Enum):
    """Where the labels of own photos come from."""

    tags = "tags"
    masks = "masks"
    keywords = "keywords"


@prepare_app.command(
    "voc",
    epilog="Example: afactl data prepare voc --data VOCdevkit/VOC2012 --sbd benchmark_RELEASE/dataset",
    short_help="Write the list train_aug of VOC, and the labels of its XML.",
)
def prepare_voc(
    folder: FolderArgument = None,
    data: DownloadOption = None,
    sbd: Annotated[
        Path | None,
        typer.Option("--sbd", metavar="FOLDER", help="SBD's folder with cls/*.mat, or a folder of its masks as PNG"),
    ] = None,
    labels_from: Annotated[str | None, typer.Option("--labels-from", hidden=True)] = None,
    difficult: Annotated[
        bool, typer.Option("--difficult/--no-difficult", help="whether objects marked difficult count, in XML")
    ] = True,
    json_file: JsonOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Write the list train_aug of PASCAL VOC 2012, keep the labels of its XML, and compare masks with XML."""
    from afactl.datasets import preparing

    if labels_from is not None:
        raise UsageError(
            "--labels-from: a prepared folder has both kinds of labels now; leave it out here, "
            "and choose for each training: --set data.labels=masks or --set data.labels=xml"
        )
    require_free([("--json", json_file)], overwrite)
    done = preparing.prepare_voc(_one_folder(folder, data), sbd, difficult, overwrite, tracker("masks of SBD"))
    rows = [(split, str(count), str(preparing.KNOWN_VOC[split])) for split, count in done.counts.items()]
    out.print(table("photos by split", ("split", "here", "in the full dataset"), rows))
    if not done.augmented:
        out.print("no masks of SBD: train on the plain list, --set data.train_split=train, or give --sbd DIR")
    out.print(f"{counted(done.converted, 'mask')} of SBD written")
    out.print(
        f"{done.compared} photos have a mask and XML, {done.without_xml} have no XML (their labels are the mask's); "
        "the preset's data.labels chooses between masks and xml"
    )
    out.print(f"{counted(len(done.disagreements), 'photo')} whose mask and XML disagree")
    for disagreement in done.disagreements[:SHOWN]:
        sides = [
            f"only in the {place}: {', '.join(names)}"
            for place, names in (("mask", disagreement.only_in_mask), ("XML", disagreement.only_in_xml))
            if names
        ]
        out.print(f"  {disagreement.image_id}: {'; '.join(sides)}")
    if len(done.disagreements) > SHOWN:
        out.print(f"  and {len(done.disagreements) - SHOWN} more; --json FILE lists all")
    if json_file is not None:
        write_json(
            json_file,
            {**done._asdict(), "disagreements": [disagreement._asdict() for disagreement in done.disagreements]},
        )


@prepare_app.command(
    "coco",
    epilog="Example: afactl data prepare coco --data COCO --year 2014",
    short_help="Draw the masks of MS COCO and write its labels.",
)
def prepare_coco(
    folder: FolderArgument = None,
    data: DownloadOption = None,
    year: Annotated[
        int, typer.Option("--year", metavar="N", help="of the release; 2014 is the paper's and the only one here")
    ] = 2014,
) -> None:
    """Draw the masks of MS COCO from its annotations and write its labels; a stopped job goes on."""
    from afactl.datasets import coco, preparing

    if year != coco.YEAR:
        raise UsageError(f"--year: expected {coco.YEAR}, the release that the paper uses, got {year}")
    data = _one_folder(folder, data)
    splits = coco.splits(data)
    if not splits:
        raise MissingDataError(
            f"--data {data}: expected {coco.annotations_path(Path(), 'train')} or the one of val in it, found neither"
        )
    done = [preparing.prepare_coco(data, split, tracker(f"masks of {split}")) for split in splits]
    rows = [
        (
            written.split,
            str(written.photos),
            str(preparing.KNOWN_COCO[written.split]),
            str(written.empty),
            str(written.drawn),
        )
        for written in done
    ]
    out.print(
        table("photos by split", ("split", "here", "in the full dataset", "all background", "masks drawn now"), rows)
    )
    for written in done:
        out.print(f"masks: {written.folder}")


@prepare_app.command(
    "folder",
    epilog="Example: afactl data prepare folder --data mydata --val 0.1",
    short_help="Write labels.csv of own photos, with a validation split.",
)
def prepare_folder(
    folder: FolderArgument = None,
    data: Annotated[
        Path | None,
        typer.Option(
            "--data", metavar="FOLDER", help="folder of own photos, tagged in any of the forms of docs/data-formats.md"
        ),
    ] = None,
    val: Annotated[
        float,
        typer.Option(
            "--val", metavar="SHARE", min=0.0, max=0.9, help="share of the training photos to set aside for validation"
        ),
    ] = 0.0,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="which ones")] = 0,
    labels_from: Annotated[
        TagSource,
        typer.Option(
            "--labels-from",
            help="the tags that are there, the masks in masks/, or the keywords (IPTC, XMP) in the photos' files",
        ),
    ] = TagSource.tags,
    from_keywords: Annotated[bool, typer.Option("--from-keywords", help="the same as --labels-from keywords")] = False,
    classes: Annotated[
        str | None,
        typer.Option(
            "--classes",
            metavar="NAME,NAME",
            help="the keywords that are classes; default: classes.txt, or all that five photos share",
        ),
    ] = None,
    exclude: Annotated[
        Path | None,
        typer.Option(
            "--exclude", metavar="FILE", help="photos to leave out: a review list (its wrong ones), or a path per line"
        ),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="write a labels.csv that is there again")] = False,
) -> None:
    """Write labels.csv of own photos, with a validation split if asked.

    Optional: all forms of tags can be trained on as they are.
    """
    from afactl.datasets import preparing
    from afactl.datasets.registry import dataset_folder
    from afactl.runs.review import excluded_photos

    source: preparing.LabelSource = "keywords" if from_keywords else labels_from.value
    if classes is not None and source != "keywords":
        raise UsageError(f"--classes {classes}: goes with --labels-from keywords; other labels have their classes")
    names = None if classes is None else [name.strip() for name in classes.split(",") if name.strip()]
    done = preparing.prepare_folder(
        dataset_folder("folder", _one_folder(folder, data)),
        val,
        seed,
        source,
        overwrite,
        tracker("photos"),
        names,
        excluded_photos(exclude) if exclude is not None else (),
    )
    for note in done.notes:
        out.print(note)
    rows = [(name, *(str(counts[name]) for counts in done.splits.values())) for name in done.classes]
    rows.append(("all photos", *(str(done.photos[split]) for split in done.splits)))
    out.print(table("photos per class", ("class", *done.splits), rows))
    if done.left_out:
        reason = "they have no mask" if source == "masks" else "nothing says what is in them"
        out.print(f"left out, as {reason}: {counted(done.left_out, 'photo')}")
    if done.excluded:
        out.print(f"left out, as {exclude} says: {counted(done.excluded, 'photo')}")
    named = {name.casefold() for name in done.classes}
    others = {word: count for word, count in done.keywords.items() if word.casefold() not in named}
    if others:
        shown = ", ".join(
            f"{word} {count}" for word, count in sorted(others.items(), key=lambda item: -item[1])[:SHOWN]
        )
        out.print(f"{counted(len(others), 'keyword')} that {'is' if len(others) == 1 else 'are'} no class: {shown}")
    out.print(f"labels: {done.table}")


@app.command(
    epilog="Example: afactl data check mydata", short_help="Read every photo and mask, and list what is wrong."
)
def check(
    dataset: DatasetArgument = None,
    data: FolderOption = None,
    json_file: JsonOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Read every photo and mask, show what is there, and list what is wrong; exit code 1 if anything is."""
    from afactl.datasets.advice import object_advice, size_advice, tag_advice
    from afactl.datasets.checking import check_splits
    from afactl.datasets.registry import load_all
    from afactl.presets import load_preset

    require_free([("--json", json_file)], overwrite)
    name, root, train, source = _locate(dataset, data)
    settings = load_preset(str(dataset)) if train else None  # a folder alone says nothing of the training
    splits = load_all(name, root, source)
    names = [split.name for split in splits]
    # Without a preset: as the format's own presets name it.
    wanted = [train] if train else [*preset_splits(name), "train"]
    train = next((candidate for candidate in (*wanted, "train") if candidate in names), None)
    if train is None:
        out.print(
            f"no split {' or '.join(dict.fromkeys(wanted))} for training; which classes are trained is not checked"
        )
    notes = list(dict.fromkeys(note for split in splits for note in split.notes))
    for split in splits:
        if split.name == train:
            notes += tag_advice(split)
            if settings:
                notes += size_advice(split, settings.train.crop_size, settings.data.long_side)
    for note in notes:
        out.print(note)
    report = check_splits(splits, train or "", tracker("reading"))
    for facts in report.splits:
        for note in object_advice(facts, report.classes):
            out.print(note)
    rows = [
        (
            facts.name,
            str(facts.images),
            *(" / ".join(map(str, sides)) for sides in (facts.widths, facts.heights)),
            "yes" if facts.masked else "no",
        )
        for facts in report.splits
    ]
    out.print(
        table(
            "splits (sides in pixels: smallest / median / largest)",
            ("split", "images", "width", "height", "masks"),
            rows,
        )
    )
    order = sorted(range(len(report.classes)), key=lambda number: -report.splits[0].classes[number])
    classes = [(report.classes[number], *(str(facts.classes[number]) for facts in report.splits)) for number in order]
    out.print(table("photos per class", ("class", *names), classes))
    counts = sorted({count for facts in report.splits for count in facts.labels})
    labels = [(str(count), *(str(facts.labels.get(count, 0)) for facts in report.splits)) for count in counts]
    out.print(table("photos by number of labels", ("labels", *names), labels))
    kinds = sorted({defect.kind for defect in report.defects})
    for kind in kinds:
        defects = [defect for defect in report.defects if defect.kind == kind]
        out.print(f"{kind}: {len(defects)}")
        for defect in defects[:SHOWN]:
            out.print(f"  {defect.where}: {defect.detail}")
        if len(defects) > SHOWN:
            out.print(f"  and {len(defects) - SHOWN} more; --json FILE lists all")
    if json_file is not None:
        figures = {
            "splits": [facts._asdict() for facts in report.splits],
            "classes": report.classes,
            "notes": notes,
            "defects": [defect._asdict() for defect in report.defects],
        }
        write_json(json_file, figures)
    out.print(counted(len(report.defects), "defect") if report.defects else "no defects")
    if report.defects:
        raise typer.Exit(1)


@app.command(
    epilog="Example: afactl data preview mydata --split val --out sheet.png",
    context_settings=former_names(count="photos"),
    short_help="Draw a contact sheet of photos with their labels.",
)
def preview(
    dataset: DatasetArgument = None,
    split: SplitOption = "train",
    data: FolderOption = None,
    photos: Annotated[int, typer.Option("--photos", metavar="N", min=1, max=200, help="how many photos")] = 24,
    seed: Annotated[int, typer.Option("--seed", metavar="N", min=0, help="which ones")] = 0,
    out_file: Annotated[Path, typer.Option("--out", metavar="FILE", help="picture to write (.png, .svg, .pdf)")] = Path(
        "preview.png"
    ),
    palette: PaletteOption = Palette.safe,
    overwrite: OverwriteOption = False,
) -> None:
    """Draw a contact sheet: photos with their labels, and their masks where there are any."""
    from afactl.datasets.registry import load_split
    from afactl.pictures.figures import draw_contact_sheet

    name, root, _, source = _locate(dataset, data)
    chosen = load_split(name, root, split, source)
    require_free([("--out", out_file)], overwrite, [sample.image_path for sample in chosen.samples])
    shown = draw_contact_sheet(chosen, out_file, photos, seed, palette.value)
    out.print(f"{counted(shown, 'photo')} of {split}")
    out.print(f"picture: {out_file}")


def preset_splits(name: str) -> list[str]:
    """The training splits of the shipped presets of a dataset format."""
    from afactl.presets import load_preset, preset_names

    shipped = [load_preset(shipped_name).data for shipped_name in preset_names()]
    return list(dict.fromkeys(data.train_split for data in shipped if data.name == name))


def _one_folder(argument: Path | None, option: Path | None) -> Path:
    """The folder of a command that takes it as FOLDER and as --data FOLDER."""
    if (argument is None) == (option is None):
        got = "none" if option is None else f"{argument} and --data {option}"
        raise UsageError(f"expected one folder of the dataset, as FOLDER or as --data FOLDER, got {got}")
    return argument or Path(str(option))


def _locate(dataset: str | None, data: Path | None) -> tuple[str, Path | None, str | None, str | None]:
    """(format, folder, training split if known, source of labels if chosen) of a preset's dataset or of a folder."""
    from afactl.datasets.registry import dataset_folder, format_of
    from afactl.presets import load_preset, preset_names

    if dataset is None:
        if data is None:
            raise UsageError("expected a preset or the folder of a dataset, such as afactl data check FOLDER, got none")
        return format_of(dataset_folder("folder", data)), data, None, None
    # A folder may be named like a preset; beside --data the name can only mean the preset.
    if Path(dataset).is_dir() and (data is None or dataset not in preset_names()):
        if data is not None:
            raise UsageError(f"--data {data}: {dataset} is a folder already; leave --data out")
        return format_of(Path(dataset)), Path(dataset), None, None
    if dataset not in preset_names() and not Path(dataset).exists():
        raise UsageError(f'"{dataset}": expected a folder or a preset, found neither{nearest(dataset, preset_names())}')
    preset = load_preset(dataset)
    root = preset.data.folder(data)
    return preset.data.name, root, preset.data.train_split, preset.data.labels
