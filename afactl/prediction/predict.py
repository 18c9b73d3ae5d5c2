"""Masks for any photos: files, folders and globs, without label files."""

from __future__ import annotations

import glob
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from afactl.datasets.images import read_image, reduce_image
from afactl.datasets.photo_files import PHOTO_SUFFIXES, find_files, passed_over
from afactl.datasets.samples import Track
from afactl.errors import DataError, UsageError, counted
from afactl.files import require_free, whole_file, writing
from afactl.inference.segmentation import input_of_crf, multi_scale, segment, segment_windows
from afactl.inference.trained_run import TrainedRun, to_tensor
from afactl.labels import CLASS_TABLE
from afactl.machine import distributed
from afactl.machine.parallel import ordered_map, processes_for
from afactl.method.refinement.crf import DenseCrf, crf_label
from afactl.prediction.unfinished import Unfinished, begun_files, require_idle
from afactl.prediction.writers import Labelled, Writer, class_table, writer_class


class Photo(NamedTuple):
    """A photo, and the mask's path below the output folder."""

    path: Path
    mask: Path


class Found(NamedTuple):
    """The photos of a call, and what is to be said about what was passed over, a line each."""

    photos: list[Photo]
    notes: list[str]


def find_photos(inputs: Sequence[str], out: Path | None = None) -> Found:
    """Photos of files, folders (searched through) and globs, each once, in the order given.

    A photo of a folder keeps its path below that folder; any other keeps its name.

    Args:
        out: the output folder; pictures in it are results of an earlier call, and no photos.

    Raises:
        UsageError: an input matches nothing, two photos would write the same mask, or a folder is `out` itself.
    """
    chosen: dict[Path, Photo] = {}
    results: set[Path] = set()
    notes: list[str] = []
    masks = out.resolve() if out is not None else None
    for text in inputs:
        path = Path(text)
        if path.is_dir():
            if out is not None and out.is_dir() and out.samefile(path):
                raise UsageError(
                    f"--out {out}: is the folder of the photos, where masks would be taken for photos the next time; "
                    "give another folder"
                )
            files = find_files(path)
            pictures = files.photos
            notes += [f"{path}: {line}" for line in passed_over(files)]
            below_out = {p for p in pictures if masks is not None and p.resolve().is_relative_to(masks)}
            results |= below_out
            here = [(p, p.relative_to(path)) for p in pictures if p not in below_out]
        elif path.is_file():
            here = [(path, Path(path.name))]
        else:
            here = [(Path(p), Path(Path(p).name)) for p in sorted(glob.glob(text, recursive=True)) if Path(p).is_file()]
        if not here:
            raise UsageError(
                f"{text}: expected a photo, a folder with photos ({', '.join(PHOTO_SUFFIXES)}) or a glob, found none"
            )
        stems = Counter(below.with_suffix("") for _, below in here)
        for photo_path, below in here:
            # a.jpg and a.png side by side become a.jpg.png and a.png.png.
            mask = (
                below.with_name(below.name + ".png") if stems[below.with_suffix("")] > 1 else below.with_suffix(".png")
            )
            chosen.setdefault(photo_path.resolve(), Photo(photo_path, mask))
    photos = list(chosen.values())
    owners: dict[Path, Path] = {}
    for photo in photos:
        other = owners.setdefault(photo.mask, photo.path)
        if other != photo.path:
            raise UsageError(
                f"{other} and {photo.path}: both would write {photo.mask}; predict them into different --out folders"
            )
    if results:
        notes.append(f"passed over: {counted(len(results), 'picture')} in {out}, as results of an earlier call")
    return Found(photos, notes)


class Prediction(NamedTuple):
    """What `predict` did.

    Attributes:
        photos: done, of all processes; 0 where another process tells.
        written: files. kept: photos that a stopped call had done before, of all processes.
        reduced: photos labelled at a reduced size. failed: the reason of each that was not done.
    """

    photos: int
    written: list[Path]
    kept: int
    reduced: int
    failed: list[str]


class PredictOptions(NamedTuple):
    """What `predict` writes, and how.

    Attributes:
        crf: refine with the dense CRF, one of CRF_BACKENDS.
        forms: what to write, of `WRITERS.names()`.
        palette: of pictures that are drawn, one of PALETTES; masks have the colours of VOC.
        window: photos with a longer side are passed at their own size, in windows of this side.
        overwrite: replace files that are there already; photos never.
    """

    crf: str | None = None
    forms: Sequence[str] = ("png",)
    palette: str = "safe"
    window: int | None = None
    overwrite: bool = False


def predict(
    run: TrainedRun,
    photos: Sequence[Photo],
    out: Path,
    options: PredictOptions = PredictOptions(),  # noqa: B008  (never changed)
    track: Track = iter,
) -> Prediction:
    """Write masks of photos: multi-scale + flip, as `eval` scores it.

    A photo that cannot be read is named and the others are done all the same. What a killed call with
    the same weights and settings has done is kept. Several processes share the photos.

    Raises:
        UsageError: before any work: a file is in the way, the output folder cannot be written or another job writes
            into it, or the forms do not go with the CRF or the names.
        DependencyError: a form needs a package that is not installed.
    """
    crf, forms, palette, window, overwrite = options
    kinds = {form: writer_class(form) for form in forms}
    writers = {form: kind(out, run.architecture.classes, palette) for form, kind in kinds.items()}
    for writer in writers.values():
        writer.category_ids = run.architecture.category_ids
    masks = [photo.mask for photo in photos]
    for form, writer in writers.items():
        objection = writer.objection(masks, crf is not None)
        if objection:
            raise UsageError(f"--format {form}: {objection}")
    settings = {
        "weights": run.weights_hash,
        "crf": run.preset.crf.model_dump() if crf else None,
        "backend": crf,
        "forms": list(forms),
        "palette": palette,
        "window": window,
        "eval": run.preset.eval.model_dump(),
    }
    own = _require_room(out, list(writers.values()), photos, settings, overwrite)
    table = _class_table(out, list(writers.values()), overwrite)
    distributed.wait()  # before any process writes, every one has looked
    with writing(f"--out {out}", "give another folder"):
        record = Unfinished(out, settings, distributed.rank())
    kept = 0
    missing = []
    for photo in distributed.shard(photos):
        values = record.done(str(photo.mask), photo.path)
        whole = all(writer.target(photo.mask).is_file() for writer in writers.values())
        if values and values["failed"] is None and whole:
            kept += 1
        else:
            missing.append(photo)
    for photo, values, scores in _labelled(run, missing, crf, window, track):
        with writing(f"--out {out}", "give another folder"):
            lasting = [writer.target(photo.mask) for writer in writers.values() if not writer.gathered]
            strange = next((file for file in lasting if not overwrite and file not in own and file.exists()), None)
            if strange is not None:
                values = values | {"failed": f"{strange}: appeared while the masks were made, and is left as it is"}
            elif scores is not None:
                record.begin(lasting)
                for writer in writers.values():
                    writer.add(scores)
            record.note(str(photo.mask), photo.path, **values)
    kept = int(distributed.all_reduce(torch.tensor(kept)))  # and nobody goes on before all have come here
    if distributed.rank() > 0:
        record.close()
        return Prediction(0, [], kept, 0, [])
    lines = record.lines()
    noted = {photo.mask: lines[str(photo.mask)]["values"] for photo in photos}
    done = [path for path, values in noted.items() if values["failed"] is None]
    with writing(f"--out {out}", "give another folder"):
        record.begin(out / name for writer in writers.values() for name in writer.gathered)
        for writer in writers.values():
            writer.close(done)
        if table is not None and done:
            with whole_file(out / CLASS_TABLE) as fresh:
                fresh.write_text(table, encoding="utf-8")
    record.finish()
    written = [file for writer in writers.values() for file in writer.files(done)]
    written += [out / CLASS_TABLE] if table is not None and done else []
    failed = [values["failed"] for values in noted.values() if values["failed"]]
    return Prediction(len(done), written, kept, sum(noted[path]["reduced"] for path in done), failed)


def _require_room(
    out: Path, writers: Sequence[Writer], photos: Sequence[Photo], settings: dict[str, Any], overwrite: bool
) -> set[Path]:
    """See that all results can be written, and nothing else is: `require_free`, for a call that may be resumed.

    Photos are never overwritten, whatever is asked: neither those of this call nor what lies beside them.

    Returns:
        The files that a killed call with the same settings wrote; they may be replaced.

    Raises:
        UsageError: what is in the way.
    """
    option, masks = f"--out {out}", [photo.mask for photo in photos]
    files = [file for writer in writers for file in writer.files(masks)]
    require_idle(out)
    require_free([(option, file) for file in files], True, [photo.path for photo in photos])
    own = begun_files(out, settings)
    others = [file for file in files if file not in own]
    require_free([(option, file) for file in others], overwrite)
    folders = {photo.path.parent.resolve() for photo in photos}
    for file in others:
        if file.exists() and file.parent.resolve() in folders:
            raise UsageError(
                f"{option}: {file} lies among the photos and may be one, which are never overwritten; "
                "give another folder"
            )
    return own


def _class_table(out: Path, writers: Sequence[Writer], overwrite: bool) -> str | None:
    """What CLASS_TABLE has to hold beside masks of these forms; None beside others.

    Raises:
        UsageError: there is one of other classes.
    """
    if not any(writer.numbered for writer in writers):
        return None
    table, file = class_table(writers[0].classes), out / CLASS_TABLE
    if file.exists() and not overwrite and (not file.is_file() or file.read_bytes() != table.encode()):
        raise UsageError(
            f"--out {out}: its {CLASS_TABLE} names other classes than this run has; give another folder, or --overwrite"
        )
    return table


def _labelled(
    run: TrainedRun, photos: Sequence[Photo], crf: str | None, window: int | None, track: Track
) -> Iterator[tuple[Photo, dict[str, Any], Labelled | None]]:
    """Every photo, what is to be noted about it ("failed": why, or None; "reduced"), and its mask if it has one."""
    passes = multi_scale(run.preset.eval)
    waiting: deque[tuple[Photo, tuple[int, int], np.ndarray, Tensor]] = deque()
    failed: deque[tuple[Photo, dict[str, Any], None]] = deque()

    def scored() -> Iterator[tuple[Tensor, Tensor]]:
        for photo in track(photos):
            try:
                image = read_image(photo.path)
            except DataError as error:
                failed.append((photo, {"failed": str(error), "reduced": False}, None))
                continue
            size = image.shape[:2]
            small = reduce_image(image, run.preset.eval.max_pixels)
            if window and max(size) > window:
                logits = segment_windows(run.model, image, run.device, passes, window, small.shape[:2])
            else:
                logits = segment(run.model, small, run.device, passes)
            image = small
            if not torch.isfinite(logits).all():
                text = f"{photo.path}: the network gives non-finite values (NaN); its weights are broken, train again"
                failed.append((photo, {"failed": text, "reduced": False}, None))
                continue
            if crf:
                image, logits = input_of_crf(image, logits, run.preset.crf.drop_below)
            waiting.append((photo, size, image, logits))
            yield to_tensor(image, run.device)[0], logits

    label_of = (
        partial(crf_label, backend=crf, settings=DenseCrf(**run.preset.crf.model_dump())) if crf else _most_probable
    )
    for label in ordered_map(label_of, scored(), processes_for(len(photos), run.device) if crf else 1):
        photo, size, image, logits = waiting.popleft()
        mask = label.cpu().numpy()
        yield (
            photo,
            {"failed": None, "reduced": mask.shape != size},
            Labelled(photo.mask, photo.mask.with_name(photo.path.name), size, image, mask, logits),
        )
    yield from failed


def _most_probable(photo: tuple[Tensor, Tensor]) -> Tensor:
    return photo[1].max(dim=0).indices.to(torch.uint8)
