"""Pictures: overlays, contact sheets and the attention panel of Fig. 1, 4 and 11."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image

from afactl.datasets.images import IGNORE, enlarge_mask, read_image, reduce_image, voc_palette
from afactl.datasets.registry import load_split
from afactl.datasets.samples import Sample, Split
from afactl.errors import AfactlError, UsageError
from afactl.evaluation import TABLE3_ROWS, WITH_AFFINITY, WITHOUT_PROPAGATION, pseudo_labels_of
from afactl.inference import (
    CamRecord,
    TrainedRun,
    cam_record,
    likely_labels,
    open_cam_cache,
    open_split,
    record_of,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAP_COLORS = "magma"
# Photos on a contact sheet are no larger than this.
SHEET_PIXELS = 300 * 300


class AttentionFigure(NamedTuple):
    """What `draw_attention` made: the file, and where maps and labels came from, in words."""

    file: Path
    source: str


def draw_attention(
    run: TrainedRun,
    photo: Path | None,
    queries: Sequence[tuple[int, int]],
    data: Path | None = None,
    out: Path | None = None,
    overwrite: bool = False,
) -> AttentionFigure:
    """Draw the panel of a photo, from the run's cache where it holds the photo.

    A photo of the run's dataset has its true image-level labels; for any other the classes that
    the network finds are taken.

    Args:
        photo: None takes the first photo of the run's validation split.
        queries: pixels (x, y) of the photo as stored; none takes its centre.
        out: file to write, .png, .svg or .pdf; None writes into the run's figures folder.

    Raises:
        UsageError: a query outside the photo, or `out` cannot be written.
        DataError: the photo cannot be read.
    """
    located = _find_sample(run, photo, data)
    path = located[1].image if located else photo
    image = read_image(path)
    height, width = image.shape[:2]
    queries = list(queries) or [(width // 2, height // 2)]
    for query in queries:  # before any work
        query_token(query, (height, width), (1, 1))
    record, source = _record(run, located, image, overwrite)
    labels = pseudo_labels_of(image, record, run.preset, run.device)
    with_par = {name: labels[row, 1] for row, name in enumerate(TABLE3_ROWS)}
    shown = [(f"{name} + PAR", with_par[name]) for name in (WITHOUT_PROPAGATION, WITH_AFFINITY)]
    cam = record.cam.astype(np.float32).max(axis=0, initial=0.0)
    figure = attention_panel(
        image, queries, record.attention.astype(np.float32), record.affinity.astype(np.float32), record.grid,
        cam, shown, run.architecture.classes,
    )  # fmt: skip
    target = out or run.folder / "figures" / f"attention-{path.stem}.png"
    _save(figure, target)
    return AttentionFigure(target, source)


def _save(figure: Figure, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(target, dpi=150)
    except (OSError, ValueError) as error:
        raise UsageError(f"--out {target}: cannot be written ({error}); give a .png, .svg or .pdf file") from error


def draw_contact_sheet(split: Split, out: Path, count: int = 24, seed: int = 0) -> int:
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
        image = reduce_image(read_image(sample.image), SHEET_PIXELS)
        if split.read_mask is not None:
            image = overlay(image, enlarge_mask(split.read_mask(sample), image.shape[:2]))
        names = ", ".join(split.classes[label] for label in sample.labels) or "none"
        cells.append((f"{sample.image_id}\n{names}", image))
    _save(picture_grid(cells), out)
    return len(cells)


def picture_grid(cells: Sequence[tuple[str, np.ndarray]], columns: int = 6) -> Figure:
    """Pictures (h x w x 3 uint8) with a title each, row by row."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(columns, len(cells))
    rows = -(-len(cells) // columns)
    figure = Figure(figsize=(2.2 * columns, 2.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, columns, squeeze=False).ravel()
    for axis in axes:
        axis.set_axis_off()
    for axis, (title, image) in zip(axes, cells, strict=False):
        axis.imshow(image)
        axis.set_title(title, fontsize=7, parse_math=False)
    return figure


def _find_sample(run: TrainedRun, photo: Path | None, data: Path | None) -> tuple[Split, Sample] | None:
    """The photo in the run's dataset, if it is one of it."""
    names = (run.preset.data.val_split, run.preset.data.train_split)
    if photo is None:
        split = open_split(run, names[0], data, masks=False)
        return split, split.samples[0]
    root = data or (Path(run.preset.data.root) if run.preset.data.root else None)
    for name in names:
        try:
            split = load_split(run.preset.data.name, root, name)
        except AfactlError:
            continue  # the dataset is not at hand: any photo can still be looked at
        for sample in split.samples:
            if sample.image.name == photo.name and sample.image.resolve() == photo.resolve():
                return split, sample
    return None


def _record(
    run: TrainedRun, located: tuple[Split, Sample] | None, image: np.ndarray, overwrite: bool
) -> tuple[CamRecord, str]:
    if located is None:
        found = likely_labels(run, image)
        names = ", ".join(run.architecture.classes[c] for c in found) or "none"
        return cam_record(run, image, found), f"not a photo of the run's dataset: classes found by the network ({names})"
    split, sample = located
    with open_cam_cache(run, split, overwrite) as cache:
        record, passed = record_of(run, cache, sample, image)
    names = ", ".join(split.classes[c] for c in sample.labels) or "none"
    how = "one forward pass, kept in" if passed else "no forward pass, read from"
    return record, f"{how} {cache.path.name}; image-level labels: {names}"


def query_token(query: tuple[int, int], size: tuple[int, int], grid: tuple[int, int]) -> int:
    """Index of the token that covers a pixel.

    Args:
        query: (x, y) in pixels of the photo as stored. size: (h, w) of it. grid: (hs, ws).

    Raises:
        UsageError: the pixel lies outside; names the size.
    """
    (x, y), (height, width) = query, size
    if not (0 <= x < width and 0 <= y < height):
        raise UsageError(f"--query {x},{y}: outside the photo, which is {width} x {height} pixels (x < {width}, y < {height})")
    return (y * grid[0] // height) * grid[1] + x * grid[1] // width


def parse_query(text: str) -> tuple[int, int]:
    """`"32,40"` -> (32, 40).

    Raises:
        UsageError: not two whole numbers.
    """
    parts = text.split(",")
    try:
        x, y = (int(part) for part in parts)
    except ValueError as error:
        raise UsageError(f'--query: expected X,Y in pixels, such as 32,40, got "{text}"') from error
    return x, y


def resize_map(values: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """hs x ws floats, smoothly (bicubic) to (h, w), within the range of the given values."""
    picture = Image.fromarray(values.astype(np.float32), mode="F")
    smooth = np.asarray(picture.resize((size[1], size[0]), Image.Resampling.BICUBIC))
    return smooth.clip(values.min(), values.max())  # bicubic overshoots


def overlay(image: np.ndarray, mask: np.ndarray, opacity: float = 0.6) -> np.ndarray:
    """The photo with its mask's colours over it; background stays the photo, 255 becomes pale.

    Args:
        image: h x w x 3 uint8. mask: h x w uint8. opacity: of the colours.

    Returns:
        h x w x 3 uint8.
    """
    colors = voc_palette()[mask].astype(np.float32)
    weight = np.where(mask == 0, 0.0, opacity)[..., None]
    return (image * (1 - weight) + colors * weight).round().astype(np.uint8)


def attention_panel(
    image: np.ndarray,
    queries: Sequence[tuple[int, int]],
    attention: np.ndarray,
    affinity: np.ndarray,
    grid: tuple[int, int],
    cam: np.ndarray,
    labels: Sequence[tuple[str, np.ndarray]],
    classes: Sequence[str],
) -> Figure:
    """One row per query: photo with a star, MHSA map, affinity map, CAM, pseudo labels.

    Args:
        image: h x w x 3 uint8.
        queries: pixels (x, y) of the photo.
        attention, affinity: N x N on `grid` = (hs, ws); the row of the query's token is drawn.
        cam: h x w in [0, 1], largest of the present classes.
        labels: (title, h x w uint8) of each pseudo label.
        classes: names of the foreground classes, for the legend.

    Raises:
        UsageError: a query lies outside the photo.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    size = image.shape[:2]
    tokens = [query_token(query, size, grid) for query in queries]
    titles = ["photo and query", "MHSA (mean of heads)", "learned affinity", "CAM"] + [title for title, _ in labels]
    cell = 2.4
    height = cell * size[0] / size[1]
    figure = Figure(figsize=(cell * len(titles), (height + 0.4) * len(queries) + 0.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(queries), len(titles), squeeze=False)
    for row, (query, token) in enumerate(zip(queries, tokens, strict=True)):
        axes[row, 0].imshow(image)
        _draw_map(figure, axes[row, 1], image, resize_map(attention[token].reshape(grid), size))
        _draw_map(figure, axes[row, 2], image, resize_map(affinity[token].reshape(grid), size))
        _draw_map(figure, axes[row, 3], image, cam)
        for column, (_, label) in enumerate(labels, start=4):
            axes[row, column].imshow(overlay(image, label, opacity=0.75))
        for column, title in enumerate(titles):
            axis = axes[row, column]
            axis.plot(*query, marker="*", markersize=13, color="#ffd400", markeredgecolor="black", clip_on=False)
            axis.set_axis_off()
            if row == 0:
                axis.set_title(title, fontsize=9)
    present = sorted({int(value) for _, label in labels for value in np.unique(label)} - {0})
    names = {value: "ignored" if value == IGNORE else classes[value - 1] for value in present}
    patches = [Patch(color=voc_palette()[value] / 255, label=name) for value, name in names.items()]
    if patches:
        figure.legend(handles=patches, loc="outside lower right", ncols=6, fontsize=8, frameon=False)
    return figure


def _draw_map(figure: Figure, axis: Axes, image: np.ndarray, values: np.ndarray) -> None:
    """A map over the grey photo, with its range."""
    axis.imshow(image.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    drawn = axis.imshow(values, cmap=MAP_COLORS, alpha=0.72)
    # An inset, so that pictures with and without a range have the same size.
    bar = figure.colorbar(drawn, cax=axis.inset_axes((0, -0.08, 1, 0.045)), orientation="horizontal")
    low, high = float(values.min()), float(values.max())
    bar.set_ticks([low, high] if high > low else [low], labels=[f"{low:.2g}", f"{high:.2g}"][: 2 if high > low else 1])
    bar.ax.tick_params(labelsize=7, length=2)
