"""Figures of a run, after the paper's: which photo, which maps, and where the picture goes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch

from afactl.datasets.images import read_image, reduce_image
from afactl.datasets.masks import enlarge_mask
from afactl.datasets.registry import is_missing, load_split, require_dataset
from afactl.datasets.samples import Sample, Split
from afactl.errors import AfactlError, DataError, MissingDataError, UsageError, counted
from afactl.evaluation.pseudo_labels import (
    WITH_AFFINITY,
    WITHOUT_AFA,
    WITHOUT_PROPAGATION,
    preset_threshold,
    pseudo_labels_of,
    row_ends,
    table3_rows,
)
from afactl.evaluation.sweep import Sweep
from afactl.files import whole_file, writing
from afactl.inference.cams import (
    CamRecord,
    cam_record,
    likely_labels,
    open_cam_cache,
    query_maps,
    query_token,
    record_of,
)
from afactl.inference.refiners import REFINERS, preset_refiner, refiner_title
from afactl.inference.segmentation import photo_mask
from afactl.inference.trained_run import TrainedRun, open_split, to_tensor
from afactl.method.affinity import Walk
from afactl.method.pseudo_labels import cut_cam, propagate, refine_cam
from afactl.pictures.drawing import Content, head_chart, overlay, panel, picture_grid, resize_map, threshold_chart
from afactl.pictures.palettes import PALETTES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Photos on a contact sheet are no larger than this.
SHEET_PIXELS = 300 * 300
# What `draw_refiners` shows of the way of the labels (Fig. 10).
ITERATIONS = (0, 1, 3, 5, 10, 15, 20)
TRUTH = "truth"
# Of Table 3, those whose labels `draw_attention` shows.
SHOWN_ROWS = (WITHOUT_AFA, WITHOUT_PROPAGATION, WITH_AFFINITY)


class Drawn(NamedTuple):
    """A picture, and where the maps in it came from, in words."""

    file: Path
    source: str


class Look(NamedTuple):
    """A photo with what a run says about it.

    Attributes:
        image: h x w x 3 uint8, reduced to `cam.max_pixels` where it has more. truth: h x w uint8, where the dataset
            has a mask.
        source: where the record came from, in words.
    """

    name: str
    image: np.ndarray
    record: CamRecord
    truth: np.ndarray | None
    source: str


def look_at(run: TrainedRun, photo: Path | None, data: Path | None = None, overwrite: bool = False) -> Look:
    """What the run says about a photo, from its cache where it holds the photo.

    A photo of the run's dataset has its true image-level labels; for any other the classes that
    the network finds are taken.

    Args:
        photo: None takes the first photo of the run's validation split, or of that of training where there is none.

    Raises:
        DataError: the photo cannot be read.
    """
    if photo is None:
        split = shown_split(run, data)
        return next(look_at_samples(run, split, split.samples[:1], overwrite))
    return look_at_all(run, [photo], data, overwrite)[0]


def look_at_all(run: TrainedRun, photos: Sequence[Path], data: Path | None, overwrite: bool = False) -> list[Look]:
    """`look_at` for several photos; each split is loaded once."""
    looks: list[Look] = []
    for photo, located in zip(photos, _find_samples(run, photos, data), strict=True):
        if located is not None:
            split, sample = located
            looks += look_at_samples(run, split, [sample], overwrite)
            continue
        image = _named_photo(photo)
        labels = likely_labels(run, image)
        names = ", ".join(run.architecture.classes[c] for c in labels) or "none"
        source = f"not a photo of the run's dataset: classes found by the network ({names})"
        small = reduce_image(image, run.preset.cam.max_pixels)
        looks.append(Look(photo.stem, small, cam_record(run, image, labels), None, source))
    return looks


def look_at_samples(
    run: TrainedRun, split: Split, samples: Sequence[Sample], overwrite: bool = False
) -> Iterator[Look]:
    """What the run says about photos of a split, with their true image-level labels, by way of the run's cache."""
    for sample in samples:
        image = read_image(sample.image_path)
        with open_cam_cache(run, split, overwrite) as cache:
            record, passed = record_of(run, cache, sample, image)
        names = ", ".join(split.classes[c] for c in sample.labels) or "none"
        how = "one forward pass, kept in" if passed else "no forward pass, read from"
        image = reduce_image(image, run.preset.cam.max_pixels)
        truth = enlarge_mask(split.masks.read(sample), image.shape[:2]) if split.masks else None
        source = f"{how} {cache.path.name}; image-level labels: {names}"
        yield Look(sample.image_path.stem, image, record, truth, source)


def _named_photo(photo: Path) -> np.ndarray:
    """A photo that the call names, which may not be there."""
    if not photo.is_file():
        raise MissingDataError(f"{photo}: expected a photo, found {'a folder' if photo.is_dir() else 'nothing'}")
    return read_image(photo)


def _find_samples(run: TrainedRun, photos: Sequence[Path], data: Path | None) -> list[tuple[Split, Sample] | None]:
    """Each photo in the run's dataset, if it is one of it."""
    settings = run.preset.data
    if data is not None:
        require_dataset(settings.name, data)
    samples: dict[Path, tuple[Split, Sample]] = {}
    wanted = {photo.resolve() for photo in photos}
    names = {photo.name for photo in photos}
    for name in (settings.val_split, settings.train_split):
        if len(samples) == len(wanted):
            break
        try:
            split = load_split(settings.name, settings.folder(data), name, settings.labels)
        except AfactlError:
            continue  # the dataset is not at hand: any photo can still be looked at
        for sample in split.samples:
            if sample.image_path.name in names and (path := sample.image_path.resolve()) in wanted:
                samples.setdefault(path, (split, sample))
    return [samples.get(photo.resolve()) for photo in photos]


def first_photos(run: TrainedRun, data: Path | None, count: int) -> list[Path]:
    """The first photos of the run's validation split, or of that of training where there is none."""
    return [sample.image_path for sample in shown_split(run, data).samples[:count]]


def shown_split(run: TrainedRun, data: Path | None) -> Split:
    """The validation split; own photos need none set aside, and then it is that of training."""
    settings = run.preset.data
    try:
        return open_split(run, settings.val_split, data, masks=False)
    except DataError:
        if not is_missing(settings.name, settings.folder(data), settings.val_split):
            raise
    return open_split(run, settings.train_split, data, masks=False)


class Attended(NamedTuple):
    """Whose attention `draw_attention` draws.

    Attributes:
        queries: pixels (x, y) of the upright photo; none takes its centre.
        heads: (layer, head) counted from 1, whose attention is drawn in place of the mean; head None:
            the mean over that layer. Layers are the last blocks, the last one has the highest number.
        compared: a run without AFA, drawn beside it.
    """

    queries: Sequence[tuple[int, int]] = ()
    heads: tuple[int, int | None] | None = None
    compared: TrainedRun | None = None


def draw_attention(
    run: TrainedRun,
    photo: Path | None,
    attended: Attended,
    data: Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
    palette: str = "safe",
) -> Drawn:
    """Fig. 1, 4, 11, 13: a row per query point with MHSA, learned affinity, CAM and pseudo labels.

    Args:
        photo: as in `look_at`.
        out: file to write, .png, .svg or .pdf; None writes into the run's figures folder.

    Raises:
        UsageError: a query outside the photo, no such layer or head, or `out` cannot be written.
        DataError: the photo cannot be read.
    """
    if photo is None:
        photo = first_photos(run, data, 1)[0]
    height, width = _named_photo(photo).shape[:2]
    queries = list(attended.queries) or [(width // 2, height // 2)]
    for query in queries:  # before any work
        query_token(query, (height, width), (1, 1))
    heads, compared = attended.heads, attended.compared
    title, chosen = choose_heads(run, heads)
    look = look_at(run, photo, data, overwrite)
    size = (look.image.shape[0], look.image.shape[1])
    queries = [(x * size[1] // width, y * size[0] // height) for x, y in queries]
    maps = query_maps(run, look.image, queries, chosen)
    names = table3_rows(run.preset)
    labels = pseudo_labels_of(look.image, look.record, run.preset, run.device)[:, 1]
    end = row_ends(run.preset)[1]
    mine = [(f"{name}{end}", label) for name, label in zip(names, labels, strict=True) if name in SHOWN_ROWS]
    if compared is not None:
        other = look_at(compared, photo, data, overwrite)
        theirs = query_maps(compared, look.image, queries, chosen).attention
        label = pseudo_labels_of(other.image, other.record, compared.preset, compared.device)[0, 1]
        mine.insert(0, (f"{WITHOUT_AFA}{row_ends(compared.preset)[1]}", enlarge_mask(label, size)))
    rows: list[tuple[np.ndarray, tuple[int, int] | None, Sequence[tuple[str, Content]]]] = []
    for number, query in enumerate(queries):
        columns = [("photo and query", look.image)]
        if compared is not None:
            columns.append((f"{title}, {WITHOUT_AFA}", resize_map(theirs[number], size)))
        columns += [
            (title, resize_map(maps.attention[number], size)),
            *([("learned affinity", resize_map(maps.affinity[number], size))] if run.preset.affinity.enabled else []),
            ("CAM", foreground(look.record)),
            *mine,
        ]
        rows.append((look.image, query, columns))
    figure = panel(rows, run.architecture.classes, PALETTES[palette]())
    return Drawn(save_figure(figure, out or run.folder / "figures" / f"attention-{look.name}.png"), look.source)


def choose_heads(run: TrainedRun, heads: tuple[int, int | None] | None) -> tuple[str, slice | None]:
    """A title, and which of the backbone's n heads to average; None: all of them.

    Raises:
        UsageError: no such layer or head.
    """
    if heads is None:
        return "MHSA (mean of heads)", None
    (layer, head), layers = heads, run.model.backbone.attention_layers
    per_layer = run.model.backbone.attention_heads // layers
    if not 1 <= layer <= layers:
        raise UsageError(f"--layer: expected 1..{layers} (the last blocks, {layers} is the last one), got {layer}")
    if head is not None and not 1 <= head <= per_layer:
        raise UsageError(f"--head: expected 1..{per_layer}, got {head}")
    start = (layer - 1) * per_layer
    if head is None:
        return f"MHSA (layer {layer})", slice(start, start + per_layer)
    return f"MHSA (layer {layer}, head {head})", slice(start + head - 1, start + head)


def foreground(record: CamRecord) -> np.ndarray:
    """h x w float32: the largest CAM of the present classes."""
    largest: np.ndarray = record.cam.astype(np.float32).max(axis=0, initial=0.0)
    return largest


def draw_heads(run: TrainedRun, out: Path | None = None) -> Drawn:
    """Fig. 14: the learned weight of each head.

    Raises:
        UsageError: the run was trained without the affinity branch, or `out` cannot be written.
    """
    if not run.preset.affinity.enabled:
        raise UsageError(f"{run.folder}: trained without the affinity branch, so its heads have no learned weights")
    head = run.model.affinity_head
    weights = head.weight.detach().cpu().numpy().reshape(run.model.backbone.attention_layers, -1)
    figure = head_chart(weights, head.bias.item())
    return Drawn(save_figure(figure, out or run.folder / "figures" / "heads.png"), f"step {run.iteration}")


def draw_sweep(run: TrainedRun, sweep: Sweep) -> Path:
    """Draw the curves of a sweep into the run's figures folder, of rows as they are and refined."""
    marks = {row: preset_threshold(run.preset, row) for row in table3_rows(run.preset)}
    panels = {
        f"{sweep.split}, {'with' if end else 'without'}{sweep.ends[1].removeprefix(' +')}": {
            row: sweep.miou[f"{row}{end}"].tolist() for row in marks
        }
        for end in sweep.ends
    }
    figure = threshold_chart(sweep.thresholds, panels, marks)
    return save_figure(figure, run.folder / "figures" / f"sweep-{sweep.split}.png")


def draw_cams(
    run: TrainedRun,
    photos: Sequence[Path],
    data: Path | None = None,
    out: Path | None = None,
    palette: str = "safe",
    without_afa: TrainedRun | None = None,
) -> Drawn:
    """Fig. 2 and 9: the CAM of a run without AFA, the CAM, and the CAM spread by MHSA and by the learned affinity.

    Args:
        photos: one row each.

    Raises:
        UsageError: `out` cannot be written. DataError: a photo cannot be read.
    """
    rows = []
    others = look_at_all(without_afa, photos, data) if without_afa is not None else []
    for number, look in enumerate(look_at_all(run, photos, data)):
        columns: list[tuple[str, Content]] = [("photo", look.image)]
        if others:
            columns.append((f"CAM, {WITHOUT_AFA}", foreground(others[number].record)))
        columns.append(("CAM", foreground(look.record)))
        columns.append(("spread by MHSA", _spread(run, look, look.record.log_attention(run.device))))
        if run.preset.affinity.enabled:
            columns.append(("spread by affinity", _spread(run, look, look.record.log_affinity(run.device))))
        if look.truth is not None:
            columns.append((TRUTH, look.truth))
        rows.append((look.image, None, columns))
    complete = [row for row in rows if len(row[2]) == max(len(row[2]) for row in rows)]
    if len(complete) < len(rows):  # photos with a true mask beside others without: none shows it
        rows = [(image, query, [cell for cell in cells if cell[0] != TRUTH]) for image, query, cells in rows]
    figure = panel(rows, run.architecture.classes, PALETTES[palette]())
    return Drawn(save_figure(figure, out or run.folder / "figures" / "cams.png"), counted(len(rows), "photo"))


def _spread(run: TrainedRun, look: Look, logarithm: torch.Tensor) -> np.ndarray:
    """h x w: the largest foreground plane after the random walk with an affinity, given by its logarithm."""
    cam = torch.from_numpy(look.record.cam).float().to(run.device)
    size = look.image.shape[:2]
    if len(cam) == 0:
        return np.zeros(size, np.float32)
    planes = propagate(cam, logarithm, (run.preset.affinity.background,), Walk(**run.preset.walk_settings()))
    return resize_map(planes[0, 1:].amax(0).cpu().numpy(), size)


def draw_refiners(
    run: TrainedRun,
    photo: Path | None,
    data: Path | None = None,
    out: Path | None = None,
    palette: str = "safe",
    animation: Path | None = None,
) -> Drawn:
    """Fig. 5 and 10: labels of the CAM before and after each refiner, and after more and more iterations of PAR.

    Args:
        photo: as in `look_at`. animation: a GIF of the iterations to write as well.

    Raises:
        UsageError: a file cannot be written. DataError: the photo cannot be read.
    """
    look = look_at(run, photo, data)
    cam = torch.from_numpy(look.record.cam).float().to(run.device)
    classes = torch.from_numpy(look.record.classes).to(run.device)
    pixels, threshold = to_tensor(look.image, run.device)[0], run.preset.cam.background

    def refined(name: str, **changes: object) -> np.ndarray:
        refine = preset_refiner(run.preset, name, **changes)
        return refine_cam(pixels, cam, classes, (threshold,), refine)[0].cpu().numpy()

    cut = cut_cam(cam, classes, threshold).cpu().numpy()
    compared: list[tuple[str, Content]] = [
        ("photo", look.image),
        ("CAM", foreground(look.record)),
        ("CAM, cut", cut),
        ("PAMR", refined("pamr")),
        ("dense CRF", refined("crf")),
        ("PAR", refined("par")),
        (TRUTH, look.truth) if look.truth is not None else ("PAR, w/o position", refined("par", w3=0.0)),
    ]
    own = run.preset.cam.refiner
    if own in REFINERS.others():
        compared.insert(-1, (refiner_title(own), refined(own)))
    steps = {count: refined("par", iterations=count) if count else cut for count in ITERATIONS}
    moves = [(f"PAR, {count} iteration{'s' * (count != 1)}", label) for count, label in steps.items()]
    figure = panel(
        [(look.image, None, compared), (look.image, None, moves)], run.architecture.classes, PALETTES[palette]()
    )
    target = save_figure(figure, out or run.folder / "figures" / f"par-{look.name}.png")
    if animation is not None:
        labels = [
            steps[count] if count in steps else refined("par", iterations=count) for count in range(max(ITERATIONS) + 1)
        ]
        _save_animation([overlay(look.image, label, PALETTES[palette]()) for label in labels], animation)
    return Drawn(target, look.source)


def _save_animation(frames: Sequence[np.ndarray], target: Path) -> None:
    from PIL import Image

    pictures = [Image.fromarray(frame) for frame in frames]
    with writing(f"--gif {target}", "give another file"), whole_file(target) as fresh:
        pictures[0].save(fresh, format="GIF", save_all=True, append_images=pictures[1:], duration=250, loop=0)


def draw_examples(
    run: TrainedRun, split: Split, samples: Sequence[Sample], scores: Sequence[float], out: Path, palette: str = "safe"
) -> Path:
    """Fig. 6 and 12: photo, truth and segmentation (multi-scale + flip) of some samples, with their mIoU.

    Args:
        scores: mIoU in per cent of each sample.

    Raises:
        UsageError: `out` cannot be written.
    """
    colors, cells, masks = PALETTES[palette](), [], split.require_masks()
    for sample, score in zip(samples, scores, strict=True):
        image = read_image(sample.image_path)
        small = reduce_image(image, SHEET_PIXELS)
        shown = [
            overlay(small, enlarge_mask(mask, small.shape[:2]), colors, classes=split.classes)
            for mask in (masks.read(sample), photo_mask(run, image))
        ]
        cells += [(sample.image_id, small), (TRUTH, shown[0]), (f"mIoU {score:.1f} %", shown[1])]
    return save_figure(picture_grid(cells, columns=6 if len(samples) > 1 else 3), out)


def draw_ranked(
    run: TrainedRun, split: Split, scores: np.ndarray, which: str, count: int, palette: str = "safe"
) -> Path:
    """Draw some samples into the run's figures folder by their score.

    Args:
        scores: mIoU in per cent of each sample; NaN ones are left out.
        which: "worst", or "examples": evenly from the worst to the best.
    """
    order = np.argsort(scores, kind="stable")[: int(np.isfinite(scores).sum())]
    places = (
        range(min(count, len(order)))
        if which == "worst"
        else np.linspace(0, len(order) - 1, min(count, len(order))).round().astype(int)
    )
    chosen = [int(order[place]) for place in places]
    target = run.folder / "figures" / f"{which}-{split.name}.png"
    return draw_examples(
        run, split, [split.samples[i] for i in chosen], [float(scores[i]) for i in chosen], target, palette
    )


def draw_contact_sheet(split: Split, out: Path, count: int = 24, seed: int = 0, palette: str = "safe") -> int:
    """Write one picture with photos of a split: their label names, and their masks where there are any.

    Args:
        out: a .png, .svg or .pdf file. count: how many photos. seed: which ones.

    Returns:
        How many photos are on it.

    Raises:
        UsageError: `out` cannot be written. DataError: a photo or mask cannot be read.
    """
    order = np.random.default_rng(seed).permutation(len(split.samples))[:count]
    samples = [split.samples[number] for number in sorted(order)]
    cells = []
    for sample in samples:
        image = reduce_image(read_image(sample.image_path), SHEET_PIXELS)
        if split.masks is not None:
            image = overlay(image, enlarge_mask(split.masks.read(sample), image.shape[:2]), PALETTES[palette]())
        names = ", ".join(split.classes[label] for label in sample.labels) or "none"
        cells.append((f"{sample.image_id}\n{names}", image))
    save_figure(picture_grid(cells), out)
    return len(cells)


def save_figure(figure: Figure, target: Path) -> Path:
    """Write a figure whole or not at all.

    Raises:
        UsageError: `target` cannot be written; names it as --out.
    """
    # matplotlib raises a ValueError for a suffix that it does not know.
    advice = "give another .png, .svg or .pdf file"
    with writing(f"--out {target}", advice, also=(ValueError,)), whole_file(target) as fresh:
        figure.savefig(fresh, dpi=150, format=target.suffix.removeprefix(".").lower() or "png")
    return target
