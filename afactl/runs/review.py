"""The review list of a run: what somebody said of its photos, one at a time, while looking at them.

review.csv in the run's folder: image,split,verdict. `image` is the photo's path below the dataset's folder, so that the
list stays right when both are moved.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from afactl.errors import DataError, UsageError
from afactl.files import whole_file, writing

REVIEW = "review.csv"
VERDICTS = ("keep", "wrong", "unsure")
_HEADER = ("image", "split", "verdict")


class Reviewed(NamedTuple):
    """A photo that was looked at: its path, see `photo_key`, and the split that it was found in."""

    image: str
    split: str


def photo_key(photo: Path, dataset: Path) -> str:
    """How a review list names a photo: its path below the dataset's folder, or its whole path where it lies elsewhere.

    Example:
        >>> photo_key(Path("data/images/a.jpg"), Path("data"))
        'images/a.jpg'
    """
    inside, folder = photo.absolute(), dataset.absolute()
    return inside.relative_to(folder).as_posix() if inside.is_relative_to(folder) else photo.resolve().as_posix()


def read_review(file: Path) -> dict[Reviewed, str]:
    """The verdicts of a review list; none where there is no such file.

    Raises:
        DataError: it cannot be read, lacks a column, or a verdict is none of VERDICTS; names the line.
    """
    if not file.exists():
        return {}
    try:
        with open(file, encoding="utf-8-sig", newline="") as opened:
            lines = csv.DictReader(opened)
            if missing := [name for name in _HEADER if name not in (lines.fieldnames or ())]:
                raise DataError(f"{file}: expected the columns {', '.join(_HEADER)}, {', '.join(missing)} is missing")
            verdicts = {}
            for line in lines:
                if line["verdict"] not in VERDICTS:
                    raise DataError(
                        f"{file}, line {lines.line_num}: expected {', '.join(VERDICTS[:-1])} or {VERDICTS[-1]}, "
                        f"got {line['verdict']!r}"
                    )
                verdicts[Reviewed(line["image"], line["split"])] = line["verdict"]
            return verdicts
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{file}: cannot be read ({error}); mend it, or move it away") from error


def write_review(file: Path, verdicts: Mapping[Reviewed, str]) -> None:
    """Write a review list, whole or not at all.

    Raises:
        UsageError: it cannot be written.
    """
    with writing(str(file), "mend that; the list is kept until then"), whole_file(file) as fresh:
        fresh.write_text(review_text(verdicts), encoding="utf-8")


def review_text(verdicts: Mapping[Reviewed, str]) -> str:
    """What stands in a review list, sorted by split and photo.

    Example:
        >>> print(review_text({Reviewed("images/a.jpg", "train"): "keep"}), end="")
        image,split,verdict
        images/a.jpg,train,keep
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    for reviewed, verdict in sorted(verdicts.items(), key=lambda item: (item[0].split, item[0].image)):
        writer.writerow((reviewed.image, reviewed.split, verdict))
    return text.getvalue()


def kept_photos(file: Path, dataset: Path) -> set[Path]:
    """The photos that a review list keeps, as whole paths without links.

    Args:
        dataset: folder that the list's paths lie in.

    Raises:
        UsageError: there is no list, or it keeps none. DataError: as `read_review`.
    """
    if not file.exists():
        raise UsageError(f"--only-kept: there is no {file}; make it with `afactl explore`")
    kept = {(dataset / image).resolve() for (image, _), verdict in read_review(file).items() if verdict == "keep"}
    if not kept:
        raise UsageError(f"--only-kept: {file} keeps no photo; review some with `afactl explore`")
    return kept


def excluded_photos(file: Path) -> set[str]:
    """The photos that a list leaves out: those that a review calls wrong, or each line of a plain list of paths.

    Raises:
        UsageError: it cannot be read. DataError: as `read_review`.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--exclude {file}: cannot be read ({error}); expected review.csv, or a path per line"
        ) from error
    if lines and set(lines[0].split(",")) >= set(_HEADER):
        return {image for (image, _), verdict in read_review(file).items() if verdict == "wrong"}
    return {line.strip() for line in lines if line.strip()}
