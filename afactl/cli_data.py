"""The commands `afactl data ...`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Optional

import typer

from afactl.errors import UsageError
from afactl.options import JsonOption, SplitOption
from afactl.terminal import out, table, tracker, write_json

# So many defects of a kind are printed; --json holds all.
SHOWN = 10

DatasetArgument = Annotated[str, typer.Argument(metavar="PRESET|DIR", help="a preset, or a folder in one of the formats")]
FolderOption = Annotated[Optional[Path], typer.Option("--data", help="folder of the dataset, where a preset is given")]

data_app = typer.Typer(help="Look at a dataset before training on it.", rich_markup_mode=None, no_args_is_help=True)


@data_app.command(epilog="Example: afactl data check mydata")
def check(
    dataset: DatasetArgument,
    data: FolderOption = None,
    json_file: JsonOption = None,
) -> None:
    """Read every photo and mask, show what is there, and list what is wrong; exit code 1 if anything is."""
    from afactl.datasets.checking import check_splits
    from afactl.datasets.registry import load_all

    name, root, train = _locate(dataset, data)
    splits = load_all(name, root)
    names = [split.name for split in splits]
    train = train if train in names else names[0]
    report = check_splits(splits, train, tracker("reading"))
    rows = [
        (one.name, str(one.images), *(" / ".join(map(str, sides)) for sides in (one.widths, one.heights)), "yes" if one.masked else "no")
        for one in report.splits
    ]
    out.print(table("splits (sides in pixels: smallest / median / largest)", ("split", "images", "width", "height", "masks"), rows))
    order = sorted(range(len(report.classes)), key=lambda number: -report.splits[0].classes[number])
    classes = [(report.classes[number], *(str(one.classes[number]) for one in report.splits)) for number in order]
    out.print(table("photos per class", ("class", *names), classes))
    counts = sorted({count for one in report.splits for count in one.labels})
    labels = [(str(count), *(str(one.labels.get(count, 0)) for one in report.splits)) for count in counts]
    out.print(table("photos by number of labels", ("labels", *names), labels))
    kinds = sorted({defect.kind for defect in report.defects})
    for kind in kinds:
        found = [defect for defect in report.defects if defect.kind == kind]
        out.print(f"{kind}: {len(found)}")
        for defect in found[:SHOWN]:
            out.print(f"  {defect.where}: {defect.detail}", markup=False)
        if len(found) > SHOWN:
            out.print(f"  and {len(found) - SHOWN} more; --json FILE lists all")
    if json_file is not None:
        figures = {"splits": [one._asdict() for one in report.splits], "classes": report.classes, "defects": [one._asdict() for one in report.defects]}
        write_json(json_file, figures)
    out.print(f"{len(report.defects)} defects" if report.defects else "no defects")
    if report.defects:
        raise typer.Exit(1)


@data_app.command(epilog="Example: afactl data preview mydata --split val --out sheet.png")
def preview(
    dataset: DatasetArgument,
    split: SplitOption = "train",
    data: FolderOption = None,
    count: Annotated[int, typer.Option("--count", min=1, max=200, help="how many photos")] = 24,
    seed: Annotated[int, typer.Option("--seed", min=0, help="which ones")] = 0,
    out_file: Annotated[Path, typer.Option("--out", help="picture to write (.png, .svg, .pdf)")] = Path("preview.png"),
) -> None:
    """Draw a contact sheet: photos with their labels, and their masks where there are any."""
    from afactl.datasets.registry import load_split
    from afactl.visualization import draw_contact_sheet

    name, root, _ = _locate(dataset, data)
    shown = draw_contact_sheet(load_split(name, root, split), out_file, count, seed)
    out.print(f"{shown} photos of {split}")
    out.print(f"picture: {out_file}")


def _locate(dataset: str, data: Path | None) -> tuple[str, Path | None, str | None]:
    """(format, folder, training split if known) of a preset's dataset or of a folder."""
    from afactl.datasets.registry import format_of
    from afactl.presets import load_preset

    if Path(dataset).is_dir():
        if data is not None:
            raise UsageError(f"--data {data}: {dataset} is a folder already; leave --data out")
        return format_of(Path(dataset)), Path(dataset), None
    preset = load_preset(dataset)
    root = data or (Path(preset.data.root) if preset.data.root else None)
    return preset.data.name, root, preset.data.train_split
